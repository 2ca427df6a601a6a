"""Fashion-MNIST (Xiao, Rasul and Vollgraf 2017, MIT): 70 000 garments, 28 pixels square.

Read from the four idx files in which it is published, compressed or not: those that Debian's
package dataset-fashion-mnist installs, or a folder's. Light garments on black, as published.
"""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from jaxgen.data import grey
from jaxgen.data.source import Source
from jaxgen.errors import UserError

INSTALLED = "/usr/share/datasets/fashion-mnist"
PREFIX = {"train": "train", "test": "t10k"}
UNSIGNED_BYTES = 0x08  # the idx format's code for the type of the values

_NAMES = (
    ("T-shirt/top", "a t-shirt", "un t-shirt"),
    ("Trouser", "a pair of trousers", "un pantalon"),
    ("Pullover", "a pullover", "un pull"),
    ("Dress", "a dress", "une robe"),
    ("Coat", "a coat", "un manteau"),
    ("Sandal", "a sandal", "une sandale"),
    ("Shirt", "a shirt", "une chemise"),
    ("Sneaker", "a sneaker", "une basket"),
    ("Bag", "a bag", "un sac"),
    ("Ankle boot", "an ankle boot", "une bottine"),
)
CLASSES = tuple(
    grey.Class(name, (english, french, *(text.split(" ", 1)[1] for text in (english, french))))
    for name, english, french in _NAMES
)


def read(folder: str | Path, split: str, size: int) -> Source:
    """One split of the idx files in `folder`, its pictures `size` pixels square.

    Raises `UserError` where files are missing, damaged, or do not belong together.
    """
    grey.check_split("fashion-mnist", split)
    folder = Path(folder).expanduser()
    files = [
        _file(folder, f"{PREFIX[split]}-{part}-ubyte") for part in ("images-idx3", "labels-idx1")
    ]
    pictures, labels = (_idx(file) for file in files)
    if pictures.ndim != 3 or pictures.shape[1] != pictures.shape[2] or not pictures.size:
        raise UserError(f"{files[0]} holds values of shape {pictures.shape}, no square pictures")
    if labels.shape != pictures.shape[:1]:
        raise UserError(
            f"{files[1]} holds values of shape {labels.shape} for the {len(pictures)} pictures in "
            f"{files[0].name}; take both from the same place"
        )
    if labels.max() >= len(CLASSES):
        raise UserError(f"{files[1]} holds the label {labels.max()}; Fashion-MNIST has 0 to 9")
    ids = tuple(f"{n:05d}" for n in range(len(pictures)))
    return grey.source(
        "fashion-mnist", split, size, pictures, labels.astype(np.int32), ids, CLASSES
    )


def _file(folder: Path, name: str) -> Path:
    for file in (folder / f"{name}.gz", folder / name):
        if file.is_file():
            return file
    raise UserError(
        f"no {name}.gz in {folder}: install Debian's package dataset-fashion-mnist, or put the "
        "four files of github.com/zalandoresearch/fashion-mnist in a folder and name it: "
        "fashion-mnist:PATH"
    )


def _idx(file: Path) -> UInt8[np.ndarray, "..."]:
    """The array in an idx file: two zeros, a type, a count of axes, their sizes, the values."""
    try:
        raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{file} cannot be read ({error}); fetch it again") from error
    axes = raw[3] if len(raw) > 3 else 0
    head = 4 + 4 * axes
    if raw[:3] != bytes([0, 0, UNSIGNED_BYTES]) or not axes or len(raw) < head:
        raise UserError(f"{file} is no idx file of unsigned bytes; fetch it again")
    shape = tuple(np.frombuffer(raw, ">u4", axes, offset=4).tolist())
    if len(raw) - head != math.prod(shape):
        raise UserError(
            f"{file} is cut short or damaged: {len(raw) - head} bytes follow where its head says "
            f"{math.prod(shape)}; fetch it again"
        )
    return np.frombuffer(raw, np.uint8, offset=head).reshape(shape)
