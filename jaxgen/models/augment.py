"""Differentiable augmentation (Zhao et al. 2020, arXiv 2006.10738)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from jaxgen.errors import UserError

Images = Float[Array, "b h w c"]
TRANSLATION = 1 / 8
CUTOUT = 1 / 5


def diffaug(key: PRNGKeyArray, image: Images, policy: tuple[str, ...]) -> Images:
    """Images in [-1, 1], each changed by its own draw, as `policy` says, in order.

    `color`: brightness ±0.5, saturation 0 to 2, contrast 0.5 to 1.5. `translation`: by up to an
    eighth of the side, 0 (mid-grey) moving in. `cutout`: a square of a fifth of the side is 0.
    Raises UserError for an unknown augmentation.
    """
    known = {"color": _color, "translation": _translation, "cutout": _cutout}
    for number, name in enumerate(policy):
        if name not in known:
            raise UserError(f"augmentation {name!r} is unknown; choose from {', '.join(known)}")
        image = known[name](jax.random.fold_in(key, number), image)
    return image


def _color(key: PRNGKeyArray, image: Images) -> Images:
    brightness, saturation, contrast = jax.random.uniform(key, (3, len(image), 1, 1, 1))
    image = image + (brightness - 0.5)
    grey = image.mean(3, keepdims=True)
    image = (image - grey) * (saturation * 2) + grey
    mean = image.mean((1, 2, 3), keepdims=True)
    return (image - mean) * (contrast + 0.5) + mean


def _translation(key: PRNGKeyArray, image: Images) -> Images:
    b, h, w, _ = image.shape
    row_key, column_key = jax.random.split(key)
    # A shift by d is a product with a matrix of ones at i = j + d: no gather, exact, linear.
    image = jnp.einsum("bij,bjwc->biwc", _shift(row_key, b, h, image.dtype), image)
    return jnp.einsum("bij,bhjc->bhic", _shift(column_key, b, w, image.dtype), image)


def _shift(key: PRNGKeyArray, b: int, n: int, dtype: jnp.dtype) -> Float[Array, "b n n"]:
    reach = int(n * TRANSLATION + 0.5)
    by = jax.random.randint(key, (b, 1, 1), -reach, reach + 1)
    at = jnp.arange(n)
    return (at[:, None] == at[None, :] + by).astype(dtype)


def _cutout(key: PRNGKeyArray, image: Images) -> Images:
    b, h, w, _ = image.shape
    row_key, column_key = jax.random.split(key)
    hole = _band(row_key, b, h)[:, :, None] & _band(column_key, b, w)[:, None, :]
    return jnp.where(hole[..., None], 0.0, image)


def _band(key: PRNGKeyArray, b: int, n: int) -> Bool[Array, "b n"]:
    """True on a run of a fifth of n, centred anywhere."""
    length = int(n * CUTOUT + 0.5)
    centre = jax.random.randint(key, (b, 1), 0, n + 1 - length % 2)
    offset = jnp.arange(n) - (centre - length // 2)
    return (offset >= 0) & (offset < length)
