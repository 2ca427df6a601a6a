"""Sets prepared by TensorFlow Datasets as ArrayRecord files, read without TensorFlow."""

import contextlib
import dataclasses
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8
from tensorflow_datasets.core.naming import parse_builder_name_kwargs
from tensorflow_datasets.core.read_only_builder import builder_from_files
from tensorflow_datasets.core.registered import DatasetNotFoundError

from jaxgen.data.picture import UnreadableError, decode
from jaxgen.data.source import Source, digest, fits_in_memory, suggestion
from jaxgen.errors import UserError

CAPTION_FEATURES = ("captions", "caption", "text", "texts", "title", "description")
LABEL_FEATURES = ("label", "labels", "class", "category")
ID_FEATURES = ("id", "image/filename", "filename", "file_name", "image_id")


def open_tfds(name: str, split: str, size: int, root: str | Path, label: str = "") -> Source:
    """One split of a set of the TFDS catalogue, downloaded and prepared if it is not there.

    `name` is what `tfds.builder` takes, e.g. `mnist`, `coco_captions`, `cats_vs_dogs:4.0.1`;
    `label` is as in `read`.
    """
    builder = _builder(name, root)
    check_label(builder, f"tfds:{name}", label)
    try:
        builder.download_and_prepare(
            file_format="array_record",
            download_config=tfds.download.DownloadConfig(try_download_gcs=False),
        )
    # TFDS and the hosts of its sets fail in too many ways to list, and none is ours.
    except Exception as error:
        raise UserError(
            f"cannot prepare tfds:{name} ({_gist(error)}); {_REMEDY} {builder.data_dir}"
        ) from error
    return read(builder, f"tfds:{name}", split, size, label)


def read(builder: Any, name: str, split: str, size: int, label: str = "") -> Source:
    """One split of a prepared builder as a source, sorted by id where its records have one.

    The class is that of the feature called `label`, or of the first that looks like one. Captions
    are those of its text feature, or else the class's name.
    """
    features = builder.info.features
    if split.partition("[")[0] not in builder.info.splits:
        known = sorted(builder.info.splits)
        hint = suggestion(split, known)
        raise UserError(f"{name} has no split {split!r}{hint} It has: {', '.join(known)}")
    image = _feature(features, ("image",), tfds.features.Image)
    if image is None:
        raise UserError(f"{name} has no image feature; its features are {', '.join(features)}")
    captions = _feature(features, CAPTION_FEATURES, None)
    check_label(builder, name, label)
    label_feature = label or _feature(features, LABEL_FEATURES, tfds.features.ClassLabel)
    if captions is None and label_feature is None:
        raise UserError(f"{name} has neither captions nor labels to learn from")
    ident = _feature(features, ID_FEATURES, None)

    try:
        rows = builder.as_data_source(split, decoders={image: tfds.decode.SkipDecoding()})
    except NotImplementedError as error:
        raise UserError(
            f"{name} was prepared in a format without random access; remove {builder.data_dir}, or "
            f"{_REMEDY} there"
        ) from error
    labels = tuple(features[label_feature].names) if label_feature else ("all",)
    texts, numbers, ids = [], [], []
    for index in range(len(rows)):
        row = rows[index]
        numbers.append(int(row[label_feature]) if label_feature else 0)
        own = _texts(row[captions]) if captions else ()
        if numbers[-1] < 0 and not own:
            raise UserError(
                f"{name}, split {split}: picture {index} has no label; use another split"
            )
        texts.append(own or (labels[numbers[-1]],))
        ids.append(_text(row[ident]) if ident else f"{index:08d}")
    order = sorted(range(len(ids)), key=ids.__getitem__)
    images = _Decoded(name, rows, image, size, tuple(order))
    if fits_in_memory(len(order), size):
        images = np.stack([images[i] for i in range(len(order))])
        content = digest(images.tobytes())
    else:
        content = digest(repr((builder.info.full_name, builder.info.splits[split])).encode())
    return Source(
        name=name,
        split=split,
        size=size,
        images=images,
        captions=tuple(texts[i] for i in order),
        label_ids=np.array([numbers[i] for i in order], np.int32),
        labels=labels,
        ids=tuple(ids[i] for i in order),
        content=content,
    )


def check_label(builder: Any, name: str, label: str) -> None:
    """Raises `UserError` unless the set has classes in the feature `label`, or `label` is empty.

    Nothing need be prepared for that.
    """
    features = builder.info.features
    known = [f for f in features if isinstance(features[f], tfds.features.ClassLabel)]
    if label and label not in known:
        raise UserError(
            f"--data.label: {name} has no classes {label!r}{suggestion(label, known)} "
            f"It has: {', '.join(known) or 'none'}"
        )


_REMEDY = 'prepare it where that works, with file_format="array_record", and copy it to'


def _builder(name: str, root: str | Path) -> Any:
    plain = name.partition("/")[0].partition(":")[0]
    try:
        return tfds.builder(name, data_dir=str(root))
    except DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)
        raise UserError(
            f"no set {plain!r} in the TFDS catalogue{suggestion(plain, known)}"
        ) from error
    # Many builders cannot even be made without TensorFlow, but what they prepared can be read.
    except Exception as error:
        with contextlib.suppress(Exception):
            parsed, options = parse_builder_name_kwargs(name)
            return builder_from_files(str(parsed), **options, data_dir=str(root))
        raise UserError(
            f"cannot open tfds:{name} ({_gist(error)}); {_REMEDY} {Path(root) / plain}"
        ) from error


@dataclasses.dataclass(frozen=True)
class _Decoded:
    name: str
    rows: Any
    feature: str
    size: int
    order: tuple[int, ...]

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "size size 3"]:
        row = self.order[index]
        try:
            return decode(self.rows[row][self.feature], self.size)
        except UnreadableError as error:
            raise UserError(f"{self.name}: picture {row} cannot be decoded: {error}") from error


def _feature(features: Any, names: tuple[str, ...], kind: type | None) -> str | None:
    known = [name for name in names if name in features]
    if kind is not None:
        known += [name for name in features if name not in known]
        known = [name for name in known if isinstance(features[name], kind)]
    return known[0] if known else None


def _texts(value: Any) -> tuple[str, ...]:
    # COCO's captions are a sequence of {"id", "text"}.
    if isinstance(value, dict):
        value = value.get("text", ())
    values = [value] if isinstance(value, bytes | str) else value
    return tuple(text for text in (_text(item).strip() for item in values) if text)


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _gist(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip(" *")]
    return textwrap.shorten(lines[0], 200) if lines else type(error).__name__
