"""What a compiled program does, read from its text: FLOPs, bytes of memory, collectives.

XLA's own `cost_analysis` counts the body of a loop once however often it turns, and reckons bytes
that never leave the chip's scratch memory to its HBM. Here loops are multiplied out. All numbers
are those of one device, as the text is: the program of one device of many.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator

import numpy as np

BYTES = {"pred": 1, "bf16": 2, "token": 0, "opaque": 0}  # others end in their number of bits
KINDS = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "reduce-scatter",
)
_NO_TRAFFIC = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
    "call", "after-all", "partition-id", "replica-id", "optimization-barrier", "iota",
    "async-start", "async-update", "async-done",
}  # fmt: skip
_SLICING = {"slice", "dynamic-slice", "gather"}


@dataclasses.dataclass(frozen=True)
class Piece:
    """One array of a result."""

    dtype: str
    shape: tuple[int, ...]
    in_hbm: bool
    """Whether it lies in the device's main memory, and not in scratch memory."""

    @property
    def bytes(self) -> int:
        bits = re.search(r"\d+$", self.dtype.partition("e")[0])
        size = BYTES[self.dtype] if self.dtype in BYTES else int(bits[0]) / 8 if bits else 0
        return math.ceil(size * math.prod(self.shape))


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    result: tuple[Piece, ...]
    operands: tuple[str, ...]
    attributes: str
    root: bool

    def attribute(self, pattern: str, missing: str = "") -> str:
        """The first group of a pattern found among the attributes."""
        found = re.search(pattern, self.attributes)
        return found[1] if found else missing


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Program:
    """Computations by name, and how often each is run."""

    computations: dict[str, Computation]
    times: dict[str, int]
    guessed: int
    """Loops whose number of turns the text does not tell: counted as one turn."""


@dataclasses.dataclass(frozen=True)
class Collective:
    """Data exchanged between devices, `times` times in a run."""

    kind: str
    bytes: int
    """Of one device's share: what all-gather puts out, what every other kind takes in."""
    times: int
    group: tuple[int, ...]
    """Numbers of the devices of the first group that exchanges."""


def parse(text: str) -> Program:
    """The program of `compiled.as_text()`."""
    computations: dict[str, Computation] = {}
    entry = ""
    current: Computation = {}
    for line in text.splitlines():
        if (head := _HEAD.match(line)) is not None:
            current = computations[head[2]] = {}
            entry = head[2] if head[1] else entry
        elif line.startswith("  ") and (found := _instruction(line)) is not None:
            current[found.name] = found
    times: dict[str, int] = collections.Counter()
    guessed = 0

    def run(name: str, often: int) -> None:
        nonlocal guessed
        times[name] += often
        for instruction in computations[name].values():
            turns = 1
            if instruction.opcode == "while":
                known = _turns(computations, instruction)
                guessed += known is None
                turns = known or 1
            for called in _called(instruction):
                run(called, often * turns)

    run(entry, 1)
    return Program(computations, dict(times), guessed)


def flops(program: Program) -> int:
    """FLOPs of all matrix products and convolutions, a multiply-add as two; nothing else.

    Of the kernels that are not XLA's own, splash attention's are counted.
    """
    return sum(
        often * _flops(computation, instruction)
        for computation, often in _runs(program)
        for instruction in computation.values()
        if instruction.opcode in ("convolution", "dot", "custom-call")
    )


def hbm_bytes(program: Program) -> int:
    """Bytes read from and written to main memory.

    An instruction reads its operands and writes its results, a slice only what it cuts out. What
    the parts of a fusion hand each other stays inside.
    """
    fused = {
        called
        for computation, _ in _runs(program)
        for instruction in computation.values()
        if instruction.opcode == "fusion"
        for called in _called(instruction)
    }
    total = 0
    for name, often in program.times.items():
        if name not in fused:
            computation = program.computations[name]
            traffic = sum(_traffic(program, computation, i) for i in computation.values())
            total += often * traffic
    return total


def exchanged(program: Program) -> list[Collective]:
    """Every collective; the start and the end of an asynchronous one are one."""
    found: list[Collective] = []
    seen: set[tuple[str, str]] = set()
    for name, often in program.times.items():
        scattered = name.startswith("all-reduce-scatter")  # a TPU's reduce-scatter, as a fusion
        for instruction in program.computations[name].values():
            kind = instruction.opcode.removesuffix("-start")
            if kind not in KINDS:
                continue
            channel = instruction.attribute(r"channel_id=(\d+)")
            # The fusions that begin, go on with and end one exchange all repeat it; in finished
            # programs only those between are named for it.
            chained = "async" in name or instruction.attribute("(chain_id)")
            if channel and chained and (kind, channel) in seen:
                continue
            seen.add((kind, channel))
            given = program.computations[name]
            taken = [p for o in instruction.operands if o in given for p in given[o].result]
            made = instruction.result
            if kind == "all-gather":
                taken = made[len(taken) :] if instruction.opcode != kind else made
            found.append(
                Collective(
                    "reduce-scatter" if scattered else kind,
                    sum(piece.bytes for piece in taken),
                    often,
                    _group(instruction),
                )
            )
    return found


_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}  # of splash attention's kernels
_PIECE = re.compile(r"(\w+)\[([\d,<=]*)\](\{[^}]*\})?")


def _instruction(line: str) -> Instruction | None:
    head = _LINE.match(line)
    if head is None:
        return None
    rest = line[head.end() :]
    end = _closing(rest) if rest.startswith("(") else rest.index(" ")
    kind, rest = rest[:end], rest[end:].lstrip()
    opcode, _, rest = rest.partition("(")
    end = _closing("(" + rest) - 1
    operands = tuple(re.findall(r"%([\w.\-]+)", rest[: end - 1]))
    pieces = tuple(
        Piece(dtype, tuple(int(n.strip("<=")) for n in shape.split(",") if n), "S(" not in layout)
        for dtype, shape, layout in _PIECE.findall(kind)
    )
    literal = opcode in ("constant", "parameter")  # the value, or the number of the argument
    attributes = "=" + rest[: end - 1] if literal else rest[end:]
    return Instruction(head[2], opcode, pieces, operands, attributes, bool(head[1]))


def _closing(text: str) -> int:
    """The position after the bracket that closes the one at the start."""
    depth = 0
    for position, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return position + 1
    return len(text)


def _runs(program: Program) -> Iterator[tuple[Computation, int]]:
    for name, often in program.times.items():
        yield program.computations[name], often


def _called(instruction: Instruction) -> list[str]:
    """Computations that the instruction runs, without those that say how to add two numbers."""
    match instruction.opcode:
        case "while":
            return re.findall(r"body=%?([\w.\-]+)", instruction.attributes)
        case "fusion" | "async-start":
            return re.findall(r"calls=%?([\w.\-]+)", instruction.attributes)
        case "call":
            return re.findall(r"to_apply=%?([\w.\-]+)", instruction.attributes)
        case "conditional":
            branches = instruction.attribute(r"branch_computations=\{([^}]*)\}")
            either = r"(?:true|false)_computation=%?([\w.\-]+)"
            return re.findall(r"%?([\w.\-]+)", branches) + re.findall(
                either, instruction.attributes
            )
    return []


def _turns(computations: dict[str, Computation], loop: Instruction) -> int | None:
    """Turns of a loop that counts from 0 to a constant, as those of lax.scan do."""
    if said := loop.attribute(r'known_trip_count[":{n\s]+"?(\d+)'):
        return int(said)
    names, limits = [loop.attribute(r"condition=%?([\w.\-]+)")], set()
    while names:
        for instruction in computations[names.pop()].values():
            names += _called(instruction)
            if instruction.opcode == "constant" and re.fullmatch(r"=\d+", instruction.attributes):
                limits.add(int(instruction.attributes[1:]))
    return limits.pop() if len(limits) == 1 else None


def _flops(computation: Computation, instruction: Instruction) -> int:
    if instruction.opcode == "custom-call":
        return _flops_of_splash(computation, instruction)
    left, right = (computation[name].result[0].shape for name in instruction.operands[:2])
    made = instruction.result[0].shape
    if instruction.opcode == "dot":
        summed = instruction.attribute(r"lhs_contracting_dims=\{([\d,]*)\}")
        return 2 * math.prod(made) * math.prod(left[int(n)] for n in summed.split(",") if n)
    labels = instruction.attribute(r"dim_labels=([\w?]+_[\w?]+->[\w?]+)")
    of_left, of_right, of_made = re.split("_|->", labels)
    groups = int(instruction.attribute(r"batch_group_count=(\d+)", "1"))
    window = instruction.attribute(r"window=\{([^}]*)\}")

    def said(name: str, missing: str) -> list[str]:
        found = re.search(rf"\b{name}=([\w\-]+)", window)
        return found[1].split("x") if found else [missing] * len(spatial)

    spatial = sorted(set(of_made) - set("bf?"))
    positions = 1
    for k, axis in enumerate(spatial):
        low = said("pad", "0_0")[k].split("_")[0]
        positions *= _positions(
            made[of_made.index(axis)],
            right[of_right.index(axis)],
            left[of_left.index(axis)],
            int(said("stride", "1")[k]),
            int(low),
            int(said("lhs_dilate", "1")[k]),
            int(said("rhs_dilate", "1")[k]),
        )
    batch = left[of_left.index("b")] // groups
    features = right[of_right.index("o")] * right[of_right.index("i")]
    return 2 * batch * features * positions


def _flops_of_splash(computation: Computation, instruction: Instruction) -> int:
    """Its operands begin with tables of integers, queries and keys, both [b, h, tokens, d]."""
    phase = re.match(r"splash_mha_(fwd|dq|dkv)_", instruction.name)
    if phase is None:
        return 0
    operands = [computation[name].result[0] for name in instruction.operands]
    queries, keys = [o.shape for o in operands if o.dtype in ("bf16", "f32")][:2]
    return _PRODUCTS[phase[1]] * 2 * math.prod(queries) * keys[-2]


@functools.cache
def _positions(out: int, size: int, left: int, stride: int, low: int, spread: int, gap: int) -> int:
    """Pairs of an output and a kernel position that meet a value: no padding, no gap between."""
    at = np.arange(out)[:, None] * stride - low + np.arange(size) * gap
    return int(np.sum((at >= 0) & (at <= (left - 1) * spread) & (at % spread == 0)))


def _traffic(program: Program, computation: Computation, instruction: Instruction) -> int:
    if instruction.opcode in _NO_TRAFFIC or instruction.opcode.endswith("-done"):
        return 0
    made = sum(piece.bytes for piece in instruction.result if piece.in_hbm)
    if instruction.opcode.endswith("-start"):  # its results hold the operands too
        return made
    inside = program.computations[_called(instruction)[0]] if instruction.opcode == "fusion" else {}
    numbered = {int(i.attributes[1:]): i.name for i in inside.values() if i.opcode == "parameter"}
    taken = 0
    for number, operand in enumerate(instruction.operands):
        if operand not in computation:
            continue
        whole = sum(piece.bytes for piece in computation[operand].result if piece.in_hbm)
        if instruction.opcode in _SLICING:
            whole = min(whole, made)
        users = [i for i in inside.values() if numbered.get(number) in i.operands]
        if users and all(i.opcode in _SLICING for i in users):
            whole = min(whole, sum(piece.bytes for i in users for piece in i.result))
        taken += whole
    return made + taken


def _group(instruction: Instruction) -> tuple[int, ...]:
    """The first group of devices, in whichever of its notations."""
    text = instruction.attributes
    if pairs := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", text):
        return int(pairs[1]), int(pairs[2])
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return tuple(int(n) for n in listed[1].split(","))
    if tiled := re.search(r"replica_groups=\[([\d,]+)\](<=\[[\d,]+\](?:T\([\d,]+\))?)", text):
        return tuple(_iota(tiled[2]).reshape(_numbers(tiled[1]))[0].tolist())
    named = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^)]*\)?)\))? ?\{([^}]*)\}", text
    )
    if named is None:
        return ()
    sizes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", named[1])}
    order = np.arange(math.prod(sizes.values())) if not named[2] else _iota(named[2])
    grid = order.reshape(tuple(sizes.values()))
    # Of an axis that is split further, 'a':(m)n are n of its devices, m apart in number from last.
    picked = []
    for name, size in sizes.items():
        part = re.search(rf"'{re.escape(name)}'(?::\((\d+)\)(\d+))?", named[3])
        if part is None:
            picked.append(slice(0, 1))
        elif part[1] is None:
            picked.append(slice(None))
        else:
            apart = size // (int(part[1]) * int(part[2]))
            picked.append(slice(0, apart * int(part[2]), apart))
    return tuple(grid[tuple(picked)].ravel().tolist())


def _iota(text: str) -> np.ndarray:
    """Numbers counted up in one shape and read in another order: [2,2]T(1,0)."""
    found = re.search(r"\[([\d,]+)\](?:T\(([\d,]+))?", text)
    assert found is not None
    grid = np.arange(math.prod(_numbers(found[1]))).reshape(_numbers(found[1]))
    return grid.transpose(_numbers(found[2])).ravel() if found[2] else grid.ravel()


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(","))
