"""Noise schedules: how much image and how much noise there is at each timestep.

Every schedule is x_t = alpha_t·x0 + sigma_t·eps with eps a unit Gaussian, over timesteps t = 0
(nearly clean) to T-1 (nearly or wholly noise). Three families:

- variance preserving (`linear`, `scaled_linear`, `cosine`): alpha² + sigma² = 1, from a table;
- `flow`: rectified flow, alpha = 1 - time, sigma = time, where time is (t+1)/T, moved towards the
  noise by `shift`;
- `edm`: alpha = 1, sigma from .002 to 80 (Karras et al. 2022, eq. 5). Such an x_t reaches 80, so
  the network is fed c_in·x_t: see `prediction.network_input`.
"""

import functools
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgen.errors import UserError

VARIANCE_PRESERVING = ("linear", "scaled_linear", "cosine")
EDM_SIGMA_MIN, EDM_SIGMA_MAX, EDM_RHO = 0.002, 80.0, 7.0
EDM_P_MEAN, EDM_P_STD = -1.2, 1.2

Table = Float[np.ndarray, "t"]


@dataclass(frozen=True)
class Schedule:
    """A noise schedule over `timesteps` steps; hashable, so that jit may take it as static."""

    kind: Literal["linear", "scaled_linear", "cosine", "flow", "edm"] = "flow"
    """Family of the noise levels; scaled_linear is Stable Diffusion's, flow is rectified flow."""
    timesteps: int = 1000
    """T: timesteps are 0 (least noise) to T-1 (most noise)."""
    zero_terminal_snr: bool = False
    """Rescale a linear, scaled_linear or cosine schedule so that t = T-1 is pure noise."""
    beta_start: float = 0.00085
    """First beta of the linear kinds (Stable Diffusion's; Ho et al. have 0.0001)."""
    beta_end: float = 0.012
    """Last beta of the linear kinds (Stable Diffusion's; Ho et al. have 0.02)."""
    shift: float = 1.0
    """Of flow: multiplies sigma/alpha at every timestep, so that more of them lie where only the
    caption can say what the picture is (Esser et al. 2024, eq. 23); 1 for none."""

    def alphas(self) -> Table:
        """Image amplitude at t = 0 … T-1, float64."""
        return self.levels(np.arange(self.timesteps))[0]

    def sigmas(self) -> Table:
        """Noise amplitude at t = 0 … T-1, float64."""
        return self.levels(np.arange(self.timesteps))[1]

    def levels(self, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(alpha, sigma) at integer or real timesteps, float64 on the host, for samplers."""
        return _levels(self, np, np.asarray(t, np.float64))

    def at(self, t: Float[Array, "b"]) -> tuple[Float[Array, "b"], Float[Array, "b"]]:
        """(alpha, sigma) at integer or real timesteps, float32 on the device, for training."""
        return _levels(self, jnp, jnp.asarray(t, jnp.float32))

    def timestep(self, ratio: np.ndarray) -> np.ndarray:
        """The real timestep at which sigma/alpha is `ratio`: the exact inverse of `levels`."""
        ratio = np.asarray(ratio, np.float64)
        if self.kind == "flow":
            return ratio / (self.shift + ratio) * self.timesteps - 1
        if self.kind == "edm":
            low, high = EDM_SIGMA_MIN ** (1 / EDM_RHO), EDM_SIGMA_MAX ** (1 / EDM_RHO)
            return (ratio ** (1 / EDM_RHO) - low) / (high - low) * (self.timesteps - 1)
        alphas, sigmas = _variance_preserving(self)
        with np.errstate(divide="ignore"):
            left = np.searchsorted(sigmas / alphas, ratio, side="right") - 1
        left = np.clip(left, 0, self.timesteps - 2)
        a, s = alphas[left], sigmas[left]
        a_step, s_step = alphas[left + 1] - a, sigmas[left + 1] - s
        return left + (ratio * a - s) / (s_step - ratio * a_step)


def check(schedule: Schedule) -> None:
    """Raises UserError for a schedule that has no meaning."""
    if schedule.timesteps < 2:
        raise UserError(f"schedule.timesteps is {schedule.timesteps}: it must be at least 2")
    if not 0 < schedule.beta_start <= schedule.beta_end < 1:
        raise UserError(
            f"schedule.beta_start {schedule.beta_start} and beta_end {schedule.beta_end} must "
            "satisfy 0 < beta_start <= beta_end < 1"
        )
    if not 0 < schedule.shift < np.inf or (schedule.shift != 1 and schedule.kind != "flow"):
        raise UserError(
            f"schedule.shift is {schedule.shift:g}: it must be above 0, and 1 unless schedule.kind "
            "is flow"
        )
    if schedule.kind == "edm" and schedule.zero_terminal_snr:
        raise UserError(
            "schedule.zero_terminal_snr cannot be had with the edm schedule, whose sigma ends at "
            f"{EDM_SIGMA_MAX:g}: choose flow, or a linear, scaled_linear or cosine schedule"
        )


def ends_in_noise(schedule: Schedule) -> bool:
    """Whether alpha is 0 at the last timestep (zero terminal signal-to-noise ratio)."""
    return bool(schedule.levels(np.asarray(schedule.timesteps - 1))[0] == 0)


def add_noise(
    schedule: Schedule,
    x0: Float[Array, "b ..."],
    eps: Float[Array, "b ..."],
    t: Float[Array, "b"],
    *,
    pure_terminal: bool = False,
) -> Float[Array, "b ..."]:
    """x_t = alpha_t·x0 + sigma_t·eps, with one timestep an image (Ho et al. 2020, eq. 4).

    With `pure_terminal` the image is left out at t = T-1, whatever alpha the schedule has there:
    x_t = sigma_t·eps, which is just what a sampler starts from. That gives a student of a
    published epsilon-predicting network its zero terminal signal-to-noise ratio, while the
    published alpha stays in the formula that recovers x0.
    """
    alpha, sigma = schedule.at(t)
    if pure_terminal:
        alpha = jnp.where(t == schedule.timesteps - 1, 0.0, alpha)
    return per_image(alpha, x0) * x0 + per_image(sigma, x0) * eps


def draw_timesteps(
    schedule: Schedule, key: PRNGKeyArray, batch: int, *, continuous: bool = False
) -> Float[Array, "b"]:
    """Timesteps to train at: uniform over 0 … T-1, whole numbers unless `continuous`.

    For the edm schedule ln sigma is Gaussian, mean -1.2, deviation 1.2, cut to the schedule's
    range, and the timesteps are real (Karras et al. 2022, table 1).
    """
    last = schedule.timesteps - 1
    if schedule.kind == "edm":
        low, high = EDM_SIGMA_MIN ** (1 / EDM_RHO), EDM_SIGMA_MAX ** (1 / EDM_RHO)
        sigma = jnp.exp(EDM_P_MEAN + EDM_P_STD * jax.random.normal(key, (batch,)))
        return jnp.clip((sigma ** (1 / EDM_RHO) - low) / (high - low), 0.0, 1.0) * last
    if continuous:
        return jax.random.uniform(key, (batch,), maxval=last)
    return jax.random.randint(key, (batch,), 0, schedule.timesteps).astype(jnp.float32)


def per_image(level: Float[Array, "b"], x: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
    """A number an image, shaped [b, 1, …] so that it multiplies `x` image by image."""
    return jnp.reshape(level, level.shape + (1,) * (x.ndim - level.ndim))


def _levels(schedule: Schedule, xp: ModuleType, t: Any) -> tuple[Any, Any]:
    """(alpha, sigma) at t, computed by numpy or by jax.numpy."""
    if schedule.kind == "flow":
        # Not 1 - time: compiled, that leaves 5e-8 of the image at t = T-1.
        image, noise = schedule.timesteps - 1 - t, schedule.shift * (t + 1)
        return image / (image + noise), noise / (image + noise)
    if schedule.kind == "edm":
        low, high = EDM_SIGMA_MIN ** (1 / EDM_RHO), EDM_SIGMA_MAX ** (1 / EDM_RHO)
        sigma = (low + t / (schedule.timesteps - 1) * (high - low)) ** EDM_RHO
        return xp.ones_like(sigma), sigma
    alphas, sigmas = (xp.asarray(table, t.dtype) for table in _variance_preserving(schedule))
    # Between two timesteps: along the chord, then back onto the circle alpha² + sigma² = 1. Unlike
    # log-SNR this stays finite, and exact, at alpha = 0.
    left = xp.clip(xp.floor(t), 0, schedule.timesteps - 2).astype(int)
    alpha = alphas[left] + (t - left) * (alphas[left + 1] - alphas[left])
    sigma = sigmas[left] + (t - left) * (sigmas[left + 1] - sigmas[left])
    norm = xp.sqrt(alpha**2 + sigma**2)
    return alpha / norm, sigma / norm


@functools.cache
def _variance_preserving(schedule: Schedule) -> tuple[Table, Table]:
    """The tables of sqrt(alpha-bar) and sqrt(1 - alpha-bar)."""
    T = schedule.timesteps
    if schedule.kind == "cosine":  # Nichol & Dhariwal 2021, eq. 17, with their cap on beta.
        angle = (np.arange(T + 1) / T + 0.008) / 1.008 * np.pi / 2
        f = np.cos(angle) ** 2
        betas = np.minimum(1 - f[1:] / f[:-1], 0.999)
    elif schedule.kind == "scaled_linear":
        betas = np.linspace(schedule.beta_start**0.5, schedule.beta_end**0.5, T) ** 2
    else:
        betas = np.linspace(schedule.beta_start, schedule.beta_end, T)
    q = np.sqrt(np.cumprod(1 - betas))
    if schedule.zero_terminal_snr:  # Lin et al. 2023, algorithm 1.
        q = (q - q[-1]) * q[0] / (q[0] - q[-1])
    return q, np.sqrt(1 - q**2)
