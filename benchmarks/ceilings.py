"""What a machine can do at most: measured beside everything else, and as its maker publishes it.

Published peaks are dense bf16 FLOP/s and bytes/s of device memory. NVIDIA's are from the data
sheets of H100, H200, A100 and L4, whose bf16 figures with sparsity are halved; Google's from
`jaxgen.runtime.topologies` (its documentation of v5e, v5p, v6e) and, v4, from its documentation.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.runtime import mesh as meshes
from jaxgen.runtime.topologies import CHIPS

REPEATS = 8
SIDE = {"cpu": 2048}  # of the matrices; else
LARGE_SIDE = 8192
COPIED = {"cpu": 2**28}  # bytes; else
LARGE_COPY = 2**30


class Ceilings(NamedTuple):
    """Of all devices together."""

    flops: float
    """FLOP/s."""
    bytes: float
    """Bytes/s of device memory, read and written."""


PUBLISHED = {
    "NVIDIA H100 80GB HBM3": Ceilings(989e12, 3.35e12),
    "NVIDIA H100 PCIe": Ceilings(756e12, 2.0e12),
    "NVIDIA H200": Ceilings(989e12, 4.8e12),
    "NVIDIA A100-SXM4-80GB": Ceilings(312e12, 2.039e12),
    "NVIDIA A100-SXM4-40GB": Ceilings(312e12, 1.555e12),
    "NVIDIA L4": Ceilings(121e12, 0.3e12),
    "TPU v4": Ceilings(275e12, 1.2e12),
    "TPU v5 lite": Ceilings(CHIPS["v5e"].flops, CHIPS["v5e"].bandwidth),
    "TPU v5": Ceilings(CHIPS["v5p"].flops, CHIPS["v5p"].bandwidth),
    "TPU v6 lite": Ceilings(CHIPS["v6e"].flops, CHIPS["v6e"].bandwidth),
}
"""Of one device, by what JAX calls it."""


def measured(dtype: str) -> Ceilings:
    """The fastest of some large matrix products in `dtype`, and of large sweeps through memory.

    The rows of the product and the array that is swept are split over all devices.
    """
    platform = jax.default_backend()
    mesh = meshes.dividing(jax.local_device_count())
    side = SIDE.get(platform, LARGE_SIDE)
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((side, side), np.float32)
    left = jax.device_put(matrix.astype(jnp.dtype(dtype)), meshes.over_batch(mesh))
    right = jax.device_put(left, meshes.replicated(mesh))
    multiply = jax.jit(lambda a, b: a @ b).lower(left, right).compile()
    product = _fastest(lambda: multiply(left, right))
    count = COPIED.get(platform, LARGE_COPY) // 4
    long = jax.device_put(np.ones((mesh.size, count // mesh.size), "f4"), meshes.over_batch(mesh))
    moved = 2.0 * long.nbytes
    return Ceilings(2.0 * side**3 / product, moved / _swept(long))


def published(dtype: str) -> Ceilings | None:
    """The maker's peaks of all devices together; None where they are not known here.

    Those of float32 are left out: how many of its bits a product keeps is a choice.
    """
    found = PUBLISHED.get(jax.devices()[0].device_kind)
    if found is None or dtype != "bfloat16":
        return None
    return Ceilings(*(jax.device_count() * peak for peak in found))


def shares(flops: float, moved: float | None, seconds: float, most: Ceilings) -> dict[str, Any]:
    """FLOP/s and bytes/s of what took `seconds`, and which parts of the ceilings these are."""
    rates = {"flops_per_second": flops / seconds, "share_of_flops": flops / seconds / most.flops}
    if moved is None:
        return rates
    pace = moved / seconds
    return rates | {"bytes_per_second": pace, "share_of_bytes": pace / most.bytes}


def _swept(long: jax.Array) -> float:
    """Seconds of the fastest reading and writing of an array, in place.

    Into new memory, a CPU would be timed at asking the system for its pages.
    """
    compiled = jax.jit(lambda x: x + 1, donate_argnums=0).lower(long).compile()

    def sweep() -> jax.Array:
        nonlocal long
        long = compiled(long)
        return long

    return _fastest(sweep)


def _fastest(run: Callable[[], jax.Array]) -> float:
    """Seconds of the fastest run: no other is nearer to what the machine can do."""
    times = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        run().block_until_ready()
        times.append(time.perf_counter() - begun)
    return min(times)
