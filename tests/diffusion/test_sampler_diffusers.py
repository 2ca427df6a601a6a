"""Schedules, timesteps and every step of every sampler against diffusers' schedulers.

Both sides are led by the same nonlinear denoiser. Ours runs the plan in float64; theirs keeps its
tables in float32, whence the tolerances. Where theirs works in x/alpha, it is converted.
"""

import diffusers
import numpy as np
import pytest
import torch
from diffusers.schedulers import (
    scheduling_ddim,
    scheduling_ddpm,
    scheduling_euler_ancestral_discrete,
)

from jaxgen.diffusion import prediction
from jaxgen.diffusion.sampler import Sampler, plan
from jaxgen.diffusion.schedule import Schedule

# Diffusers hands torch tensors to NumPy 2 in a way that NumPy means to end.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

X = np.random.default_rng(0).standard_normal((2, 3, 4))
SD = Schedule("scaled_linear")
ZERO = Schedule("scaled_linear", zero_terminal_snr=True)
PUBLISHED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def toy(x, alpha, sigma):
    """A denoiser like no Gaussian's: nonlinear, and other at each level."""
    return np.tanh(2 * x) * alpha + 0.3 * np.sin(3 * x + sigma)


def noise(call):
    return np.random.default_rng(100 + call).standard_normal(X.shape)


def ours(sampler, schedule):
    """The plan, and x after each of its calls."""
    rows, path = plan(sampler, schedule), []
    x = rows.sigma[0] * X
    x_before = D_before = np.zeros_like(x)
    for i, (_, alpha, sigma, a, b, c, d, s) in enumerate(zip(*rows, strict=True)):
        D = toy(x, alpha, sigma)
        x, x_before, D_before = a * x + b * D + c * x_before + d * D_before + s * noise(i), x, D
        path.append(x)
    return rows, path


def theirs(scheduler, rows, output, *, over_alpha=False, **options):
    """x after each step of a diffusers scheduler; `output` is the network's, from (x, D, a, s)."""
    scheduler.set_timesteps(len(rows.t))
    np.testing.assert_array_equal(scheduler.timesteps, rows.t)
    alphas = np.append(rows.alpha, 1.0)
    x, path = rows.sigma[0] * X, []
    for i, t in enumerate(scheduler.timesteps):
        alpha, sigma = rows.alpha[i], rows.sigma[i]
        D = toy(x, alpha, sigma)
        there = torch.from_numpy(x / alpha if over_alpha else x)
        scheduler.scale_model_input(there, t)
        network = torch.from_numpy(output(x, D, alpha, sigma))
        x = scheduler.step(network, t, there, **options).prev_sample.numpy()
        x = x * alphas[i + 1] if over_alpha else x
        path.append(x)
    return path


def flow_path(scheduler, rows, steps):
    """x after each call of a diffusers flow scheduler, whose time is our t + 1."""
    scheduler.set_timesteps(steps)
    np.testing.assert_allclose(scheduler.timesteps, rows.t + 1, atol=1e-3)
    x, path = rows.sigma[0] * X, []
    for i, t in enumerate(scheduler.timesteps):
        D = toy(x, rows.alpha[i], rows.sigma[i])
        output = torch.from_numpy((x - D) / rows.sigma[i])
        x = scheduler.step(output, t, torch.from_numpy(x)).prev_sample.numpy()
        path.append(x)
    return path


def epsilon(x, D, alpha, sigma):
    return (x - alpha * D) / sigma


def velocity(x, D, alpha, sigma):
    return alpha * epsilon(x, D, alpha, sigma) - sigma * D


def assert_same_path(path, reference, tolerance=1e-4):
    assert len(path) == len(reference)
    for call, (x, expected) in enumerate(zip(path, reference, strict=True)):
        np.testing.assert_allclose(x, expected, atol=tolerance, err_msg=f"after call {call}")


@pytest.fixture
def same_noise(monkeypatch):
    """Diffusers' stochastic schedulers draw our noise."""
    calls = iter(range(1000))
    for module in (scheduling_ddim, scheduling_ddpm, scheduling_euler_ancestral_discrete):
        monkeypatch.setattr(
            module, "randn_tensor", lambda *_, **__: torch.from_numpy(noise(next(calls)))
        )


@pytest.mark.parametrize(
    ("schedule", "options"),
    [
        (SD, PUBLISHED),
        (ZERO, PUBLISHED | {"rescale_betas_zero_snr": True}),
        (Schedule("linear", beta_start=1e-4, beta_end=0.02), {"beta_schedule": "linear"}),
        (Schedule("cosine"), {"beta_schedule": "squaredcos_cap_v2"}),
    ],
)
def test_tables(schedule, options):
    scheduler = diffusers.DDIMScheduler(**options)
    np.testing.assert_allclose(schedule.alphas() ** 2, scheduler.alphas_cumprod, atol=2e-6)


@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_ddim(spacing, eta, same_noise):
    rows, path = ours(Sampler("ddim", spacing, 10, eta=eta), SD)
    scheduler = diffusers.DDIMScheduler(
        **PUBLISHED, timestep_spacing=spacing, clip_sample=False, steps_offset=0
    )
    assert_same_path(path, theirs(scheduler, rows, epsilon, eta=eta))


# Not eta 1: there the weight of the old noise is 0, and theirs sqrt(1e-7), a float32 remainder.
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_ddim_from_pure_noise_by_v_prediction(eta, same_noise):
    rows, path = ours(Sampler("ddim", "trailing", 10, eta=eta), ZERO)
    scheduler = diffusers.DDIMScheduler(
        **PUBLISHED,
        timestep_spacing="trailing",
        clip_sample=False,
        rescale_betas_zero_snr=True,
        prediction_type="v_prediction",
    )
    assert_same_path(path, theirs(scheduler, rows, velocity, eta=eta))


@pytest.mark.parametrize("spacing", ["trailing", "leading"])
def test_ddpm(spacing, same_noise):
    rows, path = ours(Sampler("ddpm", spacing, 20), SD)
    scheduler = diffusers.DDPMScheduler(
        **PUBLISHED, timestep_spacing=spacing, clip_sample=False, variance_type="fixed_small"
    )
    assert_same_path(path, theirs(scheduler, rows, epsilon))


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_euler(spacing):
    rows, path = ours(Sampler("euler", spacing, 10), SD)
    scheduler = diffusers.EulerDiscreteScheduler(**PUBLISHED, timestep_spacing=spacing)
    assert_same_path(path, theirs(scheduler, rows, epsilon, over_alpha=True))


@pytest.mark.parametrize("steps", [1, 4, 20])
def test_euler_ancestral(steps, same_noise):
    rows, path = ours(Sampler("euler_ancestral", "trailing", steps), SD)
    scheduler = diffusers.EulerAncestralDiscreteScheduler(**PUBLISHED, timestep_spacing="trailing")
    assert_same_path(path, theirs(scheduler, rows, epsilon, over_alpha=True))


@pytest.mark.parametrize("steps", [1, 2, 10, 25])
def test_dpmpp_2m(steps):
    rows, path = ours(Sampler("dpmpp_2m", "trailing", steps), SD)
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **PUBLISHED,
        timestep_spacing="trailing",
        algorithm_type="dpmsolver++",
        solver_order=2,
        euler_at_final=True,
        final_sigmas_type="zero",
    )
    assert_same_path(path, theirs(scheduler, rows, epsilon))


@pytest.mark.parametrize("steps", [1, 4, 10])
def test_flow_euler(steps):
    rows, path = ours(Sampler("euler", "linspace", steps), Schedule("flow"))
    assert_same_path(path, flow_path(diffusers.FlowMatchEulerDiscreteScheduler(), rows, steps))


@pytest.mark.parametrize("steps", [1, 4, 10])
def test_flow_heun(steps):
    rows, path = ours(Sampler("heun", "linspace", steps), Schedule("flow"))
    assert_same_path(path, flow_path(diffusers.FlowMatchHeunDiscreteScheduler(), rows, steps))


def test_edm_euler_and_preconditioning():
    """Their scheduler is fed the raw output F, ours D = c_skip·x + c_out·F."""
    rows = plan(Sampler("euler", "karras", 18), Schedule("edm"))
    scheduler = diffusers.EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5)
    scheduler.set_timesteps(18)
    np.testing.assert_allclose(np.exp(4 * scheduler.timesteps.numpy()), rows.sigma, rtol=1e-5)
    x = expected = rows.sigma[0] * X
    for i, t in enumerate(scheduler.timesteps):
        alpha, sigma = np.ones(2, np.float32), np.full(2, rows.sigma[i], np.float32)
        there = scheduler.scale_model_input(torch.from_numpy(expected), t).numpy()
        here = np.asarray(prediction.network_input("edm", x, alpha, sigma))
        np.testing.assert_allclose(here, there, atol=1e-4)
        expected = scheduler.step(
            torch.from_numpy(np.tanh(there)), t, torch.from_numpy(expected)
        ).prev_sample.numpy()
        D = np.asarray(prediction.to_x0("edm", x, np.tanh(here), alpha, sigma))
        x = rows.a[i] * x + rows.b[i] * D
        np.testing.assert_allclose(x, expected, rtol=1e-4, atol=1e-4)
