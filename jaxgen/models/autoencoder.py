"""Stable Diffusion's KL autoencoder, at any width, depth and resolution.

Rombach et al. 2022 (LDM), section 3.1. The reference, number by number, is
`diffusers.AutoencoderKL`: modules carry its names as those of `jaxgen.models.unet` do.
"""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgen.errors import UserError
from jaxgen.models.attention import attend
from jaxgen.models.remat import Remat, rematerialised
from jaxgen.models.unet import DTYPES, Upsample


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """The shape of an autoencoder. One entry a level, finest first, in `block_out`."""

    channels: int = 3
    """Channels of the image, in and out."""
    latent_channels: int = 4
    """Channels of the latent."""
    patch: int = 1
    """Pixels a side folded into channels before the encoder, and unfolded after the decoder."""
    block_out: tuple[int, ...] = (64, 128, 192)
    """Width of each level; the next one has half the side."""
    layers: int = 2
    """Residual blocks a level of the encoder; one more in the decoder."""
    groups: int = 32
    """Groups of every GroupNorm; must divide every width."""
    mid_attention: bool = True
    """Whether the cells of the lowest level attend to each other."""
    quant_conv: bool = True
    """1x1 convolutions after the encoder and before the decoder, as Stable Diffusion 1 to XL."""
    dtype: str = "float32"
    """Type of activations: float32 or bfloat16. Parameters and normalisations stay float32."""
    remat: Remat = "none"
    """What the backward pass keeps of each block, and what it computes again to save memory."""

    def __post_init__(self) -> None:
        for name in ("channels", "latent_channels", "patch", "layers", "groups"):
            if getattr(self, name) < 1:
                raise UserError(
                    f"autoencoder: {name} must be at least 1, not {getattr(self, name)}"
                )
        if not self.block_out:
            raise UserError("autoencoder: block_out must name the width of one level or more")
        for width in self.block_out:
            if width < 1 or width % self.groups:
                raise UserError(
                    f"autoencoder: block_out {width} is not a multiple of groups {self.groups}; "
                    "change one of them"
                )
        if self.dtype not in DTYPES:
            raise UserError(
                f"autoencoder: dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}"
            )

    @property
    def factor(self) -> int:
        """Pixels a side for each cell of the latent."""
        return self.patch * 2 ** (len(self.block_out) - 1)


SD_AUTOENCODER = AutoencoderConfig(block_out=(128, 256, 512, 512))


class Posterior(NamedTuple):
    """What the encoder says of an image: a Gaussian with independent dimensions."""

    mean: Float[Array, "b h w c"]
    log_variance: Float[Array, "b h w c"]

    def sample(self, key: PRNGKeyArray) -> Float[Array, "b h w c"]:
        """One latent for each image (Kingma & Welling 2014, eq. 10)."""
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return self.mean + jnp.exp(0.5 * self.log_variance) * noise

    def kl(self) -> Float[Array, " b"]:
        """KL divergence from the unit Gaussian, in nats, summed over the latent.

        Kingma & Welling 2014, appendix B.
        """
        surplus = self.mean**2 + jnp.exp(self.log_variance) - 1.0 - self.log_variance
        return 0.5 * jnp.sum(surplus, axis=(1, 2, 3))


class Autoencoder(nn.Module):
    """`encode` and `decode`, to be had by `apply(…, method=…)`; latents are not scaled here."""

    config: AutoencoderConfig

    def setup(self) -> None:
        c = self.config
        self.encoder = Encoder(c)
        self.decoder = Decoder(c)
        if c.quant_conv:
            self.quant_conv = nn.Conv(2 * c.latent_channels, (1, 1))
            self.post_quant_conv = nn.Conv(c.latent_channels, (1, 1))

    def __call__(self, image: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return self.decode(self.encode(image).mean)

    def encode(self, image: Float[Array, "b h w c"]) -> Posterior:
        """The posterior of images in [-1, 1], a cell for each `factor` x `factor` pixels.

        Raises `UserError` where a side is no multiple of the factor, or the channels are others.
        """
        c, (_, h, w, channels) = self.config, image.shape
        if h % c.factor or w % c.factor:
            raise UserError(f"autoencoder: image {h}x{w} is not a multiple of {c.factor}")
        if channels != c.channels:
            raise UserError(f"autoencoder: image has {channels} channels, the config {c.channels}")
        moments = self.encoder(image)
        if c.quant_conv:
            moments = self.quant_conv(moments)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return Posterior(mean, jnp.clip(log_variance, -30.0, 20.0))

    def decode(self, latent: Float[Array, "b h w l"]) -> Float[Array, "b hf wf c"]:
        """Images, about in [-1, 1], from latents of any size.

        Raises `UserError` where the latents have another number of channels than the config.
        """
        c = self.config
        if latent.shape[-1] != c.latent_channels:
            raise UserError(
                f"autoencoder: latent has {latent.shape[-1]} channels, "
                f"the config {c.latent_channels}"
            )
        return self.decoder(self.post_quant_conv(latent) if c.quant_conv else latent)


class Encoder(nn.Module):
    """From images to moments: means and log-variances in one tensor."""

    config: AutoencoderConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b hf wf c"]) -> Float[Array, "b h w 2l"]:
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        x = rearrange(x, "b (h p) (w q) c -> b h w (p q c)", p=c.patch, q=c.patch)
        x = _conv3(c.block_out[0], dtype, "conv_in")(x.astype(dtype))
        for level in range(len(c.block_out)):
            x = DownBlock(c, level, name=f"down_blocks_{level}")(x)
        x = MidBlock(c, name="mid_block")(x)
        x = nn.silu(_group_norm(c.groups, "conv_norm_out")(x)).astype(dtype)
        return _conv3(2 * c.latent_channels, dtype, "conv_out")(x).astype(jnp.float32)


class Decoder(nn.Module):
    """From latents to images."""

    config: AutoencoderConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b h w l"]) -> Float[Array, "b hf wf c"]:
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        x = _conv3(c.block_out[-1], dtype, "conv_in")(x.astype(dtype))
        x = MidBlock(c, name="mid_block")(x)
        for i, level in enumerate(reversed(range(len(c.block_out)))):
            x = UpBlock(c, level, name=f"up_blocks_{i}")(x)
        x = nn.silu(_group_norm(c.groups, "conv_norm_out")(x)).astype(dtype)
        x = _conv3(c.channels * c.patch**2, dtype, "conv_out")(x).astype(jnp.float32)
        return rearrange(x, "b h w (p q c) -> b (h p) (w q) c", p=c.patch, q=c.patch)


class DownBlock(nn.Module):
    """One level of the encoder: residual blocks, then half the side but for the last."""

    config: AutoencoderConfig
    level: int

    @nn.compact
    def __call__(self, x):
        c = self.config
        for i in range(c.layers):
            x = _resnet(c, c.block_out[self.level], f"resnets_{i}")(x)
        if self.level < len(c.block_out) - 1:
            x = Downsample(jnp.dtype(c.dtype), name="downsamplers_0")(x)
        return x


class MidBlock(nn.Module):
    """The lowest level: residual, attention where wanted, residual."""

    config: AutoencoderConfig

    @nn.compact
    def __call__(self, x):
        c, width = self.config, self.config.block_out[-1]
        x = _resnet(c, width, "resnets_0")(x)
        if c.mid_attention:
            attention = rematerialised(SelfAttention, c.remat)
            x = attention(c.groups, jnp.dtype(c.dtype), name="attentions_0")(x)
        return _resnet(c, width, "resnets_1")(x)


class UpBlock(nn.Module):
    """One level of the decoder: residual blocks, then twice the side but for the finest."""

    config: AutoencoderConfig
    level: int

    @nn.compact
    def __call__(self, x):
        c = self.config
        for i in range(c.layers + 1):
            x = _resnet(c, c.block_out[self.level], f"resnets_{i}")(x)
        if self.level > 0:
            size = (2 * x.shape[1], 2 * x.shape[2])
            x = Upsample(jnp.dtype(c.dtype), name="upsamplers_0")(x, size)
        return x


class ResnetBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x))))))."""

    features: int
    groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w features"]:
        y = nn.silu(_group_norm(self.groups, "norm1")(x)).astype(self.dtype)
        y = _conv3(self.features, self.dtype, "conv1")(y)
        y = nn.silu(_group_norm(self.groups, "norm2")(y)).astype(self.dtype)
        y = _conv3(self.features, self.dtype, "conv2")(y)
        if x.shape[-1] != self.features:
            x = nn.Conv(self.features, (1, 1), dtype=self.dtype, name="conv_shortcut")(x)
        return x + y


class Downsample(nn.Module):
    """Half the side; the one row and column of padding stand at the far side."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        far = ((0, 1), (0, 1))
        return nn.Conv(x.shape[-1], (3, 3), 2, padding=far, dtype=self.dtype, name="conv")(x)


class SelfAttention(nn.Module):
    """x + one-headed attention over the pixels as tokens, all projections with biases."""

    groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        _, h, _, channels = x.shape
        y = _group_norm(self.groups, "group_norm")(x).astype(self.dtype)
        y = rearrange(y, "b h w c -> b (h w) 1 c")
        query, key, value = (
            nn.Dense(channels, dtype=self.dtype, name=name)(y) for name in ("to_q", "to_k", "to_v")
        )
        y = attend(query, key, value)
        y = nn.Dense(channels, dtype=self.dtype, name="to_out_0")(y)
        return x + rearrange(y, "b (h w) 1 c -> b h w c", h=h)


def _resnet(c: AutoencoderConfig, features: int, name: str) -> nn.Module:
    module = rematerialised(ResnetBlock, c.remat)
    return module(features, c.groups, jnp.dtype(c.dtype), name=name)


def _conv3(features: int, dtype, name: str) -> nn.Conv:
    return nn.Conv(features, (3, 3), padding=1, dtype=dtype, name=name)


def _group_norm(groups: int, name: str) -> nn.GroupNorm:
    return nn.GroupNorm(groups, epsilon=1e-6, dtype=jnp.float32, name=name)
