"""ADD with a classifier for eyes: what the judge sees by is the run's network and weights."""

import dataclasses
import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.config import Data
from jaxgen.errors import UserError
from jaxgen.methods import add, classifier
from jaxgen.methods.add import Add
from jaxgen.methods.classifier import Classifier
from jaxgen.methods.diffusion import Diffusion
from jaxgen.methods.distilled import teacher_shapes
from jaxgen.models.judge import JudgeConfig
from jaxgen.models.resnet import ResNetConfig
from jaxgen.models.vit import VitConfig

GRADER = Classifier(
    name="grader",
    data=Data(size=16),
    resnet=ResNetConfig(3, (8,), patch=4, blocks=1, groups=4),
    vit=VitConfig(3, patch=4, width=8, depth=1, heads=2),
)
VIT = dataclasses.replace(GRADER, network="vit")


@pytest.fixture(scope="module")
def config(add_config: Add) -> Add:
    judge = JudgeConfig(features="runs/grader", resize=16, taps=(0,), augment=())
    return dataclasses.replace(add_config, judge=judge)


def found(config: Classifier) -> Any:
    """A run of it, with weights that nothing is compiled for."""
    shapes = jax.eval_shape(functools.partial(classifier.init, config, {}), jax.random.key(0))
    weights = drawn(shapes.params["classifier"])
    return SimpleNamespace(config=config, weights=weights, folder=Path("runs/grader"))


def drawn(shapes: Any) -> Any:
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(0, 0.3, a.shape), a.dtype), shapes)


@pytest.fixture(scope="module")
def grader() -> Any:
    return found(GRADER)


@pytest.fixture(scope="module")
def held(config: Add, diffusion_config: Diffusion, grader: Any) -> Any:
    networks = drawn(jax.eval_shape(lambda: teacher_shapes(config)))
    weights = {"denoiser": networks["teacher"], "text": networks["text"]}
    teacher = SimpleNamespace(config=diffusion_config, weights=weights)
    return add.frozen(config, {"teacher": teacher, "features": grader})


def test_the_judge_sees_what_the_classifier_sees(config: Add, grader: Any, held: Any) -> None:
    image = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)), jnp.float32)
    look = jax.jit(functools.partial(add.look, config))
    tokens, whole = look(held["eyes"], image)
    assert [t.shape for t in tokens] == [(2, 16, 8)]
    pixels = (image + 1) * 127.5
    pooled = jax.jit(functools.partial(classifier.features, GRADER))(grader.weights, pixels)
    np.testing.assert_allclose(whole, jax.nn.standardize(pooled), atol=1e-3)


def test_one_step_moves_the_student_and_the_judge(config: Add, held: Any, batch: Any) -> None:
    shapes = jax.eval_shape(functools.partial(add.init, config), held, jax.random.key(0))
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    state = zeros.replace(params=drawn(shapes.params))
    heads = state.params["judge"]
    assert heads["head_0"]["image"]["kernel"].shape == (8, config.judge.width)
    after, metrics = jax.jit(functools.partial(add.train_step, config))(state, held, batch)
    assert metrics["adversarial_gradient"] > 0
    assert metrics["r1"] > 0
    for name in ("student", "judge"):
        pairs = zip(*map(jax.tree.leaves, (state.params[name], after.params[name])), strict=True)
        assert max(float(jnp.abs(a - b).max()) for a, b in pairs) > 1e-5


def test_what_cannot_be_seen_by_is_refused(config: Add, diffusion_config: Any, grader: Any) -> None:
    config.accept("features", GRADER, "runs/grader")
    config.accept("features", VIT, "runs/grader")
    with pytest.raises(UserError, match="runs/x is a run of diffusion, no classifier"):
        config.accept("features", diffusion_config, "runs/x")
    deep = dataclasses.replace(config, judge=dataclasses.replace(config.judge, taps=(1,)))
    with pytest.raises(UserError, match=r"taps has 1; the classifier runs/grader has .* 0 to 0"):
        deep.accept("features", GRADER, "runs/grader")
    odd = dataclasses.replace(config, judge=dataclasses.replace(config.judge, resize=18))
    with pytest.raises(UserError, match=r"resize is 18, no multiple of 4.*give 16"):
        odd.accept("features", GRADER, "runs/grader")
    mixed = SimpleNamespace(config=VIT, weights=grader.weights, folder=Path("runs/mixed"))
    with pytest.raises(UserError, match=r"weights in runs/mixed do not fit the config\.json"):
        add.frozen_shapes(config, mixed)


def test_a_transformer_trained_at_one_size_sees_at_another(config: Add) -> None:
    judge = dataclasses.replace(config.judge, resize=24, taps=())
    larger = dataclasses.replace(config, judge=judge)
    shapes = jax.eval_shape(lambda: add.frozen_shapes(larger, found(VIT)))
    assert shapes["eyes"].params["vit"]["positions"].shape == (1 + 16, 8)
    image = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)
    tokens, whole = jax.eval_shape(functools.partial(add.look, larger), shapes["eyes"], image)
    assert [t.shape for t in tokens] == [(2, 36, 8)] * 2
    assert whole.shape == (2, 8)
