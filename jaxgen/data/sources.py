"""Data sets by name: what stands before a colon is the kind, what follows says which, or where."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

from jaxgen.config import Data
from jaxgen.data import catalogue, digits, fashion_mnist, imagefolder, openmoji
from jaxgen.data.source import Record, Source, suggestion
from jaxgen.errors import UserError

__all__ = ["Record", "Source", "open_source", "opened"]

NAMES = (
    "openmoji",
    "openmoji:GROUP,GROUP…",
    "digits",
    "fashion-mnist",
    "fashion-mnist:PATH",
    "imagefolder:PATH",
    "tfds:NAME",
    "tfds:FOLDER",
)
ONE_LABEL = ("digits", "fashion-mnist", "imagefolder")  # their pictures have classes of one kind


def opened(data: Data, split: str, progress: Callable[[int, int], None] | None = None) -> Source:
    """One split of the data set that a config names, its captions as it wants them.

    Raises `UserError` as `open_source`.
    """
    source = open_source(data.name, split, data.size, data.root, progress, data.label)
    return by_label(source) if data.caption == "label" else source


def by_label(source: Source) -> Source:
    """The pictures with the words of their label in the place of their captions."""
    said = [re.sub(r"[-_]+", " ", name) for name in source.labels]
    captions = tuple((said[label],) for label in source.label_ids)
    return dataclasses.replace(source, captions=captions)


def open_source(
    name: str,
    split: str,
    size: int,
    root: str | Path,
    progress: Callable[[int, int], None] | None = None,
    label: str = "",
) -> Source:
    """Opens one split of a data set, its pictures `size` pixels square, preparing it if need be.

    Prepared data is kept under `root`. `progress(done, total)` is called while it is prepared.
    `label` is the field of the records that holds their classes; empty: the set's first.
    Raises `UserError` for an unknown name, split or label, and for data that cannot be read.
    """
    kind, colon, rest = name.partition(":")
    if label and kind in ONE_LABEL:
        raise UserError(
            f"--data.label {label!r}: {kind} has classes of one kind; give --data.label="
        )
    if kind == "openmoji":
        groups = rest.split(",") if colon else []
        openmoji.check_groups(groups)
        catalogue.check_label(openmoji.builder(root, size), kind, label)
        source = catalogue.read(openmoji.prepare(root, size, progress), kind, split, size, label)
        return openmoji.of_groups(source, groups) if groups else source
    if name == "digits":
        return digits.read(split, size)
    if kind == "fashion-mnist" and bool(colon) == bool(rest):
        return fashion_mnist.read(rest or fashion_mnist.INSTALLED, split, size)
    if kind == "imagefolder" and rest:
        return imagefolder.read(rest, split, size, root, progress)
    if kind == "tfds" and catalogue.is_folder(rest):
        return catalogue.open_folder(rest, split, size, label)
    if kind == "tfds" and rest:
        return catalogue.open_tfds(rest, split, size, root, label)
    hint = suggestion(kind, dict.fromkeys(known.partition(":")[0] for known in NAMES))
    raise UserError(f"unknown data set {name!r}{hint} Known: {', '.join(NAMES)}")
