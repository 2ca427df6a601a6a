"""The resizes by which feature networks are known: a metric's value depends on which one it is.

All of them go straight to a square, whatever the shape of the image, and never round to integers.
"""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, UInt8


def bicubic(image: UInt8[Array, "b h w c"], size: int) -> Float[Array, "b size size c"]:
    """Pixels, 0 to 255, by Pillow's bicubic filter (a = -.5, antialiased), clipped, not rounded.

    What clean-fid calls clean (Parmar et al. 2022, arXiv 2104.11222), and CMMD's resize too.
    """
    b, _, _, c = image.shape
    resized = jax.image.resize(image.astype(jnp.float32), (b, size, size, c), "cubic")
    return jnp.clip(resized, 0.0, 255.0)


def bilinear_tf1(image: UInt8[Array, "b h w c"], size: int) -> Float[Array, "b size size c"]:
    """Pixels, 0 to 255, as TensorFlow 1's `resize_bilinear`, which the first FID code ran.

    Output pixel i lies at i·old/size, not at the middle of its share; not antialiased.
    """
    _, h, w, _ = image.shape
    x = image.astype(jnp.float32)
    low, high, part = _neighbours(h, size)
    part = rearrange(part, "y -> y 1 1")
    x = x[:, low] + (x[:, high] - x[:, low]) * part
    low, high, part = _neighbours(w, size)
    part = rearrange(part, "x -> x 1")
    return x[:, :, low] + (x[:, :, high] - x[:, :, low]) * part


def _neighbours(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each output pixel, the two input pixels around it and its way from one to the other."""
    at = np.arange(new, dtype=np.float32) * np.float32(old / new)
    low = at.astype(np.int32)
    return low, np.minimum(low + 1, old - 1), at - low
