"""What PyTorch's DataLoader reads in the comparison; its workers import this file and no JAX."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


@dataclasses.dataclass(frozen=True)
class Files:
    """Picture files, decoded when asked for."""

    files: tuple[str, ...]
    tokens: np.ndarray
    size: int

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        with Image.open(Path(self.files[index])) as raw:
            image = raw.convert("RGB")
        if image.size != (self.size, self.size):
            image = image.resize((self.size, self.size), Image.Resampling.LANCZOS)
        return {"image": np.array(image), "caption": self.tokens[index]}


@dataclasses.dataclass(frozen=True)
class Arrays:
    """Pictures that are decoded already."""

    images: np.ndarray
    tokens: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "caption": self.tokens[index]}


@dataclasses.dataclass(frozen=True)
class Shuffled:
    """Row numbers without end, every epoch in an order of its own, as a DataLoader's sampler.

    Where a sampler ends, a DataLoader drops the last batch and its workers begin with nothing read.
    """

    rows: int

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng(0)
        while True:
            yield from rng.permutation(self.rows).tolist()
