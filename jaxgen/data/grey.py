"""Sets of small grey pictures, each of one class, that are kept whole in memory."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image

from jaxgen.data.source import Source, digest, fits_in_memory, suggestion
from jaxgen.errors import UserError

SPLITS = ("train", "test")


class Class(NamedTuple):
    """A class's name, and all the ways to say what its pictures show."""

    name: str
    captions: tuple[str, ...]


def source(
    name: str,
    split: str,
    size: int,
    pictures: UInt8[np.ndarray, "n side side"],
    label_ids: Int32[np.ndarray, " n"],
    ids: tuple[str, ...],
    classes: Sequence[Class],
) -> Source:
    """Square grey pictures as a source of RGB ones, `size` pixels square.

    They are enlarged or made smaller with antialiasing: at once where all of them fit in memory,
    else when asked.
    """
    images = Resized(pictures, size)
    if fits_in_memory(len(pictures), size):
        images = np.array([images[n] for n in range(len(pictures))], np.uint8)
    return Source(
        name=name,
        split=split,
        size=size,
        images=images,
        captions=tuple(classes[number].captions for number in label_ids),
        label_ids=label_ids,
        labels=tuple(one.name for one in classes),
        ids=ids,
        content=digest(pictures.tobytes()),
    )


def check_split(name: str, split: str) -> None:
    """Raises `UserError` for a split that is neither train nor test."""
    if split not in SPLITS:
        hint = suggestion(split, SPLITS)
        raise UserError(f"{name} has no split {split!r}{hint} It has: {', '.join(SPLITS)}")


@dataclasses.dataclass(frozen=True, eq=False)
class Resized:
    """Grey pictures by number, resized when asked."""

    pictures: UInt8[np.ndarray, "n side side"]
    size: int

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "size size 3"]:
        picture = Image.fromarray(self.pictures[index])
        resized = picture.resize((self.size, self.size), Image.Resampling.LANCZOS)
        return np.asarray(resized.convert("RGB"))
