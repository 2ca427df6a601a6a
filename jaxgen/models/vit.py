"""The vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929), at any size.

One network for CLIP's image encoder, for DINOv2 and for a classifier trained here.
"""

import dataclasses
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import einsum, rearrange, repeat
from jaxtyping import Array, Float

from jaxgen.errors import UserError
from jaxgen.models.attention import attend
from jaxgen.models.resnet import Features


@dataclasses.dataclass(frozen=True)
class VitConfig:
    """Shape of a vision transformer. The defaults are a classifier of small pictures."""

    classes: int = 0
    """Classes of `VitClassifier`: those of the data, filled in when it is open."""
    patch: int = 4
    """Side of a patch, in pixels."""
    width: int = 128
    """Channels of a token."""
    depth: int = 6
    """Transformer blocks."""
    heads: int = 4
    """Attention heads; they divide the width."""
    mlp: int = 4
    """Hidden width of the MLP, in widths."""
    activation: Literal["quick_gelu", "gelu"] = "gelu"
    """Of the MLP: x·sigmoid(1.702x), or the exact GELU."""
    size: int = 0
    """Side of the images that the position table is for, in pixels; 0: that of the images."""
    offset: float = 0.0
    """Added to the number of patches a side where the position table is resampled."""
    norm_first: bool = False
    """Normalise tokens before the first block too, and embed patches without bias."""
    layer_scale: float = 0.0
    """Start of a factor on each channel of each residual branch; 0: no factors."""
    epsilon: float = 1e-6
    """Of the layer norms, added to variances."""
    projection: int = 0
    """Channels of the pooled vector after a linear map; 0: no map."""

    def __post_init__(self) -> None:
        for name in ("patch", "width", "depth", "heads", "mlp"):
            if getattr(self, name) < 1:
                raise UserError(f"vit: {name} is {getattr(self, name)}, needs 1 or more")
        if self.width % self.heads:
            raise UserError(f"vit: width {self.width} is no multiple of its {self.heads} heads")
        if self.size % self.patch:
            raise UserError(f"vit: size {self.size} is no multiple of the patch of {self.patch}")


CLIP_VIT_L_336 = VitConfig(
    patch=14,
    width=1024,
    depth=24,
    heads=16,
    activation="quick_gelu",
    size=336,
    norm_first=True,
    epsilon=1e-5,
    projection=768,
)
# The authors' own code resamples positions with an offset of .1, so published numbers have it.
DINOV2_VIT_L = VitConfig(
    patch=14, width=1024, depth=24, heads=16, size=518, offset=0.1, layer_scale=1e-5
)
DINOV2_VIT_S = dataclasses.replace(DINOV2_VIT_L, width=384, depth=12, heads=6)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation of RGB in [0, 1]


class VitFeatures(NamedTuple):
    """What a vision transformer says of images."""

    tokens: Float[Array, "b n width"]
    """Output of the last block after the final norm: the class token, then patches by rows."""
    pooled: Float[Array, "b channels"]
    """The class token, projected where the config has a projection."""
    blocks: tuple[Float[Array, "b n width"], ...]
    """Tokens before the first block, then what each block puts out, without the final norm."""


class ViT(nn.Module):
    """Pre-norm transformer over a class token and the patches of an image."""

    config: VitConfig

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"]) -> VitFeatures:
        """Encodes images, in whatever range of pixels the weights were trained on.

        Raises:
            UserError: sides that are no multiple of the patch.
        """
        c = self.config
        _, h, w, _ = image.shape
        if h % c.patch or w % c.patch:
            raise UserError(f"images of {w} x {h} px are no multiple of the vit's patch, {c.patch}")
        x = nn.Conv(
            c.width,
            (c.patch, c.patch),
            strides=c.patch,
            padding="VALID",
            use_bias=not c.norm_first,
            name="patches",
        )(image)
        b, rows, columns, _ = x.shape
        table = (c.size // c.patch, c.size // c.patch) if c.size else (rows, columns)
        small = nn.initializers.normal(0.02)
        first = self.param("class_token", small, (c.width,))
        positions = self.param("positions", small, (1 + table[0] * table[1], c.width))
        x = jnp.concatenate(
            [repeat(first, "c -> b 1 c", b=b), rearrange(x, "b i j c -> b (i j) c")], axis=1
        )
        x = x + resampled(positions, table, (rows, columns), c.offset)
        if c.norm_first:
            x = self._norm("norm_first")(x)
        blocks = [x]
        for number in range(c.depth):
            x = Block(c, name=f"block_{number}")(x)
            blocks.append(x)
        tokens = self._norm("norm")(x)
        pooled = tokens[:, 0]
        if c.projection:
            pooled = nn.Dense(c.projection, use_bias=False, name="projection")(pooled)
        return VitFeatures(tokens, pooled, tuple(blocks))

    def _norm(self, name: str) -> nn.LayerNorm:
        return nn.LayerNorm(epsilon=self.config.epsilon, use_fast_variance=False, name=name)


class VitClassifier(nn.Module):
    """Logits and pooled features from pixels in [-1, 1], as `jaxgen.models.resnet.ResNet`."""

    config: VitConfig

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"]) -> Features:
        seen = ViT(self.config, name="vit")(image)
        logits = nn.Dense(self.config.classes, name="head")(seen.pooled)
        return Features(logits, seen.pooled, seen.blocks)


class Block(nn.Module):
    """x + s·attention(norm(x)), then x + s·mlp(norm(x)); the factors s where the config asks."""

    config: VitConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b n width"]) -> Float[Array, "b n width"]:
        c = self.config
        for number, branch in ((1, self._attention), (2, self._mlp)):
            norm = nn.LayerNorm(epsilon=c.epsilon, use_fast_variance=False, name=f"norm_{number}")
            y = branch(norm(x))
            if c.layer_scale:
                start = nn.initializers.constant(c.layer_scale)
                y = y * self.param(f"scale_{number}", start, (c.width,))
            x = x + y
        return x

    def _attention(self, x: Float[Array, "b n width"]) -> Float[Array, "b n width"]:
        width, heads = self.config.width, self.config.heads
        q, k, v = (
            rearrange(nn.Dense(width, name=name)(x), "b n (h d) -> b n h d", h=heads)
            for name in ("query", "key", "value")
        )
        x = rearrange(attend(q, k, v), "b n h d -> b n (h d)")
        return nn.Dense(width, name="out")(x)

    def _mlp(self, x: Float[Array, "b n width"]) -> Float[Array, "b n width"]:
        c = self.config
        x = nn.Dense(c.mlp * c.width, name="fc_1")(x)
        if c.activation == "quick_gelu":
            x = x * jax.nn.sigmoid(1.702 * x)
        else:
            x = jax.nn.gelu(x, approximate=False)
        return nn.Dense(c.width, name="fc_2")(x)


def resampled(
    positions: Float[Array, "n c"], table: tuple[int, int], grid: tuple[int, int], offset: float
) -> Float[Array, "m c"]:
    """A table of positions (the class token's, then patches by rows) for another grid of patches.

    Bicubic, a = -.75, sides clamped, not antialiased, as PyTorch's `interpolate`. DINOv2's authors
    step through the table by table / (grid + .1), `offset`, in place of table / grid.
    """
    if table == grid:
        return positions
    patches = rearrange(positions[1:], "(i j) c -> i j c", i=table[0])
    exact = jnp.promote_types(positions.dtype, jnp.float32)  # half precision would shift positions
    rows, columns = (
        jnp.asarray(_bicubic(old, new, old / (new + offset)), exact)
        for old, new in zip(table, grid, strict=True)
    )
    with jax.default_matmul_precision("highest"):
        patches = einsum(rows, columns, patches.astype(exact), "y i, x j, i j c -> y x c")
    patches = rearrange(patches, "y x c -> (y x) c").astype(positions.dtype)
    return jnp.concatenate([positions[:1], patches])


def _bicubic(old: int, new: int, step: float, a: float = -0.75) -> np.ndarray:
    """The matrix [new, old] of one axis's cubic convolution (Keys 1981)."""
    matrix = np.zeros((new, old))
    at = (np.arange(new) + 0.5) * step - 0.5
    for tap in range(-1, 3):
        place = np.floor(at) + tap
        d = np.abs(at - place)
        near = (a + 2) * d**3 - (a + 3) * d**2 + 1
        far = a * (d**3 - 5 * d**2 + 8 * d - 4)
        index = np.clip(place, 0, old - 1).astype(int)
        np.add.at(matrix, (np.arange(new), index), np.where(d <= 1, near, far))
    return matrix
