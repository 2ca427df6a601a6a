"""Published safetensors, memory-mapped: nothing is read before it is used, and no tensor twice.

A network's folder holds one file, or shards and an index of them, in one or several precisions
("variants": `model.safetensors`, `model.fp16.safetensors`).
"""

import json
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
_NAMES = ("diffusion_pytorch_model", "model")
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
DANGER = "a pickle, which may run any program when it is opened"


def network(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor in a network's folder by name: read-only views of its files, types as stored.

    The variant of full precision is taken before any other. Raises UserError where there is no
    safetensors file, or one is damaged, not what the index says, or of a type that is not read.
    """
    chosen = _chosen(folder)
    return _sharded(chosen) if chosen.suffix == ".json" else tensors(chosen)


def files_of(folder: Path) -> list[Path]:
    """The files that `network` would read."""
    chosen = _chosen(folder)
    return [chosen, *_shards(chosen)] if chosen.suffix == ".json" else [chosen]


def _chosen(folder: Path) -> Path:
    """The one file, or the index of the shards."""
    found = [
        file
        for name in _NAMES
        for file in (
            *folder.glob(f"{name}.*safetensors"),
            *folder.glob(f"{name}.safetensors.index*.json"),
        )
    ]
    if found:
        return min(found, key=lambda file: (_variant(file) != "", file.suffix, file.name))
    pickles = sorted(file.name for file in folder.glob("*") if file.suffix in PICKLES)
    if pickles:
        raise UserError(
            f"{folder} holds {pickles[0]}, {DANGER}; "
            "take the .safetensors of the same weights, or convert it by "
            "safetensors.torch.save_file on a machine where you trust it"
        )
    raise UserError(
        f"{folder} has no {' or '.join(_NAMES)}.safetensors: copy the network's weights there"
    )


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
    shards = {file.name: tensors(file) for file in _shards(index)}
    found = {}
    for tensor, name in _places(index).items():
        if tensor not in shards[name]:
            raise UserError(f"{index}: {tensor} is not in {name}; copy both again")
        found[tensor] = shards[name][tensor]
    return found


def _shards(index: Path) -> list[Path]:
    names = sorted(set(_places(index).values()))
    for name in names:
        if Path(name).name != name:
            raise UserError(f"{index} names {name!r}, which is no file beside it: refused")
        if not (index.parent / name).is_file():
            raise UserError(f"{index} names {name}, which is missing; copy it there")
    return [index.parent / name for name in names]


def _places(index: Path) -> dict[str, str]:
    """The file of each tensor."""
    try:
        places = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{index} is no index of weights ({error}); copy it again") from None
    for tensor, name in places.items():
        if not isinstance(name, str) or not name:
            raise UserError(f"{index} names no file for {tensor}, but {name!r}; copy it again")
    return places


def _variant(file: Path) -> str:
    """fp16 of model.fp16.safetensors and model.safetensors.index.fp16.json; else empty."""
    parts = set(file.name.split(".")[1:]) - {"safetensors", "index", "json"}
    return ".".join(sorted(parts))
