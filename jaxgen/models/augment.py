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
_TURN, _SCALE, _SHIFT = np.pi / 12, 0.2, 0.1  # of affine: radians; log of a factor; parts of a side
_NOISE = 1.0  # the most of its deviation
_CUTOUT = 0.2  # side of the blanked square, as a part of the image's (StyleGAN-T; Zhao: .5)


def diffaug(
    key: PRNGKeyArray, image: Float[Array, "b h w c"], policy: tuple[str, ...]
) -> Float[Array, "b h w c"]:
    """DiffAugment of images in [-1, 1], differentiable, the named policies in the order given.

    color: brightness, saturation, contrast. translation: by up to an eighth of the side, what
    comes in is 0 (grey). cutout: a square of a fifth of the side becomes 0. noise: Gaussian, its
    deviation uniform from 0 to 1 (Wang et al. 2023, arXiv 2206.02262: judged through noise, the
    modes of the real images run into each other, and fewer are forgotten). Two more are for
    classifiers: jitter, color but less of it; affine, turned by up to 15 degrees, each side scaled
    by up to a fifth, moved by up to a tenth, what comes in repeats the border. Values may
    leave [-1, 1]. Raises `UserError` for a policy that does not exist.
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
    return _toned(key, image, brightness=0.5, saturation=1.0, contrast=0.5)


def _jitter(key, image):
    return _toned(key, image, brightness=0.2, saturation=0.6, contrast=0.3)


def _toned(key, image, brightness: float, saturation: float, contrast: float):
    draws = jax.random.uniform(key, (image.shape[0], 3), image.dtype, -1.0, 1.0)
    brighter, stronger, harder = rearrange(draws, "b draw -> draw b 1 1 1")
    image = image + brightness * brighter
    grey = reduce(image, "b h w c -> b h w 1", "mean")
    image = (image - grey) * (1.0 + saturation * stronger) + grey
    grey = reduce(image, "b h w c -> b 1 1 1", "mean")
    return (image - grey) * (1.0 + contrast * harder) + grey


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


def _noise(key, image):
    level, drawn = jax.random.split(key)
    deviation = _NOISE * jax.random.uniform(level, (image.shape[0], 1, 1, 1), image.dtype)
    return image + deviation * jax.random.normal(drawn, image.shape, image.dtype)


def _affine(key, image):
    b, h, w, _ = image.shape
    draws = jax.random.uniform(key, (b, 5), image.dtype, -1.0, 1.0)
    turn, *scale_and_shift = rearrange(draws, "b draw -> draw b 1 1")
    scale_y, scale_x = (jnp.exp(_SCALE * draw) for draw in scale_and_shift[:2])
    shift_y, shift_x = (_SHIFT * draw for draw in scale_and_shift[2:])
    cos, sin = jnp.cos(_TURN * turn), jnp.sin(_TURN * turn)
    middle_y, middle_x = (h - 1) / 2, (w - 1) / 2
    y, x = jnp.meshgrid(jnp.arange(h) - middle_y, jnp.arange(w) - middle_x, indexing="ij")
    rows = (cos * y - sin * x) * scale_y + shift_y * h + middle_y
    columns = (sin * y + cos * x) * scale_x + shift_x * w + middle_x

    def channel(pixels, rows, columns):
        return jax.scipy.ndimage.map_coordinates(pixels, [rows, columns], 1, mode="nearest")

    channels = jax.vmap(channel, in_axes=(-1, None, None), out_axes=-1)
    return jax.vmap(channels)(image, rows, columns)


POLICIES = {
    "color": _color,
    "jitter": _jitter,
    "translation": _translation,
    "cutout": _cutout,
    "affine": _affine,
    "noise": _noise,
}


def _part(side: int, ratio: float) -> int:
    return int(side * ratio + 0.5)


def _touched(old: int, new: int) -> np.ndarray:
    """Row i holds the weights with which new pixel i averages the old ones."""
    i = np.arange(new)[:, None]
    first, last = i * old // new, -(-(i + 1) * old // new)
    touched = (np.arange(old) >= first) & (np.arange(old) < last)
    return (touched / touched.sum(axis=1, keepdims=True)).astype(np.float32)
