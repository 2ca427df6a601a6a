"""Folders of pictures as people have them: every format, every way to caption, every fault."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxgen.data import imagefolder, source
from jaxgen.data.picture import UnreadableError, decode
from jaxgen.data.sources import open_source
from jaxgen.errors import UserError

RED, GREEN, BLUE = (220, 30, 30), (30, 200, 40), (20, 40, 230)


def save(path: Path, image: Image.Image | None = None, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or Image.new("RGB", (8, 8), RED)).save(path, **options)
    return path


def folder_of(folder: Path, count: int) -> Path:
    for i in range(count):
        save(folder / f"{i:04d}.png", Image.new("RGB", (8, 8), (i % 256, i // 256, 0)))
    return folder


def opened(folder: Path, split: str = "train", size: int = 8):
    return open_source(f"imagefolder:{folder}", split, size, folder.parent / "root")


@pytest.mark.parametrize("suffix", ["png", "PNG", "jpg", "JPEG", "webp", "WebP"])
def test_formats_and_suffixes(tmp_path, suffix):
    options = {"lossless": True} if suffix.lower() == "webp" else {}
    save(tmp_path / "in" / "deep" / f"a.{suffix}", **options)
    (record,) = list(opened(tmp_path / "in"))
    assert record.id == f"deep/a.{suffix}"
    assert np.abs(record.image.astype(int) - RED).max() <= 3


def test_centre_square_resized_with_antialiasing(tmp_path):
    stripes = np.zeros((64, 192, 3), np.uint8)
    stripes[:, :64] = stripes[:, 128:] = RED  # outside the centre
    stripes[:, 64:128:2] = 255
    image = decode(save(tmp_path / "a.png", Image.fromarray(stripes)), 8)
    assert image.shape == (8, 8, 3)
    assert np.abs(image[:, 1:-1].astype(int) - 128).max() <= 6  # not 0 nor 255: no aliasing


def test_exif_orientation(tmp_path):
    halves = Image.new("RGB", (16, 16), RED)
    halves.paste(BLUE, (0, 0, 16, 8))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image = decode(save(tmp_path / "a.jpg", halves, exif=exif, quality=100), 16)
    assert np.abs(image[0, 0].astype(int) - RED).max() < 20
    assert np.abs(image[-1, 0].astype(int) - BLUE).max() < 20


def test_modes_that_become_rgb(tmp_path):
    palette = Image.new("RGB", (8, 8), GREEN).quantize(4)
    assert decode(save(tmp_path / "p.png", palette), 8)[0, 0].tolist() == list(GREEN)

    cmyk = Image.new("RGB", (8, 8), RED).convert("CMYK")
    image = decode(save(tmp_path / "cmyk.jpg", cmyk, quality=100), 8)
    assert np.abs(image.astype(int) - RED).max() <= 4

    assert (
        decode(save(tmp_path / "l.png", Image.new("L", (8, 8), 77)), 8)[0, 0].tolist() == [77] * 3
    )

    deep = Image.fromarray(np.full((8, 8), 100 * 257, np.uint16))
    assert decode(save(tmp_path / "i16.png", deep), 8)[0, 0].tolist() == [100] * 3

    clear = Image.new("RGBA", (8, 8), (*RED, 0))
    assert decode(save(tmp_path / "rgba.png", clear), 8)[0, 0].tolist() == [255] * 3
    key = save(tmp_path / "key.png", Image.new("RGB", (8, 8), RED), transparency=RED)
    assert decode(key, 8)[0, 0].tolist() == [255] * 3


def broken(kind: str) -> bytes:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8))
    file = io.BytesIO()
    noise.save(file, "PNG")
    png = file.getvalue()
    if kind == "empty":
        return b""
    if kind == "no picture":
        return b"<html>404 Not Found</html>"
    if kind == "corrupt":
        return png[:600] + bytes(400) + png[1000:]
    if kind == "truncated":
        return png[: len(png) // 2]
    file = io.BytesIO()
    if kind == "truncated jpeg":
        noise.save(file, "JPEG")
        return file.getvalue()[:-400]
    frames = [noise, noise.rotate(90)]
    frames[0].save(file, kind.split()[1].upper(), save_all=True, append_images=frames[1:])
    return file.getvalue()


FAULTS = {
    "empty": "empty",
    "no picture": "no PNG, JPEG or WebP picture",
    "corrupt": "broken",
    "truncated": "truncated",
    "truncated jpeg": "truncated",
    "animated webp": "animated",
    "animated png": "animated",
}


@pytest.mark.parametrize("kind", FAULTS)
def test_pictures_that_cannot_be_used(kind):
    with pytest.raises(UnreadableError, match=FAULTS[kind]):
        decode(broken(kind), 8)


def test_a_few_bad_pictures_are_skipped_and_named(tmp_path):
    folder = folder_of(tmp_path / "in", 199)
    for number, kind in enumerate(["empty", "animated png"]):
        (folder / f"bad{number}.png").write_bytes(broken(kind))
    train, test = opened(folder), opened(folder, "test")
    assert len(train) + len(test) == 199
    assert train.notes == test.notes
    assert train.notes == (
        f"skipped 2 of 201 pictures in {folder}: bad0.png (empty), bad1.png (animated)",
    )
    # 201 minus two bad ones: the limit is strict.
    (folder / "bad2.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"3 of 202 pictures .* bad0.png .* bad2.png"):
        opened(folder)


def test_many_bad_pictures_are_refused_in_one_line(tmp_path):
    folder = folder_of(tmp_path / "in", 5)
    for number in range(4):
        (folder / f"bad{number}.jpg").write_bytes(b"")
    with pytest.raises(UserError) as caught:
        opened(folder)
    assert str(caught.value) == (
        f"4 of 9 pictures in {folder} cannot be used, and only fewer than 1 % may be skipped: "
        "bad0.jpg (empty), bad1.jpg (empty), bad2.jpg (empty) and 1 more; repair or remove them"
    )


def test_a_folder_too_large_for_memory_is_judged_once_and_decoded_on_access(tmp_path, monkeypatch):
    folder = folder_of(tmp_path / "in", 150)
    (folder / "bad.png").write_bytes(b"")
    kept = opened(folder)
    monkeypatch.setattr(source, "IN_MEMORY_BYTES", 1000)
    lazy = opened(folder)
    assert not isinstance(lazy.images, np.ndarray)
    assert lazy.notes == kept.notes
    for i in (0, 70, len(lazy) - 1):
        np.testing.assert_array_equal(lazy[i].image, kept[i].image)
    monkeypatch.setattr(imagefolder, "decode", lambda *_: pytest.fail("judged again"))
    assert opened(folder).fingerprint == lazy.fingerprint
    monkeypatch.undo()
    (folder / lazy.ids[0]).write_bytes(b"")
    with pytest.raises(
        UserError, match=r"0000.png was readable at the start and is not now: empty"
    ):
        lazy[0]


def test_a_folder_too_large_for_memory_has_a_fingerprint_of_its_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "IN_MEMORY_BYTES", 1000)
    folder = tmp_path / "in"

    def written(colour: tuple[int, int, int], nanoseconds: int) -> str:
        for i in range(12):
            file = folder / f"{i:04d}.png"
            save(file, Image.new("RGB", (8, 8), colour), compress_level=0)
            os.utime(file, ns=(nanoseconds, nanoseconds))
        return opened(folder).fingerprint

    before = written(RED, 1)
    sizes = [file.stat().st_size for file in folder.iterdir()]
    assert written(BLUE, 2) != before
    assert [file.stat().st_size for file in folder.iterdir()] == sizes
    assert written(RED, 3) == before, "other times, the same bytes"


def test_a_caption_may_hold_what_ends_lines_elsewhere(tmp_path):
    folder = folder_of(tmp_path / "pictures", 1)
    line = json.dumps({"file_name": "0000.png", "text": "a\u2028b"}, ensure_ascii=False)
    (folder / "metadata.jsonl").write_text(line, "utf-8")
    assert opened(folder).captions == (("a b",),)


def test_captions_from_metadata(tmp_path):
    folder = folder_of(tmp_path / "in", 3)
    save(folder / "sub" / "x.png")
    lines = [
        {"file_name": "0000.png", "text": "un  chat\n"},
        {"file_name": "0001.png", "caption": "a dog"},
        {"file_name": "0001.png", "text": ["un chien", "the dog"]},
        {"file_name": "./0002.png", "text": "œuf"},
        {"file_name": "gone.png", "text": "nothing"},
    ]
    text = "\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    (folder / "metadata.jsonl").write_text(text, "utf-8")
    (folder / "sub" / "metadata.jsonl").write_text('{"file_name": "x.png", "text": "here"}\n')
    found = opened(folder)
    assert dict(zip(found.ids, found.captions, strict=True)) == {
        "0000.png": ("un chat",),
        "0001.png": ("a dog", "un chien", "the dog"),
        "0002.png": ("œuf",),
        "sub/x.png": ("here",),
    }
    assert any("gone.png" in note for note in found.notes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"file_name": "0000.png", "text": "caf\xe9"}', "metadata.jsonl, line 1: not UTF-8"),
        (b'\n{"file_name": "0000.png"', "metadata.jsonl, line 2: no JSON"),
        (b'{"name": "0000.png", "text": "a"}', 'metadata.jsonl, line 1: no "file_name"'),
        (b'{"file_name": "0000.png", "text": 3}', "line 1: a caption is a string or a list"),
        (b'{"file_name": "0000.png", "text": "a"}', r"1 of 2 .*: 0001.png \(no caption\)"),
        (b'{"file_name": "0000.png"}', r"2 of 2 .*: 0000.png \(no caption\)"),
    ],
)
def test_bad_metadata(tmp_path, content, message):
    folder = folder_of(tmp_path / "in", 2)
    (folder / "metadata.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=message):
        opened(folder)


def test_captions_from_text_files(tmp_path):
    folder = folder_of(tmp_path / "in", 2)
    (folder / "0000.txt").write_text("\ufeffun arbre\n\n a tree \n", "utf-8")
    (folder / "0001.txt").write_text("une mer", "utf-8")
    assert opened(folder).captions == (("un arbre", "a tree"), ("une mer",))
    (folder / "0001.txt").write_text("été", "latin-1")
    with pytest.raises(UserError, match=r"1 of 2 .*: 0001.png \(0001.txt is not UTF-8\)"):
        opened(folder)
    (folder / "0001.txt").unlink()
    with pytest.raises(UserError, match=r"1 of 2 .*: 0001.png \(no caption\)"):
        opened(folder)


def test_a_missing_caption_is_skipped_under_one_percent(tmp_path):
    folder = folder_of(tmp_path / "in", 120)
    for i in range(119):
        (folder / f"{i:04d}.txt").write_text(f"number {i}")
    train = opened(folder)
    assert len(train) + len(opened(folder, "test")) == 119
    assert train.notes == (f"skipped 1 of 120 pictures in {folder}: 0119.png (no caption)",)


def test_labels_and_captions_from_folder_names(tmp_path):
    folder = tmp_path / "animals"
    for name in ("black_cat/1.png", "black_cat/2.png", "dog/1.png"):
        save(folder / name)
    save(folder / ".thumbnails" / "1.png")
    found = opened(folder)
    assert found.ids == ("black_cat/1.png", "black_cat/2.png", "dog/1.png")
    assert found.labels == ("black_cat", "dog")
    assert found.label_ids.tolist() == [0, 0, 1]
    assert found.captions == (("black cat",), ("black cat",), ("dog",))


def test_the_held_out_tenth_stays_held_out(tmp_path):
    folder = folder_of(tmp_path / "in", 200)
    train, test = opened(folder), opened(folder, "test")
    assert sorted(train.ids + test.ids) == [f"{i:04d}.png" for i in range(200)]
    assert 8 <= len(test) <= 35
    for i in range(200, 300):
        save(folder / f"{i:04d}.png")
    (folder / "0000.png").unlink()
    assert set(test.ids) - {"0000.png"} <= set(opened(folder, "test").ids)
    assert not set(opened(folder).ids) & set(test.ids)


def test_tiny_folders(tmp_path):
    nine, ten = folder_of(tmp_path / "nine", 9), folder_of(tmp_path / "ten", 10)
    assert len(opened(nine)) == 9
    assert len(opened(nine, "test")) == 0
    assert "too few to hold any out" in opened(nine).notes[0]
    assert 1 <= len(opened(ten, "test")) <= 9
    assert len(opened(ten)) + len(opened(ten, "test")) == 10


def test_fingerprint_follows_content_not_place(tmp_path):
    one, two = folder_of(tmp_path / "one", 12), folder_of(tmp_path / "two", 12)
    for folder in (one, two):
        (folder / "metadata.jsonl").write_text(
            "\n".join(json.dumps({"file_name": f"{i:04d}.png", "text": "a"}) for i in range(12))
        )
    parents = opened(one).labels, opened(two).labels
    assert parents == (("one",), ("two",))
    before = opened(one).fingerprint
    assert before == opened(one).fingerprint
    name = opened(one).ids[0]
    save(one / name, Image.new("RGB", (8, 8), BLUE))
    assert opened(one).fingerprint != before


def test_missing_empty_and_unknown(tmp_path):
    with pytest.raises(UserError, match=r"no image folder at .*nowhere; check the path"):
        opened(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no pictures \(.png, .jpg, .jpeg, .webp\) in .*empty"):
        opened(tmp_path / "empty")
    file = save(tmp_path / "a.png")
    with pytest.raises(UserError, match="is a file; imagefolder: takes the folder"):
        opened(file)
    with pytest.raises(UserError, match="no split 'tets'; did you mean test"):
        opened(tmp_path, "tets")
