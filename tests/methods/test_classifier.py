"""Classification: what is done to images and labels, and what each network learns of them."""

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import state_like

from jaxgen.config import Data, Optimizer, Train
from jaxgen.errors import UserError
from jaxgen.methods import classifier
from jaxgen.methods.classifier import Classifier
from jaxgen.models import efficientnet
from jaxgen.models.resnet import ResNetConfig
from jaxgen.models.vit import VitConfig
from jaxgen.state import State
from jaxgen.weights.efficientnet import load_efficientnet_lite0

CONFIG = Classifier(
    name="tiny",
    data=Data(size=8, flip=True),
    resnet=ResNetConfig(classes=8, widths=(8,), blocks=1, groups=4),
    vit=VitConfig(classes=8, patch=4, width=8, depth=1, heads=2),
    augment=(),
)


STILL = dataclasses.replace(CONFIG, data=Data(size=8, flip=False), label_smoothing=0.0)
IMAGES = np.random.default_rng(2).integers(0, 256, (8, 8, 8, 3), np.uint8)


def test_classes_do_not_depend_on_which_way_an_image_looks() -> None:
    weights = classifier.init(CONFIG, {}, jax.random.key(1)).params["classifier"]
    image = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 3), np.uint8)
    for flip, alike in ((True, True), (False, False)):
        config = dataclasses.replace(CONFIG, data=Data(size=8, flip=flip))
        one, other = (classifier.predict(config, weights, x) for x in (image, image[:, :, ::-1]))
        np.testing.assert_allclose(one.sum(-1), 1, rtol=1e-5)
        assert np.allclose(one, other, atol=1e-6) == alike


@pytest.mark.parametrize(
    ("network", "rate", "steps"),
    [("resnet", 5e-2, 150), ("vit", 1e-2, 60), ("efficientnet", 3e-3, 40)],
)
def test_one_batch_is_learnt_by_heart(
    batch, network: str, rate: float, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(efficientnet, "BLOCKS", efficientnet.BLOCKS[:2])  # the others alike
    config = dataclasses.replace(
        CONFIG,
        network=network,
        train=Train(steps=steps),
        optimizer=Optimizer(learning_rate=rate, warmup=0),
        label_smoothing=0.0,
    )
    batch = {"image": batch["image"][:, :8, :8], "label": jnp.arange(8)}
    state = state_like(functools.partial(classifier.init, config, {}, jax.random.key(0)))
    step = jax.jit(functools.partial(classifier.train_step, config))
    rows = []
    for _ in range(config.train.steps):
        state, metrics = step(state, {}, batch)
        rows.append(metrics)
    assert rows[0]["loss"] > 1.5
    assert rows[-1]["loss"] < 0.2
    assert rows[-1]["accuracy"] == 1
    predict = jax.jit(functools.partial(classifier.predict, config))
    told = predict(state.params["classifier"], batch["image"])
    np.testing.assert_array_equal(np.argmax(told, axis=-1), batch["label"])


@pytest.fixture(scope="module")
def state() -> State:
    return state_like(functools.partial(classifier.init, STILL, {}, jax.random.key(0)))


def loss_of(state: State, **fields: Any) -> float:
    """The loss of a first step on `IMAGES` by `STILL` with other fields."""
    config = dataclasses.replace(STILL, **fields)
    batch = {"image": jnp.asarray(IMAGES), "label": jnp.arange(8)}
    # The rest of the step, which nothing asks for, is not compiled.
    loss = jax.jit(lambda state: classifier.train_step(config, state, {}, batch)[1]["loss"])
    return float(loss(state))


def test_a_smoothed_label_is_partly_every_class(state: State) -> None:
    """Szegedy et al. 2016, section 7."""
    share, image = 0.3, jnp.asarray(IMAGES) / 127.5 - 1
    scores = jax.jit(functools.partial(classifier.logits, STILL))(state.params["classifier"], image)
    logs = np.asarray(jax.nn.log_softmax(scores), np.float64)
    expected = -np.mean((1 - share) * np.diag(logs) + share * logs.mean(1))
    assert abs(expected + np.diag(logs).mean()) > 1e-3, "or smoothing could be left out"
    np.testing.assert_allclose(loss_of(state, label_smoothing=share), expected, rtol=1e-4)


@pytest.mark.parametrize(
    "fields",
    [{"augment": ("affine",)}, {"mixup": 0.4}, {"data": Data(size=8, flip=True)}],
    ids=["augment", "mixup", "flip"],
)
def test_what_is_done_to_training_images_reaches_the_loss(
    state: State, fields: dict[str, Any]
) -> None:
    assert abs(loss_of(state, **fields) - loss_of(state)) > 1e-3


def test_an_image_and_all_that_goes_with_it_are_mixed_alike() -> None:
    config = dataclasses.replace(CONFIG, mixup=0.4)
    image = jnp.arange(6.0).reshape(6, 1, 1, 1)
    mixed, place = classifier._mixed(config, jax.random.key(0), image, jnp.eye(6))
    np.testing.assert_allclose(mixed[:, 0, 0, 0], place @ jnp.arange(6.0), rtol=1e-5)
    share = np.diag(place)
    assert (share >= 0.5).all()
    assert share.std() > 0.01
    np.testing.assert_allclose(np.diag(place[:, ::-1]), 1 - share, rtol=1e-5)


def test_a_mixup_below_0_is_refused() -> None:
    with pytest.raises(UserError, match="--mixup is -1"):
        dataclasses.replace(CONFIG, mixup=-1.0).check()


def test_a_tuned_network_starts_from_what_imagenet_taught_it_but_for_its_classes() -> None:
    config = dataclasses.replace(CONFIG, network="efficientnet")
    weights = load_efficientnet_lite0()
    frozen = classifier.frozen(config, {"features": weights})
    chex.assert_trees_all_equal_shapes(
        frozen, jax.eval_shape(lambda: classifier.frozen_shapes(config))
    )
    begin = jax.jit(lambda frozen: classifier.init(config, frozen, jax.random.key(0)).params)
    begun = begin(frozen)["classifier"]
    assert begun["classifier"]["kernel"].shape == (1280, 8)
    for name in weights["params"].keys() - {"classifier"}:
        chex.assert_trees_all_equal(begun[name], weights["params"][name])
