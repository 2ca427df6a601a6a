"""What a network predicts, and how x0 and eps follow from it.

The network's output for x_t = alpha·x0 + sigma·eps is trained to be
`epsilon` eps; `x0` the clean image; `v` alpha·eps - sigma·x0 (Salimans & Ho 2022, variance
preserving schedules); `flow` the velocity eps - x0 (Liu et al. 2022, flow schedule); or, as `edm`,
what is left to predict beside c_skip·x_t (Karras et al. 2022, eq. 7, any schedule). The last
carries no noise through the network where the image is drowned in it, as x0 does, and corrects
rather than copies the image where it is nearly clean, as epsilon does.
"""

from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgen.diffusion import schedule as schedules
from jaxgen.diffusion.schedule import Schedule, per_image
from jaxgen.errors import UserError

Prediction = Literal["epsilon", "x0", "v", "flow", "edm"]
Weight = Literal["uniform", "min_snr", "edm", "velocity"]
SIGMA_DATA = 0.5
LEAST_SIGMA = 0.05  # below it the velocity weight grows no more

Images = Float[Array, "b ..."]
Levels = Float[Array, "b"]


def check(schedule: Schedule, prediction: Prediction) -> None:
    """Raises UserError where the schedule cannot be had with the prediction."""
    schedules.check(schedule)
    if prediction not in get_args(Prediction):
        raise UserError(
            f"prediction '{prediction}' is unknown: choose {', '.join(get_args(Prediction))}"
        )
    if schedule.kind == "edm" and prediction != "edm":
        raise UserError(
            f"prediction '{prediction}' does not go with the edm schedule: choose prediction edm"
        )
    if prediction == "flow" and schedule.kind != "flow":
        raise UserError(
            f"prediction 'flow' does not go with the {schedule.kind} schedule: "
            "choose schedule.kind flow, or prediction v"
        )
    if prediction == "v" and schedule.kind not in schedules.VARIANCE_PRESERVING:
        raise UserError(
            f"prediction 'v' does not go with the {schedule.kind} schedule: choose schedule.kind "
            f"{', '.join(schedules.VARIANCE_PRESERVING)}, or prediction flow"
        )
    if prediction == "epsilon" and schedules.ends_in_noise(schedule):
        raise UserError(
            f"prediction 'epsilon' cannot recover the image from the {schedule.kind} schedule's "
            "last timestep, which is pure noise: choose prediction x0, or "
            f"{'flow' if schedule.kind == 'flow' else 'v'}"
        )


def network_input(kind: Prediction, x_t: Images, alpha: Levels, sigma: Levels) -> Images:
    """x_t as the network is fed it: c_in·x_t, of unit variance, for `edm`; else x_t itself."""
    return x_t / per_image(jnp.hypot(SIGMA_DATA * alpha, sigma), x_t) if kind == "edm" else x_t


def target(kind: Prediction, x0: Images, eps: Images, alpha: Levels, sigma: Levels) -> Images:
    """What the network's output should be."""
    a, s = per_image(alpha, x0), per_image(sigma, x0)
    if kind == "epsilon":
        return eps
    if kind == "x0":
        return x0
    if kind == "v":
        return a * eps - s * x0
    if kind == "flow":
        return eps - x0
    # (x0 - c_skip·x_t) / c_out, written without its cancellation at small sigma.
    return (s / SIGMA_DATA * x0 - SIGMA_DATA * a * eps) / jnp.hypot(s, SIGMA_DATA * a)


def to_x0(kind: Prediction, x_t: Images, output: Images, alpha: Levels, sigma: Levels) -> Images:
    """The clean image that the network's output stands for."""
    a, s = per_image(alpha, x_t), per_image(sigma, x_t)
    if kind == "epsilon":
        return (x_t - s * output) / a
    if kind == "x0":
        return output
    if kind == "v":
        return a * x_t - s * output
    if kind == "flow":
        return x_t - s * output
    # Table 1 of Karras et al. for x_t / alpha at the noise level sigma / alpha.
    variance = s**2 + (SIGMA_DATA * a) ** 2
    return (SIGMA_DATA**2 * a * x_t + s * SIGMA_DATA * jnp.sqrt(variance) * output) / variance


def to_epsilon(
    kind: Prediction, x_t: Images, output: Images, alpha: Levels, sigma: Levels
) -> Images:
    """The noise that the network's output stands for."""
    a, s = per_image(alpha, x_t), per_image(sigma, x_t)
    if kind == "epsilon":
        return output
    if kind == "v":
        return a * output + s * x_t
    if kind == "flow":
        return x_t + a * output
    return (x_t - a * to_x0(kind, x_t, output, alpha, sigma)) / s


def weight(
    weighting: Weight, kind: Prediction, alpha: Levels, sigma: Levels, gamma: float = 5.0
) -> Levels:
    """The factor of each image's squared error between the network's output and its target.

    `uniform` is 1. `min_snr` weighs the error of x0 by min(SNR, gamma) (Hang et al. 2023, eq. 7),
    `edm` by SNR + 1/sigma_data² (Karras et al. 2022, table 1: (σ² + σ_data²)/(σ·σ_data)²),
    `velocity` by 1/sigma², which is the flow velocity's own error (Li & He 2025, arXiv 2511.13720,
    section 4, where a network predicts x0 and is graded by velocity). All are restated for the
    network's output, whose error is that of x0 divided by |∂x0/∂output|; so
    min_snr is min(SNR, gamma)/SNR for epsilon and min(SNR, gamma)/(SNR + 1) for v, and `edm` is 1
    for the edm prediction.
    """
    if weighting == "uniform":
        return jnp.ones_like(sigma)
    snr = (alpha / sigma) ** 2
    if weighting == "min_snr":
        x0_weight = jnp.minimum(snr, gamma)
    elif weighting == "edm":
        x0_weight = snr + 1 / SIGMA_DATA**2
    else:
        x0_weight = 1 / jnp.maximum(sigma, LEAST_SIGMA) ** 2
    if kind == "x0":
        return x0_weight
    if kind == "epsilon":
        return x0_weight / snr
    if kind == "edm":
        return x0_weight * (sigma * SIGMA_DATA) ** 2 / (sigma**2 + (SIGMA_DATA * alpha) ** 2)
    return x0_weight * sigma**2
