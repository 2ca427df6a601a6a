"""The judge's trainable heads, on features of a frozen network, and their losses.

Sauer et al. 2023 (StyleGAN-T, arXiv 2301.09515), as adversarial diffusion distillation uses them
(arXiv 2311.17042). Everything here is a pure function of parameters and inputs: spectral norms are
estimated afresh in each call, and batch statistics are never kept.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

Tokens = Float[Array, "b n c"]
Logits = Float[Array, "b n"]
CONDITION_WIDTH = 64
GROUP = 8
POWER_ITERATIONS = 10


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
    """The discriminator of ADD: which frozen eyes, and what its heads are told."""

    features: str = "efficientnet-lite0"
    """The frozen feature network."""
    taps: tuple[int, ...] = (2, 4, 10)
    """Blocks of the feature network whose outputs are judged, a head each."""
    resize: int = 64
    """Side to which images are brought for the feature network, in pixels."""
    condition: Literal["none", "text", "image", "both"] = "both"
    """What heads know beside the features: vectors of the caption, the real image, or both."""
    augment: tuple[str, ...] = ("color", "translation", "cutout")
    """Differentiable augmentations of everything judged (Zhao et al. 2020), in order."""


class Judge(nn.Module):
    """One head a feature map; logits above 0 mean real."""

    config: JudgeConfig

    @nn.compact
    def __call__(
        self,
        features: Sequence[Tokens],
        c_text: Float[Array, "b d"] | None,
        c_img: Float[Array, "b e"] | None,
    ) -> list[Logits]:
        """A logit for every token of every feature map; None where a condition is not used."""
        return [Head(name=f"head_{k}")(tokens, c_text, c_img) for k, tokens in enumerate(features)]


class Head(nn.Module):
    """Convolutions over tokens in a ring, then a projection on the conditions, per token."""

    @nn.compact
    def __call__(
        self,
        x: Tokens,
        c_text: Float[Array, "b d"] | None,
        c_img: Float[Array, "b e"] | None,
    ) -> Logits:
        width = x.shape[-1]
        x = _block(SpectralConv(width, 1, name="conv_1"), BatchNormLocal(name="norm_1"), x)
        y = _block(SpectralConv(width, 9, name="conv_2"), BatchNormLocal(name="norm_2"), x)
        x = (x + y) / 2**0.5
        if c_text is None and c_img is None:
            return SpectralConv(1, 1, name="out")(x)[..., 0]
        x = SpectralConv(CONDITION_WIDTH, 1, name="out")(x)
        c = jnp.zeros(())
        if c_text is not None:
            c += nn.Dense(CONDITION_WIDTH, name="text")(c_text)
        if c_img is not None:
            c += nn.Dense(CONDITION_WIDTH, name="image")(c_img)
        return jnp.einsum("bnd,bd->bn", x, c) / CONDITION_WIDTH**0.5


class SpectralConv(nn.Module):
    """A convolution over tokens, circular, its kernel divided by its largest singular value."""

    features: int
    size: int

    @nn.compact
    def __call__(self, x: Tokens) -> Float[Array, "b n features"]:
        shape = (self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.normal(1.0), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        kernel = kernel / spectral_norm(rearrange(kernel, "k i o -> (k i) o"))
        reach = self.size // 2
        if reach:
            x = jnp.pad(x, ((0, 0), (reach, reach), (0, 0)), mode="wrap")
        y = jax.lax.conv_general_dilated(
            x, kernel, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
        )
        return y + bias


class BatchNormLocal(nn.Module):
    """Normalises each channel over the tokens of a few consecutive images; keeps no statistics.

    Groups have 8 images, or the largest divisor of the batch below that.
    """

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        b, _, c = x.shape
        group = max(n for n in range(1, GROUP + 1) if b % n == 0)
        scale = self.param("scale", nn.initializers.ones, (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        grouped = rearrange(x, "(g m) n c -> g m n c", m=group)
        mean = grouped.mean((1, 2), keepdims=True)
        variance = grouped.var((1, 2), keepdims=True)
        normal = (grouped - mean) * jax.lax.rsqrt(variance + 1e-5)
        return rearrange(normal, "g m n c -> (g m) n c") * scale + bias


def spectral_norm(matrix: Float[Array, "i o"]) -> Float[Array, ""]:
    """The largest singular value, estimated by power iteration from a fixed vector.

    Miyato et al. 2018 keep the vector between steps and iterate once; ten iterations from scratch
    cost little on matrices of this size and leave nothing to be saved. As there, u and v are
    constants to the gradient.
    """
    fixed = jax.lax.stop_gradient(matrix)
    u = jax.random.normal(jax.random.key(0), (matrix.shape[1],))
    v = fixed @ u
    for _ in range(POWER_ITERATIONS):
        v = _unit(fixed @ u)
        u = _unit(v @ fixed)
    return v @ matrix @ u


def hinge_real(logits: Sequence[Logits]) -> Float[Array, ""]:
    """Σ_k mean max(0, 1 - D_k) over the heads: what the judge loses on real images."""
    return sum((jnp.mean(nn.relu(1 - x)) for x in logits), jnp.zeros(()))


def hinge_fake(logits: Sequence[Logits]) -> Float[Array, ""]:
    """Σ_k mean max(0, 1 + D_k): what the judge loses on the student's images."""
    return sum((jnp.mean(nn.relu(1 + x)) for x in logits), jnp.zeros(()))


def generator_loss(logits: Sequence[Logits]) -> Float[Array, ""]:
    """-Σ_k mean D_k: what the student loses by its images' verdicts."""
    return -sum((jnp.mean(x) for x in logits), jnp.zeros(()))


def r1(
    verdicts: Callable[[list[Tokens]], list[Logits]], features: list[Tokens]
) -> Float[Array, ""]:
    """Σ_k of the mean over images of ‖∂(Σ D_k)/∂F_k‖², at the features F_k that enter head k.

    The sum of all logits of the batch is differentiated, as the authors' code does; as
    BatchNormLocal couples the images of a group, an image's share holds its effect on the others.
    Each D_k depends on its own F_k alone, so one backward pass serves all heads.
    """
    gradients = jax.grad(lambda f: sum(jnp.sum(x) for x in verdicts(f)))(features)
    return sum((jnp.mean(jnp.sum(g**2, axis=(1, 2))) for g in gradients), jnp.zeros(()))


def _block(conv: nn.Module, norm: nn.Module, x: Tokens) -> Tokens:
    return nn.leaky_relu(norm(conv(x)), 0.2)


def _unit(v: Float[Array, " n"]) -> Float[Array, " n"]:
    return v / (jnp.linalg.norm(v) + 1e-12)
