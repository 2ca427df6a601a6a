"""A set of pictures that a network draws from captions, kept as shards of ArrayRecord files.

A record is a PNG whose text says its caption and its number. Shards appear whole or not at all, so
what an interrupted process has finished is found by the next one, and the rest is drawn then.
"""

import contextlib
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from jaxtyping import UInt8
from PIL import Image, PngImagePlugin

from jaxgen import storage
from jaxgen.data.source import Images, fits_in_memory
from jaxgen.errors import UserError

SHARD = 256  # pictures in a file: what a kill can cost, and a file's least size is 64 KB

Pictures = UInt8[np.ndarray, "n size size 3"]


def pictures(
    folder: Path,
    captions: Sequence[str],
    size: int,
    draw: Callable[[range], Pictures],
    progress: Callable[[int, int], None],
) -> Images:
    """The picture of each caption: read from the shards in `folder`, else drawn and put there.

    `draw` takes the numbers of a shard's captions; it is not called for a shard that is there and
    sound. `progress(done, total)` is called after each. Raises `UserError` where the folder cannot
    be written. More pictures than fit in memory are left in their files, and read when asked for.
    """
    storage.sweep(folder)
    keep = fits_in_memory(len(captions), size)
    blocks, total = [], -(-len(captions) // SHARD)
    paths = [folder / f"{shard:05d}-of-{total:05d}.array_record" for shard in range(total)]
    for shard, path in enumerate(paths):
        numbers = range(shard * SHARD, min((shard + 1) * SHARD, len(captions)))
        block = read(path, [captions[n] for n in numbers], numbers.start, size)
        if block is None:
            block = draw(numbers)
            write(path, block, [captions[n] for n in numbers], numbers.start)
        if keep:
            blocks.append(block)
        progress(numbers.stop, len(captions))
    return np.concatenate(blocks) if keep else _Filed(paths)


def write(path: Path, images: Pictures, captions: Sequence[str], first: int) -> None:
    """One shard, whose pictures are numbered from `first`, put in its place when it is whole."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = ArrayRecordWriter(str(partial), "group_size:1")
        for number, (image, caption) in enumerate(zip(images, captions, strict=True), first):
            writer.write(_record(image, caption, number))
        writer.close()
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # of the folder, and of array_record
        with contextlib.suppress(OSError):
            partial.unlink()
        reason = error.strerror if isinstance(error, OSError) else str(error).partition(";")[0]
        raise UserError(
            f"cannot write the drawn pictures to {path.parent} ({reason}); free space there, or "
            "choose another --data.root"
        ) from None


def read(path: Path, captions: Sequence[str], first: int, size: int) -> Pictures | None:
    """The pictures of a shard; None where it is missing, damaged, or not of these captions."""
    if not path.is_file():
        return None
    try:
        reader = ArrayRecordReader(str(path))
        records = reader.read_all() if reader.ok() else []
        reader.close()
        found = [_parsed(record) for record in records]
    # ArrayRecord raises a RuntimeError, Pillow whatever it meets.
    except (RuntimeError, OSError, SyntaxError, ValueError, KeyError, EOFError):
        return None
    if [(caption, number) for _, caption, number in found] != [
        (caption, number) for number, caption in enumerate(captions, first)
    ]:
        return None
    images = [image for image, _, _ in found]
    sound = all(image.shape == (size, size, 3) for image in images)
    return np.stack(images) if sound else None


class _Filed:
    """Pictures by number, read from their shards each time."""

    def __init__(self, paths: Sequence[Path]):
        self._records = ArrayRecordDataSource([str(path) for path in paths])

    def __getitem__(self, index: int, /) -> UInt8[np.ndarray, "size size 3"]:
        return _parsed(self._records[index])[0]


def _record(image: UInt8[np.ndarray, "size size 3"], caption: str, number: int) -> bytes:
    text = PngImagePlugin.PngInfo()
    text.add_itxt("caption", caption)
    text.add_itxt("number", str(number))
    png = io.BytesIO()
    Image.fromarray(image).save(png, "PNG", pnginfo=text)
    return png.getvalue()


def _parsed(record: bytes) -> tuple[UInt8[np.ndarray, "size size 3"], str, int]:
    with Image.open(io.BytesIO(record), formats=["PNG"]) as png:
        assert isinstance(png, PngImagePlugin.PngImageFile)
        return np.asarray(png), png.text["caption"], int(png.text["number"])
