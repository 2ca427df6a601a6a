"""What is computed of a picture once: it belongs to its picture, and no other is ever taken."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.data.source import Source
from jaxgen.errors import UserError
from jaxgen.runtime import mesh as meshes
from jaxgen.runtime import once
from jaxgen.state import Once

COUNT = meshes.images_at_once(4) + 7  # a block, and a part of one


@pytest.fixture
def source() -> Source:
    images = np.random.default_rng(0).integers(0, 256, (COUNT, 4, 4, 3), np.uint8)
    return Source(
        name="made",
        split="train",
        size=4,
        images=images,
        captions=(("one",),) * COUNT,
        label_ids=np.zeros(COUNT, np.int32),
        labels=("all",),
        ids=tuple(map(str, range(COUNT))),
        content="0",
    )


def wanted(weight: float) -> Once:
    def compute(weights, image):
        return {"code": weights * image[:, 0, 0].astype(jnp.float32)}

    return Once("first pixel", jnp.asarray(weight), compute)


def test_every_picture_has_its_own_row_computed_once(source: Source, tmp_path: Path) -> None:
    seen: list[int] = []
    first = once.arrays(wanted(2.0), source, tmp_path, lambda done, _: seen.append(done))
    np.testing.assert_array_equal(first["code"], 2.0 * np.asarray(source.images)[:, 0, 0])
    assert seen[-1] == COUNT
    again = once.arrays(wanted(2.0), source, tmp_path, lambda *_: pytest.fail("computed again"))
    np.testing.assert_array_equal(again["code"], first["code"])


@pytest.mark.parametrize("what", ["weights", "pictures", "description"])
def test_nothing_stale_is_taken(what: str, source: Source, tmp_path: Path) -> None:
    once.arrays(wanted(2.0), source, tmp_path, lambda *_: None)
    changed, pictures = wanted(3.0 if what == "weights" else 2.0), source
    if what == "pictures":
        pictures = dataclasses.replace(
            source, images=255 - np.asarray(source.images), content="other"
        )
    if what == "description":
        changed = changed._replace(describes="another", compute=wanted(2.0).compute)
    counted: list[int] = []
    found = once.arrays(changed, pictures, tmp_path, lambda done, _: counted.append(done))
    assert counted
    factor = float(changed.weights)
    np.testing.assert_array_equal(found["code"], factor * np.asarray(pictures.images)[:, 0, 0])


def test_a_damaged_file_is_computed_again(source: Source, tmp_path: Path) -> None:
    first = once.arrays(wanted(2.0), source, tmp_path, lambda *_: None)
    (file,) = tmp_path.rglob("*.npy")
    file.write_bytes(file.read_bytes()[:100])
    again = once.arrays(wanted(2.0), source, tmp_path, lambda *_: None)
    np.testing.assert_array_equal(again["code"], first["code"])


def test_a_file_where_the_folder_should_be_is_told(source: Source, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(UserError, match=r"cannot write to .*cache"):
        once.arrays(wanted(2.0), source, tmp_path / "cache", lambda *_: None)
