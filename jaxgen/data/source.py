"""What every set of captioned pictures looks like once it is open."""

import dataclasses
import difflib
import functools
import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Int32, UInt8

# Sets whose pixels take less than this are decoded once and kept in memory.
IN_MEMORY_BYTES = 1_000_000_000


class Record(NamedTuple):
    """One picture, uint8 RGB; all the ways to say what it shows; its label's number; its name."""

    image: UInt8[np.ndarray, "size size 3"]
    captions: tuple[str, ...]
    label: int
    id: str


class Images(Protocol):
    """Pictures by number: an array in memory, or something that decodes when asked."""

    def __getitem__(self, index: int, /) -> UInt8[np.ndarray, "size size 3"]: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """One split of a data set, in an order that does not change.

    Attributes:
      name: of the set, e.g. `openmoji` or `imagefolder:photos`.
      images: the pictures, `size` pixels square.
      captions: for each picture, one or more; in training each is equally likely to be drawn.
      label_ids: for each picture, an index into `labels`.
      ids: for each picture, a name that is its own within the split.
      content: a hash of what the pictures are made from.
      notes: what the user should be told, e.g. which pictures were skipped.
    """

    name: str
    split: str
    size: int
    images: Images
    captions: tuple[tuple[str, ...], ...]
    label_ids: Int32[np.ndarray, " n"]
    labels: tuple[str, ...]
    ids: tuple[str, ...]
    content: str
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Record:
        label = int(self.label_ids[index])
        return Record(self.images[index], self.captions[index], label, self.ids[index])

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with anything that a batch is made of."""
        parts = (
            self.name.partition(":")[0],  # an image folder may move
            self.split,
            self.size,
            self.ids,
            self.captions,
            self.label_ids.tolist(),
            self.labels,
            self.content,
        )
        return digest(repr(parts).encode())


@dataclasses.dataclass(frozen=True, eq=False)
class Picked:
    """Some of the pictures, by their numbers among all."""

    images: Images
    numbers: Int32[np.ndarray, " n"]

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "size size 3"]:
        return self.images[int(self.numbers[index])]


def picked(source: Source, numbers: Sequence[int]) -> Source:
    """The pictures of these numbers, in their order; the list of labels stays whole."""
    return dataclasses.replace(
        source,
        images=Picked(source.images, np.asarray(numbers, np.int32)),
        captions=tuple(source.captions[n] for n in numbers),
        label_ids=source.label_ids[list(numbers)],
        ids=tuple(source.ids[n] for n in numbers),
    )


def digest(*chunks: bytes) -> str:
    """16 hexadecimal digits of SHA-256."""
    state = hashlib.sha256()
    for chunk in chunks:
        state.update(chunk)
    return state.hexdigest()[:16]


def fits_in_memory(count: int, size: int) -> bool:
    """Whether that many square pictures are few enough to be kept decoded."""
    return count * size * size * 3 < IN_MEMORY_BYTES


def suggestion(word: str, known: Iterable[str]) -> str:
    """What to add to the news that `word` is not known: the nearest that is, or a full stop."""
    near = difflib.get_close_matches(word, known, 1)
    return f"; did you mean {near[0]}?" if near else "."
