"""The judge's trainable heads, on features of a frozen network, and their losses.

Sauer et al. 2023 (StyleGAN-T, arXiv 2301.09515), as adversarial diffusion distillation uses them
(arXiv 2311.17042). Everything here is a pure function of parameters and inputs: spectral norms are
estimated afresh in each call, and batch statistics are never kept.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from einops import einsum, rearrange, reduce
from flax import linen as nn
from jaxtyping import Array, Float

from jaxgen.errors import UserError
from jaxgen.models import eyes

Tokens = Float[Array, "b n c"]
Logits = Float[Array, "b n"]
Conditions = dict[str, Float[Array, "b d"]]
GROUP = 8


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
    """The discriminator of ADD: which frozen eyes, and what its heads are told."""

    features: str = "efficientnet-lite0"
    """The frozen feature network: efficientnet-lite0, dinov2-vits14, or a classifier (the folder of
    its run, shipped:classifier); empty: dinov2-vits14 if its weights are given, else the first."""
    weights: str = ""
    """File of dinov2-vits14's weights, a .safetensors."""
    taps: tuple[int, ...] = ()
    """Blocks of the feature network whose outputs are judged, a head each (of a vision transformer
    -1 is before the first); empty: some that are evenly spread."""
    resize: int = 64
    """Side to which images are brought for the feature network, in pixels."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of what the feature network computes; its features are float32 all the same."""
    condition: Literal["none", "text", "image", "both"] = "both"
    """What heads know beside the features: vectors of the caption, the real image, or both."""
    width: int = 64
    """Channels in which tokens and conditions meet."""
    augment: tuple[str, ...] = ("color", "translation", "cutout")
    """Differentiable augmentations of everything judged (Zhao et al. 2020), in order."""

    @property
    def eyes(self) -> str:
        """The feature network: the name of one in `eyes.NETWORKS`, or a classifier's run."""
        return self.features or (eyes.DINOV2 if self.weights else eyes.EFFICIENTNET)

    def check(self) -> None:
        """Raises UserError where eyes that are no run do not fit the other fields."""
        name = self.eyes
        if self.weights and name != eyes.DINOV2:
            raise UserError(
                f"--judge.weights goes with --judge.features={eyes.DINOV2}; {name} brings its own"
            )
        if self.resize < 16:
            raise UserError(f"--judge.resize is {self.resize}; give 16 pixels or more")
        if name in eyes.NETWORKS:
            eyes.check(name, eyes.NETWORKS[name], self.taps, self.resize)
        elif ":" not in name and not Path(name).exists():
            raise UserError(
                f"--judge.features {name!r} is unknown; known: {', '.join(eyes.NETWORKS)}, "
                "shipped:classifier, or the folder of a classifier's run"
            )


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
        """A logit for every token of every feature map.

        A condition that the config does not name is ignored and may be None; `ValueError` where
        one that it names is.
        """
        conditions = {}
        for name, vector in (("text", c_text), ("image", c_img)):
            if self.config.condition in (name, "both"):
                if vector is None:
                    raise ValueError(f"the judge's condition {name} is None")
                conditions[name] = vector
        return [
            Head(self.config.width, name=f"head_{k}")(tokens, conditions)
            for k, tokens in enumerate(features)
        ]


class Head(nn.Module):
    """Convolutions over tokens in a ring, then a projection on the conditions, per token."""

    width: int

    @nn.compact
    def __call__(self, x: Tokens, conditions: Conditions) -> Logits:
        c = x.shape[-1]
        # No biases here: the normalisation that follows would take them away again.
        x = SpectralConv(c, 1, use_bias=False, name="conv_1")(x)
        x = nn.leaky_relu(BatchNormLocal(name="norm_1")(x), 0.2)
        y = SpectralConv(c, 9, use_bias=False, name="conv_2")(x)
        y = nn.leaky_relu(BatchNormLocal(name="norm_2")(y), 0.2)
        x = (x + y) / np.sqrt(2.0)
        if not conditions:
            return rearrange(SpectralConv(1, 1, name="out")(x), "b n 1 -> b n")
        x = SpectralConv(self.width, 1, name="out")(x)
        mapped = sum(nn.Dense(self.width, name=name)(c) for name, c in conditions.items())
        return einsum(x, mapped, "b n d, b d -> b n") / np.sqrt(self.width)


class SpectralConv(nn.Module):
    """A convolution over tokens, circular, its kernel divided by its largest singular value."""

    features: int
    size: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Tokens) -> Float[Array, "b n features"]:
        shape = (self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        x = circular_conv(x, kernel / spectral_norm(rearrange(kernel, "k i o -> (k i) o")))
        if self.use_bias:
            x = x + self.param("bias", nn.initializers.zeros, (self.features,))
        return x


class BatchNormLocal(nn.Module):
    """Normalises each channel over the tokens of a few images; keeps no statistics.

    A group is 8 consecutive images of the whole batch, however it is sharded; where 8 does not
    divide the batch, its largest divisor below 8. Where a group lies across devices, its feature
    maps travel.
    """

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        b, _, c = x.shape
        group = max(n for n in range(1, GROUP + 1) if b % n == 0)
        scale = self.param("scale", nn.initializers.ones, (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        grouped = rearrange(x, "(g m) n c -> g m n c", m=group)
        centred = grouped - reduce(grouped, "g m n c -> g 1 1 c", "mean")
        variance = reduce(jnp.square(centred), "g m n c -> g 1 1 c", "mean")
        normal = centred * jax.lax.rsqrt(variance + 1e-5)
        return rearrange(normal, "g m n c -> (g m) n c") * scale + bias


def circular_conv(x: Tokens, kernel: Float[Array, "k c d"]) -> Float[Array, "b n d"]:
    """Correlation with a kernel of odd length along tokens in a ring, as one matrix product.

    XLA's CPU convolution is 2 to 10 times slower in the second derivative, which R1 needs.
    """
    (k, _, _), n = kernel.shape, x.shape[1]
    around = jnp.pad(x, ((0, 0), (k // 2, k // 2), (0, 0)), mode="wrap")
    unfolded = jnp.concatenate([around[:, i : i + n] for i in range(k)], axis=-1)
    return unfolded @ rearrange(kernel, "k c d -> (k c) d")


def spectral_norm(matrix: Float[Array, "i o"]) -> Float[Array, ""]:
    """The largest singular value, σ = uᵀWv, u and v constants to the gradient (Miyato et al. 2018).

    They come from 64 power iterations, done as 6 squarings of the smaller Gram matrix, from a
    fixed vector: within 2 % for random matrices. Miyato et al. keep u between steps and iterate
    once; from scratch nothing mutable has to be threaded through, sharded and saved.
    """
    transposed = matrix.shape[0] < matrix.shape[1]
    fixed = jax.lax.stop_gradient(matrix.T if transposed else matrix)
    start = np.random.default_rng(0).standard_normal(fixed.shape[1])
    with jax.default_matmul_precision("highest"):
        gram = fixed.T @ fixed
        for _ in range(6):
            gram = gram / jnp.trace(gram)  # or its powers leave the range of floats
            gram = gram @ gram
        v = _unit(gram @ jnp.asarray(start, gram.dtype))
        u = _unit(fixed @ v)
        return v @ matrix @ u if transposed else u @ matrix @ v


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


def loss(
    verdicts: Callable[[list[Tokens]], list[Logits]],
    real: list[Tokens],
    fake: list[Tokens],
    penalty: float,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Hinge plus `penalty` times R1 at the features of real images (ADD, eq. 3), and metrics.

    These are judge, the hinge; r1, which is not computed where its weight is 0; real_believed and
    fake_believed, the shares of logits that say real. No gradient reaches `fake`.
    """
    on_real, on_fake = verdicts(real), verdicts(jax.lax.stop_gradient(fake))
    total = hinge = hinge_real(on_real) + hinge_fake(on_fake)
    metrics = {"judge": hinge}
    if penalty:
        metrics["r1"] = r1(verdicts, real)
        total = hinge + penalty * metrics["r1"]
    return total, metrics | {
        "real_believed": jnp.mean(jnp.stack([jnp.mean(logits > 0) for logits in on_real])),
        "fake_believed": jnp.mean(jnp.stack([jnp.mean(logits > 0) for logits in on_fake])),
    }


def _unit(v: Float[Array, " n"]) -> Float[Array, " n"]:
    return v / (jnp.linalg.norm(v) + 1e-12)
