"""The discriminator of patches (Isola et al. 2017, PatchGAN), in the shape that LDM gives it.

GroupNorm stands where the original has BatchNorm: batch statistics would be a third kind of state
beside parameters and averages, would tie each image's verdict to the images beside it (and real and
reconstructed ones to being judged in batches of their own), and would differ with the number of
devices. No normalisation at all, as GANs of today have, wants a gradient penalty in its place.
"""

import dataclasses

import flax.linen as nn
from jaxtyping import Array, Float

from jaxgen.errors import UserError

GROUPS = 8


@dataclasses.dataclass(frozen=True)
class PatchDiscriminatorConfig:
    """The shape of a discriminator of patches."""

    width: int = 64
    """Channels after the first convolution; each of the next has twice as many, to 8 times."""
    layers: int = 3
    """Times that the side is halved: 3 judge patches of 70 pixels, 2 of 34, 1 of 16."""

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise UserError(f"discriminator: layers must be at least 1, not {self.layers}")
        if self.width < 1 or self.width % GROUPS:
            raise UserError(f"discriminator: width {self.width} is not a multiple of {GROUPS}")

    @property
    def smallest(self) -> int:
        """The smallest side of an image, in pixels, that leaves one patch to judge."""
        return 3 * 2**self.layers


class PatchDiscriminator(nn.Module):
    """Logits, one a patch of the image; above 0 means real."""

    config: PatchDiscriminatorConfig

    @nn.compact
    def __call__(self, image: Float[Array, "b h w c"]) -> Float[Array, "b i j"]:
        """i = h / 2^layers - 2, and j likewise (sides are rounded down)."""
        c = self.config
        x = nn.leaky_relu(_conv(c.width, 2, "conv_0")(image), 0.2)
        for i in range(1, c.layers + 1):
            stride = 2 if i < c.layers else 1
            # No bias here: the normalisation that follows has one.
            x = _conv(c.width * min(2**i, 8), stride, f"conv_{i}", use_bias=False)(x)
            x = nn.leaky_relu(nn.GroupNorm(GROUPS, name=f"norm_{i}")(x), 0.2)
        return _conv(1, 1, "out")(x)[..., 0]


def _conv(features: int, stride: int, name: str, use_bias: bool = True) -> nn.Conv:
    return nn.Conv(features, (4, 4), stride, padding=1, use_bias=use_bias, name=name)
