"""What a program costs on a slice: memory by kind, and a lower bound of its time.

The bound is a roofline (Williams et al. 2009): matrix products at the chip's peak, bytes at its
memory's bandwidth, collectives as rings over the links that their devices span. Real programs
take longer: small matrices fill no matrix unit, and nothing but matrix products is counted as work.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jaxgen.runtime import hlo
from jaxgen.runtime.hlo import Collective
from jaxgen.runtime.topologies import HOP, Slice

Coordinates = Sequence[tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device, of a program's arguments by kind and of what it adds to them."""

    arguments: dict[str, int]
    """By name, as they would be stored one after another."""
    padding: int
    """What the device's tiles add to them."""
    results: int
    """Results that take no argument's place."""
    temporaries: int
    """Activations, gradients and all else that lives within a run."""
    code: int
    """The program itself."""

    @property
    def total(self) -> int:
        return (
            sum(self.arguments.values())
            + self.padding
            + self.results
            + self.temporaries
            + self.code
        )


@dataclasses.dataclass(frozen=True)
class Exchange:
    """All collectives of one kind over groups of one size, in one run."""

    kind: str
    devices: int
    count: int
    bytes: int
    """Of one device's share, summed over all runs."""
    seconds: float


@dataclasses.dataclass(frozen=True)
class Costs:
    """One run of a program, on each device."""

    flops: int
    hbm_bytes: int
    exchanges: tuple[Exchange, ...]
    compute_seconds: float
    hbm_seconds: float
    guessed_loops: int

    @property
    def link_seconds(self) -> float:
        return sum(exchange.seconds for exchange in self.exchanges)

    @property
    def local_seconds(self) -> float:
        """Without any collective."""
        return max(self.compute_seconds, self.hbm_seconds)

    @property
    def seconds(self) -> tuple[float, float]:
        """The least time: with all collectives hidden behind other work, and with none."""
        return max(self.local_seconds, self.link_seconds), self.local_seconds + self.link_seconds

    @property
    def bound(self) -> str:
        """What the time goes to: compute, memory or links."""
        times = {
            "compute": self.compute_seconds,
            "memory": self.hbm_seconds,
            "links": self.link_seconds,
        }
        return max(times, key=lambda name: times[name])


def bytes_on_one(tree: Any) -> int:
    """Bytes on one device of a tree of shapes with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def memory(compiled: Any, arguments: Mapping[str, Any]) -> Memory:
    """The memory of a compiled program, given its arguments' shapes with shardings, by kind."""
    stats = compiled.memory_analysis()
    named = {name: bytes_on_one(tree) for name, tree in arguments.items()}
    return Memory(
        named,
        stats.argument_size_in_bytes - sum(named.values()),
        stats.output_size_in_bytes - stats.alias_size_in_bytes,
        stats.temp_size_in_bytes,
        stats.generated_code_size_in_bytes,
    )


def costs(text: str, place: Slice, coordinates: Coordinates) -> Costs:
    """The costs of a compiled program's text on a slice; coordinates are of the mesh's devices."""
    program = hlo.parse(text)
    flops, moved = hlo.flops(program), hlo.hbm_bytes(program)
    sums: dict[tuple[str, int], tuple[int, int, float]] = {}
    for one in hlo.exchanged(program):
        where = [coordinates[n] for n in one.group] or list(coordinates)
        key = one.kind, len(where)
        count, size, seconds = sums.get(key, (0, 0, 0.0))
        sums[key] = (
            count + one.times,
            size + one.times * one.bytes,
            seconds + one.times * exchange_seconds(one, place, where),
        )
    exchanges = tuple(
        Exchange(kind, devices, *sums[kind, devices])
        for kind, devices in sorted(sums, key=lambda key: -sums[key][2])
    )
    chip = place.chip
    return Costs(
        flops, moved, exchanges, flops / chip.flops, moved / chip.bandwidth, program.guessed
    )


def exchange_seconds(one: Collective, place: Slice, where: Coordinates) -> float:
    """The least time of one run of a collective among chips at the given coordinates.

    Along each side of the slice that they span, data flow around the ring both ways, or where its
    ends are not linked, to and fro, half as fast; rings that pass through each other share links.
    """
    n, links, hops = len(where), 0.0, 0
    for axis, (side, ring) in enumerate(zip(place.sides, place.rings, strict=True)):
        places = sorted({at[axis] for at in where})
        if len(places) > 1:
            apart = (places[-1] - places[0]) / (len(places) - 1)
            whole = ring and len(places) * apart == side
            links += (2 if whole else 1) / apart
            hops += side // 2 if whole else places[-1] - places[0]
    if n < 2 or not links:
        return 0.0
    share = (n - 1) / n * one.bytes / (links * place.chip.link)
    match one.kind:
        case "all-reduce":
            return 2 * (share + hops * HOP)
        case "all-to-all":  # each piece travels a quarter of the way around
            return share * max(1.0, n ** (1 / sum(s > 1 for s in place.sides)) / 4) + hops * HOP
        case "collective-permute":
            return one.bytes / place.chip.link + HOP
    return share + hops * HOP
