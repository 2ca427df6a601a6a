"""The classifier is a function of each image by itself, and learns in all its parts."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen.models.resnet import ResNet, ResNetConfig

CONFIG = ResNetConfig(classes=5, widths=(8, 16), blocks=1, groups=4)
NETWORK = ResNet(CONFIG)
apply = jax.jit(NETWORK.apply)


@pytest.fixture(scope="module")
def image():
    return jax.random.uniform(jax.random.key(1), (6, 16, 16, 3), minval=-1, maxval=1)


@pytest.fixture(scope="module")
def params(image):
    # As the initialisers draw, but in NumPy: XLA takes half a minute to compile them.
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = path[-1].key
        if name == "kernel":
            return rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))
        return np.full(leaf.shape, float(name == "scale"))

    shapes = jax.eval_shape(NETWORK.init, jax.random.key(0), image)
    drawn = jax.tree_util.tree_map_with_path(draw, shapes)
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), drawn)


def test_shapes_and_state(params, image):
    logits, pooled, *_ = apply(params, image)
    chex.assert_shape(logits, (6, 5))
    chex.assert_shape(pooled, (6, 16))
    assert set(params) == {"params"}, "no mutable statistics"


def test_default_is_small_enough_for_a_laptop():
    network = ResNet(ResNetConfig(classes=90))
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert 2.5e6 < sum(x.size for x in jax.tree.leaves(shapes)) < 3e6


def test_an_image_is_judged_by_itself(params, image):
    alone = apply(params, image[:1]).logits
    np.testing.assert_allclose(apply(params, image).logits[:1], alone, atol=1e-5)
    np.testing.assert_array_equal(apply(params, image[:1]).logits, alone)


def test_training_moves_every_parameter_and_learns(params, image):
    label = jnp.array([0, 1, 2, 3, 4, 0])
    optimizer = optax.adam(1e-2)

    def loss(params):
        logits = NETWORK.apply(params, image).logits  # pyright: ignore
        return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

    @jax.jit
    def step(params, state):
        gradient = jax.grad(loss)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, gradient

    trained, state, gradient = step(params, optimizer.init(params))
    for path, g in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.abs(g).max() > 0, path
    for _ in range(20):
        trained, state, _ = step(trained, state)
    np.testing.assert_array_equal(apply(trained, image).logits.argmax(-1), label)
