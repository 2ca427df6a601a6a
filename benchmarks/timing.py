"""Fair timing of compiled programs: interleaved, on a noisy machine, within a budget of seconds."""

import dataclasses
import functools
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax

from benchmarks import machine
from jaxgen.runtime import hlo

SHARE = 0.25  # of the budget, that one program may take before the others had their chance
TURN = 0.1  # seconds of a turn, in which a short program runs several times,
MOST = 10  # but no more often than this
MEMORY = "needs more memory than there is"
SHORT = 2.0  # seconds; shorter first runs are mostly setting up, and a second tells the pace
_PLACING = threading.Lock()  # what candidates share is placed once
AT_ONCE = 4  # programs that are compiled side by side for an accelerator, which waits meanwhile


def computed(compiled: Any, arguments: tuple[Any, ...]) -> Callable[[], Any]:
    """A run that is over when its results are on the devices."""
    return lambda: jax.block_until_ready(compiled(*arguments))


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A program that is measured if the budget allows."""

    label: str
    """What it is called in progress lines."""
    kind: str
    """Candidates of a kind compile in about the same time and run in proportion to `work`."""
    work: float
    """Size of one run, in any unit (FLOPs)."""
    function: Callable[..., Any]
    """What is compiled."""
    arguments: Callable[[], tuple[Any, ...]]
    """Makes the arguments, placed on the devices, when its turn comes."""
    prepared: Callable[[Any, tuple[Any, ...]], Callable[[], Any]] = computed
    """From the compiled function and its arguments to one run. Only what is returned is timed."""


@dataclasses.dataclass(frozen=True)
class Timing:
    """What was measured of one program, in seconds."""

    compile: float
    """Tracing, lowering and compiling; on an accelerator beside other programs' (`AT_ONCE`)."""
    runs: tuple[float, ...]
    """Each run that counts; at least one before them does not."""
    bytes: float | None = None
    """Memory traffic of one run, of all devices, by the compiled program's text (`bytes_of`)."""

    @property
    def median(self) -> float:
        return statistics.median(self.runs)


@dataclasses.dataclass(frozen=True)
class _Known:
    candidate: Candidate
    compile: float
    pace: float
    """Seconds of one run, as far as is known before the runs that count."""
    bytes: float | None
    prepared: Callable[[], Callable[[], Any]]


class _Built(NamedTuple):
    """A program with its arguments, and the seconds that it took to compile."""

    compiled: Any
    arguments: tuple[Any, ...]
    seconds: float


class _TooLarge(Exception):  # noqa: N818
    """A program that needs more of this machine's memory than is free; its text says how much."""


def measure(
    candidates: Sequence[Candidate], repeats: int, budget: float, say: Callable[[str], None]
) -> list[Timing | str]:
    """For each candidate its timing, or the reason why it was skipped.

    The candidates are compiled and run in the order given, the most important first, each if what
    it needs is likely to fit in what is left of `budget` seconds. That is judged by the candidates
    of its kind before it: their median compile time, and their best time for a unit of work. One
    that needs more than `SHARE` of the whole budget waits until the others had their chance. Then
    all take turns, `repeats` times, so that a slow moment of the machine falls on all alike; short
    ones run several times in each. Only
    the first candidate of a kind, of which nothing is known, can overrun the budget; for an
    accelerator, where all are compiled before any runs, the compiling of all. `say` gets a line for
    every candidate that is compiled.
    """
    end = time.monotonic() + budget
    build = _ahead(candidates)
    known: dict[int, _Known] = {}
    skipped: dict[int, str] = {}

    def left() -> float:
        promised = repeats * sum(known[n].pace for n in known.keys() - skipped.keys())
        return end - time.monotonic() - promised

    for last, most in ((False, SHARE * budget), (True, budget)):
        for number, candidate in enumerate(candidates):
            if number in known or number in skipped:
                continue
            compile, run = _expected(candidate, known.values())
            compile *= jax.default_backend() == "cpu"  # elsewhere it has been compiled
            need = compile + (1 + (run < SHORT) + repeats) * run
            if need > min(left(), most):
                if last:
                    skipped[number] = (
                        f"needs about {need:.0f} s ({compile:.0f} s to compile, {run:.3g} s a run),"
                        f" of which {max(0.0, left()):.0f} s of the budget are left"
                    )
                continue
            try:
                found = known[number] = _tried(candidate, build[number]())
            except jax.errors.JaxRuntimeError as error:
                skipped[number] = exhausted(error)
                continue
            except _TooLarge as error:
                skipped[number] = str(error)
                continue
            say(
                f"{candidate.label}: compiled in {found.compile:.1f} s, "
                f"runs in about {found.pace:.4f} s"
            )
            if left() < 0:
                skipped[number] = (
                    f"takes {found.pace:.3g} s a run: {repeats} more exceed the budget"
                )
    runs: dict[int, list[float]] = {n: [] for n in known if n not in skipped}
    for _ in range(repeats):
        for number, times in runs.items():
            if number in skipped:
                continue
            found = known[number]
            often = max(1, min(MOST, int(TURN / max(found.pace, 1e-6))))
            try:
                times.extend(_seconds(found.prepared) for _ in range(often))
            except jax.errors.JaxRuntimeError as error:
                skipped[number] = exhausted(error)
    return [
        skipped[n] if n in skipped else Timing(known[n].compile, (*runs[n],), known[n].bytes)
        for n in range(len(candidates))
    ]


def interleaved(runs: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """What each run says that it took, in seconds, all taking turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(run())
    return times


def spread(times: Sequence[float]) -> dict[str, Any]:
    """Median, minimum, maximum, and all of them."""
    middle = statistics.median(times)
    return {"median": middle, "min": min(times), "max": max(times), "runs": list(times)}


def exhausted(error: Exception) -> str:
    """The reason why a program is skipped; the error again where memory is not the reason."""
    if not out_of_memory(error):
        raise error
    return MEMORY


def out_of_memory(error: BaseException) -> bool:
    """Whether JAX, PyTorch or Python had too little memory, by the error's class or status."""
    error = getattr(error, "inner_exception", error)  # what torch.compile met
    if isinstance(error, jax.errors.JaxRuntimeError):
        return "RESOURCE_EXHAUSTED" in str(error)
    torch = sys.modules.get("torch")
    if torch and isinstance(error, RuntimeError):
        # What PyTorch raises of a CPU's memory has no class of its own.
        return isinstance(error, torch.cuda.OutOfMemoryError) or "CPUAllocator" in str(error)
    return isinstance(error, MemoryError)


def bytes_of(compiled: Any) -> float | None:
    """Bytes that the compiled program reads and writes on all devices, by its text.

    Of XLA's own count a loop's turns, and on a GPU the kernels of cuBLAS and cuDNN, are missing.
    None where the text does not tell how often a loop turns.
    """
    program = hlo.parse(compiled.as_text())
    return None if program.guessed else float(_devices(compiled) * hlo.hbm_bytes(program))


def _expected(candidate: Candidate, known: Iterable[_Known]) -> tuple[float, float]:
    """Seconds to compile the candidate, and of one run; 0 where nothing like it is known."""
    alike = [other for other in known if other.candidate.kind == candidate.kind]
    compile = statistics.median([other.compile for other in alike] or [0.0])
    pace = [other.pace / other.candidate.work for other in alike if other.candidate.work]
    return compile, candidate.work * min(pace, default=0.0)


def _ahead(candidates: Sequence[Candidate]) -> list[Callable[[], _Built]]:
    """What gives each candidate's program: compiled when it is called or, for an accelerator, now.

    There they compile side by side, as the host has cores to spare, and nothing is timed meanwhile.
    """
    builds = [functools.partial(_built, candidate) for candidate in candidates]
    if jax.default_backend() == "cpu":
        return builds
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return [pool.submit(build).result for build in builds]


def _built(candidate: Candidate) -> _Built:
    with _PLACING:
        arguments = candidate.arguments()
    begun = time.perf_counter()
    program = jax.jit(candidate.function, keep_unused=True)
    compiled = program.lower(*arguments).compile()
    return _Built(compiled, arguments, time.perf_counter() - begun)


def _tried(candidate: Candidate, built: _Built) -> _Known:
    """The candidate, compiled and warm."""
    compiled, arguments, compile = built
    _check_memory(compiled)

    def prepared() -> Callable[[], Any]:
        return candidate.prepared(compiled, arguments)

    pace = _seconds(prepared)
    if pace < SHORT:
        pace = _seconds(prepared)
    return _Known(candidate, compile, pace, bytes_of(compiled), prepared)


def _check_memory(compiled: Any) -> None:
    """Raises _TooLarge on a CPU, where a program that needs too much is killed and not refused."""
    if jax.default_backend() != "cpu":
        return
    found, left = compiled.memory_analysis(), machine.memory_left()
    need = _devices(compiled) * (found.temp_size_in_bytes + found.output_size_in_bytes)
    if need > left:
        raise _TooLarge(
            f"{MEMORY}: {need / 2**30:.1f} GiB beside its arguments, of which "
            f"{left / 2**30:.1f} are left"
        )


def _devices(compiled: Any) -> int:
    return len(jax.tree.leaves(compiled.input_shardings)[0].device_set)


def _seconds(prepared: Callable[[], Callable[[], Any]]) -> float:
    run = prepared()
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun
