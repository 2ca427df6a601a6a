"""Predictions in batches, and what they are worth."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxgen.config import Mesh
from jaxgen.data.source import Source
from jaxgen.errors import UserError
from jaxgen.runtime import classes
from jaxgen.runtime import mesh as meshes

IMAGES = np.random.default_rng(0).integers(0, 256, (19, 4, 4, 3), np.uint8)


def predict(weights, image):
    return jax.nn.softmax(image.mean((1, 2)) * weights)


def source(labels: np.ndarray) -> Source:
    return Source(
        name="noise",
        split="test",
        size=4,
        images=IMAGES,
        captions=(("noise",),) * len(IMAGES),
        label_ids=labels.astype(np.int32),
        labels=("red", "green", "blue", "none"),
        ids=tuple(map(str, range(len(IMAGES)))),
        content="",
    )


def test_pictures_without_labels_cannot_be_graded(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="noise holds no labelled pictures out"):
        classes.grade(predict, jnp.ones(3), source(np.full(19, -1)), 8, meshes.make(Mesh(), 8),
                      tmp_path)  # fmt: skip


@pytest.mark.parametrize("count", [19, 16, 3])
def test_any_number_of_images_through_one_shape(count: int) -> None:
    shapes = []

    def traced(weights, image):
        shapes.append(image.shape)
        return predict(weights, image)

    mesh = meshes.make(Mesh(data=4, fsdp=2), 8)
    found = classes.probabilities(traced, jnp.ones(3), IMAGES, count, 8, mesh)
    assert shapes == [(8, 4, 4, 3)]
    np.testing.assert_allclose(found, predict(1.0, jnp.asarray(IMAGES[:count])), rtol=1e-6)


def test_the_grade_is_said_and_kept(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    labels = IMAGES.mean((1, 2)).argmax(1)
    labels[:4] = (labels[:4] + 1) % 3  # four are said to be what they are not
    labels[4] = -1  # and one is not said to be anything
    mesh = meshes.make(Mesh(), 8)
    said = classes.grade(predict, jnp.ones(3), source(labels), 8, mesh, tmp_path)
    assert said.splitlines()[0] == "held-out accuracy 77.8 % (54.8 to 91.0), 18 images"
    assert said.splitlines()[1] == f"confusion matrix: {tmp_path}/samples/confusion.png"
    with Image.open(tmp_path / "samples" / "confusion.png") as picture:
        assert min(picture.size) > 100
    kept = json.loads((tmp_path / "evaluation.json").read_text())
    assert kept["split"] == "test"
    assert kept["images"] == 18
    assert kept["accuracy"]["value"] == pytest.approx(14 / 18)
    assert np.trace(kept["confusion"]) == 14
    assert kept["recall"]["none"] is None
