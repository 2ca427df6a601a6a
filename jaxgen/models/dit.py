"""The diffusion transformer (DiT) with captions, at any width, depth and resolution.

Peebles & Xie 2023 (arXiv 2212.09748), with cross-attention to the caption's tokens where PixArt-α
(Chen et al. 2023, arXiv 2310.00426) has it. Called like `jaxgen.models.unet.UNet`. Modules carry
the names of `diffusers`, as the UNet's do.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from jaxtyping import Array, Bool, Float

from jaxgen.errors import UserError
from jaxgen.models.attention import Attention
from jaxgen.models.remat import Remat, rematerialised
from jaxgen.models.unet import DTYPES, Embedding, timestep_embedding

SINUSOIDS = 256  # width of the timestep's sinusoids at every size of network, as in the paper


@dataclasses.dataclass(frozen=True)
class DiTConfig:
    """The shape of a DiT. The defaults are the paper's DiT-S/2."""

    channels: int = 3
    """Channels of the image (or latent), in and out."""
    patch: int = 2
    """Side of a patch, in pixels: an image has (h / patch) x (w / patch) tokens."""
    width: int = 384
    """Channels of a token."""
    depth: int = 12
    """Transformer blocks."""
    heads: int = 6
    """Attention heads; they divide the width."""
    mlp: int = 4
    """Hidden width of the MLP, in widths."""
    context_width: int = 128
    """Width of a caption's token vectors."""
    added_width: int = 0
    """Width of the extra conditioning vector (the pooled caption); 0 for none."""
    dtype: str = "float32"
    """Type of activations: float32 or bfloat16. Parameters and normalisations stay float32."""
    remat: Remat = "none"
    """What the backward pass keeps of each block, and what it computes again to save memory."""
    gather_once: bool = False
    """With `remat` and parameters that are split over devices: a train step gathers each matrix
    once, not for every pass, and keeps it whole, in `dtype`, in every device's memory. LADD does so
    with its teacher too."""

    def __post_init__(self) -> None:
        for name in ("channels", "patch", "width", "depth", "heads", "mlp", "context_width"):
            if getattr(self, name) < 1:
                raise UserError(f"DiT: {name} must be at least 1, not {getattr(self, name)}")
        if self.added_width < 0:
            raise UserError(f"DiT: added_width must be 0 or more, not {self.added_width}")
        for divisor, what in ((self.heads, f"heads {self.heads}"), (4, "4, as its positions need")):
            if self.width % divisor:
                raise UserError(f"DiT: width {self.width} is not a multiple of {what}; change it")
        if self.dtype not in DTYPES:
            raise UserError(f"DiT: dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}")


class DiT(nn.Module):
    """Predicts, for a noised image at a timestep and a caption, a tensor of the image's shape."""

    config: DiTConfig

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
          added: the pooled caption, iff `added_width`.
          mask: cross-attention sees only tokens where True; all of them when None.

        Returns:
          float32, exactly 0 at initialisation.

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
        """The tokens that each block puts out, first block first, in the config's dtype.

        Token `i * (w / patch) + j` is the patch in row i and column j. Arguments and errors are
        those of a call; under jit the final layer costs nothing.
        """
        return self._run(x, timestep, context, added, mask)[1]

    @nn.compact
    def _run(self, x, timestep, context, added, mask):
        c = self.config
        _check_inputs(c, x, context, added)
        dtype = jnp.dtype(c.dtype)
        rows, columns = x.shape[1] // c.patch, x.shape[2] // c.patch
        context = context.astype(dtype)

        sinusoid = timestep_embedding(timestep, SINUSOIDS).astype(dtype)
        condition = Embedding(c.width, dtype, name="time_embedding")(sinusoid)
        if added is not None:
            condition += Embedding(c.width, dtype, name="add_embedding")(added.astype(dtype))
        condition = nn.silu(condition)

        tokens = PatchEmbedding(c.patch, c.width, dtype, name="pos_embed")(x.astype(dtype))
        features = []
        block = rematerialised(DiTBlock, c.remat)
        for i in range(c.depth):
            name = f"transformer_blocks_{i}"
            tokens = block(c.heads, c.mlp, dtype, name=name)(tokens, condition, context, mask)
            features.append(tokens)

        shift, scale = Modulation(c.width, 2, dtype, name="norm_out")(condition)
        y = nn.Dense(
            c.patch**2 * c.channels, dtype=dtype, kernel_init=nn.initializers.zeros, name="proj_out"
        )(_modulated(tokens, shift, scale))
        y = rearrange(
            y.astype(jnp.float32),
            "b (i j) (p q c) -> b (i p) (j q) c",
            i=rows,
            j=columns,
            p=c.patch,
            q=c.patch,
        )
        return y, features


class PatchEmbedding(nn.Module):
    """Patches as tokens, by rows, with their positions added.

    A convolution by its parameters and a matrix product by its work: XLA's convolutions, and more
    so their gradients, are slow on CPUs.
    """

    patch: int
    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b n features"]:
        x = rearrange(x, "b (i p) (j q) c -> b i j p q c", p=self.patch, q=self.patch)
        dense = nn.DenseGeneral(self.features, axis=(-3, -2, -1), dtype=self.dtype, name="proj")
        positions = sincos_positions(x.shape[1], x.shape[2], self.features)
        return rearrange(dense(x), "b i j c -> b (i j) c") + positions.astype(self.dtype)


class DiTBlock(nn.Module):
    """Self-attention, cross-attention to the caption and an MLP, the identity at initialisation.

    Self-attention and MLP are modulated (adaLN-zero, section 3.2 of DiT). Cross-attention is added
    between them, neither normed nor modulated, starting at zero (section 2.3 of PixArt-α).
    """

    heads: int
    mlp: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n c"],
        condition: Float[Array, "b c"],
        context: Float[Array, "b length width"],
        mask: Bool[Array, "b length"] | None,
    ) -> Float[Array, "b n c"]:
        width = x.shape[-1]
        modulation = Modulation(width, 6, self.dtype, name="norm1")(condition)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation
        y = _modulated(x, shift1, scale1)
        attention = functools.partial(Attention, self.heads, self.dtype, bias=True)
        x += gate1 * attention(name="attn1")(y, y, None)
        x += attention(zero=True, name="attn2")(x, context, mask)
        y = _modulated(x, shift2, scale2)
        y = nn.Dense(self.mlp * width, dtype=self.dtype, name="ff_net_0_proj")(y)
        y = nn.gelu(y, approximate=True)
        return x + gate2 * nn.Dense(width, dtype=self.dtype, name="ff_net_2")(y)


class Modulation(nn.Module):
    """`parts` vectors from the condition, for all tokens alike; zero at initialisation."""

    features: int
    parts: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, condition: Float[Array, "b c"]) -> list[Float[Array, "b 1 features"]]:
        y = nn.Dense(
            self.parts * self.features,
            dtype=self.dtype,
            kernel_init=nn.initializers.zeros,
            name="linear",
        )(condition)
        return jnp.split(rearrange(y, "b c -> b 1 c"), self.parts, axis=-1)


def sincos_positions(rows: int, columns: int, width: int) -> Float[Array, "n width"]:
    """Sinusoids of each patch's column, then of its row, counted from 0; patches by rows.

    Each half of the width is sines, then cosines, at `width / 4` frequencies from 1 down to 1/10000
    (the paper's, after He et al. 2022, arXiv 2111.06377).
    """

    def sinusoids(count):
        cosines_first = timestep_embedding(jnp.arange(count, dtype=jnp.float32), width // 2)
        return jnp.roll(cosines_first, width // 4, axis=-1)

    return jnp.concatenate(
        [
            repeat(sinusoids(columns), "j c -> (i j) c", i=rows),
            repeat(sinusoids(rows), "i c -> (i j) c", j=columns),
        ],
        axis=-1,
    )


def _modulated(x, shift, scale):
    y = jax.nn.standardize(x.astype(jnp.float32), axis=-1, epsilon=1e-6)
    return (y * (1 + scale) + shift).astype(x.dtype)


def _check_inputs(c: DiTConfig, x, context, added) -> None:
    if x.shape[1] % c.patch or x.shape[2] % c.patch:
        raise UserError(
            f"DiT: image {x.shape[1]}x{x.shape[2]} is not a multiple of patch {c.patch}"
        )
    if x.shape[3] != c.channels:
        raise UserError(f"DiT: image has {x.shape[3]} channels, the config {c.channels}")
    if context.shape[-1] != c.context_width:
        raise UserError(f"DiT: context has width {context.shape[-1]}, the config {c.context_width}")
    added_width = 0 if added is None else added.shape[-1]
    if added_width != c.added_width:
        raise UserError(f"DiT: added has width {added_width}, the config {c.added_width}")
