"""Batches: the n-th one is a function of the source, the seed and n, and of nothing else."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import grain
import numpy as np
from jaxtyping import Int, Int32

from jaxgen.data.source import Source
from jaxgen.errors import UserError

# Batches: more than anybody takes, and 64-bit row numbers hold them.
ENDLESS = 2**40


@dataclasses.dataclass(frozen=True, eq=False)
class Shared:
    """Rows by number, of which equal ones are kept but once."""

    kept: np.ndarray
    which: Int[np.ndarray, " n"]

    def __getitem__(self, numbers: Int[np.ndarray, " b"]) -> np.ndarray:
        return np.asarray(self.kept[self.which[numbers]])


def batches(
    source: Source,
    encode: Callable[[Sequence[str]], Int32[np.ndarray, "n length"]],
    *,
    batch: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    beside: Mapping[str, np.ndarray] | None = None,
    told: Mapping[str, Shared] | None = None,
) -> grain.MapDataset:
    """An endless data set whose n-th element is this process's part of the n-th batch.

    A batch has `image` uint8 [b, h, w, 3], `caption` int32 [b, length], `label` int32 [b], and
    `row` int32 [b], the pictures' numbers in the source, with b = batch / process_count. Every
    epoch visits every picture once, in an order of its own, and draws one caption of each; batches
    run on across the end of an epoch. Row i of the whole batch goes to process i // b, so that the
    processes' parts, joined in order, are what one process alone would have read. `encode` turns
    all captions into token ids, once, here. `beside` has more fields of a batch, with a row for
    each picture; `told` with one for each caption, in order.

    Raises `UserError` for an empty source, a `batch` that the processes cannot share equally, and
    a `seed` outside 0 to 2**32 - 1.
    """
    if not len(source):
        raise UserError(f"{source.name} has no pictures in its split {source.split!r}")
    if batch < 1 or batch % process_count:
        raise UserError(
            f"a batch of {batch} pictures cannot be shared equally by {process_count} processes; "
            f"use a positive multiple of {process_count}"
        )
    if not 0 <= seed < 2**32:
        raise UserError(f"seed {seed}: use 0 to {2**32 - 1}")

    counts = np.array([len(texts) for texts in source.captions])
    first = np.cumsum(counts) - counts
    tokens = encode([text for texts in source.captions for text in texts])
    local = batch // process_count
    mine = slice(process_index * local, (process_index + 1) * local)

    # grain's own shuffle takes milliseconds a row on small sets, and numpy's none.
    @functools.lru_cache(maxsize=4)
    def order(epoch: int) -> np.ndarray:
        return np.random.default_rng((seed, 0, epoch)).permutation(len(source))

    def read(number: int) -> dict[str, np.ndarray]:
        epochs, places = np.divmod(number * batch + np.arange(batch)[mine], len(source))
        rows = [int(order(int(e))[place]) for e, place in zip(epochs, places, strict=True)]
        draw = np.random.default_rng((seed, 1, number)).random(batch)[mine]
        said = first[rows] + (draw * counts[rows]).astype(int)
        return {
            "image": np.stack([source.images[row] for row in rows]),
            "caption": tokens[said],
            "label": source.label_ids[rows],
            "row": np.asarray(rows, np.int32),
            **{name: np.asarray(array[rows]) for name, array in (beside or {}).items()},
            **{name: shared[said] for name, shared in (told or {}).items()},
        }

    return grain.MapDataset.range(ENDLESS).map(read)


def iterate(dataset: grain.MapDataset, start: int = 0) -> grain.DatasetIterator:
    """The batches from the `start`-th on, read ahead by threads.

    The position is the step: `get_state()` is a small JSON-able dict that says how many batches
    were taken since batch 0, whatever was read ahead, and `set_state` goes exactly there.
    """
    options = grain.ReadOptions(num_threads=4, prefetch_buffer_size=8)
    iterator = iter(dataset.to_iter_dataset(options))
    if start:
        grain.experimental.set_next_index(iterator, start)
    return iterator
