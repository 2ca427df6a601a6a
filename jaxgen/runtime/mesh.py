"""Devices as a mesh of two axes, and where arrays live on it."""

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxgen.config import Mesh as MeshConfig
from jaxgen.errors import UserError

SHARD_FROM = 2**16  # elements; smaller arrays are cheaper to copy than to gather


def prepare(batch: int, cache: Path | None = None) -> None:
    """Before anything touches JAX: one CPU device per usable core, and the compile cache.

    XLA's small convolutions use one core each, so a CPU works best as several devices with the
    batch split over them: the largest count that divides `batch`. GPUs and TPUs are unaffected.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    devices = max(n for n in range(1, (cores or 1) + 1) if batch % n == 0)
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", devices)
    if cache is not None and jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_compilation_cache_dir", str(cache.absolute()))
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def make(config: MeshConfig, batch: int) -> jax.sharding.Mesh:
    """The mesh that a config asks for; UserError where devices or batch do not fit it."""
    devices = jax.device_count()
    data, fsdp = config.data, config.fsdp
    if (data < 1 and data != -1) or (fsdp < 1 and fsdp != -1) or data == fsdp == -1:
        raise UserError(
            f"--mesh.data {data} --mesh.fsdp {fsdp}: give counts, at most one of them -1"
        )
    if fsdp == -1:
        fsdp = max(1, devices // data)
    if data == -1:
        data = max(1, devices // fsdp)
    if data * fsdp > devices:
        raise UserError(
            f"a mesh of {data} x {fsdp} needs {data * fsdp} devices; there are {devices}"
        )
    if batch % (data * fsdp):
        raise UserError(f"--train.batch {batch} does not divide over {data} x {fsdp} devices")
    chosen = np.asarray(jax.devices()[: data * fsdp]).reshape(data, fsdp)
    return jax.sharding.Mesh(chosen, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def dividing(batch: int) -> jax.sharding.Mesh:
    """The mesh of as many devices as the batch divides over."""
    devices = max(n for n in range(1, jax.device_count() + 1) if batch % n == 0)
    return make(MeshConfig(data=devices), batch)


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The leading axis split over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def over_parameters(mesh: jax.sharding.Mesh, shapes: Any) -> Any:
    """For every array of a tree: its largest axis that divides is split over `fsdp`."""
    ways = mesh.shape["fsdp"]

    def place(array: jax.ShapeDtypeStruct) -> NamedSharding:
        fitting = [axis for axis, n in enumerate(array.shape) if n % ways == 0]
        if ways == 1 or array.size < SHARD_FROM or not fitting:
            return replicated(mesh)
        largest = max(fitting, key=lambda axis: array.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*(None,) * largest, "fsdp"))

    return jax.tree.map(place, shapes)


def put_batch(mesh: jax.sharding.Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """This process's share of a batch, as the global arrays of which it is a part."""
    where = over_batch(mesh)
    return {k: jax.make_array_from_process_local_data(where, v) for k, v in batch.items()}
