"""PyTorch checkpoints of tensors, read without PyTorch and without running what they ask for.

A checkpoint is a pickle, and a pickle is a program. This reader lets it name a tensor, its
storage and an ordered dict, nothing else, and only opens a file whose checksum is known.
"""

import collections
import hashlib
import io
import math
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxgen.errors import UserError

# Both layouts of torch.save: a zip since PyTorch 1.6, before that pickles laid end to end.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001

_DTYPES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}


def load_tensors(
    path: Path, sha256: str, remedy: str = "install the package that holds it again"
) -> dict[str, np.ndarray]:
    """The tensors by name of a state dict that `torch.save` wrote, in either of its layouts.

    `sha256` is the file's checksum or its first digits, 8 at least, as PyTorch writes them into
    the names of published files; `remedy` is what to do about a wrong one.

    Raises `UserError` when the file is missing, its SHA-256 is another, it asks for anything but
    tensors, or it is not such a file.
    """
    if len(sha256) < 8:
        raise ValueError(f"{sha256!r} is too short to know a file by")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the weights {path}: {error.strerror}.") from error
    found = hashlib.sha256(content).hexdigest()
    if not found.startswith(sha256):
        raise UserError(
            f"{path.name} is not the expected file (SHA-256 {found}, not {sha256}): {remedy}."
        )
    try:
        read = _read_zip if zipfile.is_zipfile(io.BytesIO(content)) else _read_legacy
        named, storages = read(io.BytesIO(content))
        return {name: _array(tensor, storages) for name, tensor in named.items()}
    except UserError:
        raise
    except Exception as error:  # a broken pickle may fail in any way at all
        raise UserError(f"{path.name} is not a PyTorch checkpoint of tensors: {error}.") from error


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild_tensor(storage, offset, shape, strides, *_ignored) -> _Tensor:
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    **{("torch", name): np.dtype(dtype) for name, dtype in _DTYPES.items()},
}


class _TensorUnpickler(pickle.Unpickler):
    """Tensors come out as `_Tensor`: where their numbers lie, which legacy files say afterwards."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise UserError(f"the checkpoint asks for {module}.{name}: refused, it is no tensor.")
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _location, _count, *view = pid
        if kind != "storage" or any(part is not None for part in view):
            raise UserError(f"the checkpoint holds a {kind}: refused, it is no tensor.")
        return _Storage(key, dtype)


def _read_zip(file: BinaryIO) -> tuple[dict[str, _Tensor], dict[str, bytes]]:
    with zipfile.ZipFile(file) as archive:
        (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        folder = pickled.removesuffix("data.pkl") + "data/"
        named = _TensorUnpickler(io.BytesIO(archive.read(pickled))).load()
        storages = {
            name.removeprefix(folder): archive.read(name)
            for name in archive.namelist()
            if name.startswith(folder)
        }
    return named, storages


def _read_legacy(file: BinaryIO) -> tuple[dict[str, _Tensor], dict[str, bytes]]:
    magic, protocol, _system = (_TensorUnpickler(file).load() for _ in range(3))
    if (magic, protocol) != (_LEGACY_MAGIC, _LEGACY_PROTOCOL):
        raise ValueError("its first bytes are another format's")
    unpickler = _TensorUnpickler(file)
    named = unpickler.load()
    keys = _TensorUnpickler(file).load()
    sizes = {t.storage.key: t.storage.dtype.itemsize for t in named.values()}
    storages = {}
    for key in keys:
        count = int.from_bytes(_exactly(file, 8), "little")
        storages[key] = _exactly(file, count * sizes[key])
    return named, storages


def _exactly(file: BinaryIO, size: int) -> bytes:
    found = file.read(size)
    if len(found) < size:
        raise ValueError("it ends in the middle of a tensor")
    return found


def _array(tensor: _Tensor, storages: dict[str, bytes]) -> np.ndarray:
    if not isinstance(tensor, _Tensor):
        raise ValueError(f"it holds a {type(tensor).__name__}")
    flat = np.frombuffer(storages[tensor.storage.key], tensor.storage.dtype)
    extent = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True))
    if math.prod(tensor.shape) == 0:
        return np.zeros(tensor.shape, flat.dtype)
    # NumPy's strided views check no bounds.
    if min(tensor.offset, *tensor.shape, *tensor.strides, 0) < 0:
        raise ValueError("a tensor has a negative offset, side or stride")
    if tensor.offset + extent >= flat.size:
        raise ValueError("a tensor reaches past the end of its storage")
    strides = [s * flat.itemsize for s in tensor.strides]
    return np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.shape, strides).copy()
