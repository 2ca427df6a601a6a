"""Batches from a folder of picture files, by jaxgen's pipeline and by PyTorch's DataLoader.

Each reads the same files twice over: decoded beforehand and kept in memory, as jaxgen does with
sets under a gigabyte and as is natural in PyTorch for small ones; and decoded when their turn
comes, by jaxgen's threads and by PyTorch's worker processes, one a core. Batches of both run on
across the end of an epoch, so that nobody's workers fall idle there. Without PyTorch, jaxgen's
pipeline is timed alone.
"""

import functools
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from benchmarks import machine, timing
from benchmarks.torch_data import Arrays, Files, Shuffled
from jaxgen.data import source as sources
from jaxgen.data.pipeline import batches, iterate
from jaxgen.data.source import Source
from jaxgen.data.sources import open_source
from jaxgen.text import tokenizer as words

PICTURES, BATCH, LENGTH = 2000, 64, 16
MOST_BYTES = 2**28  # of decoded pictures, of which there are fewer where they are large
BLOCK = 1.0  # seconds that are timed at once
PREFETCHED = 2  # batches that each of PyTorch's workers reads ahead, as by default
REST = 1.0  # seconds in which the others' workers read ahead and fall quiet
SHAPES = 12  # in a generated picture


def measured(side: int, repeats: int, pictures: int = 0) -> dict[str, Any]:
    """Images per second of each way to read pictures of `side` pixels, in turns."""
    pictures = pictures or count_of(side)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_pictures(folder, pictures, side)
        opened = {
            "jaxgen, in memory": _opened(folder, side, sys.maxsize),
            "jaxgen, decoding": _opened(folder, side, 0),
        }
        kept, _ = opened["jaxgen, in memory"]
        tokenizer = words.build([text for texts in kept.captions for text in texts])
        encode = functools.partial(words.encode, tokenizer, length=LENGTH)
        tokens = encode([texts[0] for texts in kept.captions])
        files = Files(tuple(str(folder / name) for name in kept.ids), tokens, side)
        readers: dict[str, Iterator[Any]] = {
            name: iterate(batches(source, encode, batch=BATCH, seed=0))
            for name, (source, _) in opened.items()
        }
        arrays = Arrays(np.asarray(kept.images), tokens)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        if missing := machine.missing("torch.utils.data"):
            print(missing, file=sys.stderr, flush=True)
        else:
            readers["torch, in memory"] = _torch(arrays, 0)
            readers["torch, decoding"] = _torch(files, cores)
        most = ahead(cores)
        counts = {name: _count(reader, most) for name, reader in readers.items()}
        runs = {
            name: functools.partial(taken, reader, counts[name], most)
            for name, reader in readers.items()
        }
        times = timing.interleaved(runs, repeats)
    rows = {
        name: {
            "images_per_second": BATCH / timing.spread(found)["median"],
            "seconds_per_batch": timing.spread(found),
            "opening_seconds": opened[name][1] if name in opened else None,
        }
        for name, found in times.items()
    }
    pace = {name: row["images_per_second"] for name, row in rows.items()}
    return {
        "size": side,
        "pictures": pictures,
        "batch": BATCH,
        "workers": cores,
        "readers": rows,
        "times_torch": {
            how: pace[f"jaxgen, {how}"] / pace[f"torch, {how}"]
            for how in ("in memory", "decoding")
            if not missing
        },
        "rivals_missing": missing,
    }


def count_of(side: int) -> int:
    """How many pictures of that size are generated: a batch at least."""
    return max(BATCH, min(PICTURES, MOST_BYTES // (3 * side**2)))


def write_pictures(folder: Path, count: int, side: int) -> None:
    """PNG files of coloured shapes on a gradient, in two folders, with captions."""
    rng = np.random.default_rng(0)
    told = []
    ramp = np.linspace(0, 255, side)
    for number in range(count):
        name = f"{'ab'[number % 2]}/{number:06d}.png"
        x, y = rng.random((2, 3))
        gradient = (ramp[:, None, None] * x + ramp[None, :, None] * y) / 2
        picture = Image.fromarray(gradient.astype(np.uint8))
        draw = ImageDraw.Draw(picture)
        for left, top, wide, high, *colour in rng.random((SHAPES, 7)):
            box = [side * left, side * top, side * (left + wide / 2), side * (top + high / 2)]
            draw.ellipse(box, fill=tuple(int(255 * value) for value in colour))
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture.save(folder / name)
        told.append(json.dumps({"file_name": name, "text": f"picture {number % 50}"}))
    (folder / "metadata.jsonl").write_text("\n".join(told), encoding="utf-8")


def ahead(workers: int) -> int:
    """Batches, more than any of them reads ahead: jaxgen 8, as `iterate` has it."""
    return PREFETCHED * workers + 8


def taken(reader: Iterator[Any], count: int, ready: int) -> float:
    """Seconds of one of `count` batches, after `ready` that may have been read ahead."""
    time.sleep(REST)
    for _ in range(ready):
        next(reader)
    begun = time.perf_counter()
    for _ in range(count):
        next(reader)
    return (time.perf_counter() - begun) / count


def _opened(folder: Path, side: int, most: int) -> tuple[Source, float]:
    """The folder as jaxgen opens it, if sets below `most` bytes are kept; seconds of doing so."""
    before, sources.IN_MEMORY_BYTES = sources.IN_MEMORY_BYTES, most
    try:
        begun = time.perf_counter()
        found = open_source(f"imagefolder:{folder}", "train", side, folder / ".root")
        return found, time.perf_counter() - begun
    finally:
        sources.IN_MEMORY_BYTES = before


def _torch(dataset: Any, workers: int) -> Iterator[Any]:
    """Batches without end."""
    from torch.utils.data import DataLoader

    some: dict[str, Any] = {"multiprocessing_context": "spawn", "persistent_workers": True}
    some |= {"prefetch_factor": PREFETCHED}
    loader = DataLoader(
        dataset, BATCH, sampler=Shuffled(len(dataset)), drop_last=True, num_workers=workers,
        **(some if workers else {}),
    )  # fmt: skip
    yield from loader


def _count(reader: Iterator[Any], ready: int) -> int:
    """Batches that take a `BLOCK` of seconds; no fewer than `ready`, for workers end in bursts."""
    return max(ready, round(BLOCK / taken(reader, ready, ready)))
