"""TPU slices that need not be there: what their chips can do, and devices to compile for.

Peaks are those that Google publishes for one chip, as read in its documentation in 2026
(docs.cloud.google.com/tpu/docs/v5e, …/v5p, …/v6e): bf16 FLOP/s, HBM bandwidth, and the
bidirectional inter-chip bandwidth of 400, 1200 and 800 GB/s, which divides into one way of each of
4, 6 and 4 links. HBM is what the TPU compiler says it hands out, when it refuses a program that
needs more. v4 is left out: without a TPU its compiler sees a chip as two devices, which JAX on a v4
slice does not.
"""

import contextlib
import dataclasses
import importlib.util
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from jaxgen.errors import UserError

INSTALL = 'pip install "jaxgen[tpu]"'
HOP = 1e-6  # seconds over one link, for the shortest message: "How to Scale Your Model", part 2


@dataclasses.dataclass(frozen=True)
class Chip:
    """The published peaks of one chip."""

    flops: float
    """bf16 FLOP/s of the matrix units."""
    usable: float
    """Bytes of HBM, as far as the compiler hands them out."""
    bandwidth: float
    """Bytes/s of HBM."""
    link: float
    """Bytes/s of one inter-chip link, one way."""
    ring: int
    """A side of the slice of this many chips closes to a ring, as does any multiple of it."""
    shapes: tuple[str, ...]
    """The slices that can be had."""


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
CHIPS = {
    "v5e": Chip(197e12, 15.75 * 2**30, 819e9, 50e9, 16, _FLAT),
    "v5p": Chip(459e12, 95.74 * 2**30, 2765e9, 100e9, 4, _CUBES),
    "v6e": Chip(918e12, 31.25 * 2**30, 1638e9, 100e9, 16, _FLAT),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """Chips in a grid, of which some sides may close to rings."""

    name: str
    chip: Chip
    sides: tuple[int, ...]

    @property
    def rings(self) -> tuple[bool, ...]:
        """For each side whether its ends are linked; of a three-dimensional one all are or none."""
        closed = tuple(side % self.chip.ring == 0 for side in self.sides)
        return closed if len(self.sides) == 2 else (all(closed),) * 3


def parse(name: str) -> Slice:
    """The slice of a name such as v5e:4x4; UserError lists those that there are."""
    kind, _, shape = name.partition(":")
    if kind not in CHIPS or shape not in CHIPS[kind].shapes:
        known = "; ".join(f"{kind}: {' '.join(chip.shapes)}" for kind, chip in CHIPS.items())
        raise UserError(f"unknown topology {name!r}; known, written as v5e:4x4, are {known}")
    return Slice(name, CHIPS[kind], tuple(int(side) for side in shape.split("x")))


def devices(slice_: Slice) -> list[Any]:
    """Devices that programs can be compiled for, and nothing be run on.

    Raises UserError where libtpu, which holds the compiler, is not installed.
    """
    if not _installed():
        raise UserError(
            f"planning for {slice_.name} needs the TPU compiler, which runs on any machine: "
            f"{INSTALL}"
        )
    from jax.experimental import topologies  # it looks for libtpu when it is imported

    sides = (*slice_.sides, 1)[:3]
    options: dict[str, Any] = {"wrap": (*slice_.rings, False)[:3]}
    if max(sides) == 1:
        options["chips_per_host_bounds"] = sides
    with _no_tpu_looked_for(), _sigterm_left_alone():
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=slice_.name, **options
        ).devices
    return list(found)


def on_cpu() -> None:
    """What is not compiled for the slice is computed on the CPU, and no TPU is looked for."""
    jax.config.update("jax_platforms", "cpu")


def _installed() -> bool:
    return importlib.util.find_spec("libtpu") is not None


def look_for_no_tpu() -> None:
    """Where libtpu is installed on a machine without TPU, keeps it from five lines of complaint.

    To be called before JAX looks for its devices. A machine that has anything which may be a TPU is
    left alone.
    """
    google = "0x1ae0"  # as a maker of PCI devices
    chips = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*")]
    makers = Path("/sys/bus/pci/devices").glob("*/vendor")
    if _installed() and not chips and all(m.read_text().strip() != google for m in makers):
        for name, value in _NO_TPU.items():
            os.environ.setdefault(name, value)


_NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",  # any; the name of a topology decides
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}


@contextlib.contextmanager
def _sigterm_left_alone() -> Iterator[None]:
    """libtpu would otherwise answer SIGTERM, too, with the stack trace of a crash."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread() and before is not None:
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _no_tpu_looked_for() -> Iterator[None]:
    """libtpu would otherwise ask the network which TPU this machine has, and complain."""
    # Another process may plan too, and no TPU is taken.
    said = {**_NO_TPU, "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    before = {name: os.environ.get(name) for name in said}
    os.environ.update({name: value for name, value in said.items() if before[name] is None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
