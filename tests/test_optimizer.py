"""The optimiser: its learning rate, and gradients that are gathered before they count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import optimizer
from jaxgen.config import Optimizer, Train

CONFIG = Optimizer(learning_rate=0.1, warmup=4, decay="cosine", b1=0.0, b2=0.0, clip=1e9)


def course(config: Optimizer, train: Train, gradients, begins: int = 0) -> list[np.ndarray]:
    """The parameters after each step."""
    adamw = optimizer.build(config, train, begins)
    params = jnp.zeros(3)
    state, found = adamw.init(params), []
    step = jax.jit(lambda g, s, p: optimizer.apply(adamw, g, s, p)[:2])
    for gradient in gradients:
        params, state = step(gradient, state, params)
        found.append(np.asarray(params))
    return found


@pytest.mark.parametrize("begins", [0, 5])
def test_warms_up_and_ends_at_a_hundredth(begins: int) -> None:
    """Without moments each step is the learning rate, against the gradient's sign."""
    train = Train(steps=20 + begins)
    moved = -np.diff([0.0, *(p[0] for p in course(CONFIG, train, [jnp.ones(3)] * 21, begins))])
    np.testing.assert_allclose(moved[:5], [0.0, 0.025, 0.05, 0.075, 0.1], rtol=1e-3, atol=1e-6)
    half = 0.001 + 0.099 / 2
    np.testing.assert_allclose(moved[[12, 20]], [half, 0.001], rtol=1e-2)


def test_gathered_gradients_count_as_their_mean() -> None:
    rng = np.random.default_rng(0)
    gradients = jnp.asarray(rng.normal(size=(12, 3)), jnp.float32)
    config = Optimizer(learning_rate=0.1, warmup=2, clip=0.5, weight_decay=0.1)
    several = course(config, Train(steps=12, accumulate=3), gradients)
    means = gradients.reshape(4, 3, 3).mean(1)
    np.testing.assert_allclose(several[2::3], course(config, Train(steps=4), means), rtol=1e-5)
    for before, after in ((0, 1), (2, 3), (3, 4)):
        np.testing.assert_array_equal(several[before], several[after])
    assert np.abs(several[5] - several[4]).max() > 0


def average(train: Train, weights) -> list[np.ndarray]:
    """The moving average after each step, of weights as they are after it."""
    ema, found = jnp.zeros(3), []
    step = jax.jit(lambda ema, weights, n: optimizer.averaged(train, ema, weights, n))
    for n, each in enumerate(weights):
        ema = step(ema, each, n)
        found.append(np.asarray(ema))
    return found


@pytest.mark.parametrize("ema", [0.3, 0.998], ids=["warmed up", "warming up"])
def test_the_moving_average_is_over_updates(ema: float) -> None:
    """Whatever the steps whose gradients each of them gathers."""
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
    at_once = average(Train(steps=4, ema=ema), weights)
    before = jnp.concatenate([jnp.zeros((1, 3)), weights[:-1]])
    steps = jnp.stack([before, before, weights], 1).reshape(12, 3)
    several = average(Train(steps=12, ema=ema, accumulate=3), steps)
    np.testing.assert_array_equal(several[2::3], at_once)
    np.testing.assert_array_equal(several[:2], np.zeros((2, 3)))
    for gathered in (several[3::3], several[4::3]):
        np.testing.assert_array_equal(gathered, at_once[:-1])
