"""What is computed of every picture once and kept: the codes of a codec, say."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from jaxgen.data.source import Source, digest
from jaxgen.errors import UserError
from jaxgen.runtime import mesh as meshes
from jaxgen.state import Once

FORMAT = 1  # to be raised where the code changes what is computed


def arrays(
    once: Once, source: Source, cache: Path, progress: Callable[[int, int], None]
) -> dict[str, np.ndarray]:
    """The arrays, one row a picture, from the folder `cache`, or computed and put there.

    Their folder's name is a digest of pictures, weights and description: others are never taken.
    """
    leaves = jax.tree.leaves(jax.device_get(once.weights))
    weights = digest(*(digest(np.ascontiguousarray(leaf).tobytes()).encode() for leaf in leaves))
    told = (FORMAT, once.describes, weights, source.fingerprint)
    folder = cache / digest(repr(told).encode())
    row = jax.ShapeDtypeStruct((1, source.size, source.size, 3), np.uint8)
    shapes = jax.eval_shape(once.compute, once.weights, row)
    kept = {name: _kept(folder / f"{name}.npy", len(source), s) for name, s in shapes.items()}
    found = {name: array for name, array in kept.items() if array is not None}
    if len(found) == len(shapes):
        return found
    computed = _computed(once, source, progress)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in computed.items():
            partial = folder / f".{name}.{os.getpid()}.partial"
            with partial.open("wb") as file:
                np.save(file, array)
            os.replace(partial, folder / f"{name}.npy")
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror}); free space there") from None
    return computed


def _computed(
    once: Once, source: Source, progress: Callable[[int, int], None]
) -> dict[str, np.ndarray]:
    batch = meshes.images_at_once(source.size)
    mesh = meshes.dividing(batch)
    compute = jax.jit(meshes.known(mesh, once.compute))
    weights = meshes.put(once.weights, meshes.replicated(mesh))
    blocks = []
    for start in range(0, len(source), batch):
        rows = range(start, min(start + batch, len(source)))
        images = np.stack([source.images[row] for row in rows])
        block = compute(weights, meshes.put_padded(mesh, images, batch))
        blocks.append({name: np.asarray(array)[: len(images)] for name, array in block.items()})
        progress(rows.stop, len(source))
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _kept(path: Path, count: int, row: jax.ShapeDtypeStruct) -> np.ndarray | None:
    with contextlib.suppress(OSError, ValueError, EOFError):
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        if (found.shape, found.dtype) == ((count, *row.shape[1:]), row.dtype):
            return found
    return None
