"""Pixels are uint8 RGB, 0 to 255, in files and batches, and float32 in [-1, 1] in networks."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, UInt8


def to_unit(image: UInt8[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
    """File pixels, uint8 in [0, 255], as network pixels, float32 in [-1, 1]."""
    return image.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(image: Float[Array, "*b h w c"]) -> UInt8[Array, "*b h w c"]:
    """Network pixels in [-1, 1] (values outside are clipped) as file pixels, uint8, rounded."""
    return jnp.round((jnp.clip(image, -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)


def mirrored(
    key: PRNGKeyArray,
    image: Float[Array, "b h w c"],
    mirror_image: Float[Array, "b h w c"] | None = None,
) -> Float[Array, "b h w c"]:
    """Images of which one half, drawn one by one, is mirrored left to right.

    Where an image's code stands in its place, that of the mirror image must be given.
    """
    mirror = jax.random.bernoulli(key, 0.5, (len(image), 1, 1, 1))
    return jnp.where(mirror, image[:, :, ::-1] if mirror_image is None else mirror_image, image)
