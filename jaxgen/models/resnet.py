"""A small residual network for classification (He et al. 2016), pre-activation, GroupNorm."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """The shape of a classifier. One entry a level in `widths`, finest first."""

    classes: int = 0
    """Classes: those of the data, filled in when it is open."""
    widths: tuple[int, ...] = (64, 128, 256)
    """Channels of each level; the next one has half the side."""
    patch: int = 1
    """Side of the squares of pixels that become channels at the door."""
    blocks: int = 2
    """Residual blocks a level."""
    groups: int = 16
    """Groups of every GroupNorm; must divide every width."""


class Features(NamedTuple):
    """What the classifier says of images."""

    logits: Float[Array, "b classes"]
    pooled: Float[Array, "b width"]
    """The vector before the last layer: a space in which images can be compared."""
    blocks: tuple[Float[Array, "b ..."], ...]
    """What each block puts out; of a vision transformer also what comes before the first."""


class ResNet(nn.Module):
    """Logits and pooled features from pixels in [-1, 1]."""

    config: ResNetConfig

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"]) -> Features:
        c = self.config
        x = rearrange(image, "b (h i) (w j) c -> b h w (i j c)", i=c.patch, j=c.patch)
        x = nn.Conv(c.widths[0], (3, 3), name="stem")(x)
        blocks = []
        for level, width in enumerate(c.widths):
            for block in range(c.blocks):
                stride = 2 if level and not block else 1
                x = Block(width, stride, c.groups, name=f"block_{level}_{block}")(x)
                blocks.append(x)
        x = nn.relu(nn.GroupNorm(c.groups, name="norm")(x))
        pooled = jnp.mean(x, (1, 2))
        return Features(nn.Dense(c.classes, name="head")(pooled), pooled, tuple(blocks))


class Block(nn.Module):
    """x + conv(relu(norm(conv(relu(norm(x))))))."""

    width: int
    stride: int
    groups: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 width"]:
        y = nn.relu(nn.GroupNorm(self.groups, name="norm_1")(x))
        if x.shape[-1] != self.width or self.stride > 1:
            x = nn.Conv(self.width, (1, 1), strides=self.stride, name="shortcut")(y)
        y = nn.Conv(self.width, (3, 3), strides=self.stride, use_bias=False, name="conv_1")(y)
        y = nn.relu(nn.GroupNorm(self.groups, name="norm_2")(y))
        return x + nn.Conv(self.width, (3, 3), name="conv_2")(y)
