"""Fashion-MNIST from idx files, good and damaged."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from jaxgen.data import fashion_mnist
from jaxgen.data.sources import open_source
from jaxgen.errors import UserError

PICTURES = np.random.default_rng(0).integers(0, 256, (20, 28, 28), np.uint8)
LABELS = np.arange(20, dtype=np.uint8) % 10
IMAGES_FILE, LABELS_FILE = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"


def idx(array: np.ndarray) -> bytes:
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return head + array.tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / IMAGES_FILE).write_bytes(gzip.compress(idx(PICTURES), mtime=0))
    (tmp_path / LABELS_FILE).write_bytes(gzip.compress(idx(LABELS), mtime=0))
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(PICTURES[:3]))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(LABELS[:3]))
    return tmp_path


def opened(folder: Path, split: str = "train", size: int = 28):
    return open_source(f"fashion-mnist:{folder}", split, size, "nowhere")


def test_pictures_and_classes_are_the_files_own(folder):
    for split, count in (("train", 20), ("test", 3)):  # compressed, and not
        source = opened(folder, split)
        assert len(source) == count
        for n, record in enumerate(source):
            np.testing.assert_array_equal(record.image, PICTURES[n][..., None].repeat(3, -1))
            assert record.label == n % 10
        assert source.label_ids.dtype == np.int32
        assert source.labels[0] == "T-shirt/top"
        assert source.captions[1] == ("a pair of trousers", "un pantalon", "pair of trousers",
                                      "pantalon")  # fmt: skip


def test_they_are_brought_to_size(folder):
    images = opened(folder, size=32).images
    assert isinstance(images, np.ndarray)
    assert images.shape == (20, 32, 32, 3)
    assert images.dtype == np.uint8


def test_the_fingerprint_is_of_the_contents_and_not_of_the_place(folder, tmp_path_factory):
    before = opened(folder).fingerprint
    moved = tmp_path_factory.mktemp("moved")
    for file in folder.iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    assert opened(moved).fingerprint == before
    (moved / IMAGES_FILE).write_bytes(gzip.compress(idx(PICTURES[::-1]), mtime=0))
    assert opened(moved).fingerprint != before


def test_what_is_missing_is_said(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "INSTALLED", str(tmp_path / "nothing"))
    with pytest.raises(UserError, match=r"nothing: install Debian's package dataset-fashion-mnist"):
        open_source("fashion-mnist", "train", 28, "nowhere")
    with pytest.raises(UserError, match=r"no split 'validation'. It has: train, test"):
        opened(folder, "validation")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            IMAGES_FILE,
            gzip.compress(idx(PICTURES), mtime=0)[:-500],
            "images.*cannot be read.*fetch it",
        ),
        (
            IMAGES_FILE,
            gzip.compress(idx(PICTURES)[:-500], mtime=0),
            "cut short or damaged: 15180 bytes",
        ),
        (
            IMAGES_FILE,
            gzip.compress(idx(PICTURES) + b"x", mtime=0),
            "cut short or damaged: 15681 bytes",
        ),
        (IMAGES_FILE, b"<html>404</html>", "images.*cannot be read"),
        (IMAGES_FILE, gzip.compress(b"<html>404</html>", mtime=0), "is no idx file"),
        (IMAGES_FILE, gzip.compress(idx(PICTURES)[:9], mtime=0), "is no idx file"),
        (IMAGES_FILE, gzip.compress(b"", mtime=0), "is no idx file"),
        (IMAGES_FILE, gzip.compress(idx(PICTURES[:, 1:]), mtime=0), "no square pictures"),
        (IMAGES_FILE, gzip.compress(idx(PICTURES[:0]), mtime=0), "no square pictures"),
        (LABELS_FILE, gzip.compress(idx(LABELS[:-1]), mtime=0), r"\(19,\) for the 20 pictures"),
        (LABELS_FILE, gzip.compress(idx(LABELS + 1), mtime=0), "the label 10"),
    ],
)
def test_damaged_files_are_named_in_one_line(folder, file, content, message):
    (folder / file).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        opened(folder)
    assert file in str(caught.value) or file in message
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(
    not Path(fashion_mnist.INSTALLED).is_dir(), reason="dataset-fashion-mnist is not installed"
)
def test_the_installed_set():
    test = open_source("fashion-mnist", "test", 28, "nowhere")
    assert len(test) == 10_000
    assert np.bincount(test.label_ids).tolist() == [1000] * 10
