"""Threshold corruption as a method: its loss, that it learns, and what it refuses."""

import dataclasses
import functools
from typing import Any, get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import methods
from jaxgen.config import Optimizer, Train
from jaxgen.diffusion import corruption, denoiser
from jaxgen.diffusion.sampler import Sampler
from jaxgen.diffusion.schedule import Schedule
from jaxgen.errors import UserError
from jaxgen.methods import threshold_diffusion
from jaxgen.methods.threshold_diffusion import ThresholdDiffusion
from jaxgen.pixels import to_unit


@pytest.fixture(scope="module")
def config(diffusion_config) -> ThresholdDiffusion:
    return ThresholdDiffusion(
        name="tiny-threshold",
        data=diffusion_config.data,
        model=dataclasses.replace(
            diffusion_config.model, schedule=Schedule("flow", shift=8.0), prediction="x0"
        ),
        guidance=1.0,
        drop_caption=0.0,
        train=Train(steps=120, batch=8, ema=0.95),
        optimizer=Optimizer(learning_rate=6e-3, warmup=20),
    )


@pytest.fixture(scope="module")
def trained(config: ThresholdDiffusion, batch):
    """The losses of a run on one batch, and its last state."""
    config.check()
    state = jax.jit(functools.partial(threshold_diffusion.init, config))({}, jax.random.key(0))
    step = jax.jit(
        functools.partial(threshold_diffusion.train_step, config),
        donate_argnums=0,
    )
    losses = []
    for _ in range(config.train.steps):
        state, metrics = step(state, {}, batch)
        losses.append(metrics["loss"])
    return np.asarray(losses), state


def test_the_network_sees_the_corrupted_image_and_is_graded_on_every_pixel(
    config: ThresholdDiffusion, batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    x0 = to_unit(batch["image"])
    noise = corruption.draw(jax.random.key(1), x0.shape)
    t = jnp.linspace(0.0, 999.0, len(x0))
    seen = []

    def predict(model, weights, x_t, t, text):
        seen.append((x_t, t))
        return 0.5 * x_t

    monkeypatch.setattr(denoiser, "predict_x0", predict)
    monkeypatch.setattr(denoiser, "encode", lambda *_: None)
    weights: Any = {"text": None, "denoiser": None}
    value = threshold_diffusion.loss(config, weights, x0, batch["caption"], t, noise)
    ((x_t, at),) = seen
    odds = 8 * (np.arange(8) / 7 * 999 + 1)
    p = odds / (odds + 999 - np.arange(8) / 7 * 999)
    replaced = np.asarray(noise.threshold) < p[:, None, None, None]
    np.testing.assert_array_equal(x_t, np.where(replaced, noise.colour, x0))
    np.testing.assert_array_equal(at, t)
    np.testing.assert_allclose(value, np.mean((0.5 * x_t - x0) ** 2), rtol=1e-5)


def test_an_untrained_network_paints_grey_and_pays_the_images_variance(trained, batch) -> None:
    losses, _ = trained
    np.testing.assert_allclose(losses[0], np.mean(to_unit(batch["image"]) ** 2), rtol=1e-3)


def test_a_handful_of_images_is_reproduced_from_colours_alone(
    config: ThresholdDiffusion, batch, trained
) -> None:
    losses, state = trained
    assert losses[-20:].mean() < 0.1 * losses[0]
    weights = threshold_diffusion.weights(config, state, {})
    sampler = dataclasses.replace(config.iterative, steps=8)
    drawn = threshold_diffusion.sample(
        config, weights, jax.random.key(1), batch["caption"], sampler
    )
    assert drawn.dtype == jnp.uint8
    wanted = np.asarray(batch["image"], np.float32)
    error = np.sqrt(np.mean((np.asarray(drawn, np.float32) - wanted) ** 2))
    mixed = np.sqrt(np.mean((np.asarray(drawn, np.float32) - np.roll(wanted, 1, 0)) ** 2))
    assert error < 30, "of 255; the images' own noise is 12"
    assert error < 0.4 * mixed, "each caption draws its own image"


def test_doors_find_the_method_and_may_change_the_steps_of_its_samplers(
    config: ThresholdDiffusion,
) -> None:
    method = methods.of(config)
    assert method is threshold_diffusion
    assert methods.kind("threshold_diffusion") is ThresholdDiffusion
    default, *others = threshold_diffusion.samplers(config).values()
    assert default == config.iterative
    for sampler in (default, *others):
        threshold_diffusion.check_sampler(config, sampler)
    for steps in method.measured_steps(config):
        threshold_diffusion.check_sampler(config, dataclasses.replace(default, steps=steps))


@pytest.mark.parametrize(
    "solver", sorted({*get_args(get_type_hints(Sampler)["solver"])} - {"renoise"})
)
def test_solvers_of_gaussian_noise_are_refused(config: ThresholdDiffusion, solver) -> None:
    with pytest.raises(UserError, match=f"--solver {solver} has no meaning.*renoise"):
        threshold_diffusion.check_sampler(config, Sampler(solver=solver))


def test_samplers_that_the_timesteps_cannot_serve_are_refused(config: ThresholdDiffusion) -> None:
    for change, words in (
        ({"steps": 1001}, "steps is 1001"),
        ({"spacing": "karras"}, "karras"),
        ({"eta": 0.5}, "eta is 0.5"),
    ):
        with pytest.raises(UserError, match=words):
            threshold_diffusion.check_sampler(
                config, dataclasses.replace(config.iterative, **change)
            )


def test_configs_that_make_no_sense_are_refused(config: ThresholdDiffusion) -> None:
    cosine = dataclasses.replace(config.model, schedule=Schedule("cosine"))
    velocity = dataclasses.replace(config.model, prediction="flow")
    for change, words in (
        ({"codec": "vae"}, "--codec is vae.* leave it out"),
        ({"model": cosine}, "schedule.kind is cosine.* flow"),
        ({"model": velocity}, "--model.prediction is flow.* x0"),
        ({"drop_caption": 1.5}, "--drop-caption is 1.5"),
        ({"sampler_steps": 0}, "--sampler-steps is 0"),
    ):
        with pytest.raises(UserError, match=words):
            dataclasses.replace(config, **change).check()


def test_no_other_library_has_its_pipeline_with_a_codec_or_without(
    config: ThresholdDiffusion,
) -> None:
    with pytest.raises(UserError, match="no pipeline of other libraries") as refused:
        config.pipeline({})
    assert "--to=stablehlo" in str(refused.value)
    assert "codec" not in str(refused.value), "which its check forbids"
