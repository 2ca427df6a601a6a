"""Sets prepared by TensorFlow Datasets as ArrayRecord files, read without TensorFlow."""

import contextlib
import dataclasses
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8
from tensorflow_datasets.core.naming import parse_builder_name_kwargs
from tensorflow_datasets.core.read_only_builder import builder_from_directory, builder_from_files
from tensorflow_datasets.core.registered import DatasetNotFoundError

from jaxgen.data.picture import UnreadableError, decode
from jaxgen.data.source import Source, digest, fits_in_memory, suggestion
from jaxgen.errors import UserError

CAPTION_FEATURES = ("captions", "caption", "text", "texts", "title", "description")
LABEL_FEATURES = ("label", "labels", "class", "category")
ID_FEATURES = ("id", "image/filename", "filename", "file_name", "image_id")
INFO = "dataset_info.json"  # in every folder that TFDS has prepared


def is_folder(name: str) -> bool:
    """Whether that is the path of a prepared set, and not a name of the catalogue.

    It is one if it starts with /, . or ~, if it has more than the one slash of NAME/CONFIG, or if
    a prepared set is there.
    """
    return name.startswith(("/", ".", "~")) or name.count("/") > 1 or (Path(name) / INFO).is_file()


def open_folder(path: str, split: str, size: int, label: str = "") -> Source:
    """One split of a set that TFDS has prepared in the folder `path`, wherever that is.

    The code that made the set is not needed. `label` is as in `read`.
    """
    name = f"tfds:{path}"
    folder = Path(path).expanduser()
    _check_prepared(folder)
    try:
        builder = builder_from_directory(folder)
    # Its JSON files may be wrong in any way, and name features of code that is not here.
    except Exception as error:
        raise UserError(f"cannot open {name} ({_gist(error)}); {_ANEW}") from error
    formats = {form.value for form in builder.info.available_file_formats()}
    if "array_record" not in formats:
        raise UserError(
            f"{name} is in {', '.join(sorted(formats))} files, which are not read here; prepare it "
            'with file_format="array_record"'
        )
    return read(builder, name, split, size, label)


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
        builder = _builder(name, root)
        # Another process may have been quicker.
        if not builder.is_prepared():
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
    if not builder.info.splits[split].num_examples:
        raise UserError(f"{name} has no pictures in its split {split!r}; use another split")
    check_label(builder, name, label)
    fields = _fields(features, name, label)
    records = _Records(name, _rows(builder, name, split, fields.image), fields.image)
    labels = tuple(features[fields.label].names) if fields.label else ("all",)
    kept = fits_in_memory(len(records), size)
    texts, numbers, ids, prints = [], [], [], []
    for index in range(len(records)):
        row = records[index]
        number = int(row[fields.label]) if fields.label else 0
        own = _texts(row[fields.captions]) if fields.captions else ()
        if not own and (number < 0 or not fields.label):
            lacks = "label" if fields.label else "caption"
            raise UserError(
                f"{name}, split {split}: picture {index} has no {lacks}; use another split, or a "
                "set that gives it one"
            )
        numbers.append(number)
        texts.append(own or (labels[number],))
        ids.append(_text(row[fields.ident]) if fields.ident else f"{index:08d}")
        prints.append(b"" if kept else digest(row[fields.image]).encode())
    order = sorted(range(len(ids)), key=ids.__getitem__)
    images = _Decoded(records, size, tuple(order))
    if kept:
        images = np.stack([images[i] for i in range(len(order))])
        content = digest(images.tobytes())
    else:
        content = digest(*(prints[i] for i in order))
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
_ANEW = "copy it anew from where it is whole, or prepare it again"


def _check_prepared(folder: Path) -> None:
    if not folder.exists():
        raise UserError(f"no folder {folder}; check the path after tfds:")
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; tfds: takes the folder that holds {INFO}")
    if (folder / INFO).is_file():
        return
    below = [file for depth in ("*", "*/*") for file in sorted(folder.glob(f"{depth}/{INFO}"))]
    hint = f", such as tfds:{below[0].parent}" if below else ", which TFDS wrote beside the records"
    raise UserError(f"no {INFO} in {folder}; give the folder that holds it{hint}")


def _builder(name: str, root: str | Path) -> Any:
    plain = name.partition("/")[0].partition(":")[0]
    try:
        return tfds.builder(name, data_dir=str(root))
    except DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)
        raise UserError(
            f"no set {plain!r} in the TFDS catalogue{suggestion(plain, known)} "
            "The path of a set that is prepared starts with /, ./ or ~"
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
class _Fields:
    """The names of a record's features, by what they are used for."""

    image: str
    captions: str | None
    label: str | None
    ident: str | None


def _fields(features: Any, name: str, label: str) -> _Fields:
    known = ", ".join(sorted(features))
    image = _feature(features, ("image",), tfds.features.Image)
    if image is None:
        raise UserError(
            f"{name} has no image feature; use a set with a tfds.features.Image. It has: {known}"
        )
    captions = [field for field in CAPTION_FEATURES if _has_text(features, field)]
    classes = label or _feature(features, LABEL_FEATURES, tfds.features.ClassLabel)
    if not captions and classes is None:
        raise UserError(
            f"{name} has neither captions nor labels to learn from; use a set with a text feature "
            f"called {', '.join(CAPTION_FEATURES[:-1])} or {CAPTION_FEATURES[-1]}, or with a "
            f"tfds.features.ClassLabel. It has: {known}"
        )
    ident = _feature(features, ID_FEATURES, None)
    return _Fields(image, captions[0] if captions else None, classes, ident)


def _feature(features: Any, names: tuple[str, ...], kind: type | None) -> str | None:
    known = [name for name in names if name in features]
    if kind is not None:
        known += [name for name in features if name not in known]
        known = [name for name in known if isinstance(features[name], kind)]
    return known[0] if known else None


def _has_text(features: Any, name: str) -> bool:
    """Whether that is a text, several, or (COCO's captions) records of which `text` is one."""
    if name not in features:
        return False
    feature = features[name]
    if isinstance(feature, tfds.features.Sequence):
        feature = feature.feature
    if isinstance(feature, tfds.features.FeaturesDict):
        return _has_text(feature, "text")
    return feature.np_dtype == np.object_


def _rows(builder: Any, name: str, split: str, image: str) -> Sequence[dict[str, Any]]:
    try:
        return builder.as_data_source(split, decoders={image: tfds.decode.SkipDecoding()})
    except NotImplementedError as error:
        raise UserError(
            f"{name} was prepared in a format without random access; remove {builder.data_dir}, or "
            f"{_REMEDY} there"
        ) from error


@dataclasses.dataclass(frozen=True)
class _Records:
    name: str
    rows: Sequence[dict[str, Any]]
    image: str

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            row = self.rows[index]
        # What ArrayRecord and protobuf raise for a file that is missing or damaged is not told.
        except Exception as error:
            raise UserError(
                f"{self.name}: record {index} cannot be read ({_gist(error)}); {_ANEW}"
            ) from error
        # Some files that are cut short read as records of nothing.
        if row[self.image] is None:
            raise UserError(f"{self.name}: record {index} is empty, its file cut short; {_ANEW}")
        return row


@dataclasses.dataclass(frozen=True)
class _Decoded:
    records: _Records
    size: int
    order: tuple[int, ...]

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "size size 3"]:
        row = self.order[index]
        try:
            return decode(self.records[row][self.records.image], self.size)
        except UnreadableError as error:
            name = self.records.name
            raise UserError(f"{name}: picture {row} cannot be decoded: {error}") from error


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
