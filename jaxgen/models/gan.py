"""The two networks of a text-conditioned GAN, after R3GAN (Huang et al. 2024, arXiv 2501.05441).

No normalisation anywhere: residual blocks that start as the identity, leaky ReLU, bilinear
resampling. Departures: the 3x3 convolutions are not grouped, which XLA's CPU is slow at, so blocks
are not widened inside either; squares of pixels may become channels at the door; and what is to be
drawn reaches every cell of the generator's coarsest level and every block (Brock et al. 2019,
BigGAN). There latent and class scale one learned picture, once: in small networks the same strokes
then stand in the images of all captions.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import einsum, rearrange
from jaxtyping import Array, Float

from jaxgen.errors import UserError

SLOPE = 0.2  # of the leaky ReLU


@dataclasses.dataclass(frozen=True)
class GanConfig:
    """The shapes of both players. One entry a level in the widths, finest first."""

    noise: int = 64
    """Channels of the latent z."""
    condition: int = 64
    """Channels to which each player maps the pooled caption."""
    generator: tuple[int, ...] = (64, 128, 192)
    """Width of each level of the generator; the next one has half the side."""
    discriminator: tuple[int, ...] = (64, 128, 192)
    """Width of each level of the discriminator."""
    blocks: int = 1
    """Residual blocks a level, in both."""
    patch: int = 1
    """Side of the squares of pixels that are channels inside the networks."""

    def __post_init__(self) -> None:
        for name in ("noise", "condition", "blocks", "patch"):
            if getattr(self, name) < 1:
                raise UserError(f"GAN: {name} is {getattr(self, name)}, needs 1 or more")
        for name in ("generator", "discriminator"):
            widths = getattr(self, name)
            if not widths or min(widths) < 1:
                raise UserError(f"GAN: {name} {widths} needs one width or more, each 1 or more")

    def check(self, size: int) -> None:
        """Raises UserError where images of side `size` do not fit the patches and levels."""
        for name in ("generator", "discriminator"):
            levels = len(getattr(self, name))
            factor = self.patch * 2 ** (levels - 1)
            if size % factor:
                raise UserError(
                    f"--data.size {size} is not a multiple of {factor}, which "
                    f"--model.patch {self.patch} and {levels} levels of the {name} need"
                )


class Generator(nn.Module):
    """Image from a latent and a pooled caption.

    A linear map of latent and caption to the coarsest level goes up through the levels, every
    block scaled by both. The output is linear, of variance about 1 at the start.
    """

    config: GanConfig
    size: int
    """Side of the images, in pixels."""

    @nn.compact
    def __call__(
        self, z: Float[Array, "b d"], pooled: Float[Array, "b e"]
    ) -> Float[Array, "b h w 3"]:
        c, widths = self.config, self.config.generator[::-1]
        side = self.size // (c.patch * 2 ** (len(widths) - 1))
        latent = jnp.concatenate([z, _linear(c.condition, name="caption")(pooled)], axis=-1)
        x = _linear(side * side * widths[0], name="latent")(latent)
        x = rearrange(x, "b (h w c) -> b h w c", h=side, w=side)
        for level, width in enumerate(widths):
            if level:
                x = upsampled(_linear(width, name=f"widen_{level}")(x))
            for block in range(c.blocks):
                x = Block(c.blocks * len(widths), name=f"block_{level}_{block}")(x, latent)
        x = _linear(3 * c.patch**2, name="out")(x)
        return rearrange(x, "b h w (i j c) -> b (h i) (w j) c", i=c.patch, j=c.patch)


class Discriminator(nn.Module):
    """How real an image is, as a picture of what a caption says: a logit, larger for more real.

    Conditioned by projection (Miyato & Koyama 2018): the image's vector times the caption's. So an
    image may be held against several captions at the price of one.
    """

    config: GanConfig

    @nn.compact
    def __call__(
        self, image: Float[Array, "b h w 3"], pooled: Float[Array, "b *captions e"]
    ) -> Float[Array, "b *captions"]:
        c, widths = self.config, self.config.discriminator
        x = rearrange(image, "b (h i) (w j) c -> b h w (i j c)", i=c.patch, j=c.patch)
        x = _linear(widths[0], name="in")(x)
        for level, width in enumerate(widths):
            if level:
                x = _linear(width, name=f"widen_{level}")(downsampled(x))
            for block in range(c.blocks):
                x = Block(c.blocks * len(widths), name=f"block_{level}_{block}")(x)
        basis = self.param("basis", nn.initializers.normal(1 / x.shape[1]), x.shape[1:])
        x = einsum(x, basis, "b h w c, h w c -> b c")
        seen = _linear(c.condition, name="seen")(x)
        said = _linear(c.condition, gain=1 / math.sqrt(c.condition), name="caption")(pooled)
        return einsum(seen, said, "b d, b ... d -> b ...")


class Block(nn.Module):
    """x + conv1(act(conv3(act(conv1(x))))), the identity at the start (Zhang et al. 2019, Fixup).

    With a latent the 3x3 convolution's channels are scaled by 1 plus a linear map of it. The last
    kernel is zero and the others' gain is L^(-1/4) times that of the activation, L being the number
    of blocks in the network.
    """

    depth: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], latent: Float[Array, "b d"] | None = None
    ) -> Float[Array, "b h w c"]:
        width, gain = x.shape[-1], math.sqrt(2 / (1 + SLOPE**2)) * self.depth**-0.25
        y = nn.leaky_relu(_linear(width, gain, bias=True, name="conv_1")(x), SLOPE)
        conv = nn.Conv(width, (3, 3), kernel_init=_scaled(gain), name="conv_2")
        y = conv(y)
        if latent is not None:
            scales = 1 + _linear(width, name="latent")(latent)
            y *= rearrange(scales, "b c -> b 1 1 c")
        y = nn.leaky_relu(y, SLOPE)
        return x + _linear(width, gain=0.0, name="conv_3")(y)


def upsampled(x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
    """Twice the side, bilinear."""
    b, h, w, c = x.shape
    return jax.image.resize(x, (b, 2 * h, 2 * w, c), "bilinear")


def downsampled(x: Float[Array, "b h w c"]) -> Float[Array, "b h/2 w/2 c"]:
    """Half the side: the mean under the kernel [1, 3, 3, 1] each way, cut off at the border."""
    b, h, w, c = x.shape
    return jax.image.resize(x, (b, h // 2, w // 2, c), "bilinear", antialias=True)


def _linear(features: int, gain: float = 1.0, bias: bool = False, *, name: str) -> nn.Dense:
    """A linear map of channels, which is a 1x1 convolution too."""
    return nn.Dense(features, use_bias=bias, kernel_init=_scaled(gain), name=name)


def _scaled(gain: float) -> nn.initializers.Initializer:
    """Normal, of standard deviation gain/√fan_in."""
    if not gain:
        return nn.initializers.zeros
    return nn.initializers.variance_scaling(gain**2, "fan_in", "normal")
