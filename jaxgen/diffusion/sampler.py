"""Samplers: from noise to image by calls of an x0-predictor.

The one idea: at call i the network turns x_i into D_i, its prediction of x0, and every solver then
takes the same linear step

    x_{i+1} = a·x_i + b·D_i + c·x_{i-1} + d·D_{i-1} + s·z,    z ~ N(0, 1),

with coefficients that depend on the schedule alone. `plan` works them out on the host in float64;
`sample` is one scan over them, for 50 steps as for one.

The papers write most solvers for x/alpha and sigma/alpha. Here the same steps are written for x,
so that they hold at alpha = 0 (pure noise), where x/alpha does not exist. In these terms
eps = (x - alpha·D)/sigma, primes mark the next level, and

- ddim with eta = 0 and euler are one: x' = alpha'·D + sigma'·eps;
- ddpm, euler_ancestral and ddim with eta = 1 are one: x' = alpha'·D + sqrt(sigma'² - s²)·eps + s·z
  with the posterior's s. All the names are kept because they are what people look for.

The last step lands on alpha = 1, sigma = 0, so a single step returns D at t = T-1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from jaxgen.diffusion import schedule as schedules
from jaxgen.diffusion.schedule import Schedule
from jaxgen.errors import UserError

Images = Float[Array, "b ..."]
Denoise = Callable[[Images, Float[Array, "b"]], Images]
Column = Float[np.ndarray, "calls"]
KARRAS_RHO = 7.0


@dataclass(frozen=True)
class Sampler:
    """How to sample; hashable, so that jit may take it as static."""

    solver: Literal["ddpm", "ddim", "euler", "euler_ancestral", "heun", "dpmpp_2m", "renoise"] = (
        "ddim"
    )
    """Rule of one step; renoise predicts the image and noises it afresh to the next level."""
    spacing: Literal["trailing", "leading", "linspace", "karras", "turbo"] = "trailing"
    """Which timesteps are visited; turbo is SD-Turbo's 999, 899, 799, …"""
    steps: int = 50
    """Number of steps, 1 or more; one network call each, except heun: 2·steps - 1."""
    guidance: float = 1.0
    """Classifier-free guidance weight w; 1 is none, and costs no second pass."""
    eta: float = 0.0
    """Share of fresh noise in ddim, from 0 (deterministic) to 1 (ddpm)."""
    strength: float = 1.0
    """Share of the steps that is taken, the last ones; below 1 it starts from an image, to which
    the noise of the first of them is added (Meng et al. 2022, arXiv 2108.01073)."""


class Plan(NamedTuple):
    """One row a network call: where it is made, and the linear step that follows it."""

    t: Column
    alpha: Column
    sigma: Column
    a: Column
    b: Column
    c: Column
    d: Column
    s: Column


def network_calls(sampler: Sampler) -> int:
    """How often the network is called (a guided call, on the doubled batch, counts once)."""
    steps = _taken(sampler)
    return 2 * steps - 1 if sampler.solver == "heun" else steps


def check(sampler: Sampler, schedule: Schedule, option: str = "--steps") -> None:
    """Raises UserError for a sampler that the schedule cannot serve; `option` gave its steps."""
    schedules.check(schedule)
    most = len(_turbo(schedule)) if sampler.spacing == "turbo" else schedule.timesteps
    if not 1 <= sampler.steps <= most:
        raise UserError(
            f"{option} is {sampler.steps}: it must be from 1 to {most}, the number of "
            f"timesteps that {sampler.spacing} spacing has to choose from"
        )
    if not sampler.guidance >= 0:
        raise UserError(
            f"--guidance is {sampler.guidance:g}: it must be 0 or more (1 is no guidance)"
        )
    if not 0 <= sampler.eta <= 1:
        raise UserError(f"--eta is {sampler.eta:g}: it must be from 0 to 1")
    if not (0 < sampler.strength <= 1 and _taken(sampler)):
        raise UserError(
            f"--strength is {sampler.strength:g}, which leaves none of {sampler.steps} step(s): it "
            "must be above 0 and at most 1, with more steps the lower it is"
        )
    if sampler.eta and sampler.solver != "ddim":
        raise UserError(
            f"--eta is {sampler.eta:g}, which only ddim knows: leave it at 0 with {sampler.solver}"
        )
    if sampler.spacing == "karras" and sampler.steps > 1 and schedules.ends_in_noise(schedule):
        raise UserError(
            "--spacing karras needs a finite sigma/alpha to start from, and the "
            f"{schedule.kind} schedule here starts from pure noise: choose trailing"
        )


def timesteps(sampler: Sampler, schedule: Schedule) -> Float[np.ndarray, "steps"]:
    """The timesteps visited, falling; real numbers for karras spacing, else whole."""
    T, n = schedule.timesteps, sampler.steps
    if n == 1:
        return np.array([T - 1.0])
    match sampler.spacing:
        case "trailing":  # Lin et al. 2023, table 2.
            t = np.round(T - np.arange(n) * (T / n)) - 1
        case "leading":
            t = np.arange(n)[::-1] * (T // n)
        case "linspace":
            t = np.round(np.linspace(T - 1, 0, n))
        case "turbo":
            t = _turbo(schedule)[:n]
        case "karras":  # Karras et al. 2022, eq. 5.
            alpha, sigma = schedule.levels(np.array([T - 1, 0]))
            high, low = (sigma / alpha) ** (1 / KARRAS_RHO)
            t = schedule.timestep((high + np.arange(n) / (n - 1) * (low - high)) ** KARRAS_RHO)
            t = np.clip(t, 0, T - 1)
    return t.astype(np.float64)


def plan(sampler: Sampler, schedule: Schedule) -> Plan:
    """The sampler's linear recursion on this schedule, float64 (see the module's docstring).

    Raises UserError where `check` does.
    """
    check(sampler, schedule)
    t = timesteps(sampler, schedule)[-_taken(sampler) :]
    alpha, sigma = schedule.levels(t)
    levels = [*zip(t, alpha, sigma, strict=True)]
    rows = []
    for i, (t_i, *now) in enumerate(levels):
        _, *after = levels[i + 1] if i + 1 < len(levels) else (None, 1.0, 0.0)
        before = levels[i - 1][1:] if i else None
        rows += [(t_i, *now, *_step(sampler, before, now, after))]
        if sampler.solver == "heun" and i + 1 < len(levels):
            rows += [(*levels[i + 1], *_heun_correction(now, after))]
    return Plan(*np.array(rows).T)


def sample(
    sampler: Sampler,
    schedule: Schedule,
    denoise: Denoise,
    x: Images,
    key: PRNGKeyArray,
    start: Images | None = None,
) -> Images:
    """Turns unit Gaussian noise `x` into images.

    `denoise(x_t, t)` predicts x0 from x_t [b, …] and t [b] (see `prediction.to_x0` and
    `guided`). `key` is used by solvers that add noise, one draw a call, by the call's number.
    `start`, the images that a `strength` below 1 starts from, are noised by `x`.
    """
    if start is None and sampler.strength < 1:
        raise ValueError(f"a strength of {sampler.strength} needs images to start from")
    rows = plan(sampler, schedule)
    x = x * rows.sigma[0].astype(x.dtype)
    if start is not None:
        x += start * rows.alpha[0].astype(x.dtype)
    noisy = rows.s.any()

    def step(carry, row):
        x, x_before, D_before = carry
        i, t, a, b, c, d, s = row
        D = denoise(x, jnp.broadcast_to(t, x.shape[:1])).astype(x.dtype)
        x_next = a * x + b * D + c * x_before + d * D_before
        if noisy:
            x_next += s * jax.random.normal(jax.random.fold_in(key, i), x.shape, x.dtype)
        return (x_next, x, D), None

    coefficients = [jnp.asarray(column, x.dtype) for column in (rows.a, *rows[4:])]
    calls = (jnp.arange(len(rows.t)), jnp.asarray(rows.t, jnp.float32), *coefficients)
    (x, _, _), _ = jax.lax.scan(step, (x, x, jnp.zeros_like(x)), calls)
    return x


def guided(
    denoise: Callable[[Images, Float[Array, "b"], PyTree], Images],
    context: PyTree,
    null: PyTree,
    guidance: float,
) -> Denoise:
    """Classifier-free guidance: D_w = D_null + w·(D_context - D_null) (Ho & Salimans 2022, eq. 6).

    `denoise(x, t, context)` predicts x0; the leaves of `context` are [b, …], those of `null` (what
    the network saw where training dropped the caption) the same or broadcastable to them. With
    guidance 1 only the conditional pass is computed. Else each call is one pass over 2b images in
    which an image's two rows are neighbours: with the batch sharded over devices both then lie on
    one device, which two concatenated halves would not.
    """
    if guidance == 1.0:
        return lambda x, t: denoise(x, t, context)

    def pair(c, n):
        return rearrange([c, jnp.broadcast_to(n, c.shape)], "two b ... -> (b two) ...")

    both = jax.tree.map(pair, context, null)

    def denoise_guided(x, t):
        D = denoise(
            repeat(x, "b ... -> (b two) ...", two=2), repeat(t, "b -> (b two)", two=2), both
        )
        D_context, D_null = rearrange(D, "(b two) ... -> two b ...", two=2)
        return D_null + guidance * (D_context - D_null)

    return denoise_guided


def _step(sampler: Sampler, before, now, after) -> tuple[float, float, float, float, float]:
    """(a, b, c, d, s) of the step from level `now` to level `after`; a level is (alpha, sigma)."""
    (alpha, sigma), (alpha_, sigma_) = now, after
    if sampler.solver == "renoise":
        return 0.0, alpha_, 0.0, 0.0, sigma_
    if sampler.solver == "dpmpp_2m" and before is not None and sigma_ > 0:
        a, b = sigma_ / sigma, alpha_ - alpha * sigma_ / sigma
        # Lu et al. 2022 (DPM-Solver++), algorithm 2: half = 1/(2r), r = h_last/h, where b is their
        # -alpha'·(exp(-h) - 1). After pure noise h_last is infinite, and half 0.
        half = 0.5 * (_log_snr(after) - _log_snr(now)) / (_log_snr(now) - _log_snr(before))
        return a, (1 + half) * b, 0.0, -half * b, 0.0
    eta = {"ddim": sampler.eta, "ddpm": 1.0, "euler_ancestral": 1.0}.get(sampler.solver, 0.0)
    # Song et al. 2020 (DDIM), eqs. 12 and 16. Their s is eta·sigma'·sqrt(1 - ratio²), where ratio
    # is (sigma'/alpha')/(sigma/alpha); the same s/alpha' is Euler-ancestral's sigma_up.
    ratio = sigma_ * alpha / (alpha_ * sigma)
    s = eta * sigma_ * np.sqrt(1 - ratio**2)
    a = np.sqrt(sigma_**2 - s**2) / sigma
    return a, alpha_ - alpha * a, 0.0, 0.0, s


def _heun_correction(now, after) -> tuple[float, float, float, float, float]:
    """(a, b, c, d, s) of the call at `after`, which redoes the Euler step from `now`.

    The trapezoidal rule on the probability flow dx = D·d(alpha) + eps·d(sigma). With alpha = 1
    that is Karras et al. 2022, algorithm 1; on the flow schedule, Heun's rule for its velocity.
    """
    (alpha, sigma), (alpha_, sigma_) = now, after
    d_alpha, half, half_ = (
        alpha_ - alpha,
        (sigma_ - sigma) / sigma / 2,
        (sigma_ - sigma) / sigma_ / 2,
    )
    return half_, d_alpha / 2 - alpha_ * half_, 1 + half, d_alpha / 2 - alpha * half, 0.0


def _taken(sampler: Sampler) -> int:
    """How many of its steps the strength leaves, rounded down as diffusers does."""
    return int(sampler.steps * sampler.strength)


def _log_snr(level) -> float:
    """Half the log signal-to-noise ratio, ln(alpha/sigma); -inf for pure noise."""
    alpha, sigma = level
    return float(np.log(alpha / sigma)) if alpha > 0 else -np.inf


def _turbo(schedule: Schedule) -> np.ndarray:
    """T-1 and every tenth of T below it, falling."""
    T = schedule.timesteps
    return np.unique(T - 1 - np.arange(10) * T // 10)[::-1]
