"""LADD: which timesteps are drawn, what the judge sees, and which way gradients go."""

import dataclasses
import functools
from statistics import NormalDist
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from einops import rearrange
from tiny import MODEL, assert_followed, state_like

from jaxgen import config as configs
from jaxgen.config import Drawing
from jaxgen.diffusion import denoiser
from jaxgen.errors import UserError
from jaxgen.methods import ladd
from jaxgen.methods.ladd import Ladd
from jaxgen.models.dit import DiTConfig
from jaxgen.models.unet import timestep_embedding
from jaxgen.pixels import to_unit
from jaxgen.state import stream

WIDTH, MAPS = 8, 2
DIT = DiTConfig(patch=4, width=8, depth=MAPS, heads=2, context_width=16, added_width=16)


def filled(config: Ladd):
    """A teacher without zeros, which would make tests of gradients vacuous."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(functools.partial(ladd.frozen_shapes, config))
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.3, s.shape), jnp.float32), shapes)


@pytest.fixture(scope="module")
def config(diffusion_config) -> Ladd:
    """With the network that compiles fastest."""
    return Ladd(
        name="tiny-ladd",
        data=diffusion_config.data,
        model=dataclasses.replace(diffusion_config.model, network="dit", dit=DIT),
        width=WIDTH,
        warmup_steps=0,
        train=diffusion_config.train,
        optimizer=diffusion_config.optimizer,
        judge_optimizer=diffusion_config.optimizer,
    )


@pytest.fixture(scope="module")
def frozen(config: Ladd):
    return filled(config)


@pytest.fixture(scope="module")
def tiny_unet(config: Ladd):
    """A model with a UNet, and weights for it."""
    return MODEL, filled(dataclasses.replace(config, model=MODEL))


@pytest.fixture(scope="module")
def state(config: Ladd, frozen):
    make = functools.partial(ladd.init, config, frozen, jax.random.key(0))
    return state_like(make, student=frozen["teacher"])


@pytest.fixture(scope="module")
def step(config: Ladd):
    """A train step with both learning rates as arguments, compiled once."""

    @jax.jit
    def run(student_rate, judge_rate, state, frozen, batch):
        rates = {
            name: dataclasses.replace(getattr(config, name), learning_rate=rate)
            for name, rate in (("optimizer", student_rate), ("judge_optimizer", judge_rate))
        }
        return ladd.train_step(dataclasses.replace(config, **rates), state, frozen, batch)

    return run


@pytest.mark.parametrize(
    ("changes", "step", "shares"),
    [
        ({}, 499, [0, 0, 0.5, 0.5]),
        ({}, 500, [0.7, 0.1, 0.1, 0.1]),
        ({"warmup_steps": 0}, 0, [0.7, 0.1, 0.1, 0.1]),
        ({"frequency": ()}, 500, [0.25] * 4),
        ({"student_steps": 1, "frequency": (1,)}, 0, [1]),
    ],
)
def test_student_timesteps_warm_up_with_little_noise(config: Ladd, changes, step, shares) -> None:
    config = dataclasses.replace(config, **{"warmup_steps": 500, **changes})
    s = np.asarray(ladd.student_timesteps(config, jax.random.key(0), jnp.asarray(step), 20_000))
    taus = [999, 749, 499, 249][: len(shares)]
    assert set(s) == {tau for tau, share in zip(taus, shares, strict=True) if share}
    np.testing.assert_allclose([np.mean(s == tau) for tau in taus], shares, atol=0.015)


def test_judge_timesteps_are_logit_normal(config: Ladd) -> None:
    quantiles = np.array([0.05, 0.25, 0.5, 0.75, 0.95])
    for mean, std in ((1.0, 1.0), (-0.5, 2.0)):
        config = dataclasses.replace(config, noise_mean=mean, noise_std=std)
        t = np.asarray(ladd.judge_timesteps(config, jax.random.key(0), 100_000), np.float64)
        logits = [NormalDist(mean, std).inv_cdf(q) for q in quantiles]
        expected = 999 / (1 + np.exp(-np.array(logits)))
        np.testing.assert_allclose(np.quantile(t, quantiles), expected, rtol=0.03)


def test_a_step_is_the_two_losses_of_noised_pictures(
    config: Ladd, frozen, state, batch, step
) -> None:
    """Against the losses put together here, from the same draws, and their own gradients."""
    after, metrics = step(1e-3, 1e-3, state, frozen, batch)
    model = config.model

    def random(name: str) -> jax.Array:
        return stream(config.seed, 0, name)

    def noised(image, eps, t):
        alpha, sigma = (rearrange(a, "b -> b 1 1 1") for a in model.schedule.at(t))
        return alpha * image + sigma * eps

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def reference(student, judge, updated):
        x0 = to_unit(batch["image"])
        text = denoiser.encode(model, frozen["text"], batch["caption"])
        s = ladd.student_timesteps(config, random("student timestep"), 0, len(x0))
        x_s = noised(x0, jax.random.normal(random("student noise"), x0.shape), s)
        fake = denoiser.predict_x0(model, student, x_s, s, text)
        t = ladd.judge_timesteps(config, random("judge timestep"), len(x0))
        eps = jax.random.normal(random("judge noise"), x0.shape)
        told = {"time": timestep_embedding(t, 2 * WIDTH), "text": text.pooled}

        def seen(image):
            return denoiser.features(model, frozen["teacher"], noised(image, eps, t), t, text)

        real, fake = seen(x0), seen(fake)
        sides = real, jax.lax.stop_gradient(fake)
        logits = on_real, on_fake = [ladd.verdicts(config, judge, side, told) for side in sides]
        caught = sum(jnp.mean(jnp.maximum(0, 1 - x)) for x in on_real)
        caught += sum(jnp.mean(jnp.maximum(0, 1 + x)) for x in on_fake)
        missed = -sum(jnp.mean(x) for x in ladd.verdicts(config, updated, fake, told))
        return missed + caught, (missed, logits)

    players = state.params["student"], state.params["judge"], after.params["judge"]
    (_, (loss, logits)), gradients = reference(*players)
    real, fake = ([np.asarray(x, np.float64) for x in side] for side in logits)
    expected = sum(np.maximum(0, 1 - x).mean() for x in real)
    expected += sum(np.maximum(0, 1 + x).mean() for x in fake)
    np.testing.assert_allclose(metrics["judge"], expected, rtol=1e-4)
    believed = [np.mean([(x > 0).mean() for x in side]) for side in (real, fake)]
    np.testing.assert_allclose([metrics["real_believed"], metrics["fake_believed"]], believed)
    np.testing.assert_allclose([metrics["adversarial"], metrics["loss"]], [loss, loss], rtol=1e-4)
    for player, gradient in zip(("student", "judge"), gradients, strict=True):
        assert_followed(config.optimizer, after.opt_state[player], gradient)
        norm = optax.tree.norm(gradient)
        np.testing.assert_allclose(metrics[f"{player}_gradient"], norm, rtol=1e-3)
    assert set(after.params) == {"student", "judge"}, "nothing frozen is in the state"
    assert set(after.ema) == {"student"}


def moved(before, after) -> float:
    return max(
        np.abs(np.asarray(a) - np.asarray(b)).max()
        for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    )


def repeated(step, rates, state, frozen, batch, times: int):
    """The first and last metrics of steps with the same draws each time, and the last state."""
    rows = []
    for _ in range(times):
        again = state.replace(step=jnp.zeros((), jnp.int32))
        state, metrics = step(*rates, again, frozen, batch)
        rows.append(metrics)
    return rows[0], rows[-1], state


def test_the_judge_learns_to_tell_one_batch(frozen, state, batch, step) -> None:
    first, last, after = repeated(step, (0.0, 2e-2), state, frozen, batch, 30)
    assert moved(state.params["student"], after.params["student"]) == 0
    assert last["judge"] < 0.6 * first["judge"]
    assert last["real_believed"] > 0.8 > 0.2 > last["fake_believed"]


def test_the_student_starts_as_its_teacher(config: Ladd, frozen) -> None:
    student = jax.jit(lambda f: ladd.init(config, f, jax.random.key(0)).params["student"])(frozen)
    jax.tree.map(np.testing.assert_array_equal, student, frozen["teacher"])


def test_the_student_learns_to_please_a_fixed_judge(frozen, state, batch, step) -> None:
    first, last, after = repeated(step, (1e-2, 0.0), state, frozen, batch, 20)
    assert moved(state.params["judge"], after.params["judge"]) == 0
    assert last["adversarial"] < first["adversarial"] - 0.1


def test_features_are_what_the_unet_goes_through(tiny_unet, batch) -> None:
    """Pushed through the network's last layers by hand, the last map is the network's output."""
    model, frozen = tiny_unet
    x_t = to_unit(batch["image"])
    t = jnp.linspace(0.0, 999.0, len(x_t))

    @jax.jit
    def run(frozen):
        text = denoiser.encode(model, frozen["text"], batch["caption"])
        given = (model, frozen["teacher"], x_t, t, text)
        return denoiser.features(*given), denoiser.output(*given)

    maps, output = run(frozen)
    assert [m.shape[1:] for m in maps] == [(64, 16), (16, 16), (16, 16), (16, 16), (64, 16)]
    assert len(maps) == denoiser.feature_maps(model)
    params = frozen["teacher"]
    last: Any = rearrange(maps[-1], "b (h w) c -> b h w c", h=8)
    last = nn.GroupNorm(4, epsilon=1e-5).apply({"params": params["conv_norm_out"]}, last)
    last = nn.Conv(12, (3, 3), padding=1).apply({"params": params["conv_out"]}, nn.silu(last))
    last = rearrange(last, "b h w (p q c) -> b (h p) (w q) c", p=2, q=2)
    np.testing.assert_allclose(output, last, rtol=1e-4, atol=1e-5)


def test_some_maps_of_a_unet_and_the_optional_terms(config: Ladd, tiny_unet, batch) -> None:
    """By shapes alone: a head a tap; distance and penalty are in the metrics when asked for."""
    model, _ = tiny_unet
    config = dataclasses.replace(config, model=model, taps=(0, 3), distillation=1.0, r1=1e-5)
    config.check()
    frozen = jax.eval_shape(functools.partial(ladd.frozen_shapes, config))
    state = jax.eval_shape(functools.partial(ladd.init, config), frozen, jax.random.key(0))
    assert set(state.params["judge"]) == {"head_0", "head_1"}
    step = functools.partial(ladd.train_step, config)
    after, metrics = jax.eval_shape(step, state, frozen, batch)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert {"r1", "distillation", "distillation_gradient"} <= set(metrics)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": configs.Train(batch=1)}, "--train.batch is 1: .* collapses; give 2 or more"),
        ({"taps": (0, 2)}, r"--taps is \(0, 2\); the teacher has feature maps 0 to 1"),
        ({"frequency": (1, 1)}, "--frequency has 2 entries; give one for each of the 4"),
        ({"frequency": (0, 1, 1, 1)}, "--frequency is"),
        ({"drawn": Drawing(count=-1)}, "--drawn.count is -1; give 0 or more"),
        ({"drawn": Drawing(steps=0)}, "steps"),
        ({"noise_std": 0.0}, "--noise-std 0.0"),
        ({"width": 0}, "--width is 0"),
        ({"r1": -1.0}, "--r1 is -1.0"),
        ({"warmup_steps": 100}, "--warmup-steps 100 are all of --train.steps 100: .* give fewer"),
    ],
)
def test_what_is_impossible_is_one_line(config: Ladd, changes, message) -> None:
    config.check()
    with pytest.raises(UserError, match=message) as caught:
        dataclasses.replace(config, **changes).check()
    assert "\n" not in str(caught.value)


def test_no_drawing_means_the_real_pictures(config: Ladd) -> None:
    assert config.drawing() == ("teacher", config.drawn)
    assert dataclasses.replace(config, drawn=Drawing(count=0)).drawing() is None
