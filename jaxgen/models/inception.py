"""Inception v3 (Szegedy et al. 2016, arXiv 1512.00567) as FID knows it: the 2015-12-05 graph.

For frozen weights: batch normalisation is already folded into the convolutions
(`jaxgen.weights.inception`). Modules carry the names of the published state dict.
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

Maps = Float[Array, "b h w c"]


class Inception(nn.Module):
    """The 2048 pooled features from pixels (x255 - 128) / 128 of 299 x 299 images."""

    @nn.compact
    def __call__(self, x: Float[Array, "b 299 299 3"]) -> Float[Array, "b 2048"]:
        x = _conv(x, "Conv2d_1a_3x3", 32, (3, 3), stride=2)
        x = _conv(x, "Conv2d_2a_3x3", 32, (3, 3), padding="VALID")
        x = _conv(x, "Conv2d_2b_3x3", 64, (3, 3))
        x = _halved(x)
        x = _conv(x, "Conv2d_3b_1x1", 80)
        x = _conv(x, "Conv2d_4a_3x3", 192, (3, 3), padding="VALID")
        x = _halved(x)
        for name, pooled in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
            x = InceptionA(pooled, name=name)(x)
        x = InceptionB(name="Mixed_6a")(x)
        for name, inner in (
            ("Mixed_6b", 128),
            ("Mixed_6c", 160),
            ("Mixed_6d", 160),
            ("Mixed_6e", 192),
        ):
            x = InceptionC(inner, name=name)(x)
        x = InceptionD(name="Mixed_7a")(x)
        x = InceptionE("mean", name="Mixed_7b")(x)
        x = InceptionE("max", name="Mixed_7c")(x)
        return x.mean((1, 2))


class InceptionA(nn.Module):
    """35 x 35: up to 5 x 5 (their figure 5)."""

    pooled: int

    @nn.compact
    def __call__(self, x: Maps) -> Maps:
        branches = [
            _conv(x, "branch1x1", 64),
            _chain(x, "branch5x5", (48, 1, 1), (64, 5, 5)),
            _chain(x, "branch3x3dbl", (64, 1, 1), (96, 3, 3), (96, 3, 3)),
            _conv(_mean(x), "branch_pool", self.pooled),
        ]
        return jnp.concatenate(branches, axis=-1)


class InceptionB(nn.Module):
    """From 35 x 35 to 17 x 17."""

    @nn.compact
    def __call__(self, x: Maps) -> Maps:
        double = _chain(x, "branch3x3dbl", (64, 1, 1), (96, 3, 3))
        branches = [
            _conv(x, "branch3x3", 384, (3, 3), stride=2),
            _conv(double, "branch3x3dbl_3", 96, (3, 3), stride=2),
            _halved(x),
        ]
        return jnp.concatenate(branches, axis=-1)


class InceptionC(nn.Module):
    """17 x 17: 7 x 7 as 1 x 7 and 7 x 1 (their figure 6)."""

    inner: int

    @nn.compact
    def __call__(self, x: Maps) -> Maps:
        n = self.inner
        double = (n, 1, 1), (n, 7, 1), (n, 1, 7), (n, 7, 1), (192, 1, 7)
        branches = [
            _conv(x, "branch1x1", 192),
            _chain(x, "branch7x7", (n, 1, 1), (n, 1, 7), (192, 7, 1)),
            _chain(x, "branch7x7dbl", *double),
            _conv(_mean(x), "branch_pool", 192),
        ]
        return jnp.concatenate(branches, axis=-1)


class InceptionD(nn.Module):
    """From 17 x 17 to 8 x 8."""

    @nn.compact
    def __call__(self, x: Maps) -> Maps:
        single = _chain(x, "branch3x3", (192, 1, 1))
        long = _chain(x, "branch7x7x3", (192, 1, 1), (192, 1, 7), (192, 7, 1))
        branches = [
            _conv(single, "branch3x3_2", 320, (3, 3), stride=2),
            _conv(long, "branch7x7x3_4", 192, (3, 3), stride=2),
            _halved(x),
        ]
        return jnp.concatenate(branches, axis=-1)


class InceptionE(nn.Module):
    """8 x 8: widened by 1 x 3 beside 3 x 1 (their figure 7).

    The graph of 2015-12-05 pools the last block's fourth branch by its maximum, by mistake or not.
    """

    pool: str

    @nn.compact
    def __call__(self, x: Maps) -> Maps:
        single = _conv(x, "branch3x3_1", 384)
        double = _chain(x, "branch3x3dbl", (448, 1, 1), (384, 3, 3))
        around = _mean(x) if self.pool == "mean" else nn.max_pool(x, (3, 3), padding="SAME")
        branches = [
            _conv(x, "branch1x1", 320),
            _conv(single, "branch3x3_2a", 384, (1, 3)),
            _conv(single, "branch3x3_2b", 384, (3, 1)),
            _conv(double, "branch3x3dbl_3a", 384, (1, 3)),
            _conv(double, "branch3x3dbl_3b", 384, (3, 1)),
            _conv(around, "branch_pool", 192),
        ]
        return jnp.concatenate(branches, axis=-1)


def _conv(
    x: Maps,
    name: str,
    channels: int,
    kernel: tuple[int, int] = (1, 1),
    stride: int = 1,
    padding: str = "SAME",
) -> Maps:
    """A convolution, then ReLU; those with a stride are never padded."""
    padding = padding if stride == 1 else "VALID"
    return nn.relu(nn.Conv(channels, kernel, stride, padding, name=name)(x))


def _chain(x: Maps, name: str, *layers: tuple[int, int, int]) -> Maps:
    """Convolutions one after another, `name`_1, `name`_2, …, each of (channels, height, width)."""
    for number, (channels, height, width) in enumerate(layers, 1):
        x = _conv(x, f"{name}_{number}", channels, (height, width))
    return x


def _halved(x: Maps) -> Maps:
    return nn.max_pool(x, (3, 3), (2, 2))


def _mean(x: Maps) -> Maps:
    """3 x 3 means, over what lies inside the map only."""
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)
