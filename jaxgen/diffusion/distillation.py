"""The teacher's side of ADD: its target for a student's image, and the distance to that target.

Sauer et al. 2023 (arXiv 2311.17042), section 3.3, with the three choices of c(t) that it names.
A `denoise(x_t, t, text)` predicts the clean image [b, h, w, c].
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgen.diffusion import sampler as sampling
from jaxgen.diffusion.schedule import Schedule, add_noise, per_image
from jaxgen.text.encoder import TextFeatures

Images = Float[Array, "b h w c"]
Denoise = Callable[[Images, Float[Array, " b"], TextFeatures], Images]
Weighting = Literal["exponential", "sds", "nfsd"]

# Katzir et al. 2023 split Stable Diffusion's timesteps at T/5; this is sigma/alpha there.
NFSD_LOW_NOISE = 0.57167


def target(
    schedule: Schedule,
    denoise: Denoise,
    fake: Images,
    eps: Images,
    t: Float[Array, " b"],
    text: TextFeatures,
    empty: TextFeatures,
    *,
    weighting: Weighting,
    steps: int,
    guidance: float,
) -> Images:
    """x̂_ψ: what the teacher makes of the student's output noised again to t. No gradient passes.

    With `steps` above 1 it walks by DDIM from t towards 0, at each image's own pace. `empty` are
    the features of the caption without words, [1, …].
    """
    x_t = jax.lax.stop_gradient(add_noise(schedule, fake, eps, t))
    if weighting == "nfsd":
        score = _noise_free_score(schedule, denoise, x_t, t, text, empty, guidance)
        alpha, sigma = (per_image(level, x_t) for level in schedule.at(t))
        return jax.lax.stop_gradient(fake - sigma / jnp.maximum(alpha, 1e-3) * score)
    guided = sampling.guided(denoise, text, empty, guidance)
    x0 = guided(x_t, t)
    for n in range(1, steps):
        now, after = t * (1 - (n - 1) / steps), t * (1 - n / steps)
        x_t = _ddim(schedule, x_t, x0, now, after)
        x0 = guided(x_t, after)
    return jax.lax.stop_gradient(x0)


def loss(
    schedule: Schedule, weighting: Weighting, fake: Images, target: Images, t: Float[Array, " b"]
) -> Float[Array, ""]:
    """c(t)·‖x̂_θ - x̂_ψ‖² (eq. 4), the norm as a mean over pixels."""
    alpha, sigma = schedule.at(t)
    # w(t) = σ², as DreamFusion (Poole et al. 2022) has it, makes SDS's α/(2σ)·w(t) finite.
    c = alpha if weighting == "exponential" else alpha * sigma / 2
    return jnp.mean(c * jnp.mean((fake - target) ** 2, axis=(1, 2, 3)))


def _ddim(
    schedule: Schedule,
    x_t: Images,
    x0: Images,
    t: Float[Array, " b"],
    after: Float[Array, " b"],
) -> Images:
    """The deterministic step from t to `after`, given a prediction of x0 (Song et al. 2020)."""
    alpha, sigma = (per_image(level, x_t) for level in schedule.at(t))
    alpha_, sigma_ = (per_image(level, x_t) for level in schedule.at(after))
    return alpha_ * x0 + sigma_ * (x_t - alpha * x0) / sigma


def _noise_free_score(
    schedule: Schedule,
    denoise: Denoise,
    x_t: Images,
    t: Float[Array, " b"],
    text: TextFeatures,
    empty: TextFeatures,
    guidance: float,
) -> Images:
    """Noise-free score distillation's gradient (Katzir et al. 2023, arXiv 2310.17590, eqs. 9-11).

    The noise that SDS subtracts is left out; what remains is s·(ε_c - ε_∅), plus ε_∅ itself where
    there is little noise. Their negative prompt, at more noise, takes the place of words such as
    "blurry"; here it is empty, and that term vanishes.
    """
    alpha, sigma = (per_image(level, x_t) for level in schedule.at(t))
    empty = jax.tree.map(lambda e, c: jnp.broadcast_to(e, c.shape), empty, text)
    with_caption, without = denoise(x_t, t, text), denoise(x_t, t, empty)
    # In terms of x0: ε = (x_t - α·x0)/σ, so ε_c - ε_∅ = -α/σ·(D_c - D_∅).
    conditional = -(alpha / sigma) * (with_caption - without)
    domain = (x_t - alpha * without) / sigma
    low_noise = (sigma < NFSD_LOW_NOISE * alpha).astype(x_t.dtype)
    return guidance * conditional + low_noise * domain
