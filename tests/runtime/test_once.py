"""What is computed once of a picture, or caption: it belongs to that, and no other is taken."""

import dataclasses
import os
import subprocess
import sys
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

    return Once("image", "first pixel", jnp.asarray(weight), compute)


def test_every_picture_has_its_own_row_computed_once(source: Source, tmp_path: Path) -> None:
    seen: list[int] = []
    first = once.pictures(wanted(2.0), source, tmp_path, lambda done, _: seen.append(done))
    np.testing.assert_array_equal(first["code"], 2.0 * np.asarray(source.images)[:, 0, 0])
    assert seen[-1] == COUNT
    again = once.pictures(wanted(2.0), source, tmp_path, lambda *_: pytest.fail("computed again"))
    np.testing.assert_array_equal(again["code"], first["code"])


@pytest.mark.parametrize("what", ["weights", "pictures", "description"])
def test_nothing_stale_is_taken(what: str, source: Source, tmp_path: Path) -> None:
    once.pictures(wanted(2.0), source, tmp_path, lambda *_: None)
    changed, pictures = wanted(3.0 if what == "weights" else 2.0), source
    if what == "pictures":
        pictures = dataclasses.replace(
            source, images=255 - np.asarray(source.images), content="other"
        )
    if what == "description":
        changed = changed._replace(describes="another", compute=wanted(2.0).compute)
    counted: list[int] = []
    found = once.pictures(changed, pictures, tmp_path, lambda done, _: counted.append(done))
    assert counted
    factor = float(changed.weights)
    np.testing.assert_array_equal(found["code"], factor * np.asarray(pictures.images)[:, 0, 0])


IDS = np.array([[2, 7, 3], [2, 5, 3], [2, 7, 3]], np.int32)


def told(weight: float) -> Once:
    def compute(weights, ids):
        return {"sum": weights * jnp.sum(ids, axis=1).astype(jnp.float32)}

    empty = np.array([[2, 3, 0]], np.int32)
    return Once("caption", "sum", jnp.asarray(weight), compute, spares="text", empty=empty)


@pytest.mark.parametrize("what", ["weights", "captions", "description", "order"])
def test_equal_captions_share_a_row_and_none_is_stale(what: str, tmp_path: Path) -> None:
    counted: list[int] = []

    def computed(once_told: Once, ids: np.ndarray) -> None:
        table, empty = once.captions(once_told, ids, tmp_path, lambda n, _: counted.append(n))
        weight = float(once_told.weights)
        np.testing.assert_array_equal(table["sum"][np.arange(len(ids))], weight * ids.sum(axis=1))
        np.testing.assert_array_equal(empty["sum"], [5 * weight])

    computed(told(2.0), IDS)
    computed(told(2.0), IDS)
    assert counted == [3], "two captions and the empty one"
    changed = told(3.0 if what == "weights" else 2.0)
    ids = {"captions": IDS + 1, "order": IDS[::-1]}.get(what, IDS)
    computed(changed._replace(describes="another") if what == "description" else changed, ids)
    assert len(counted) == (1 if what == "order" else 2)
    assert not [path for path in tmp_path.rglob("*") if "partial" in path.name]


def test_a_damaged_file_is_computed_again(source: Source, tmp_path: Path) -> None:
    first = once.pictures(wanted(2.0), source, tmp_path, lambda *_: None)
    expected = np.array(first["code"])  # which is mapped from the file
    (file,) = tmp_path.rglob("*.npy")
    file.write_bytes(file.read_bytes()[:100])
    again = once.pictures(wanted(2.0), source, tmp_path, lambda *_: None)
    np.testing.assert_array_equal(again["code"], expected)


def test_a_file_where_the_folder_should_be_is_told(source: Source, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(UserError, match=r"cannot write to .*cache"):
        once.pictures(wanted(2.0), source, tmp_path / "cache", lambda *_: None)


WRITING = """
import fcntl, sys, time
with open(sys.argv[1], "xb") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    print("locked", flush=True)
    time.sleep(600)
"""


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(
    source: Source, tmp_path: Path
) -> None:
    once.pictures(wanted(2.0), source, tmp_path, lambda *_: None)
    (file,) = tmp_path.rglob("*.npy")
    file.unlink()
    names = ("killed", "living", "new")
    killed, living, new = (file.with_name(f".code.{name}.partial") for name in names)
    command = [sys.executable, "-c", WRITING, str(living)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            process.stdout.readline()
            for path in (killed, new):
                path.write_bytes(b"some")
            for path in (killed, living):
                os.utime(path, (0, 0))
            once.pictures(wanted(2.0), source, tmp_path, lambda *_: None)
            assert {path.name for path in file.parent.iterdir()} == {
                file.name, living.name, new.name
            }  # fmt: skip
        finally:
            process.kill()
