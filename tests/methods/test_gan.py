"""The GAN: losses and penalties by their formulas, who moves whom, and that captions are drawn."""

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import assert_followed

from jaxgen.config import Data, Optimizer, Train
from jaxgen.diffusion.sampler import Sampler
from jaxgen.errors import UserError
from jaxgen.methods import gan
from jaxgen.methods.gan import Gan
from jaxgen.models.gan import GanConfig
from jaxgen.pixels import to_unit
from jaxgen.state import stream
from jaxgen.text.encoder import TextConfig

ADAM = Optimizer(learning_rate=3e-3, warmup=0, decay="constant", b1=0.0, b2=0.99, clip=100.0)
CONFIG = Gan(
    name="tiny-gan",
    data=Data(size=16),
    text=TextConfig(vocabulary=40, width=16, layers=1, heads=2, length=6),
    model=GanConfig(noise=8, condition=16, generator=(8, 16), discriminator=(8, 16), patch=2),
    train=Train(steps=250, batch=8, ema=0.9),
    optimizer=ADAM,
    discriminator_optimizer=ADAM,
)


@pytest.fixture(scope="module")
def state() -> Any:
    return jax.jit(functools.partial(gan.init, CONFIG))({}, jax.random.key(0))


@pytest.fixture(scope="module")
def step():
    return stepper("r3gan")


@functools.cache
def stepper(loss: gan.Loss):
    """A train step with both learning rates as arguments, compiled once."""

    @jax.jit
    def run(rates, state, batch):
        players = [dataclasses.replace(ADAM, learning_rate=rate) for rate in rates]
        config = dataclasses.replace(
            CONFIG, loss=loss, optimizer=players[0], discriminator_optimizer=players[1]
        )
        return gan.train_step(config, state, {}, batch)

    return run


def perturbed(tree: Any, dtype: Any = jnp.float32) -> Any:
    """Nothing left at zero, which would make tests of gradients vacuous."""
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf + 0.2 * rng.normal(size=leaf.shape), dtype), tree
    )


def far(a: Any, b: Any) -> float:
    pairs = zip(*map(jax.tree.leaves, jax.device_get((a, b))), strict=True)
    return max(float(np.abs(x - y).max()) for x, y in pairs)


REAL = np.array([2.0, -1.0, 0.5, 3.0, -0.2])
FAKE = np.array([1.0, -0.5, 0.1, 3.5, -4.0])


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def test_losses_are_cross_entropies():
    """-log σ of the difference for r3gan; of each image alone for the loss of 2014."""
    real, fake = jnp.asarray(REAL), jnp.asarray(FAKE)
    expected: dict[gan.Loss, tuple[Any, ...]] = {
        "r3gan": (
            -np.log(sigmoid(REAL - FAKE)).mean(),
            -np.log(sigmoid(FAKE - REAL)).mean(),
            -np.log(sigmoid(REAL - FAKE)),
        ),
        "nonsaturating": (
            -np.log(sigmoid(REAL)).mean() - np.log(1 - sigmoid(FAKE)).mean(),
            -np.log(sigmoid(FAKE)).mean(),
            -np.log(1 - sigmoid(FAKE)),
        ),
    }
    for loss, (discriminator, generator, mismatched) in expected.items():
        np.testing.assert_allclose(gan.discriminator_loss(loss, real, fake), discriminator, 1e-6)
        np.testing.assert_allclose(gan.generator_loss(loss, real, fake), generator, 1e-6)
        np.testing.assert_allclose(gan.mismatched_loss(loss, real, fake), mismatched, 1e-5)


def test_shares_are_counts():
    real, fake = jnp.asarray(REAL), jnp.asarray(FAKE)
    pairs = gan.shares("r3gan", real, fake)
    np.testing.assert_allclose(pairs["rightly_judged"], 3 / 5, 1e-6)
    np.testing.assert_allclose(pairs["fakes_pass"], 2 / 5, 1e-6)  # the median real logit is .5
    alone = gan.shares("nonsaturating", real, fake)
    np.testing.assert_allclose(alone["rightly_judged"], (3 + 2) / 10, 1e-6)
    np.testing.assert_allclose(alone["fakes_pass"], 3 / 5, 1e-6)


def test_gamma_goes_from_the_first_to_the_second():
    config = dataclasses.replace(CONFIG, gamma=(1.0, 0.1), train=Train(steps=101))
    np.testing.assert_allclose(gan.penalty_weight(config, 0), 1.0, 1e-6)
    np.testing.assert_allclose(gan.penalty_weight(config, 50), 0.55, 1e-6)
    np.testing.assert_allclose(gan.penalty_weight(config, 100), 0.1, 1e-6)
    np.testing.assert_allclose(gan.penalty_weight(config, 500), 0.1, 1e-6)
    every = [float(gan.penalty_weight(config, step)) for step in range(101)]
    assert every == sorted(every, reverse=True)


def test_penalties_are_those_of_finite_differences(state, batch):
    """In float64: ‖∇_x D‖² on real and fake images, and the way the whole loss slopes in θ."""
    config = dataclasses.replace(CONFIG, mismatched=0.7)
    caption, key, gamma, h = batch["caption"][:2], jax.random.key(2), 1.7, 1e-6

    def loss(network, text, images):
        weights = {"text": text, "discriminator": network}
        real, fake = images
        return gan.loss_of_discriminator(
            config, weights, key, real, fake, caption, jnp.asarray(gamma)
        )

    def logits(network, text, images, direction, size):
        """Of real 0, fake 0, real 1, fake 1, each moved the same way."""
        weights = {"text": text, "discriminator": network}
        pooled = jnp.repeat(gan._pooled(config, weights, caption), 2, axis=0)
        moved = jnp.swapaxes(images, 0, 1).reshape(4, 16, 16, 3) + size * direction
        return gan._judged(config, weights, key, moved, pooled)

    with jax.enable_x64(True):
        weights = perturbed(state.params["discriminator"], jnp.float64)
        network, text = weights["discriminator"], weights["text"]
        images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, 16, 16, 3)))
        both = jax.jit(jax.value_and_grad(loss, has_aux=True))
        (total, told), gradient = both(network, text, images)
        assert total.dtype == jnp.float64

        each = jax.jit(jax.vmap(logits, (None, None, None, 0, None)))
        unit = np.eye(768).reshape(768, 16, 16, 3)
        up, down = (np.asarray(each(network, text, images, unit, size)) for size in (h, -h))
        squares = np.square((up - down) / (2 * h)).sum(axis=0)
        np.testing.assert_allclose(told["r1"], squares[[0, 2]].mean(), rtol=1e-6)
        np.testing.assert_allclose(told["r2"], squares[[1, 3]].mean(), rtol=1e-6)
        assert told["r1"] > 1e-3 < abs(told["r1"] - told["r2"])
        penalties = gamma / 2 * (told["r1"] + told["r2"])
        expected = told["adversarial"] + 0.7 * told["mismatched"] + penalties
        np.testing.assert_allclose(total, expected, rtol=1e-12)

        rng = np.random.default_rng(1)
        way = jax.tree.map(lambda w: rng.normal(size=w.shape), network)
        slope = sum(jax.tree.leaves(jax.tree.map(lambda g, v: np.sum(g * v), gradient, way)))
        (above, _), _ = both(jax.tree.map(lambda w, v: w + h * v, network, way), text, images)
        (below, _), _ = both(jax.tree.map(lambda w, v: w - h * v, network, way), text, images)
        np.testing.assert_allclose((above - below) / (2 * h), slope, rtol=1e-5)


def test_another_image_s_caption_is_a_fake_unless_it_is_the_same(state, batch):
    weights = perturbed(state.params["discriminator"])
    real = to_unit(batch["image"])
    config = dataclasses.replace(CONFIG, augment=())
    loss = jax.jit(functools.partial(gan.loss_of_discriminator, config))
    key, gamma = jax.random.key(0), jnp.zeros(())
    _, told = loss(weights, key, real, -real, batch["caption"], gamma)

    @jax.jit
    def logits(images, caption):
        return gan._judged(config, weights, key, images, gan._pooled(config, weights, caption))

    own, fake = logits(real, batch["caption"]), logits(-real, batch["caption"])
    other = logits(real, jnp.roll(batch["caption"], 1, axis=0))
    np.testing.assert_allclose(
        told["mismatched"], np.mean(np.log1p(np.exp(other - own))), rtol=1e-4
    )
    np.testing.assert_allclose(
        told["adversarial"], np.mean(np.log1p(np.exp(fake - own))), rtol=1e-4
    )
    same = jnp.broadcast_to(batch["caption"][:1], batch["caption"].shape)
    _, told = loss(weights, key, real, -real, same, gamma)
    assert told["mismatched"] == 0


def test_each_player_moves_by_its_own_loss_alone(state, batch, step):
    """The discriminator first, whatever the generator's rate; then the generator against it."""
    both, metrics = step((1e-3, 1e-3), state, batch)
    only_discriminator, _ = step((1e-30, 1e-3), state, batch)
    only_generator, _ = step((1e-3, 1e-30), state, batch)
    before = state.params
    assert far(both.params["discriminator"], before["discriminator"]) > 1e-4
    assert far(both.params["generator"], before["generator"]) > 1e-4
    chex.assert_trees_all_equal(
        both.params["discriminator"], only_discriminator.params["discriminator"]
    )
    assert far(only_discriminator.params["generator"], before["generator"]) < 1e-20
    assert far(only_generator.params["discriminator"], before["discriminator"]) < 1e-20
    assert far(only_generator.params["generator"], before["generator"]) > 1e-4
    for player in ("generator", "discriminator"):
        text = both.params[player]["text"]["embeddings_token_embedding"]["embedding"]
        seen = set(np.flatnonzero(np.asarray(text).any(axis=1)))
        assert seen >= set(range(4, 12)), f"the {player} learns the words it meets"
        assert not seen & set(range(12, 40)), "and no others"
    assert gan.seen_words(gan.weights(CONFIG, both, {})) == frozenset(seen)
    assert set(both.ema) == {"generator"}
    assert both.step == state.step + 1
    assert all(np.isfinite(value) for value in metrics.values())
    np.testing.assert_allclose(
        metrics["loss"], metrics["generator"] + metrics["discriminator"], rtol=1e-6
    )


def test_the_generator_s_gradient_is_that_of_its_loss(state, batch, step):
    """Through the one forward pass that both updates share."""
    state = state.replace(params=perturbed(state.params))
    after, metrics = step((1e-3, 1e-3), state, batch)

    def direct(weights):
        z = jax.random.normal(stream(CONFIG.seed, state.step, "latent"), (8, 8))
        fake = gan.draw(CONFIG, weights, z, batch["caption"])
        key = stream(CONFIG.seed, state.step, "augment for the generator")
        return gan.loss_of_generator(
            CONFIG,
            after.params["discriminator"],
            key,
            to_unit(batch["image"]),
            fake,
            batch["caption"],
        )

    value, gradient = jax.jit(jax.value_and_grad(direct))(state.params["generator"])
    np.testing.assert_allclose(metrics["generator"], value, rtol=1e-4)
    np.testing.assert_allclose(metrics["generator_gradient"], optax.tree.norm(gradient), rtol=1e-3)
    assert_followed(CONFIG.optimizer, after.opt_state["generator"], gradient)


@pytest.fixture(scope="module")
def drawing():
    return jax.jit(functools.partial(gan.sample, CONFIG), static_argnums=3)


def test_an_image_depends_on_its_key_and_place_alone(state, batch, drawing):
    weights = perturbed(gan.weights(CONFIG, state, {}))
    (how,) = gan.samplers(CONFIG).values()
    same = jnp.broadcast_to(batch["caption"][:1], (6, 6))
    six = np.asarray(drawing(weights, jax.random.key(0), same, how))
    two = np.asarray(drawing(weights, jax.random.key(0), same[:2], how))
    chex.assert_shape(six, (6, 16, 16, 3))
    assert six.dtype == np.uint8
    np.testing.assert_array_equal(six[:2], two)
    assert np.abs(six[0].astype(int) - six[1]).mean() > 2, "one caption, two images"
    other = np.asarray(drawing(weights, jax.random.key(1), same[:2], how))
    assert np.abs(six[:2].astype(int) - other).mean() > 2


@pytest.mark.parametrize(
    ("how", "told"),
    [
        (Sampler(), "--steps"),
        (Sampler(steps=4, guidance=2.0), "--steps and --guidance"),
        (Sampler(steps=1, strength=0.6), "--start"),
    ],
)
def test_other_samplers_are_refused_by_what_was_asked_for(how, told):
    with pytest.raises(UserError, match=f"one step, from noise alone; leave {told} out$"):
        gan.check_sampler(CONFIG, how)
    gan.check_sampler(CONFIG, gan.ONE_STEP)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"gamma": (-0.1, 0.0)}, "--gamma"),
        ({"mismatched": -1.0}, "--mismatched"),
        ({"train": Train(batch=1)}, "--mismatched needs another caption"),
        ({"augment": ("colour",)}, "--augment 'colour'"),
        ({"data": Data(size=18)}, "--data.size 18"),
        ({"discriminator_optimizer": Optimizer(clip=0.0)}, "--discriminator-optimizer.clip"),
    ],
)
def test_impossible_configs_name_the_option(change, told):
    CONFIG.check()
    with pytest.raises(UserError, match=told):
        dataclasses.replace(CONFIG, **change).check()


@pytest.mark.parametrize("loss", ["r3gan", "nonsaturating"])
def test_each_caption_comes_to_draw_its_own_colour(state, batch, drawing, loss):
    metrics = {}
    for _ in range(CONFIG.train.steps):
        state, metrics = stepper(loss)((3e-3, 6e-3), state, batch)
    assert np.isfinite(metrics["loss"])
    weights = gan.weights(CONFIG, state, {})
    images = drawing(weights, jax.random.key(1), batch["caption"], gan.ONE_STEP)
    drawn = np.asarray(images, np.float32).mean(axis=(1, 2))
    wanted = np.asarray(batch["image"], np.float32).mean(axis=(1, 2))
    apart = np.linalg.norm(drawn[:, None] - wanted, axis=-1)
    assert (apart.argmin(axis=1) == np.arange(8)).all(), "nearest to its own caption's colour"
    assert np.diag(apart).mean() < 40, "of 441 from black to white"
