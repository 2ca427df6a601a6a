"""Flow matching: the optimal velocity, the straight path, and one config for every method.

For data N(MEAN, SPREAD²) a network's best output is known in closed form: of x_t = (1-σ)·x0 + σ·ε
the velocity E[ε - x0 | x_t] is a line in x_t.
"""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import config as configs
from jaxgen.diffusion import denoiser, prediction
from jaxgen.diffusion.sampler import Sampler, guided, sample, timesteps
from jaxgen.diffusion.schedule import Schedule, add_noise, per_image
from jaxgen.methods import diffusion
from jaxgen.methods.add import Add
from jaxgen.methods.diffusion import Diffusion

MEAN, SPREAD = 0.7, 0.3
PLAIN, SHIFTED = Schedule("flow"), Schedule("flow", shift=3.0)
both = pytest.mark.parametrize("schedule", [PLAIN, SHIFTED], ids=["plain", "shifted"])


def velocity(x, sigma):
    """E[ε - x0 | x_t = x], from the covariance of ε - x0 and x_t over the variance of x_t."""
    alpha = 1 - sigma
    variance = (alpha * SPREAD) ** 2 + sigma**2
    return (sigma - alpha * SPREAD**2) / variance * (x - alpha * MEAN) - MEAN


def by_velocity(schedule, velocity):
    """The denoiser of a network whose output, prediction "flow", is `velocity(x, sigma)`."""

    def denoise(x, t):
        alpha, sigma = schedule.at(t)
        return prediction.to_x0("flow", x, velocity(x, per_image(sigma, x)), alpha, sigma)

    return denoise


@both
def test_the_best_fit_to_the_target_is_the_velocity_in_closed_form(schedule):
    data, noise = jax.random.normal(jax.random.key(0), (2, 1, 200_000))
    x0 = MEAN + SPREAD * data
    for at in (99.0, 499.0, 899.0):
        t = jnp.full(1, at)
        alpha, sigma = schedule.at(t)
        x_t = np.asarray(add_noise(schedule, x0, noise, t), np.float64)[0]
        target = np.asarray(prediction.target("flow", x0, noise, alpha, sigma), np.float64)[0]
        slope, offset = np.polyfit(x_t, target, 1)
        s = float(sigma[0])
        assert offset == pytest.approx(velocity(0.0, s), abs=0.02)
        assert slope == pytest.approx(velocity(1.0, s) - velocity(0.0, s), abs=0.02)


@both
def test_the_method_pays_the_least_loss_for_that_velocity(schedule, monkeypatch):
    """It is Var[ε - x0 | x_t]; a little more or less of the velocity costs its square."""
    model = denoiser.Denoiser(schedule=schedule, prediction="flow")
    config = Diffusion(name="exact", model=model)
    data, eps = jax.random.normal(jax.random.key(1), (2, 10, 100, 100, 3))
    x0, t = MEAN + SPREAD * data, jnp.linspace(50.0, 950.0, 10)
    sigma = np.asarray(schedule.at(t)[1], np.float64)
    variance = ((1 - sigma) * SPREAD) ** 2 + sigma**2
    covariance = sigma - (1 - sigma) * SPREAD**2
    least = np.mean(1 + SPREAD**2 - covariance**2 / variance)
    nothing: Any = None
    for error in (0.0, 0.2, -0.2):

        def output(model, weights, x_t, t, text, error=error):
            return velocity(x_t, per_image(model.schedule.at(t)[1], x_t)) + error

        monkeypatch.setattr(denoiser, "output", output)
        value = diffusion.loss(config, nothing, x0, nothing, t, eps)
        assert float(value) == pytest.approx(least + error**2, rel=0.01)


@both
def test_euler_on_the_velocity_lands_on_the_mean_and_variance_of_the_data(schedule):
    x = jax.random.normal(jax.random.key(2), (1, 100_000))
    images = sample(
        Sampler("euler", steps=500), schedule, by_velocity(schedule, velocity), x, jax.random.key(3)
    )
    # Five standard errors of 100 000 draws, and the solver's own error.
    assert float(images.mean()) == pytest.approx(MEAN, abs=5 * SPREAD / 100_000**0.5 + 1e-4)
    assert float(images.std()) == pytest.approx(SPREAD, abs=0.005)


@both
def test_a_step_of_euler_is_the_velocity_times_the_fall_of_sigma(schedule):
    """x' = x + (σ' - σ)·v, as the papers have it (Liu et al. 2022, eq. 1)."""
    sampler = Sampler("euler", steps=6)
    x = noise = jax.random.normal(jax.random.key(4), (3, 5))
    sigma = np.append(schedule.levels(timesteps(sampler, schedule))[1], 0.0)
    assert sigma[0] == 1
    for now, after in itertools.pairwise(sigma.astype(np.float32)):
        x = x + (after - now) * velocity(x, now)
    denoise = by_velocity(schedule, velocity)
    np.testing.assert_allclose(
        sample(sampler, schedule, denoise, noise, jax.random.key(5)), x, atol=1e-5
    )


@both
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("solver", ["euler", "heun", "dpmpp_2m"])
def test_one_picture_is_reached_in_one_straight_step(schedule, steps, solver):
    """Of one data point c the velocity is (x - c)/σ: every noise goes there on a line."""
    point = jnp.linspace(-1, 1, 5)
    seen = []

    def to_point(x, sigma):
        seen.append((x, sigma))
        return (x - point) / sigma

    noise = jax.random.normal(jax.random.key(6), (2, 5))
    denoise = by_velocity(schedule, to_point)
    with jax.disable_jit():
        image = sample(Sampler(solver, steps=steps), schedule, denoise, noise, jax.random.key(7))
    np.testing.assert_allclose(image, jnp.broadcast_to(point, (2, 5)), atol=1e-6)
    for x, sigma in seen:
        np.testing.assert_allclose(x, (1 - sigma) * point + sigma * noise, atol=1e-6)


def test_guidance_of_velocities_is_guidance_of_images():
    """v_∅ + w·(v_c - v_∅) gives the image D_∅ + w·(D_c - D_∅): to_x0 is linear at one x_t."""
    x, t = jax.random.normal(jax.random.key(8), (2, 5)), jnp.array([300.0, 999.0])
    context, null, w = jnp.full((2, 1), 0.4), jnp.full((1, 1), -0.2), 2.5
    alpha, sigma = SHIFTED.at(t)

    def denoise(x, t, c):
        return prediction.to_x0("flow", x, jnp.tanh(x + c), *SHIFTED.at(t))

    v = jnp.tanh(x + null) + w * (jnp.tanh(x + context) - jnp.tanh(x + null))
    np.testing.assert_allclose(
        guided(denoise, context, null, w)(x, t),
        prediction.to_x0("flow", x, v, alpha, sigma),
        atol=1e-5,
    )


def test_logit_normal_timesteps_are_a_gaussian_behind_a_sigmoid():
    """Esser et al. 2024, eq. 19, m = 0 and s = 1; the shift then multiplies the odds of σ."""
    config = Diffusion(
        name="drawn", model=denoiser.Denoiser(schedule=SHIFTED), timesteps="logit_normal"
    )
    t = np.asarray(diffusion.drawn_timesteps(config, jax.random.key(9), 40_000), np.float64)
    share = t / 999
    logit = np.log(share / (1 - share))
    assert logit.mean() == pytest.approx(0, abs=5 / 200)
    assert logit.std() == pytest.approx(1, abs=5 / 200 / 2**0.5)
    sigma = SHIFTED.levels(t)[1]
    assert np.median(np.log(sigma / (1 - sigma))) == pytest.approx(np.log(3), abs=0.04)


@pytest.mark.parametrize("name", ["flow_matching", "flow_matching_64"])
def test_what_flow_matching_trains_may_teach_by_config_alone(name):
    teacher = configs.load(name)
    assert isinstance(teacher, Diffusion)
    assert (teacher.model.schedule.kind, teacher.model.prediction) == ("flow", "flow")
    assert teacher.timesteps == "logit_normal"
    teacher.check()
    student = configs.load(name.replace("flow_matching", "add"))
    assert isinstance(student, Add)
    student = dataclasses.replace(
        student, teacher="train", teacher_config=name, data=teacher.data, model=teacher.model
    )
    student.check()
    trained = student.stage("teacher")
    assert isinstance(trained, Diffusion)
    assert (trained.model, trained.timesteps) == (teacher.model, "logit_normal")
    student.accept("teacher", trained, "here")
