import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgen.diffusion.schedule import (
    Schedule,
    add_noise,
    check,
    draw_timesteps,
    ends_in_noise,
    per_image,
)
from jaxgen.errors import UserError

SCHEDULES = [
    *(Schedule(kind, zero_terminal_snr=zero) for kind in ("linear", "scaled_linear", "cosine")
      for zero in (False, True)),
    Schedule("flow"),
    Schedule("flow", shift=3.0),
    Schedule("edm"),
]  # fmt: skip

noised = jax.jit(add_noise, static_argnums=0, static_argnames="pure_terminal")
drawn = jax.jit(draw_timesteps, static_argnums=(0, 2), static_argnames="continuous")


def name(schedule):
    return schedule.kind + "-zero" * schedule.zero_terminal_snr + f"-{schedule.shift:g}"


every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=name)


@every_schedule
def test_noise_only_grows_with_the_timestep(schedule):
    alphas, sigmas = schedule.alphas(), schedule.sigmas()
    assert alphas.dtype == sigmas.dtype == np.float64
    assert alphas.shape == sigmas.shape == (1000,)
    assert np.all(np.diff(alphas / sigmas) < 0)
    assert np.all(sigmas > 0)
    assert np.all(alphas >= 0)


@every_schedule
def test_variance_is_preserved_where_it_should_be(schedule):
    alphas, sigmas = schedule.alphas(), schedule.sigmas()
    if schedule.kind == "flow":
        np.testing.assert_allclose(alphas + sigmas, 1, rtol=1e-15)
    elif schedule.kind == "edm":
        np.testing.assert_array_equal(alphas, 1)
    else:
        np.testing.assert_allclose(alphas**2 + sigmas**2, 1, rtol=1e-15)


def test_shift_is_equation_23_of_stable_diffusion_3():
    t = (np.arange(1000) + 1) / 1000
    np.testing.assert_allclose(
        Schedule("flow", shift=3.0).sigmas(), 3 * t / (1 + 2 * t), rtol=1e-14
    )
    assert Schedule("flow", shift=3.0).alphas()[999] == 0


def test_published_stable_diffusion_levels():
    """The squared alpha of SD's last timestep is .00466 (and of its first 1 - .00085)."""
    squared = Schedule("scaled_linear").alphas() ** 2
    assert squared[999] == pytest.approx(0.00466, abs=5e-6)
    assert squared[0] == pytest.approx(1 - 0.00085, abs=1e-12)


def test_cosine_follows_its_formula_below_the_cap():
    t = np.arange(999)
    f = np.cos(((t + 1) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    f0 = np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(Schedule("cosine").alphas()[:999] ** 2, f / f0, rtol=1e-9)


def test_flow_ends_in_pure_noise():
    flow = Schedule("flow", timesteps=4)
    np.testing.assert_array_equal(flow.sigmas(), [0.25, 0.5, 0.75, 1.0])
    np.testing.assert_array_equal(flow.alphas(), [0.75, 0.5, 0.25, 0.0])


def test_edm_levels_are_those_of_karras():
    i = np.arange(18)
    expected = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(Schedule("edm", timesteps=18).sigmas()[::-1], expected, rtol=1e-12)


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "cosine"])
def test_zero_terminal_snr_is_the_rescaled_table(kind):
    q = Schedule(kind).alphas()
    rescaled = Schedule(kind, zero_terminal_snr=True)
    expected = (q - q[-1]) * q[0] / (q[0] - q[-1])
    np.testing.assert_allclose(rescaled.alphas(), expected, atol=1e-15)
    assert rescaled.alphas()[-1] == 0
    assert rescaled.sigmas()[-1] == 1
    assert rescaled.alphas()[0] == pytest.approx(q[0], abs=1e-15)


@every_schedule
def test_ends_in_noise(schedule):
    assert ends_in_noise(schedule) == (schedule.kind == "flow" or schedule.zero_terminal_snr)


@every_schedule
def test_device_levels_are_the_host_levels(schedule):
    t = np.array([0, 0.25, 1, 17.5, 500, 998.9, 999])
    alpha, sigma = jax.jit(schedule.at)(jnp.asarray(t))
    assert alpha.dtype == sigma.dtype == jnp.float32
    expected_alpha, expected_sigma = schedule.levels(t)
    np.testing.assert_allclose(alpha, expected_alpha, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(sigma, expected_sigma, rtol=2e-5)
    if ends_in_noise(schedule):
        assert alpha[-1] == 0
        assert sigma[-1] == 1


@every_schedule
@settings(max_examples=50)
@given(t=st.floats(0, 999))
def test_levels_between_timesteps(schedule, t):
    """Real timesteps lie between their neighbours in noise, and keep the schedule's law."""
    alpha, sigma = schedule.levels(np.array([np.floor(t), t, np.ceil(t)]))
    assert np.all(np.diff(sigma) >= -1e-12)
    assert np.all(np.diff(alpha) <= 1e-12)
    if schedule.kind not in ("flow", "edm"):
        assert alpha[1] ** 2 + sigma[1] ** 2 == pytest.approx(1, abs=1e-12)


@every_schedule
@settings(max_examples=50)
@given(t=st.floats(0, 998.9))
def test_timestep_inverts_levels(schedule, t):
    alpha, sigma = schedule.levels(np.array([t]))
    assert schedule.timestep(sigma / alpha)[0] == pytest.approx(t, abs=1e-6)


@every_schedule
def test_add_noise_is_the_closed_form_image_by_image(schedule):
    key_x, key_eps = jax.random.split(jax.random.key(0))
    x0 = jax.random.normal(key_x, (3, 4, 4, 2))
    eps = jax.random.normal(key_eps, x0.shape)
    t = np.array([0, 400, 999])
    x_t = noised(schedule, x0, eps, jnp.asarray(t, jnp.float32))
    alpha, sigma = schedule.alphas()[t], schedule.sigmas()[t]
    expected = alpha[:, None, None, None] * x0 + sigma[:, None, None, None] * eps
    np.testing.assert_allclose(x_t, expected, rtol=1e-4, atol=1e-5)
    if ends_in_noise(schedule):
        chex.assert_trees_all_equal(x_t[2], eps[2])


def test_pure_terminal_leaves_the_image_out_at_the_last_timestep_only():
    schedule = Schedule("scaled_linear")
    x0, eps = jnp.full((2, 3), 5.0), jnp.ones((2, 3))
    t = jnp.array([998.0, 999.0])
    plain = noised(schedule, x0, eps, t)
    pure = noised(schedule, x0, eps, t, pure_terminal=True)
    chex.assert_trees_all_equal(pure[0], plain[0])
    np.testing.assert_allclose(pure[1], schedule.sigmas()[999], rtol=1e-6)
    assert not np.allclose(plain[1], pure[1])


def test_whole_timesteps_are_uniform_over_all():
    t = np.asarray(drawn(Schedule("flow", timesteps=8), jax.random.key(0), 40_000))
    values, counts = np.unique(t, return_counts=True)
    np.testing.assert_array_equal(values, np.arange(8))
    np.testing.assert_allclose(counts, 5_000, atol=5 * 5_000**0.5)


def test_continuous_timesteps_are_uniform_over_the_range():
    t = drawn(Schedule("flow"), jax.random.key(0), 40_000, continuous=True)
    quantiles = np.quantile(t, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(quantiles, np.linspace(0, 999, 5), atol=20)
    assert len(np.unique(t)) > 30_000


def test_edm_draws_log_normal_noise():
    schedule = Schedule("edm")
    _, sigma = schedule.at(drawn(schedule, jax.random.key(0), 40_000))
    assert float(jnp.log(sigma).mean()) == pytest.approx(-1.2, abs=0.03)
    assert float(jnp.log(sigma).std()) == pytest.approx(1.2, abs=0.03)


def test_per_image_broadcasts_over_the_batch():
    assert per_image(jnp.ones(3), jnp.ones((3, 4, 5, 6))).shape == (3, 1, 1, 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"timesteps": 1}, "timesteps is 1"),
        ({"beta_start": 0.0}, "beta_start 0.0"),
        ({"beta_end": 1.0}, "beta_end 1.0"),
        ({"beta_start": 0.02}, "beta_start 0.02"),
        ({"kind": "edm", "zero_terminal_snr": True}, "edm"),
        ({"shift": 0.0}, "shift is 0"),
        ({"shift": float("nan")}, "shift is nan"),
        ({"shift": float("inf")}, "shift is inf"),
        ({"kind": "cosine", "shift": 3.0}, "shift is 3.* flow"),
    ],
)
def test_check_refuses(change, words):
    with pytest.raises(UserError, match=words):
        check(dataclasses.replace(Schedule(), **change))


@every_schedule
def test_check_accepts_and_schedule_is_static(schedule):
    check(schedule)
    assert hash(schedule) == hash(dataclasses.replace(schedule))
