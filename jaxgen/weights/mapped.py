"""Published safetensors, memory-mapped: nothing is read before it is used, and no tensor twice.

A network's folder holds one file, or shards and an index of them, in one or several precisions
("variants": `model.safetensors`, `model.fp16.safetensors`).
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxgen.errors import UserError
from jaxgen.weights import files

_DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
}
_PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth")


def network(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor in a network's folder by name: read-only views of its files, types as stored.

    The variant of full precision is taken before any other. Raises UserError where there is no
    safetensors file, or one is damaged, not what the index says, or of a type that is not read.
    """
    indices = _full_precision_first(folder.glob("*.safetensors.index*.json"))
    whole = [file for file in folder.glob("*.safetensors") if "-of-" not in file.name]
    if indices and not any(_variant(file) == _variant(indices[0]) for file in whole):
        return _sharded(indices[0])
    if whole:
        return tensors(_full_precision_first(whole)[0])
    pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
    if pickles:
        raise UserError(
            f"{folder} holds {pickles[0]}, a pickle, which may run any program when it is opened; "
            "take the .safetensors of the same weights, or convert it by "
            "safetensors.torch.save_file on a machine where you trust it"
        )
    raise UserError(f"{folder} has no .safetensors file: copy the network's weights there")


def tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of one file; UserError where it is damaged or holds a type that is not read."""
    with files.opened(path):  # the library checks the header against the file
        pass
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    content = np.memmap(path, np.uint8, "r")[8 + length :]
    found = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in _DTYPES:
            raise UserError(
                f"{path}: {name} is of type {entry['dtype']}, which is not read; take weights of "
                f"{', '.join(_DTYPES)}"
            )
        begin, end = entry["data_offsets"]
        found[name] = content[begin:end].view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return found


def _sharded(index: Path) -> dict[str, np.ndarray]:
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(places.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is no index of weights ({error}); copy it again") from None
    shards = {}
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(f"{index} names {name!r}, which is no file beside it: refused")
        if not (index.parent / name).is_file():
            raise UserError(f"{index} names {name}, which is missing; copy it there")
        shards[name] = tensors(index.parent / name)
    for tensor, name in places.items():
        if tensor not in shards[name]:
            raise UserError(f"{index}: {tensor} is not in {name}; copy both again")
    return {tensor: shards[name][tensor] for tensor, name in places.items()}


def _full_precision_first(found: Iterable[Path]) -> list[Path]:
    return sorted(found, key=lambda file: (_variant(file) != "", file.name))


def _variant(file: Path) -> str:
    """fp16 of model.fp16.safetensors and model.safetensors.index.fp16.json; else empty."""
    parts = set(file.name.split(".")[1:]) - {"safetensors", "index", "json"}
    return ".".join(sorted(parts))
