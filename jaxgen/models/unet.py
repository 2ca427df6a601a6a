"""Stable Diffusion's UNet with cross-attention, at any width, depth and resolution.

Rombach et al. 2022 (SD 1.5, 2.1) and Podell et al. 2023 (SDXL). The reference, number by number, is
`diffusers.UNet2DConditionModel`: modules carry its names with the dots between a list and its index
turned into underscores, so that loading published weights is a mapping of names.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange, repeat
from jaxtyping import Array, Bool, Float

from jaxgen.errors import UserError
from jaxgen.models.attention import Attention
from jaxgen.models.remat import Remat, rematerialised

DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """The shape of a UNet. One entry a level, finest first, in every tuple."""

    channels: int = 3
    """Channels of the image (or latent), in and out."""
    patch: int = 1
    """Pixels a side folded into channels before the network, and unfolded after it."""
    block_out: tuple[int, ...] = (64, 128, 192)
    """Width of each level; the next one has half the side."""
    layers: int = 2
    """Residual blocks a level going down; one more going up."""
    attention: tuple[bool, ...] = (False, True, True)
    """Whether a level attends to itself and to the caption. The middle always does."""
    transformer_depth: tuple[int, ...] = (1, 1, 1)
    """Transformer blocks after each residual block of a level with attention."""
    heads: tuple[int, ...] = (2, 4, 6)
    """Attention heads of each level."""
    context_width: int = 128
    """Width of a caption's token vectors."""
    linear_projection: bool = True
    """Transformers project by linear layers (SD 2, SDXL), not by 1x1 convolutions (SD 1.5)."""
    groups: int = 32
    """Groups of every GroupNorm; must divide every width."""
    added_width: int = 0
    """Width of the extra conditioning vector (the pooled caption; 2816 in SDXL, which appends time
    ids); 0 for none."""
    dtype: str = "float32"
    """Type of activations: float32 or bfloat16. Parameters and normalisations stay float32."""
    remat: Remat = "none"
    """What the backward pass keeps of each block, and what it computes again to save memory."""
    gather_once: bool = False
    """With `remat` and parameters that are split over devices: a train step gathers each matrix
    once, not for every pass, and keeps it whole, in `dtype`, in every device's memory. LADD does so
    with its teacher too."""

    def __post_init__(self) -> None:
        levels = len(self.block_out)
        for name in ("attention", "transformer_depth", "heads"):
            if len(getattr(self, name)) != levels:
                raise UserError(
                    f"UNet: {name} {getattr(self, name)} needs one entry for each of the {levels} "
                    f"levels of block_out {self.block_out}"
                )
        for name in ("channels", "patch", "layers", "groups", "context_width"):
            if getattr(self, name) < 1:
                raise UserError(f"UNet: {name} must be at least 1, not {getattr(self, name)}")
        if not levels or self.block_out[0] % 2:
            raise UserError(f"UNet: block_out {self.block_out} must begin with an even width")
        for width, heads in zip(self.block_out, self.heads, strict=True):
            if width < 1 or width % self.groups:
                raise UserError(
                    f"UNet: block_out {width} is not a multiple of groups {self.groups}; "
                    "change one of them"
                )
            if heads < 1 or width % heads:
                raise UserError(
                    f"UNet: block_out {width} is not a multiple of heads {heads}; "
                    "change one of them"
                )
        if self.dtype not in DTYPES:
            raise UserError(f"UNet: dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}")


SD15_UNET = UNetConfig(
    channels=4,
    block_out=(320, 640, 1280, 1280),
    attention=(True, True, True, False),
    transformer_depth=(1, 1, 1, 1),
    heads=(8, 8, 8, 8),
    context_width=768,
    linear_projection=False,
)
SD21_UNET = dataclasses.replace(
    SD15_UNET, heads=(5, 10, 20, 20), context_width=1024, linear_projection=True
)
SDXL_UNET = UNetConfig(
    channels=4,
    block_out=(320, 640, 1280),
    attention=(False, True, True),
    transformer_depth=(1, 2, 10),
    heads=(1, 10, 20),  # the first level has no attention
    context_width=2048,
    added_width=2816,
)


class UNet(nn.Module):
    """Predicts, for a noised image at a timestep and a caption, a tensor of the image's shape."""

    config: UNetConfig

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        timestep: Float[Array, "b"],
        context: Float[Array, "b length width"],
        added: Float[Array, "b d"] | None = None,
        mask: Bool[Array, "b length"] | None = None,
    ) -> Float[Array, "b h w c"]:
        """Runs the network; what the result means (ε, v, x0, velocity) is the caller's choice.

        Args:
          x: the noised image or latent, each side a multiple of `config.patch`.
          timestep: noise level on the schedule's scale, 0 to 999 for Stable Diffusion.
          context: the caption's token vectors.
          added: the pooled caption (in SDXL with sinusoids of the time ids), iff `added_width`.
          mask: cross-attention sees only tokens where True; all of them when None.

        Raises:
          UserError: sides not a multiple of `patch`, wrong widths, or `added` given or missing
            against the config.
        """
        return self._run(x, timestep, context, added, mask)[0]

    def features(
        self,
        x: Float[Array, "b h w c"],
        timestep: Float[Array, "b"],
        context: Float[Array, "b length width"],
        added: Float[Array, "b d"] | None = None,
        mask: Bool[Array, "b length"] | None = None,
    ) -> list[Float[Array, "b n c"]]:
        """What the last block of each level puts out, as tokens by rows, in the config's dtype.

        Going down (finest level first), of the middle, and going up (coarsest first): 2·levels + 1
        maps, each before the level's change of side. Arguments and errors are those of a call;
        under jit the final layer costs nothing.
        """
        maps = self._run(x, timestep, context, added, mask)[1]
        return [rearrange(m, "b h w c -> b (h w) c") for m in maps]

    @nn.compact
    def _run(self, x, timestep, context, added, mask):
        c = self.config
        _check_inputs(c, x, context, added)
        levels = range(len(c.block_out))
        dtype = jnp.dtype(c.dtype)
        x = rearrange(x, "b (h p) (w q) c -> b h w (p q c)", p=c.patch, q=c.patch)
        x, context = x.astype(dtype), context.astype(dtype)

        sinusoid = timestep_embedding(timestep, c.block_out[0]).astype(dtype)
        embedding = Embedding(4 * c.block_out[0], dtype, name="time_embedding")(sinusoid)
        if added is not None:
            embedding += Embedding(4 * c.block_out[0], dtype, name="add_embedding")(
                added.astype(dtype)
            )
        embedding = nn.silu(embedding)

        x = _conv3(c.block_out[0], dtype, "conv_in")(x)
        skips, features = [x], []
        for level in levels:
            block = DownBlock(c, level, name=f"down_blocks_{level}")
            x, outputs = block(x, embedding, context, mask)
            skips += outputs
            features.append(outputs[c.layers - 1])
        x = MidBlock(c, name="mid_block")(x, embedding, context, mask)
        features.append(x)
        for i, level in enumerate(reversed(levels)):
            block = UpBlock(c, level, name=f"up_blocks_{i}")
            skips, used = skips[: -c.layers - 1], skips[-c.layers - 1 :]
            size = skips[-1].shape[1:3] if level > 0 else None
            x, output = block(x, used, size, embedding, context, mask)
            features.append(output)

        x = nn.silu(_group_norm(c.groups, 1e-5, "conv_norm_out")(x)).astype(dtype)
        x = _conv3(c.channels * c.patch**2, dtype, "conv_out", zero=True)(x)
        x = x.astype(jnp.float32)
        x = rearrange(x, "b h w (p q c) -> b (h p) (w q) c", p=c.patch, q=c.patch)
        return x, features


class DownBlock(nn.Module):
    """One level going down: residual blocks with or without attention, then half the side."""

    config: UNetConfig
    level: int

    @nn.compact
    def __call__(self, x, embedding, context, mask):
        c, level = self.config, self.level
        outputs = []
        for i in range(c.layers):
            x = _resnet(c, c.block_out[level], f"resnets_{i}")(x, embedding)
            if c.attention[level]:
                x = _transformer(c, level, f"attentions_{i}")(x, context, mask)
            outputs.append(x)
        if level < len(c.block_out) - 1:
            x = Downsample(jnp.dtype(c.dtype), name="downsamplers_0")(x)
            outputs.append(x)
        return x, outputs


class MidBlock(nn.Module):
    """The bottom: residual, attention, residual, at the width of the last level."""

    config: UNetConfig

    @nn.compact
    def __call__(self, x, embedding, context, mask):
        c, level = self.config, len(self.config.block_out) - 1
        x = _resnet(c, c.block_out[level], "resnets_0")(x, embedding)
        x = _transformer(c, level, "attentions_0")(x, context, mask)
        return _resnet(c, c.block_out[level], "resnets_1")(x, embedding)


class UpBlock(nn.Module):
    """One level going up: each residual block takes one skip, last in first out; then `size`."""

    config: UNetConfig
    level: int

    @nn.compact
    def __call__(self, x, skips, size, embedding, context, mask):
        c, level = self.config, self.level
        for i, skip in enumerate(reversed(skips)):
            x = jnp.concatenate([x, skip], axis=-1)
            x = _resnet(c, c.block_out[level], f"resnets_{i}")(x, embedding)
            if c.attention[level]:
                x = _transformer(c, level, f"attentions_{i}")(x, context, mask)
        output = x
        if size is not None:
            x = Upsample(jnp.dtype(c.dtype), name="upsamplers_0")(x, size)
        return x, output


class ResnetBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x))) + embedding))), the identity at initialisation."""

    features: int
    groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], embedding: Float[Array, "b e"]
    ) -> Float[Array, "b h w features"]:
        y = nn.silu(_group_norm(self.groups, 1e-5, "norm1")(x)).astype(self.dtype)
        y = _conv3(self.features, self.dtype, "conv1")(y)
        shift = nn.Dense(self.features, dtype=self.dtype, name="time_emb_proj")(embedding)
        y += shift[:, None, None, :]
        y = nn.silu(_group_norm(self.groups, 1e-5, "norm2")(y)).astype(self.dtype)
        y = _conv3(self.features, self.dtype, "conv2", zero=True)(y)
        if x.shape[-1] != self.features:
            x = nn.Conv(self.features, (1, 1), dtype=self.dtype, name="conv_shortcut")(x)
        return x + y


class Downsample(nn.Module):
    """Half the side, rounded up."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        return _conv3(x.shape[-1], self.dtype, "conv", stride=2)(x)


class Upsample(nn.Module):
    """Nearest neighbour to `size`, which is twice the side or one less, then a convolution."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], size: tuple[int, int]
    ) -> Float[Array, "b h2 w2 c"]:
        x = repeat(x, "b h w c -> b (h 2) (w 2) c")[:, : size[0], : size[1]]
        return _conv3(x.shape[-1], self.dtype, "conv")(x)


class SpatialTransformer(nn.Module):
    """Transformer blocks over the pixels as tokens, the identity at initialisation."""

    heads: int
    depth: int
    groups: int
    linear_projection: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        context: Float[Array, "b length width"],
        mask: Bool[Array, "b length"] | None,
    ) -> Float[Array, "b h w c"]:
        channels = x.shape[-1]
        y = _group_norm(self.groups, 1e-6, "norm")(x).astype(self.dtype)
        y = self._projection("proj_in", channels)(y)
        y = rearrange(y, "b h w c -> b (h w) c")
        for i in range(self.depth):
            block = TransformerBlock(self.heads, self.dtype, name=f"transformer_blocks_{i}")
            y = block(y, context, mask)
        y = rearrange(y, "b (h w) c -> b h w c", h=x.shape[1])
        return x + self._projection("proj_out", channels, nn.initializers.zeros)(y)

    def _projection(self, name, channels, kernel_init=nn.linear.default_kernel_init):
        if self.linear_projection:
            return nn.Dense(channels, dtype=self.dtype, kernel_init=kernel_init, name=name)
        return nn.Conv(channels, (1, 1), dtype=self.dtype, kernel_init=kernel_init, name=name)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention and a GEGLU perceptron (Shazeer 2020), each pre-normed."""

    heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n c"],
        context: Float[Array, "b length width"],
        mask: Bool[Array, "b length"] | None,
    ) -> Float[Array, "b n c"]:
        y = _layer_norm("norm1")(x).astype(self.dtype)
        x += Attention(self.heads, self.dtype, name="attn1")(y, y, None)
        y = _layer_norm("norm2")(x).astype(self.dtype)
        x += Attention(self.heads, self.dtype, name="attn2")(y, context, mask)
        y = _layer_norm("norm3")(x).astype(self.dtype)
        y = nn.Dense(8 * x.shape[-1], dtype=self.dtype, name="ff_net_0_proj")(y)
        hidden, gate = jnp.split(y, 2, axis=-1)
        y = hidden * nn.gelu(gate, approximate=False)
        return x + nn.Dense(x.shape[-1], dtype=self.dtype, name="ff_net_2")(y)


class Embedding(nn.Module):
    """The two-layer perceptron that takes a conditioning vector to the width of the embedding."""

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b d"]) -> Float[Array, "b features"]:
        x = nn.silu(nn.Dense(self.features, dtype=self.dtype, name="linear_1")(x))
        return nn.Dense(self.features, dtype=self.dtype, name="linear_2")(x)


def timestep_embedding(timestep: Float[Array, "b"], width: int) -> Float[Array, "b width"]:
    """Cosines, then sines, of the timestep at `width / 2` frequencies from 1 down to 1/10000.

    Vaswani et al. 2017, section 3.5, in Stable Diffusion's order.
    """
    half = width // 2
    frequency = 10000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = timestep.astype(jnp.float32)[:, None] * frequency
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def _check_inputs(c: UNetConfig, x, context, added) -> None:
    if x.shape[1] % c.patch or x.shape[2] % c.patch:
        raise UserError(
            f"UNet: image {x.shape[1]}x{x.shape[2]} is not a multiple of patch {c.patch}"
        )
    if x.shape[3] != c.channels:
        raise UserError(f"UNet: image has {x.shape[3]} channels, the config {c.channels}")
    if context.shape[-1] != c.context_width:
        raise UserError(
            f"UNet: context has width {context.shape[-1]}, the config {c.context_width}"
        )
    added_width = 0 if added is None else added.shape[-1]
    if added_width != c.added_width:
        raise UserError(f"UNet: added has width {added_width}, the config {c.added_width}")


def _resnet(c: UNetConfig, features: int, name: str) -> nn.Module:
    module = rematerialised(ResnetBlock, c.remat)
    return module(features, c.groups, jnp.dtype(c.dtype), name=name)


def _transformer(c: UNetConfig, level: int, name: str) -> nn.Module:
    module = rematerialised(SpatialTransformer, c.remat)
    return module(
        c.heads[level],
        c.transformer_depth[level],
        c.groups,
        c.linear_projection,
        jnp.dtype(c.dtype),
        name=name,
    )


def _conv3(features: int, dtype, name: str, stride: int = 1, zero: bool = False) -> nn.Conv:
    # Explicit padding: SAME would pad a stride of 2 on the far side only.
    return nn.Conv(
        features,
        (3, 3),
        strides=stride,
        padding=1,
        dtype=dtype,
        kernel_init=nn.initializers.zeros if zero else nn.linear.default_kernel_init,
        name=name,
    )


def _group_norm(groups: int, epsilon: float, name: str) -> nn.GroupNorm:
    return nn.GroupNorm(groups, epsilon=epsilon, dtype=jnp.float32, name=name)


def _layer_norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-5, dtype=jnp.float32, name=name)
