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
from jaxgen.diffusion.sampler import Sampler
from jaxgen.errors import UserError
from jaxgen.methods import add, ladd
from jaxgen.methods.add import Add
from jaxgen.methods.distilled import Distilled, student_noise
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


@pytest.mark.parametrize("method", [add, ladd])
def test_a_teachers_one_step_is_what_its_copy_draws(config: Add, batch, method: Any) -> None:
    """The pictures are the teacher's own, of one step: then nothing is missed, but by rounding.

    With other rows the student has other noise than that from which its picture was drawn.
    """
    shared = {f.name: getattr(config, f.name) for f in dataclasses.fields(Distilled)}
    chosen = config if method is add else Ladd(**shared, warmup_steps=0)
    chosen.check()
    frozen: Any = random_like(functools.partial(method.frozen_shapes, chosen))
    # Within [-1, 1], as what is beyond is cut off in a picture.
    frozen["teacher"] = jax.tree.map(lambda leaf: 0.3 * leaf, frozen["teacher"])
    make = functools.partial(method.init, chosen, frozen, jax.random.key(0))
    state = state_like(make, student=frozen["teacher"])
    weights = {"text": frozen["text"], "denoiser": frozen["teacher"]}
    noise = numbered_noise(chosen, chosen.seed, ROWS)
    given = (weights, jax.random.key(1), batch["caption"], Sampler(steps=1))
    batch = {**batch, "image": method.sample(chosen, *given, noise=noise)}
    step = jax.jit(functools.partial(method.train_step, chosen))
    missed = [
        float(step(state, frozen, {**batch, "row": row})[1]["regression"])
        for row in (ROWS, ROWS[::-1])
    ]
    assert missed[0] < 0.3 * missed[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"drawn": Drawing(count=0)}, "it draws nothing: give --drawn.count"),
        ({"data": Data(flip=True)}, "--data.no-flip"),
        ({"regression": -1.0}, "--regression is -1.0; give 0 or more"),
        ({"drawn": Drawing(guidance=float("nan"))}, "--drawn.guidance is nan; give 0 or more"),
        ({"drawn": Drawing(steps=0)}, "--drawn.steps is 0"),
        ({"regression": 0.0}, "are all 0; nothing would be learnt"),
    ],
)
def test_what_is_impossible_is_one_line(config: Add, changes, message) -> None:
    config.check()
    with pytest.raises(UserError, match=message) as caught:
        dataclasses.replace(config, **changes).check()
    assert "\n" not in str(caught.value)
