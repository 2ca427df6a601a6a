"""What is done to images before a network judges them: augmentation (Zhao et al. 2020), resizing.

Every image has draws of its own, which depend on the key and on its place in the batch and on
nothing else: not on the batch's size, nor on how it is sharded.
"""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgen.errors import UserError

_TRANSLATION = 0.125  # largest shift, as a part of the side
_CUTOUT = 0.2  # side of the blanked square, as a part of the image's (StyleGAN-T; Zhao: .5)


def diffaug(
    key: PRNGKeyArray, image: Float[Array, "b h w c"], policy: tuple[str, ...]
) -> Float[Array, "b h w c"]:
    """DiffAugment of images in [-1, 1], differentiable, the named policies in the order given.

    color: brightness, saturation, contrast. translation: by up to an eighth of the side, what
    comes in is 0 (grey). cutout: a square of a fifth of the side becomes 0. Values may leave
    [-1, 1]. Raises `UserError` for a policy that does not exist.
    """
    for index, name in enumerate(policy):
        if name not in POLICIES:
            raise UserError(f"augmentation {name!r} is unknown: choose from {', '.join(POLICIES)}.")
        image = POLICIES[name](jax.random.fold_in(key, index), image)
    return image


def resize_area(image: Float[Array, "b h w c"], side: int) -> Float[Array, "b side side c"]:
    """Each new pixel is the mean of the old ones that it touches (PyTorch's `area`)."""
    _, h, w, _ = image.shape
    rows, columns = _touched(h, side), _touched(w, side)
    exact = jax.lax.Precision.HIGHEST
    image = jnp.einsum("ih,bhwc->biwc", rows, image, precision=exact)
    return jnp.einsum("jw,biwc->bijc", columns, image, precision=exact)


def _color(key, image):
    draws = jax.random.uniform(key, (image.shape[0], 3), image.dtype)
    brightness, saturation, contrast = rearrange(draws, "b draw -> draw b 1 1 1")
    image = image + (brightness - 0.5)
    grey = reduce(image, "b h w c -> b h w 1", "mean")
    image = (image - grey) * (2.0 * saturation) + grey
    grey = reduce(image, "b h w c -> b 1 1 1", "mean")
    return (image - grey) * (contrast + 0.5) + grey


def _translation(key, image):
    b, h, w, _ = image.shape
    # Products with 0 and 1 move pixels exactly, and their gradient is no scatter.
    rows = _moved(key, b, h, image.dtype, axis=0)
    columns = _moved(key, b, w, image.dtype, axis=1)
    exact = jax.lax.Precision.HIGHEST
    image = jnp.einsum("bih,bhwc->biwc", rows, image, precision=exact)
    return jnp.einsum("bjw,biwc->bijc", columns, image, precision=exact)


def _moved(key, b: int, side: int, dtype, axis: int):
    most = _part(side, _TRANSLATION)
    shift = jax.random.randint(jax.random.fold_in(key, axis), (b, 1, 1), -most, most + 1)
    old, new = jnp.arange(side), rearrange(jnp.arange(side), "new -> new 1")
    return (old + shift == new).astype(dtype)


def _cutout(key, image):
    b, h, w, _ = image.shape
    rows, columns = _blanked(key, b, h, axis=0), _blanked(key, b, w, axis=1)
    blank = rearrange(rows, "b h -> b h 1 1") & rearrange(columns, "b w -> b 1 w 1")
    return jnp.where(blank, jnp.zeros((), image.dtype), image)


def _blanked(key, b: int, side: int, axis: int):
    # Squares are cut off at the border, not moved inside it.
    size = _part(side, _CUTOUT)
    centre = jax.random.randint(jax.random.fold_in(key, axis), (b, 1), 0, side + 1 - size % 2)
    from_start = jnp.arange(side) - (centre - size // 2)
    return (from_start >= 0) & (from_start < size)


POLICIES = {"color": _color, "translation": _translation, "cutout": _cutout}


def _part(side: int, ratio: float) -> int:
    return int(side * ratio + 0.5)


def _touched(old: int, new: int) -> np.ndarray:
    """Row i holds the weights with which new pixel i averages the old ones."""
    i = np.arange(new)[:, None]
    first, last = i * old // new, -(-(i + 1) * old // new)
    touched = (np.arange(old) >= first) & (np.arange(old) < last)
    return (touched / touched.sum(axis=1, keepdims=True)).astype(np.float32)
