"""Samplers against Gaussian data N(MEAN, SPREAD²), whose denoiser and distributions are known."""

import dataclasses
import os
import subprocess
import sys
import textwrap
from typing import get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgen.diffusion import sampler as samplers
from jaxgen.diffusion.sampler import Sampler, guided, network_calls, plan, sample
from jaxgen.diffusion.schedule import Schedule, ends_in_noise, per_image
from jaxgen.errors import UserError

MEAN, SPREAD = 0.7, 0.3
SOLVERS = get_args(get_type_hints(Sampler)["solver"])
SPACINGS = get_args(get_type_hints(Sampler)["spacing"])
SCHEDULES = {
    "scaled_linear": Schedule("scaled_linear"),
    "zero": Schedule("scaled_linear", zero_terminal_snr=True),
    "cosine": Schedule("cosine"),
    "flow": Schedule("flow"),
    "shifted": Schedule("flow", shift=4.0),
    "edm": Schedule("edm"),
}
# Finer tables, so that 160 steps still fall where they should.
FINE = {
    "scaled_linear": Schedule(
        "scaled_linear", 16_000, beta_start=0.00085 / 16, beta_end=0.012 / 16
    ),
    "flow": Schedule("flow", 16_000),
    "shifted": Schedule("flow", 16_000, shift=4.0),
    "edm": Schedule("edm", 16_000),
}


def gain(alpha, sigma):
    """The exact denoiser's slope: D(x) = MEAN + gain·(x - alpha·MEAN)."""
    return alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2)


def exact_denoiser(schedule):
    def denoise(x, t):
        alpha, sigma = schedule.at(t)
        return MEAN + per_image(gain(alpha, sigma), x) * (x - per_image(alpha, x) * MEAN)

    return denoise


def recursion(rows, x):
    """The plan run deterministically in float64 with the exact denoiser."""
    assert not rows.s.any()
    x_before = D_before = np.zeros_like(x)
    for _, alpha, sigma, a, b, c, d, _ in zip(*rows, strict=True):
        D = MEAN + gain(alpha, sigma) * (x - alpha * MEAN)
        x, x_before, D_before = a * x + b * D + c * x_before + d * D_before, x, D
    return x


def flow_map(alpha, sigma, x):
    """Where the probability flow carries x from level (alpha, sigma): the same quantile of x0."""
    return MEAN + SPREAD * (x - alpha * MEAN) / np.hypot(alpha * SPREAD, sigma)


def error(solver, spacing, schedule, steps):
    rows = plan(Sampler(solver, spacing, steps), schedule)
    x = rows.sigma[0] * np.linspace(-3, 3, 7)
    exact = flow_map(rows.alpha[0], rows.sigma[0], x)
    return np.abs(recursion(rows, x) - exact).max()


@pytest.mark.parametrize(
    ("solver", "spacing", "kind", "order"),
    [
        ("ddim", "trailing", "flow", 1),
        ("euler", "trailing", "flow", 1),
        ("euler", "karras", "scaled_linear", 1),
        ("euler", "karras", "edm", 1),
        ("heun", "trailing", "flow", 2),
        ("ddim", "trailing", "shifted", 1),
        ("heun", "linspace", "edm", 2),
        ("heun", "karras", "scaled_linear", 2),
        ("dpmpp_2m", "karras", "edm", 2),
        ("dpmpp_2m", "karras", "scaled_linear", 2),
        ("dpmpp_2m", "linspace", "edm", 2),
    ],
)
def test_deterministic_solvers_converge_to_the_flow_at_their_order(solver, spacing, kind, order):
    errors = [error(solver, spacing, FINE[kind], n) for n in (40, 80, 160)]
    measured = np.log2(np.divide(errors[:-1], errors[1:]))
    assert errors[-1] < {1: 0.05, 2: 0.002}[order]
    assert np.all(measured > order - 0.1)
    if order == 1:  # A second-order error may fall faster while its terms still cancel.
        assert np.all(measured < 1.1)


def test_dpmpp_2m_starts_from_pure_noise_and_still_converges():
    errors = [error("dpmpp_2m", "trailing", FINE["flow"], n) for n in (160, 640)]
    assert errors[1] < 1e-4
    assert np.log2(errors[0] / errors[1]) / 2 > 1.6


def test_18_steps_of_heun_are_35_calls_and_karras_algorithm_1():
    """Karras et al. 2022, algorithm 1, written as printed, with their noise levels."""
    rows = plan(Sampler("heun", "karras", 18), SCHEDULES["edm"])
    assert len(rows.t) == network_calls(Sampler("heun", "karras", 18)) == 35
    sigma = (80 ** (1 / 7) + np.arange(18) / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    sigma = np.append(sigma, 0)
    x = start = 80 * np.linspace(-2, 2, 5)
    for i in range(18):
        d = (x - (MEAN + gain(1, sigma[i]) * (x - MEAN))) / sigma[i]
        euler = x + (sigma[i + 1] - sigma[i]) * d
        if sigma[i + 1] == 0:
            x = euler
            continue
        d_ = (euler - (MEAN + gain(1, sigma[i + 1]) * (euler - MEAN))) / sigma[i + 1]
        x = x + (sigma[i + 1] - sigma[i]) * (d + d_) / 2
    np.testing.assert_allclose(recursion(rows, start), x, rtol=1e-9)


def moments(rows):
    """Mean and deviation of the images: x stays Gaussian, so no sampling is needed to know."""
    mean, variance = 0.0, rows.sigma[0] ** 2
    for _, alpha, sigma, a, b, c, d, s in zip(*rows, strict=True):
        assert (c, d) == (0, 0)
        slope = a + b * gain(alpha, sigma)
        mean = slope * mean + b * MEAN * (1 - gain(alpha, sigma) * alpha)
        variance = slope**2 * variance + s**2
    return mean, variance**0.5


@pytest.mark.parametrize("kind", ["zero", "flow"])
@pytest.mark.parametrize("solver", ["ddpm", "euler_ancestral", "ddim"])
def test_stochastic_samplers_land_on_the_distribution(solver, kind):
    errors = []
    for steps in (250, 500, 1000):
        sampler = Sampler(solver, "trailing", steps, eta=0.5 if solver == "ddim" else 0.0)
        mean, deviation = moments(plan(sampler, SCHEDULES[kind]))
        assert mean == pytest.approx(MEAN, abs=1e-12)
        errors.append(abs(deviation - SPREAD))
    assert errors[2] < 0.007
    assert errors[2] < 0.65 * errors[1] < 0.65**2 * errors[0]


@pytest.mark.parametrize(
    ("solver", "kind"), [("ddpm", "scaled_linear"), ("ddim", "zero"), ("euler_ancestral", "flow")]
)
def test_sampled_images_have_the_distribution_of_the_plan(solver, kind):
    sampler = Sampler(solver, "linspace", 50, eta=0.5 if solver == "ddim" else 0.0)
    x = jax.random.normal(jax.random.key(0), (20_000, 2))
    schedule = SCHEDULES[kind]
    images = sample(sampler, schedule, exact_denoiser(schedule), x, jax.random.key(1))
    mean, deviation = moments(plan(sampler, schedule))
    # Five standard errors of 40 000 draws.
    assert float(images.mean()) == pytest.approx(mean, abs=5 * deviation / 200)
    assert float(images.std()) == pytest.approx(deviation, abs=5 * deviation / 200 / 2**0.5)


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("solver", ["euler", "heun", "dpmpp_2m"])
def test_the_scan_is_the_plan(solver, kind):
    schedule = SCHEDULES[kind]
    sampler = Sampler(solver, "trailing", 10)
    rows = plan(sampler, schedule)
    x = np.linspace(-3, 3, 8).reshape(4, 2)
    images = sample(
        sampler, schedule, exact_denoiser(schedule), jnp.asarray(x, jnp.float32), jax.random.key(0)
    )
    assert images.dtype == jnp.float32
    np.testing.assert_allclose(images, recursion(rows, rows.sigma[0] * x), atol=2e-5)


@settings(max_examples=300)
@given(data=st.data())
def test_any_plan_is_finite_falls_and_lands(data):
    schedule = data.draw(st.sampled_from(list(SCHEDULES.values())))
    solver, spacing = data.draw(st.sampled_from(SOLVERS)), data.draw(st.sampled_from(SPACINGS))
    steps = data.draw(st.integers(1, 10) if spacing == "turbo" else st.integers(1, 60))
    if spacing == "karras" and ends_in_noise(schedule):
        steps = 1
    sampler = Sampler(solver, spacing, steps)
    rows = plan(sampler, schedule)
    assert all(column.shape == (network_calls(sampler),) for column in rows)
    assert all(np.isfinite(column).all() for column in rows)
    assert np.all((rows.t >= 0) & (rows.t <= 999))
    assert np.all(rows.s >= 0)
    visited = samplers.timesteps(sampler, schedule)
    assert len(visited) == steps
    assert np.all(np.diff(visited) < 0)
    # The last call's prediction is the sample: nothing of x or of the past is left in it.
    assert (rows.a[-1], rows.b[-1], rows.c[-1], rows.d[-1], rows.s[-1]) == (0, 1, 0, 0, 0)
    # Any step but a corrector keeps a true decomposition true: x_i = alpha_i·x0 + sigma_i·eps
    # predicted rightly (D = x0) goes to alpha'·x0 + sigma'·eps', in mean and in variance.
    if solver != "heun":
        alpha, sigma = np.append(rows.alpha, 1), np.append(rows.sigma, 0)
        image = rows.a * rows.alpha + rows.b + rows.d
        np.testing.assert_allclose(image, alpha[1:], atol=1e-9)
        noise = np.hypot(rows.a * rows.sigma, rows.s)
        np.testing.assert_allclose(noise, sigma[1:], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_one_step_returns_the_prediction_at_the_last_timestep(kind):
    schedule = SCHEDULES[kind]
    rows = plan(Sampler(steps=1), schedule)
    for solver in SOLVERS:
        for spacing in SPACINGS:
            np.testing.assert_array_equal(plan(Sampler(solver, spacing, 1), schedule), rows)

    def denoise(x_t, t):
        return jnp.tanh(x_t) + t[:, None]

    x = jax.random.normal(jax.random.key(0), (2, 3))
    images = sample(Sampler(steps=1), schedule, denoise, x, jax.random.key(1))
    expected = denoise(x * schedule.sigmas()[-1].astype(np.float32), jnp.full(2, 999.0))
    np.testing.assert_array_equal(images, expected)


def test_names_for_one_step_are_one():
    """DDIM(0) is Euler, DDIM(1) is DDPM is Euler-ancestral: see the module's docstring."""
    for kind in ("scaled_linear", "zero", "flow", "edm"):
        rows = {
            solver: plan(Sampler(solver, steps=7), SCHEDULES[kind])
            for solver in ("ddim", "euler", "ddpm", "euler_ancestral")
        }
        np.testing.assert_array_equal(rows["ddim"], rows["euler"])
        np.testing.assert_array_equal(rows["ddpm"], rows["euler_ancestral"])
        noisy = plan(Sampler("ddim", steps=7, eta=1.0), SCHEDULES[kind])
        np.testing.assert_array_equal(noisy, rows["ddpm"])


def test_euler_ancestral_as_written_for_x_over_alpha():
    schedule = SCHEDULES["scaled_linear"]
    rows = plan(Sampler("euler_ancestral", steps=5), schedule)
    k = np.append(rows.sigma / rows.alpha, 0)
    up = np.sqrt(k[1:] ** 2 * (k[:-1] ** 2 - k[1:] ** 2) / k[:-1] ** 2)
    down = np.sqrt(k[1:] ** 2 - up**2)
    alpha = np.append(rows.alpha[1:], 1)
    np.testing.assert_allclose(rows.s, alpha * up, rtol=1e-9, atol=1e-12)
    # x + d·(down - sigma), d = (x - D)/sigma: down/sigma of x is left, the rest is D.
    np.testing.assert_allclose(rows.a, alpha * down / k[:-1] / rows.alpha, rtol=1e-9)
    np.testing.assert_allclose(rows.b, alpha * (1 - down / k[:-1]), rtol=1e-9)


def test_renoise_noises_each_prediction_afresh():
    schedule = SCHEDULES["zero"]

    def denoise(x_t, t):
        return 0.5 * x_t + 0.001 * t[:, None]

    key, x = jax.random.key(5), jax.random.normal(jax.random.key(0), (2, 3))
    images = sample(Sampler("renoise", "trailing", 4), schedule, denoise, x, key)
    D = 0.5 * x + 0.999
    for i, t in enumerate((749, 499, 249)):
        z = jax.random.normal(jax.random.fold_in(key, i), x.shape)
        D = 0.5 * (schedule.alphas()[t] * D + schedule.sigmas()[t] * z) + 0.001 * t
    np.testing.assert_allclose(images, D, rtol=1e-5)


def test_euler_ancestral_leaves_pure_noise_by_renoising():
    """From alpha = 0 nothing of the noise is kept: ADD's first step is a fresh noising."""
    ancestral = plan(Sampler("euler_ancestral", steps=4), SCHEDULES["flow"])
    renoise = plan(Sampler("renoise", steps=4), SCHEDULES["flow"])
    np.testing.assert_array_equal(np.array(ancestral)[:, 0], np.array(renoise)[:, 0])
    assert np.all(ancestral.a[1:-1] > 0)


@pytest.mark.parametrize(
    ("spacing", "steps", "expected"),
    [
        ("trailing", 4, [999, 749, 499, 249]),
        ("trailing", 3, [999, 666, 332]),
        ("leading", 4, [750, 500, 250, 0]),
        ("linspace", 4, [999, 666, 333, 0]),
        ("turbo", 4, [999, 899, 799, 699]),
        ("turbo", 1, [999]),
        ("leading", 1, [999]),
    ],
)
def test_timesteps_visited(spacing, steps, expected):
    visited = samplers.timesteps(Sampler(spacing=spacing, steps=steps), Schedule())
    np.testing.assert_array_equal(visited, expected)


def test_karras_spacing_on_a_table_has_karras_ratios():
    schedule = SCHEDULES["scaled_linear"]
    rows = plan(Sampler("euler", "karras", 10), schedule)
    k = schedule.sigmas() / schedule.alphas()
    ramp = np.linspace(k[-1] ** (1 / 7), k[0] ** (1 / 7), 10) ** 7
    np.testing.assert_allclose(rows.sigma / rows.alpha, ramp, rtol=1e-9)
    alpha, sigma = schedule.at(jnp.asarray(rows.t))  # What a denoiser makes of those timesteps.
    np.testing.assert_allclose(sigma / alpha, ramp, rtol=1e-3)


def test_no_noise_is_drawn_where_none_is_used():
    x, key = jnp.zeros((2, 3)), jax.random.key(0)

    def program(solver):
        sampler = Sampler(solver, steps=4)
        return str(
            jax.make_jaxpr(lambda x, key: sample(sampler, Schedule(), lambda x, t: x, x, key))(
                x, key
            )
        )

    assert "random_bits" in program("ddpm")
    for solver in ("ddim", "euler", "heun", "dpmpp_2m"):
        assert "random" not in program(solver)


def test_guidance_interleaves_one_doubled_pass():
    batches = []

    def denoise(x, t, context):
        batches.append((x, t, context))
        return x * t[:, None] + context["caption"]

    x, t = jnp.array([[1.0], [2.0], [3.0]]), jnp.array([4.0, 5.0, 6.0])
    context = {"caption": jnp.array([[10.0], [20.0], [30.0]])}
    null = {"caption": jnp.array([[-1.0]])}
    D = guided(denoise, context, null, 3.0)(x, t)
    ((x2, t2, context2),) = batches
    np.testing.assert_array_equal(x2[:, 0], [1, 1, 2, 2, 3, 3])
    np.testing.assert_array_equal(t2, [4, 4, 5, 5, 6, 6])
    np.testing.assert_array_equal(context2["caption"][:, 0], [10, -1, 20, -1, 30, -1])
    conditional, unconditional = denoise(x, t, context), denoise(x, t, null)
    np.testing.assert_allclose(D, unconditional + 3 * (conditional - unconditional))


def test_no_guidance_is_one_conditional_pass():
    batches = []

    def denoise(x, t, context):
        batches.append(x.shape)
        return x + context

    D = guided(denoise, jnp.full((3, 1), 5.0), jnp.zeros((1, 1)), 1.0)(
        jnp.ones((3, 1)), jnp.ones(3)
    )
    np.testing.assert_array_equal(D, 6.0)
    assert batches == [(3, 1)]


@pytest.mark.parametrize(("solver", "calls"), [("ddim", 3), ("heun", 5), ("dpmpp_2m", 3)])
def test_a_strength_takes_the_last_steps_from_the_noised_image(solver, calls):
    schedule = Schedule(kind="scaled_linear")
    whole = Sampler(solver, steps=7)
    part = dataclasses.replace(whole, strength=0.5)  # 3 of 7: rounded down, as diffusers does
    np.testing.assert_array_equal(plan(part, schedule).t, plan(whole, schedule).t[-calls:])
    assert samplers.network_calls(part) == calls

    one = dataclasses.replace(whole, strength=1 / 7 + 1e-9)
    start, noise = jnp.full((2, 3), 5.0), jnp.array([[1.0, -2.0, 0.5]] * 2)
    found = sample(one, schedule, lambda x, t: x, noise, jax.random.key(0), start)
    alpha, sigma = (level[0] for level in plan(one, schedule)[1:3])  # of the only call
    np.testing.assert_allclose(found, alpha * start + sigma * noise, rtol=1e-6)
    with pytest.raises(ValueError, match=r"strength of 0.5 needs images"):
        sample(part, schedule, lambda x, t: x, noise, jax.random.key(0))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"strength": 0.0}, "strength is 0, which leaves none of 50"),
        ({"strength": 0.6, "steps": 1}, "strength is 0.6, which leaves none of 1"),
        ({"steps": 0}, "steps is 0.* 1 to 1000"),
        ({"steps": -3}, "steps is -3.* 1 to 1000"),
        ({"steps": 1001}, "steps is 1001.* 1 to 1000"),
        ({"spacing": "turbo", "steps": 11}, "steps is 11.* 1 to 10,"),
        ({"guidance": -0.5}, "guidance is -0.5.* 0 or more"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"eta": 1.5}, "eta is 1.5.* from 0 to 1"),
        ({"eta": 0.5, "solver": "euler"}, "eta is 0.5.* euler"),
        ({"spacing": "karras"}, "karras.* flow .*trailing"),
    ],
)
def test_check_refuses(change, words):
    sampler = dataclasses.replace(Sampler(), **change)
    with pytest.raises(UserError, match=words):
        samplers.check(sampler, Schedule())
    with pytest.raises(UserError, match=words):
        plan(sampler, Schedule())


def test_draws_do_not_depend_on_the_number_of_devices():
    program = textwrap.dedent("""
        import jax, numpy as np
        from jax.sharding import AxisType, NamedSharding, PartitionSpec
        from jaxgen.diffusion.sampler import Sampler, sample
        from jaxgen.diffusion.schedule import Schedule
        assert jax.device_count() == 4
        mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
        rows = NamedSharding(mesh, PartitionSpec("data"))
        x = jax.random.normal(jax.random.key(0), (8, 5))
        draw = jax.jit(lambda x, key: sample(
            Sampler("ddpm", steps=3), Schedule(), lambda x, t: x / 2, x, key))
        one = draw(x, jax.random.key(1))
        four = draw(jax.device_put(x, rows), jax.random.key(1))
        assert four.sharding.is_equivalent_to(rows, 2)
        np.testing.assert_allclose(one, four, rtol=1e-6)
    """)
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
