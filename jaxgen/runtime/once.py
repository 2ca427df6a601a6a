"""What is computed of every picture or caption once and kept: the codes of a codec, say."""

import contextlib
import fcntl
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from jaxgen import storage
from jaxgen.data.pipeline import Shared
from jaxgen.data.source import Images, Source, digest
from jaxgen.errors import UserError, remedy
from jaxgen.runtime import mesh as meshes
from jaxgen.state import Once

FORMAT = 1  # to be raised where the code changes what is computed
CAPTIONS = 64  # encoded together

Progress = Callable[[int, int], None]


class _Rows(NamedTuple):
    """What is computed from: the arrays by number, how many, their digest, how many at once."""

    rows: Images | np.ndarray
    total: int
    fingerprint: str
    together: int


def pictures(once: Once, source: Source, cache: Path, progress: Progress) -> dict[str, np.ndarray]:
    """The arrays, one row a picture, mapped from the folder `cache`, or computed and put there.

    Their folder's name is a digest of pictures, weights and description: others are never taken.
    """
    together = meshes.images_at_once(source.size)
    rows = _Rows(source.images, len(source), source.fingerprint, together)
    return _arrays(once, rows, cache, progress)


def captions(
    once: Once, ids: Int[np.ndarray, "n length"], cache: Path, progress: Progress
) -> tuple[dict[str, Shared], dict[str, np.ndarray]]:
    """(The arrays, one row a caption, as `pictures`, those [1, …] of the empty caption)."""
    together = np.concatenate([ids, once.empty])
    distinct, which = np.unique(together, axis=0, return_inverse=True)
    rows = _Rows(distinct, len(distinct), digest(distinct.tobytes()), CAPTIONS)
    found = _arrays(once, rows, cache, progress)
    shared = {name: Shared(array, which.reshape(-1)) for name, array in found.items()}
    return shared, {name: array[np.array([-1])] for name, array in shared.items()}


def _arrays(once: Once, rows: _Rows, cache: Path, progress: Progress) -> dict[str, np.ndarray]:
    leaves = jax.tree.leaves(jax.device_get(once.weights))
    weights = digest(*(digest(np.ascontiguousarray(leaf).tobytes()).encode() for leaf in leaves))
    told = (FORMAT, once.describes, weights, rows.fingerprint)
    folder = cache / digest(repr(told).encode())
    first = np.asarray(rows.rows[0])[None]
    shapes = jax.eval_shape(once.compute, once.weights, first)
    shapes = {name: ((rows.total, *s.shape[1:]), s.dtype) for name, s in shapes.items()}
    storage.sweep(folder)
    found = _kept(folder, shapes)
    if found is None:
        with _writing(folder), contextlib.ExitStack() as open_files:
            folder.mkdir(parents=True, exist_ok=True)
            files = {
                name: open_files.enter_context(_array_file(folder / f"{name}.npy", *shape))
                for name, shape in shapes.items()
            }
            for block in _computed(once, rows, progress):
                for name, array in block.items():
                    files[name].write(array.tobytes())
        found = _kept(folder, shapes)
    assert found is not None
    return found


def _computed(once: Once, rows: _Rows, progress: Progress) -> Iterator[dict[str, np.ndarray]]:
    """The arrays, some rows at a time, in order."""
    mesh = meshes.dividing(rows.together)
    compute = jax.jit(meshes.known(mesh, once.compute))
    weights = meshes.put(once.weights, meshes.replicated(mesh))
    for start in range(0, rows.total, rows.together):
        stop = min(start + rows.together, rows.total)
        block = np.stack([rows.rows[row] for row in range(start, stop)])
        found = compute(weights, meshes.put_padded(mesh, block, rows.together))
        yield {name: np.asarray(array)[: len(block)] for name, array in found.items()}
        progress(stop, rows.total)


def _kept(folder: Path, shapes: dict[str, Any]) -> dict[str, np.ndarray] | None:
    """The arrays in a folder, mapped; None where one of them is not there or damaged."""
    found = {}
    for name, told in shapes.items():
        with contextlib.suppress(OSError, ValueError, EOFError):
            array = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            if (array.shape, array.dtype) == told:
                found[name] = array
    return found if len(found) == len(shapes) else None


@contextlib.contextmanager
def _array_file(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> Iterator[BinaryIO]:
    """An .npy file to which the array's bytes are written; it is there when they all are.

    Processes that share a folder each write a file of their own, which is locked for as long, and
    the last one counts.
    """
    partial = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.partial")
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    try:
        with partial.open("xb") as file:
            with contextlib.suppress(OSError):  # disks without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            np.lib.format.write_array_header_1_0(file, header)
            yield file
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror}); {remedy(error)}") from None
