"""The student's one step beside what its teacher draws from the same noise."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import BATCH, random_like, state_like

from jaxgen.config import Data, Drawing
from jaxgen.errors import UserError
from jaxgen.methods import add, ladd
from jaxgen.methods.add import Add
from jaxgen.methods.distilled import student_noise
from jaxgen.methods.ladd import Ladd
from jaxgen.methods.text_to_image import numbered_noise

ROWS = jnp.array([5, 0, 2, 7] * BATCH)[:BATCH]


@pytest.fixture(scope="module")
def config(add_config: Add) -> Add:
    return dataclasses.replace(
        add_config,
        adversarial=0.0,
        distillation=0.0,
        regression=1.0,
        drawn=Drawing(count=8),
        frequency=(1, 0, 0, 0),
    )


def test_only_pure_noise_is_the_teachers(config: Add) -> None:
    key, s = jax.random.key(0), jnp.asarray(np.resize([999.0, 249.0, 749.0], BATCH), jnp.float32)
    eps, paired = student_noise(config, {"row": ROWS}, s, key)
    theirs = numbered_noise(config, config.seed, ROWS)
    fresh = jax.random.normal(key, eps.shape)
    pure = np.asarray(s == 999)
    np.testing.assert_array_equal(paired, pure)
    np.testing.assert_array_equal(eps[pure], theirs[pure])
    np.testing.assert_array_equal(eps[~pure], fresh[~pure])

    alone, unpaired = student_noise(dataclasses.replace(config, regression=0.0), {}, s, key)
    np.testing.assert_array_equal(alone, fresh)
    assert not unpaired.any()


def test_a_pictures_noise_is_its_own(config: Add) -> None:
    noise = np.asarray(numbered_noise(config, 0, jnp.arange(400)))
    np.testing.assert_array_equal(numbered_noise(config, 0, jnp.array([7, 3])), noise[[7, 3]])
    assert len(np.unique(noise[:, 0, 0, 0])) == 400
    assert abs(float(noise.mean())) < 0.01 > abs(float(noise.std()) - 1)
    assert np.abs(noise - numbered_noise(config, 1, jnp.arange(400))).max() > 1


def test_one_batch_is_learnt_by_heart(config: Add, batch) -> None:
    frozen: Any = random_like(functools.partial(add.frozen_shapes, config))
    make = functools.partial(add.init, config, frozen, jax.random.key(0))
    state = state_like(make, student=frozen["teacher"])
    batch = {**batch, "row": ROWS}
    step = jax.jit(functools.partial(add.train_step, config))
    rows = []
    for _ in range(40):
        state, metrics = step(state.replace(step=jnp.zeros((), jnp.int32)), frozen, batch)
        rows.append(jax.tree.map(float, metrics))
        assert rows[-1]["loss"] == pytest.approx(rows[-1]["regression"])
    assert rows[-1]["regression_gradient"] > 0 == rows[-1]["adversarial_gradient"]
    assert rows[-1]["regression"] < 0.7 * rows[0]["regression"]


def test_ladd_has_the_term_too(config: Add, batch) -> None:
    of_ladd = Ladd(
        data=config.data,
        model=config.model,
        train=config.train,
        regression=1.0,
        warmup_steps=0,
    )
    of_ladd.check()
    frozen = jax.eval_shape(functools.partial(ladd.frozen_shapes, of_ladd))
    state = jax.eval_shape(functools.partial(ladd.init, of_ladd), frozen, jax.random.key(0))
    step = functools.partial(ladd.train_step, of_ladd)
    _, metrics = jax.eval_shape(step, state, frozen, {**batch, "row": ROWS})
    assert {"regression", "regression_gradient"} <= set(metrics)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"drawn": Drawing(count=0)}, "it draws nothing: give --drawn.count"),
        ({"data": Data(flip=True)}, "--no-data.flip"),
        ({"regression": -1.0}, "--regression is -1.0; give 0 or more"),
        ({"regression": 0.0}, "are all 0; nothing would be learnt"),
    ],
)
def test_what_is_impossible_is_one_line(config: Add, changes, message) -> None:
    config.check()
    with pytest.raises(UserError, match=message) as caught:
        dataclasses.replace(config, **changes).check()
    assert "\n" not in str(caught.value)
