"""Drawn sets: what is finished is kept, what is missing or damaged is drawn again, bit for bit."""

import resource
from pathlib import Path

import numpy as np
import pytest

from jaxgen.data import drawn
from jaxgen.errors import UserError

SIZE, COUNT = 8, 10
CAPTIONS = tuple(f"cœur n° {n}" for n in range(COUNT))


class Drawer:
    """Draws pictures that depend on their number alone, and remembers which were asked for."""

    def __init__(self, killed_at: int | None = None):
        self.asked: list[int] = []
        self._killed_at = killed_at

    def __call__(self, numbers: range) -> np.ndarray:
        if self._killed_at in numbers:
            raise KeyboardInterrupt
        self.asked += numbers
        shape = (SIZE, SIZE, 3)
        draws = [np.random.default_rng(n).integers(0, 256, shape, np.uint8) for n in numbers]
        return np.stack(draws)


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawn, "SHARD", 4)


@pytest.fixture
def whole(tmp_path: Path) -> np.ndarray:
    """All the pictures, and the set in tmp_path / "set"."""
    return read(tmp_path / "set", Drawer())


def read(folder: Path, drawer: Drawer, captions=CAPTIONS) -> np.ndarray:
    images = drawn.pictures(folder, captions, SIZE, drawer, lambda done, total: None)
    return np.stack([images[n] for n in range(len(captions))])


def test_a_finished_set_is_recognised(tmp_path: Path, whole) -> None:
    assert whole.shape == (COUNT, SIZE, SIZE, 3)
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == [
        f"0000{n}-of-00003.array_record" for n in range(3)
    ]
    again, progress = Drawer(), []
    images = drawn.pictures(
        tmp_path / "set", CAPTIONS, SIZE, again, lambda *done: progress.append(done)
    )
    assert not again.asked
    np.testing.assert_array_equal(images, whole)
    assert progress == [(4, COUNT), (8, COUNT), (COUNT, COUNT)]


def test_a_killed_drawing_goes_on_where_it_was(tmp_path: Path, whole) -> None:
    with pytest.raises(KeyboardInterrupt):
        read(tmp_path / "killed", Drawer(killed_at=5))
    rest = Drawer()
    np.testing.assert_array_equal(read(tmp_path / "killed", rest), whole)
    assert rest.asked == list(range(4, COUNT))


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "flipped", "other captions"])
def test_a_damaged_shard_is_drawn_again(tmp_path: Path, whole, damage: str) -> None:
    shard = tmp_path / "set" / "00001-of-00003.array_record"
    sound = shard.read_bytes()
    flipped = bytearray(sound)
    flipped[300] ^= 255
    match damage:
        case "missing":
            shard.unlink()
        case "empty":
            shard.write_bytes(b"")
        case "truncated":
            shard.write_bytes(sound[: len(sound) // 2])
        case "flipped":
            shard.write_bytes(flipped)
        case "other captions":
            drawn.write(shard, whole[:4], CAPTIONS[:4], 4)
    again = Drawer()
    np.testing.assert_array_equal(read(tmp_path / "set", again), whole)
    assert again.asked == [4, 5, 6, 7]


def test_a_set_too_large_for_memory_is_read_from_its_files(
    tmp_path: Path, whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawn, "fits_in_memory", lambda count, size: False)
    images = drawn.pictures(tmp_path / "set", CAPTIONS, SIZE, Drawer(), lambda *done: None)
    assert not isinstance(images, np.ndarray)
    for number in (9, 0, 5):
        np.testing.assert_array_equal(images[number], whole[number])


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, whole) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match=r"cannot write the drawn pictures to .*--data\.root"):
        read(tmp_path / "file" / "set", Drawer())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # as good as a full disk
    try:
        with pytest.raises(UserError, match=r"cannot write the drawn pictures.*File too large"):
            read(tmp_path / "full", Drawer())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list((tmp_path / "full").iterdir()), "nothing half-written is left"
