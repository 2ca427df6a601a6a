"""Trees of weights as safetensors files: flat names, float16 or float32, zero rows left out."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxgen import storage
from jaxgen.errors import UserError, remedy, trouble

ROWS, VALUES = "#rows", "#values"
_POINTER = b"version https://git-lfs"


def save(
    path: Path,
    tree: Mapping[str, Any],
    metadata: Mapping[str, str],
    dtype: Literal["float32", "float16"] = "float32",
) -> None:
    """Writes a tree of float arrays, atomically; UserError where it cannot be written.

    A table most of whose rows are zero (words never met in training) is written as the numbers and
    values of the others.
    """
    flat: dict[str, np.ndarray] = {}
    for name, array in flatten_dict(jax.device_get(dict(tree)), sep="/").items():
        values = np.asarray(array, dtype, order="C")
        rows = np.flatnonzero(values.reshape(len(values), -1).any(1)) if values.ndim > 1 else None
        if rows is not None and 2 * len(rows) < len(values):
            flat[name + ROWS] = np.append(rows, len(values)).astype(np.int32)
            flat[name + VALUES] = values[rows]
        else:
            flat[name] = values
    if not storage.is_remote(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with storage.written(path) as partial:
            save_file(flat, partial, {key: str(value) for key, value in metadata.items()})
            partial.chmod(0o644)  # safetensors makes files that only their owner can read
    except (SafetensorError, OSError) as error:
        raise UserError(f"cannot write {path} ({error}); {remedy(error)} and run again") from None


def load(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The float32 tree and the metadata that `save` wrote; UserError where the file is damaged."""
    with opened(path) as file:
        metadata = file.metadata() or {}
        flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name in [name for name in flat if name.endswith(ROWS)]:
        table = name.removesuffix(ROWS)
        *rows, count = flat.pop(name)
        values = flat.pop(table + VALUES)
        flat[table] = np.zeros((count, *values.shape[1:]), values.dtype)
        flat[table][rows] = values
    tree = {name: array.astype(np.float32) for name, array in flat.items()}
    return unflatten_dict(tree, sep="/"), metadata


def load_metadata(path: Path) -> dict[str, str]:
    """The metadata alone, without reading the weights."""
    if storage.is_remote(path):
        with path.open("rb") as file:  # a local copy is what `safe_open` would need
            length = int.from_bytes(file.read(8), "little")
            return json.loads(file.read(length)).get("__metadata__", {})
    with opened(path) as file:
        return file.metadata() or {}


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A safetensors file, its header checked; UserError where it is none or is damaged."""
    try:
        with storage.local(path) as copy, safe_open(copy, "numpy") as file:
            yield file
    except (SafetensorError, OSError) as error:
        if trouble(error):
            raise
        if _is_pointer(path):
            raise UserError(
                f"{path} is a pointer of Git LFS and not the weights; `git lfs pull` in that "
                "folder fetches them"
            ) from None
        raise UserError(
            f"weights {path} cannot be read ({error}); copy or train them again"
        ) from None


def _is_pointer(path: Path) -> bool:
    """Whether it is what a clone without Git LFS leaves in the place of a large file."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        return file.read(len(_POINTER)) == _POINTER
    return False
