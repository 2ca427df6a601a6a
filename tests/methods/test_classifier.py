"""Classification: what the words of captions add, and what is kept of them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.config import Data, Optimizer, Train
from jaxgen.errors import UserError
from jaxgen.methods import classifier
from jaxgen.methods.classifier import BUCKETS, Classifier
from jaxgen.models.resnet import ResNetConfig
from jaxgen.text.tokenizer import END, PADDING, START, UNKNOWN

CONFIG = Classifier(
    name="tiny",
    data=Data(size=8, flip=True),
    resnet=ResNetConfig(classes=8, widths=(8,), blocks=1, groups=4),
    augment=(),
    words=1.0,
    train=Train(steps=40, batch=8),
    optimizer=Optimizer(learning_rate=2e-2, warmup=0, decay="constant"),
)


def test_words_share_the_target_and_marks_are_none() -> None:
    caption = jnp.array(
        [
            [START, 7, 9, 7, UNKNOWN, END],
            [START, 5, 5 + BUCKETS, END, PADDING, PADDING],
            [START, END] + [PADDING] * 4,
        ]
    )
    found = np.asarray(classifier._words(caption))
    expected = np.zeros((3, BUCKETS))
    expected[0, [7, 9]] = 0.5
    expected[1, 5] = 1.0
    np.testing.assert_allclose(found, expected)


def test_the_second_task_is_learnt_and_left_behind() -> None:
    rng = np.random.default_rng(0)
    batch = {
        "image": jnp.asarray(rng.integers(0, 256, (8, 8, 8, 3)), jnp.uint8),
        "label": jnp.zeros(8, jnp.int32),  # the labels say nothing; the words tell the images apart
        "caption": jnp.asarray([[START, 10 + n, END] for n in range(8)]),
    }
    config = dataclasses.replace(CONFIG, data=Data(size=8), label_smoothing=0.0)
    state = first = jax.jit(functools.partial(classifier.init, config, {}))(jax.random.key(0))
    step = jax.jit(functools.partial(classifier.train_step, config))
    losses = []
    for _ in range(200):
        state, metrics = step(state, {}, batch)
        losses.append(float(metrics["loss"]))
    assert losses[0] > np.log(BUCKETS)
    assert losses[-1] < np.log(8) / 2, "it does not guess among the eight words"
    kept = classifier.weights(config, state, {})
    alone = jax.eval_shape(
        functools.partial(classifier.init, dataclasses.replace(config, words=0.0), {}),
        jax.random.key(0),
    )
    assert jax.tree.structure(kept) == jax.tree.structure(alone.params["classifier"]["network"])
    assert "words" in first.params["classifier"]
    assert "words" not in alone.params["classifier"]


def test_classes_do_not_depend_on_which_way_an_image_looks() -> None:
    weights = classifier.init(CONFIG, {}, jax.random.key(1)).params["classifier"]["network"]
    image = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 3), np.uint8)
    for flip, alike in ((True, True), (False, False)):
        config = dataclasses.replace(CONFIG, data=Data(size=8, flip=flip))
        one, other = (classifier.predict(config, weights, x) for x in (image, image[:, :, ::-1]))
        np.testing.assert_allclose(one.sum(-1), 1, rtol=1e-5)
        assert np.allclose(one, other, atol=1e-6) == alike


def test_an_image_and_all_that_goes_with_it_are_mixed_alike() -> None:
    config = dataclasses.replace(CONFIG, mixup=0.4)
    image = jnp.arange(6.0).reshape(6, 1, 1, 1)
    mixed, place = classifier._mixed(config, jax.random.key(0), image, jnp.eye(6))
    np.testing.assert_allclose(mixed[:, 0, 0, 0], place @ jnp.arange(6.0), rtol=1e-5)
    share = np.diag(place)
    assert (share >= 0.5).all()
    assert share.std() > 0.01
    np.testing.assert_allclose(np.diag(place[:, ::-1]), 1 - share, rtol=1e-5)


@pytest.mark.parametrize("field", ["words", "mixup"])
def test_weights_below_0_are_refused(field: str) -> None:
    with pytest.raises(UserError, match=f"--{field} is -1"):
        dataclasses.replace(CONFIG, **{field: -1.0}).check()
