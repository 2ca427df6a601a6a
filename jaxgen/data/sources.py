"""Data sets by name: `openmoji`, `openmoji:GROUP,GROUP…`, `imagefolder:PATH`, `tfds:NAME`."""

from collections.abc import Callable
from pathlib import Path

from jaxgen.data import catalogue, imagefolder, openmoji
from jaxgen.data.source import Record, Source, labelled, suggestion
from jaxgen.errors import UserError

__all__ = ["Record", "Source", "open_source"]

NAMES = ("openmoji", "openmoji:GROUP,GROUP…", "imagefolder:PATH", "tfds:NAME")


def open_source(
    name: str,
    split: str,
    size: int,
    root: str | Path,
    progress: Callable[[int, int], None] | None = None,
) -> Source:
    """Opens one split of a data set, its pictures `size` pixels square, preparing it if need be.

    Prepared data is kept under `root`. `progress(done, total)` is called while it is prepared.
    Raises `UserError` for an unknown name or split, and for data that cannot be read.
    """
    kind, colon, rest = name.partition(":")
    if kind == "openmoji":
        groups = rest.split(",") if colon else []
        openmoji.check_groups(groups)
        source = catalogue.read(openmoji.prepare(root, size, progress), kind, split, size)
        return labelled(source, groups) if groups else source
    if kind == "imagefolder" and rest:
        return imagefolder.read(rest, split, size, root, progress)
    if kind == "tfds" and rest:
        return catalogue.open_tfds(rest, split, size, root)
    hint = suggestion(name.partition(":")[0], [known.partition(":")[0] for known in NAMES])
    raise UserError(f"unknown data set {name!r}{hint} Known: {', '.join(NAMES)}")
