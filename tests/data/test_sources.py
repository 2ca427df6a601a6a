"""Sets of the TFDS catalogue, read without TensorFlow, and the names of sources."""

import io
import json
import os
import shutil
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxgen.config import Data
from jaxgen.data import source
from jaxgen.data.sources import open_source, opened
from jaxgen.errors import UserError


class JaxgenTiny(tfds.core.GeneratorBasedBuilder):
    """Twelve grey squares, the lightness of each its number, 20 x 12 pixels."""

    VERSION = tfds.core.Version("1.0.0")
    SHADE = 20
    CAPTION = "été {}"
    FEATURES: ClassVar = {
        "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
        "label": tfds.features.ClassLabel(names=["even", "odd"]),
    }

    def _info(self):
        features = tfds.features.FeaturesDict(self.FEATURES)
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(12), "validation": self._generate_examples(2)}

    def _generate_examples(self, count):
        for i in range(count):
            file = io.BytesIO()
            Image.new("RGB", (20, 12), (self.SHADE * i,) * 3).save(file, "PNG")
            row = {
                "image": file.getvalue(),
                "label": i % 2,
                "caption": self.CAPTION.format(i),
                "id": f"{99 - i}",
                "number": i,
                "text": i,
            }
            yield i, {key: value for key, value in row.items() if key in self.FEATURES}


class JaxgenTinyCaptioned(JaxgenTiny):
    """The same with captions and ids."""

    FEATURES: ClassVar = {
        **JaxgenTiny.FEATURES,
        "caption": tfds.features.Text(),
        "id": tfds.features.Text(),
    }


class JaxgenTinyLighter(JaxgenTinyCaptioned):
    """The same with other pictures."""

    SHADE = 21


class JaxgenTinyUntold(JaxgenTiny):
    """Pictures, and a text that is a number."""

    FEATURES: ClassVar = {
        "image": JaxgenTiny.FEATURES["image"],
        "text": tfds.features.Scalar(np.int64),
    }


class JaxgenTinyMute(JaxgenTiny):
    """Empty captions."""

    FEATURES: ClassVar = {
        "image": JaxgenTiny.FEATURES["image"],
        "caption": tfds.features.Text(),
    }
    CAPTION = ""


class JaxgenTinyTwice(JaxgenTiny):
    """The same with a second kind of classes."""

    FEATURES: ClassVar = {
        **JaxgenTiny.FEATURES,
        "number": tfds.features.ClassLabel(names=[f"été {i}" for i in range(12)]),
    }


class JaxgenTinyBlind(JaxgenTiny):
    """No pictures."""

    FEATURES: ClassVar = {"label": tfds.features.ClassLabel(names=["even", "odd"])}


class JaxgenTinyOvertaken(JaxgenTiny):
    """Another one prepares it in the same root meanwhile, and is quicker."""

    alone = True

    def _split_generators(self, dl_manager):
        if type(self).alone:
            type(self).alone = False
            other = type(self)(data_dir=self._data_dir_root)
            other.download_and_prepare(file_format="array_record")
        return super()._split_generators(dl_manager)


class JaxgenTinyOffline(JaxgenTiny):
    """Its host cannot be reached."""

    def _split_generators(self, dl_manager):
        raise ConnectionError("no route to host\nsecond line")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("root")


def test_a_set_with_labels(root):
    found = open_source("tfds:jaxgen_tiny", "train", 8, root)
    assert len(found) == 12
    assert found.labels == ("even", "odd")
    for record in found:
        number = int(record.image[0, 0, 0]) // 20
        assert record.image.shape == (8, 8, 3)
        assert (record.image == 20 * number).all()
        assert record.label == number % 2
        assert record.captions == (("even", "odd")[number % 2],)
    assert "tensorflow" not in sys.modules


def test_a_set_with_captions_is_sorted_by_id(root):
    found = open_source("tfds:jaxgen_tiny_captioned", "train", 8, root)
    assert list(found.ids) == [str(88 + i) for i in range(12)]
    assert found[0].captions == ("été 11",)
    assert (found[0].image == 220).all()


def test_a_set_too_large_for_memory_is_decoded_on_access(root, monkeypatch):
    kept = open_source("tfds:jaxgen_tiny_captioned", "train", 8, root)
    monkeypatch.setattr(source, "IN_MEMORY_BYTES", 100)
    lazy = open_source("tfds:jaxgen_tiny_captioned", "train", 8, root)
    assert not isinstance(lazy.images, np.ndarray)
    for i in range(12):
        np.testing.assert_array_equal(lazy[i].image, kept[i].image)


def test_the_class_is_that_of_the_field_asked_for(root):
    first = open_source("tfds:jaxgen_tiny_twice", "train", 8, root)
    assert first.labels == ("even", "odd")
    assert first.label_ids.max() == 1
    second = open_source("tfds:jaxgen_tiny_twice", "train", 8, root, label="number")
    images = [record.image for record in second]
    assert second.label_ids.tolist() == [int(image[0, 0, 0]) // 20 for image in images]
    assert second.labels[7] == "été 7"
    with pytest.raises(UserError, match=r"no classes 'image'.* It has: label, number"):
        open_source("tfds:jaxgen_tiny_twice", "train", 8, root, label="image")


@pytest.mark.parametrize("name", ["digits", "fashion-mnist", "imagefolder:here"])
def test_sets_with_one_kind_of_classes_take_no_label(root, name):
    with pytest.raises(UserError, match=r"--data.label 'sublabel': .* give --data.label="):
        open_source(name, "train", 8, root, label="sublabel")


def test_a_caption_may_be_no_more_than_the_name_of_the_class(root):
    said = opened(Data(name="tfds:jaxgen_tiny_captioned", size=8, root=str(root)), "train")
    vague = Data(name="tfds:jaxgen_tiny_captioned", size=8, root=str(root), caption="label")
    found = opened(vague, "train")
    assert said.captions != found.captions
    assert {record.captions for record in found} == {(name,) for name in found.labels}
    assert all(r.captions == (found.labels[r.label],) for r in found)
    assert found.fingerprint != said.fingerprint
    assert (found[3].image == said[3].image).all()


def test_parts_of_a_split(root):
    assert len(open_source("tfds:jaxgen_tiny", "train[:25%]", 8, root)) == 3


def test_fingerprints(root):
    prints = {
        open_source(f"tfds:{name}", split, size, root).fingerprint
        for name in ("jaxgen_tiny", "jaxgen_tiny_captioned")
        for split in ("train", "validation")
        for size in (8, 12)
    }
    assert len(prints) == 8


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        (
            "opnmoji",
            "train",
            r"unknown data set 'opnmoji'; did you mean openmoji\? Known: openmoji",
        ),
        ("fashion-mnist:", "train", "unknown data set 'fashion-mnist:'.* fashion-mnist:PATH"),
        ("digits:3", "train", "unknown data set 'digits:3'"),
        ("imagefolder", "train", "unknown data set 'imagefolder'.* imagefolder:PATH"),
        ("tfds:mnst", "train", r"no set 'mnst' in the TFDS catalogue; did you mean mnist\?"),
        ("tfds:own/flowers", "train", r"no set 'own' .* prepared starts with /, \./ or ~"),
        ("tfds:a/b:c:d", "train", "cannot open tfds:a/b:c:d"),
        ("tfds:jaxgen_tiny", "tran", r"no split 'tran'; did you mean train\? .*train, validation"),
        ("tfds:jaxgen_tiny", "train[:0]", r"no pictures in its split 'train\[:0\]'; use another"),
        ("tfds:jaxgen_tiny_blind", "train", "has no image feature; .* It has: label"),
        (
            "tfds:jaxgen_tiny_offline",
            "train",
            r"cannot prepare .* \(no route to host\); prepare it",
        ),
    ],
)
def test_bad_names(root, name, split, message):
    with pytest.raises(UserError, match=message) as caught:
        open_source(name, split, 8, root)
    assert "\n" not in str(caught.value)


def test_a_set_that_another_process_has_prepared_first_is_taken(root):
    assert len(open_source("tfds:jaxgen_tiny_overtaken", "train", 8, root)) == 12
    assert not JaxgenTinyOvertaken.alone


def prepared(builder: type[JaxgenTiny], folder: Path) -> Path:
    """The set's shards in `folder`, under a name that no code knows."""
    made = builder(data_dir=str(folder.with_name(f"{folder.name}_made")))
    made.download_and_prepare(file_format="array_record")
    shutil.copytree(made.data_dir, folder)
    for file in folder.glob(f"{made.name}-*"):
        file.rename(file.with_name(file.name.replace(made.name, "flowers")))
    change_info(folder, name="flowers", moduleName="gone")
    return folder


def change_info(folder: Path, **fields: str) -> None:
    file = folder / "dataset_info.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.fixture(scope="module")
def shards(root):
    return prepared(JaxgenTinyCaptioned, root / "own" / "flowers" / "1.0.0")


@pytest.mark.parametrize("path", ["{}", "./1.0.0", "~/1.0.0", "../flowers/1.0.0", "1.0.0"])
def test_a_folder_of_shards_opens_wherever_it_is(root, shards, path, monkeypatch):
    monkeypatch.chdir(shards.parent)
    monkeypatch.setenv("HOME", str(shards.parent))
    found = open_source(f"tfds:{path.format(shards)}", "train", 8, root / "not_used")
    known = open_source("tfds:jaxgen_tiny_captioned", "train", 8, root)
    assert found.fingerprint == known.fingerprint
    assert found.labels == ("even", "odd")
    for record in found:
        number = int(record.image[0, 0, 0]) // 20
        assert (record.image == 20 * number).all()
        assert record[1:] == ((f"été {number}",), number % 2, str(99 - number))
    assert len(found) == 12
    assert not (root / "not_used").exists()
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize("in_memory", [1_000_000, 100])
def test_other_pictures_in_the_shards_are_other_content(shards, tmp_path, in_memory, monkeypatch):
    monkeypatch.setattr(source, "IN_MEMORY_BYTES", in_memory)
    lighter = prepared(JaxgenTinyLighter, tmp_path / "lighter")
    copied = shutil.copytree(shards, tmp_path / "copied")
    first, same, other = (
        open_source(f"tfds:{folder}", "train", 8, tmp_path) for folder in (shards, copied, lighter)
    )
    assert first.captions == other.captions
    assert first.fingerprint == same.fingerprint != other.fingerprint


@pytest.mark.parametrize(
    ("builder", "message"),
    [
        (JaxgenTinyBlind, r"no image feature; use a set with .* It has: label"),
        (JaxgenTinyUntold, r"neither captions nor labels .* called captions, .* It has: image, te"),
        (JaxgenTinyMute, r"picture 0 has no caption; use another split"),
    ],
)
def test_shards_without_what_is_learnt_from(tmp_path, builder, message):
    folder = prepared(builder, tmp_path / "flowers")
    with pytest.raises(UserError, match=message) as caught:
        open_source(f"tfds:{folder}", "train", 8, tmp_path)
    assert "\n" not in str(caught.value)


SHARD = "flowers-train.array_record-00000-of-00001"


@pytest.mark.parametrize(
    ("path", "damage", "message"),
    [
        ("gone", None, r"no folder .*/gone; check the path"),
        (SHARD, None, r"is a file; tfds: takes the folder that holds dataset_info.json"),
        ("..", None, r"no dataset_info.json in .*, such as tfds:.*/1\.0\.0$"),
        (".", lambda d: (d / "dataset_info.json").unlink(), r"no dataset_info.json in .*1\.0\.0; "),
        (".", lambda d: (d / "dataset_info.json").write_text("{"), r"cannot open .*JSON.* anew"),
        (".", lambda d: (d / "features.json").unlink(), r"cannot open .*; copy it anew"),
        (".", lambda d: change_info(d, fileFormat="tfrecord"), r"in tfrecord files.* prepare it"),
        (".", lambda d: (d / SHARD).unlink(), r"record 0 cannot be read .*No such.*; copy it anew"),
        (".", lambda d: (d / SHARD).write_bytes(b""), r"record 0 cannot be read .*; copy it anew"),
        (".", lambda d: os.truncate(d / SHARD, 65536), r"record 0 is empty, .*; copy it anew"),
    ],
)  # fmt: skip
def test_folders_that_hold_no_whole_set(shards, tmp_path, path, damage, message):
    folder = shutil.copytree(shards, tmp_path / "1.0.0")
    if damage:
        damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        open_source(f"tfds:{folder / path}", "train", 8, tmp_path)
    assert "\n" not in str(caught.value)
