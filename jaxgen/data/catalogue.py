"""Sets prepared by TensorFlow Datasets as ArrayRecord files, read without TensorFlow."""

import dataclasses
import difflib
import io
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8
from PIL import Image
from tensorflow_datasets.core.registered import DatasetNotFoundError

from jaxgen.data.source import Source, digest, in_memory, square
from jaxgen.errors import UserError

CAPTION_FEATURES = ("captions", "caption", "text", "texts", "title", "description")
LABEL_FEATURES = ("label", "labels", "class", "category")
ID_FEATURES = ("id", "image/filename", "filename", "file_name", "image_id")


def open_tfds(name: str, split: str, size: int, root: str | Path) -> Source:
    """One split of a set of the TFDS catalogue, downloaded and prepared if it is not there.

    `name` is what `tfds.builder` takes, e.g. `mnist`, `coco_captions`, `cats_vs_dogs:4.0.1`.
    """
    try:
        builder = tfds.builder(name, data_dir=str(root))
    except DatasetNotFoundError as error:
        plain = name.partition("/")[0].partition(":")[0]
        near = difflib.get_close_matches(plain, tfds.list_builders(), 1)
        hint = f"; did you mean tfds:{near[0]}?" if near else ""
        raise UserError(f"no set {name!r} in the TFDS catalogue{hint}") from error
    except Exception as error:
        raise UserError(f"cannot open tfds:{name}: {_first_line(error)}") from error
    try:
        builder.download_and_prepare(file_format="array_record")
    # TFDS and the hosts of its sets fail in too many ways to list, and none is ours.
    except Exception as error:
        raise UserError(
            f"cannot prepare tfds:{name} ({_first_line(error)}); prepare it on a machine with a "
            f'network, with file_format="array_record", and copy it to {builder.data_dir}'
        ) from error
    return read(builder, f"tfds:{name}", split, size)


def read(builder: Any, name: str, split: str, size: int) -> Source:
    """One split of a prepared builder as a source, sorted by id where its records have one.

    Captions are those of its text feature, or else the label's name.
    """
    features = builder.info.features
    if split not in builder.info.splits:
        known = sorted(builder.info.splits)
        near = difflib.get_close_matches(split, known, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"{name} has no split {split!r}{hint} It has: {', '.join(known)}")
    image = _feature(features, ("image",), tfds.features.Image)
    if image is None:
        raise UserError(f"{name} has no image feature; its features are {', '.join(features)}")
    captions = _feature(features, CAPTION_FEATURES, None)
    label = _feature(features, LABEL_FEATURES, tfds.features.ClassLabel)
    if captions is None and label is None:
        raise UserError(f"{name} has neither captions nor labels to learn from")
    ident = _feature(features, ID_FEATURES, None)

    rows = builder.as_data_source(split, decoders={image: tfds.decode.SkipDecoding()})
    labels = tuple(features[label].names) if label else ("all",)
    texts, numbers, ids = [], [], []
    for index in range(len(rows)):
        row = rows[index]
        numbers.append(int(row[label]) if label else 0)
        own = _texts(row[captions]) if captions else ()
        texts.append(own or (labels[numbers[-1]],))
        ids.append(_text(row[ident]) if ident else f"{index:08d}")
    order = sorted(range(len(ids)), key=ids.__getitem__)
    images = in_memory(_Decoded(rows, image, size, tuple(order)), len(order), size)
    if isinstance(images, np.ndarray):
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


@dataclasses.dataclass(frozen=True)
class _Decoded:
    rows: Any
    feature: str
    size: int
    order: tuple[int, ...]

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "size size 3"]:
        encoded = self.rows[self.order[index]][self.feature]
        return square(Image.open(io.BytesIO(encoded)).convert("RGB"), self.size)


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


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
