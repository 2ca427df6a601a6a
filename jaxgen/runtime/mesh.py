"""Devices as a mesh of two axes, and where arrays live on it."""

import contextlib
import functools
import os
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import ml_dtypes
import numpy as np
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxgen import storage
from jaxgen.config import Mesh as MeshConfig
from jaxgen.errors import UserError
from jaxgen.runtime import topologies

SHARD_FROM = 2**16  # elements; smaller arrays are cheaper to copy than to gather
NARROW = (np.float16, ml_dtypes.bfloat16)
WHOLE = "whole"

T = TypeVar("T")


def prepare(batch: int, cache: Path | None = None) -> None:
    """Before anything touches JAX: one CPU device per usable core, and the compile cache.

    XLA's small convolutions use one core each, so a CPU works best as several devices with the
    batch split over them: the largest count that divides `batch`. GPUs and TPUs are unaffected.
    """
    topologies.look_for_no_tpu()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    devices = max(n for n in range(1, (cores or 1) + 1) if batch % n == 0)
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", devices)
    # A full disk fails the run as well, which says so, unless only this does not fit.
    warnings.filterwarnings("ignore", "Error writing persistent .*(No space|Disk quota)")
    if cache is not None and jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        place = cache if storage.is_remote(cache) else cache.absolute()
        jax.config.update("jax_compilation_cache_dir", str(place))
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def make(config: MeshConfig, batch: int, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
    """The mesh that a config asks for, of `devices` or of all that there are.

    Raises UserError where devices or batch do not fit it.
    """
    there = jax.devices() if devices is None else devices
    count = len(there)
    data, fsdp = config.data, config.fsdp
    if (data < 1 and data != -1) or (fsdp < 1 and fsdp != -1) or data == fsdp == -1:
        raise UserError(
            f"--mesh.data {data} --mesh.fsdp {fsdp}: give counts, at most one of them -1"
        )
    if fsdp == -1:
        fsdp = max(1, count // data)
    if data == -1:
        data = max(1, count // fsdp)
    if -1 in (config.data, config.fsdp) and data * fsdp < count:
        given = max(config.data, config.fsdp)
        divisors = ", ".join(str(n) for n in range(1, count + 1) if count % n == 0)
        raise UserError(
            f"--mesh.data {config.data} --mesh.fsdp {config.fsdp}: the {count} devices do not "
            f"divide by {given}; give one of {divisors}, or both counts, which leaves "
            f"{count - data * fsdp} idle"
        )
    if data * fsdp > count:
        raise UserError(
            f"a mesh of {data} x {fsdp} needs {data * fsdp} devices; there are {count}: lower "
            "--mesh.data or --mesh.fsdp"
        )
    if devices is None and jax.process_count() > 1 and data * fsdp < count:
        raise UserError(
            f"a mesh of {data} x {fsdp} leaves {count - data * fsdp} of the {count} devices of "
            f"{jax.process_count()} processes idle; give --mesh.data and --mesh.fsdp whose product "
            f"is {count}"
        )
    if batch % (data * fsdp):
        raise UserError(
            f"--train.batch {batch} does not divide over {data} x {fsdp} devices; give a multiple "
            f"of {data * fsdp}"
        )
    _parsed(config.rules)
    chosen = np.asarray(there[: data * fsdp]).reshape(data, fsdp)
    return jax.sharding.Mesh(chosen, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def dividing(batch: int) -> jax.sharding.Mesh:
    """The mesh of as many of this host's own devices as the batch divides over."""
    local = jax.local_devices()
    devices = max(n for n in range(1, len(local) + 1) if batch % n == 0)
    return make(MeshConfig(data=devices), batch, local)


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The leading axis split over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def over_parameters(mesh: jax.sharding.Mesh, shapes: Any, rules: Sequence[str] = ()) -> Any:
    """For every array of a tree: its largest axis that divides is split over `fsdp`.

    Small arrays are whole everywhere. `rules` are the exceptions of `jaxgen.config.Mesh`. Raises
    UserError where one asks for what an array cannot be.
    """
    ways, exceptions = mesh.shape["fsdp"], _parsed(rules)

    def place(path: Any, array: jax.ShapeDtypeStruct) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        asked = [axis for pattern, axis in exceptions if pattern.search(name)]
        if asked:
            return _split(mesh, name, array.shape, asked[-1])
        fitting = [axis for axis, n in enumerate(array.shape) if n % ways == 0]
        if ways == 1 or array.size < SHARD_FROM or not fitting:
            return replicated(mesh)
        return _split(mesh, name, array.shape, max(fitting, key=lambda axis: array.shape[axis]))

    return jax.tree_util.tree_map_with_path(place, shapes)


def check_rules(rules: Sequence[str], *trees: Any) -> None:
    """Raises UserError for a rule that is for none of the arrays of these trees."""
    paths = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for tree in trees
        for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]
    for rule, (pattern, _) in zip(rules, _parsed(rules), strict=True):
        if not any(pattern.search(path) for path in paths):
            there = next((path for path in paths if path.startswith("params/")), paths[-1])
            raise UserError(f"--mesh.rules {rule!r} fits no array; there is, say, {there}")


def _parsed(rules: Sequence[str]) -> list[tuple[re.Pattern[str], int | None]]:
    found = []
    for rule in rules:
        pattern, _, axis = rule.rpartition("=")
        try:
            if not pattern:
                raise ValueError
            found.append((re.compile(pattern), None if axis == WHOLE else int(axis)))
        except re.error as error:
            raise UserError(
                f"--mesh.rules {rule!r}: the pattern is no regular expression ({error})"
            ) from None
        except ValueError:
            raise UserError(
                f"--mesh.rules {rule!r}: give PATTERN=AXIS or PATTERN={WHOLE}, the pattern a "
                "regular expression"
            ) from None
    return found


def _split(
    mesh: jax.sharding.Mesh, name: str, shape: tuple[int, ...], axis: int | None
) -> NamedSharding:
    if axis is None or not shape:  # optimisers keep counts beside the moments of an array
        return replicated(mesh)
    ways = mesh.shape["fsdp"]
    if not 0 <= axis < len(shape) or shape[axis] % ways:
        raise UserError(
            f"--mesh.rules asks for axis {axis} of {name}, whose shape is {shape}, to be split "
            f"{ways} ways; choose another axis, or {WHOLE}"
        )
    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, "fsdp"))


def known(mesh: jax.sharding.Mesh, function: Callable[..., T]) -> Callable[..., T]:
    """The function, to be given to `jax.jit`, with the mesh known to what is traced in it.

    Where its arguments lie decides as before how the program is split. But a kernel that is not
    XLA's own has to be told (`jaxgen.models.attention`), and so has XLA where parameters are split:
    that it is parameters which travel, and not images. No module may be called within a `jax.jit`
    or `jax.vmap` of the function's own: JAX may take the first from its cache as it was traced
    elsewhere, and in the second a module sees one example, whose first axis would be split.
    """

    @functools.wraps(function)
    def within(*args: Any, **kwargs: Any) -> T:
        split = mesh.shape["fsdp"] > 1
        images_stay = nn.intercept_methods(_batch_split) if split else contextlib.nullcontext()
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), images_stay:
            return function(*args, **kwargs)

    within.__name__ = getattr(function, "func", function).__name__  # the program's, in profiles
    return within


def options(mesh: jax.sharding.Mesh) -> dict[str, Any] | None:
    """Compiler options, to be given to `jax.jit`, of a program whose parameters are split.

    On a TPU XLA would pass pieces of an array round among the chips, and multiply each as it comes,
    rather than gather the whole: where images are split over the same chips, as here, that is 1.8
    times the products and 3.8 times the traffic of memory (and 13 % less of it used), in ADD of
    Stable Diffusion 2.1 on 1 x 16 chips of v5e (benchmarks/results/tpu-windowed-einsum.json).
    """
    gathers = mesh.shape["fsdp"] > 1 and mesh.devices.flat[0].platform == "tpu"
    return {"xla_jf_spmd_threshold_for_windowed_einsum_mib": 10**6} if gathers else None


def _batch_split(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
    """A module's call with what goes in and comes out split over the batch on all devices.

    Else the split of parameters spreads to what has none of its own, such as noise drawn in the
    program, and every device works on all images. For a batch is taken what has two axes or more,
    of which the devices divide the first; of what comes out, only what is as long as something that
    went in.
    """
    if context.method_name != "__call__":
        return call(*args, **kwargs)
    lengths = {array.shape[0] for array in jax.tree.leaves((args, kwargs)) if _divides(array)}

    def over_all(array: Any) -> Any:
        if not _divides(array) or array.shape[0] not in lengths:
            return array
        axes = jax.sharding.get_abstract_mesh().axis_names
        return jax.lax.with_sharding_constraint(array, PartitionSpec(axes))

    args, kwargs = jax.tree.map(over_all, (args, kwargs))
    return jax.tree.map(over_all, call(*args, **kwargs))


def _divides(array: Any) -> bool:
    mesh = jax.sharding.get_abstract_mesh()
    apart = isinstance(array, jax.Array) and array.ndim > 1 and array.shape[0] % mesh.size == 0
    return apart and array.shape[0] > 0


def shaped(shapes: Any, where: Any) -> Any:
    """A tree of shapes with their places: what stands for arrays that are not there yet."""
    return jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes, where
    )


def put(tree: Any, where: Any, dtype: Any = None) -> Any:
    """Arrays that every process holds whole, placed: each device is given its own part alone.

    `where` is one sharding, or a tree of them. Narrow floats on the host, as published weights are
    stored, become float32 part by part: where they are views of a file, no more is read at a time.
    With a `dtype`, floats on the host of two axes or more become that.
    """
    if isinstance(where, NamedSharding):
        where = jax.tree.map(lambda _: where, tree)

    def place(array: Any, sharding: NamedSharding) -> jax.Array:
        wanted = array.dtype
        if isinstance(array, np.ndarray):
            wanted = np.dtype(np.float32) if wanted in NARROW else wanted
            if dtype is not None and array.ndim > 1 and wanted == np.float32:
                wanted = dtype
        mapped = isinstance(array, np.memmap) or wanted != array.dtype
        if jax.process_count() == 1 and not mapped:
            return jax.device_put(array, sharding)
        array = np.asarray(array)
        placed = jax.make_array_from_callback(
            array.shape, sharding, lambda part: np.asarray(array[part], wanted, order="C")
        )
        return jax.block_until_ready(placed)  # or the host holds copies for several under way

    return jax.tree.map(place, tree, where)


def images_at_once(size: int) -> int:
    """How many images of a side are drawn or looked at together, as large ones fill the memory."""
    return min(64, max(1, 2**21 // size**2))


def shown_at_once(mesh: jax.sharding.Mesh, count: int, batch: int) -> int:
    """How many of a sample grid's images are drawn together: as many on each device.

    And no more than the train batch, which fits the memory.
    """
    return min(batch, -(-count // mesh.size) * mesh.size)


def put_padded(mesh: jax.sharding.Mesh, block: np.ndarray, batch: int) -> jax.Array:
    """At most `batch` rows, the last repeated until they are so many, over this host's devices."""
    full = np.concatenate([block, np.repeat(block[-1:], batch - len(block), axis=0)])
    return jax.device_put(full, over_batch(mesh))


def put_batch(mesh: jax.sharding.Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """This process's share of a batch, as the global arrays of which it is a part."""
    where = over_batch(mesh)
    return {k: jax.make_array_from_process_local_data(where, v) for k, v in batch.items()}
