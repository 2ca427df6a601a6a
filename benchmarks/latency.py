"""Seconds per image of a teacher's many guided steps and its student's one: what it buys, and why.

    python -m benchmarks.latency                              (runs/add, or the shapes of add)
    python -m benchmarks.latency --config=add_sd21 --dtypes bfloat16 --batches 1 8 64 --minutes=9
    python -m benchmarks.latency --plot=FILE.json             (draws its plot again)

For every type and batch: the whole, from token ids on the host to uint8 pixels on the host; and,
compiled apart, text (captions to features; with guidance the empty caption too), denoise (noise to
what is diffused), decode (that to uint8 pixels), transfer (pixels to the host) and dispatch (a
program with all these arguments that computes nothing). `benchmarks.timing` says how they are
timed, `benchmarks.starts` what a first and a second start of a process take, in a file of its own.

What is measured is written at once, and the same command goes on where it stopped, at --minutes or
killed: a rented accelerator is had for minutes.

FLOPs: XLA counts the body of a loop once, whatever its turns, so a sampler's FLOPs are counted as
text + network calls x one call + decode, a guided call being one on the doubled batch. What a
sampler adds to its calls, some operations a pixel, is left out. Bytes are those that the compiled
program's instructions read and write, loops multiplied out: what a cache keeps from memory counts
too, so that a small program may have more than the ceiling.
"""

import dataclasses
import datetime
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax

from benchmarks import ceilings, latency_report, machine, reports, starts, timing
from benchmarks import latency_programs as programs
from benchmarks import subject as subjects
from benchmarks.latency_programs import Program
from benchmarks.reports import Report
from benchmarks.subject import Flops, Subject
from benchmarks.timing import Timing
from jaxgen import config as configs
from jaxgen.diffusion import sampler as sampling
from jaxgen.diffusion.sampler import Sampler
from jaxgen.errors import UserError, reported
from jaxgen.runtime import mesh as meshes
from jaxgen.runtime import run as runs

PROGRAM = "python -m benchmarks.latency"
DEFAULT = "add"
MADE_ON = ("hardware", "versions")
COMPARED = (*MADE_ON, "subject", "samplers", "repeats")


@dataclasses.dataclass(frozen=True)
class Options:
    run: str = ""
    """Folder of a finished run, or shipped:NAME, whose weights are measured; runs/add, where it is
    there and --config is not given."""
    config: str = ""
    """A config whose shapes are measured with random weights, such as add_64, add_sd21, add_sdxl;
    add, where there is neither --run nor runs/add."""
    batches: tuple[int, ...] = (1, 8, 64, 2, 4, 16, 32)
    """Numbers of images drawn at once, the most telling first."""
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    """Types of the networks' activations."""
    iterative: int = 50
    """Steps of the teacher's guided sampler, with which the others are compared."""
    steps: tuple[int, ...] = (1, 4)
    """Steps of the student's samplers; the first one's parts are measured."""
    repeats: int = 5
    """Counted turns of each program; in each a short one runs several times."""
    minutes: float = 9.0
    """Minutes that a command may take; the next one goes on."""
    starts: bool = True
    """Whether a first and a second start of a process are timed too, before all else."""
    anew: bool = False
    """Measure again what was measured before."""
    plot: str = ""
    """JSON file written before: draws its plot again, beside it, and measures nothing."""

    def check(self) -> None:
        """Raises UserError for options that cannot be served."""
        if self.run and self.config:
            raise UserError(f"--run {self.run} and --config {self.config}: give one of them")
        if not self.dtypes:
            raise UserError("--dtypes is empty; give float32, bfloat16 or both")
        counts = {"batches": self.batches, "steps": self.steps}
        counts |= {"iterative": (self.iterative,), "repeats": (self.repeats,)}
        for name, values in counts.items():
            if not values or min(values) < 1:
                given = " ".join(map(str, values)) or "is empty"
                raise UserError(f"--{name} {given}: give whole numbers of 1 or more")
        if not self.minutes > 0:
            raise UserError(f"--minutes is {self.minutes:g}; give a number above 0")

    def subject(self) -> tuple[str, str]:
        """run or config, and which."""
        if self.config:
            return "config", self.config
        if self.run or runs.finished_steps(Path("runs") / DEFAULT):
            return "run", self.run or f"runs/{DEFAULT}"
        return "config", DEFAULT


def main() -> None:
    with reported():
        options = configs.parse(Options(), sys.argv[1:], PROGRAM)
        if options.plot:
            path = Path(options.plot)
            report = reports.read(path, "latency")
            print(latency_report.draw(report, path.with_suffix(".png")))
            return
        end = time.monotonic() + 60 * options.minutes
        kind, name = options.subject()
        title = subjects.titled(kind, name)
        device = machine.asked(max(options.batches))
        folder = machine.folder(device)
        path = folder / f"latency_{title}.json"
        # A start needs the device for itself, which this process does not touch before.
        before = time.monotonic()
        begun, left = _started(options, folder / f"starts_{title}.json", device, end)
        spent = time.monotonic() - before
        jax.config.update("jax_enable_compilation_cache", False)
        meshes.prepare(max(options.batches))
        subject = (subjects.of_run if kind == "run" else subjects.of_config)(name)
        how = programs.compared(subject, options.iterative, options.steps)
        flops = subjects.counted(subject.computed_in("float32"))  # of both types' work
        head = {
            "command": reports.command(PROGRAM, sys.argv[1:]),
            **_head(subject, how, options, flops, device),
        }
        report = reports.taken_up(head, path, COMPARED, options.anew)
        report["dtypes"] = list(dict.fromkeys([*report.get("dtypes", ()), *options.dtypes]))
        report["starts"] = starts.by_dtype(begun)
        left += measure(subject, how, flops, options, end, report, path, _say, spent)
        print(latency_report.table(report))
        print(f"numbers: {path}")
        print(latency_report.draw(report, path.with_suffix(".png")))
        if left:
            print(f"{left} part(s) are left: the same command goes on")


def measure(
    subject: Subject,
    how: dict[str, Sampler],
    flops: Flops,
    options: Options,
    end: float,
    report: Report,
    path: Path,
    say: Callable[[str], None],
    spent: float = 0.0,
) -> int:
    """Adds to `report`, and to its file at `path`, until time.monotonic() is `end`.

    Returns how many parts are left: what the same command would try, as it would have all the
    seconds that there are when this begins, and those `spent` before on what is not done again.
    `say` gets lines of progress.
    """
    given = spent + end - time.monotonic()
    of_dtypes = report.setdefault("ceilings", {})
    left = 0
    for dtype in options.dtypes:
        typed = subject.computed_in(dtype)
        place = programs.placing(typed)
        most = None
        for batch in dict.fromkeys(options.batches):
            # All of a batch take turns, so that its parts and its whole had the same machine.
            parts = [
                programs.planned(typed, how, batch, part, flops, place) for part in programs.PARTS
            ]
            unit, seconds = list(itertools.chain(*parts)), end - time.monotonic()
            todo = [one for one in unit if not _is_done(report, dtype, [one], seconds)]
            if seconds > 0 and todo:
                if most is None:
                    most = ceilings.measured(dtype)
                    of_dtypes[dtype] = most._asdict()
                found = _timings(report, dtype, todo, options.repeats, seconds, say)
                _put(report, dtype, todo, found, most, seconds)
                _save(report, path)
            left += sum(not _is_done(report, dtype, part, given) for part in parts)
    report["left"] = left
    _save(report, path)
    return left


def _started(
    options: Options, path: Path, device: dict[str, Any], end: float
) -> tuple[Report, int]:
    """What first and second starts took, from their own file, and how many types are left."""
    head = {"benchmark": "starts", "hardware": device, "versions": machine.versions()}
    report = reports.taken_up(head, path, MADE_ON, options.anew)
    what = "--{}={}".format(*options.subject())
    dtypes = options.dtypes if options.starts else ()
    return report, starts.measure(what, dtypes, end, report, path, _say)


def _save(report: Report, path: Path) -> None:
    """Writes the report with its comparisons, which are of all that it holds by now."""
    report["comparison"] = latency_report.compared(report)
    reports.write(report, path)


def _head(
    subject: Subject,
    how: dict[str, Sampler],
    options: Options,
    flops: Flops,
    device: dict[str, Any],
) -> Report:
    """All of the JSON file that does not grow."""
    precision = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    return {
        "benchmark": "latency",
        "name": subject.name,
        "hardware": device,
        "versions": machine.versions(),
        "subject": {
            "size": subject.config.data.size,
            "diffused": [subject.config.side] * 2 + [subject.model.backbone.channels],
            "matmul_precision": precision or "default",
            "parameters": {name: _size(tree) for name, tree in subject.weights.items()},
            "flops_per_image": flops._asdict(),
        },
        "samplers": {
            title: {**dataclasses.asdict(sampler), "calls": sampling.network_calls(sampler)}
            for title, sampler in how.items()
        },
        "repeats": options.repeats,
        "goal": {"share": latency_report.GOAL, "from_batch": latency_report.FROM_BATCH},
    }


def _timings(
    report: Report,
    dtype: str,
    unit: Sequence[Program],
    repeats: int,
    seconds: float,
    say: Callable[[str], None],
) -> list[Timing | str]:
    """The programs' timings, or why they were skipped.

    What was measured before tells whether the first can fit: if not, not even a run is tried.
    """
    alike = [row for row in report["measured"] if row["dtype"] == dtype]
    pace = [
        row["seconds"]["median"] / row["flops"]
        for row in alike
        if row["part"] in ("whole", "denoise")
    ]
    compiles = [row["compile_seconds"] for row in alike if row["part"] == unit[0].part]
    compile = statistics.median(compiles or [0.0])
    run = min(pace, default=0.0) * unit[0].flops
    if compile + 2 * run > seconds:
        reason = (
            f"needs about {compile:.0f} s to compile and {run:.3g} s a run; {seconds:.0f} are left"
        )
        return [reason] * len(unit)
    return timing.measure([program.candidate for program in unit], repeats, seconds, say)


def _is_done(report: Report, dtype: str, unit: Sequence[Program], seconds: float) -> bool:
    """Whether each program was measured, or skipped for a reason that still holds."""
    keys = {_key(_which(dtype, program)) for program in unit}
    done = {_key(row) for row in report["measured"]}
    done |= {_key(row) for row in report["skipped"] if reports.still_holds(row, seconds)}
    return keys <= done


def _put(
    report: Report,
    dtype: str,
    unit: Sequence[Program],
    found: Sequence[Timing | str],
    most: ceilings.Ceilings,
    seconds: float,
) -> None:
    """The programs' rows in the report, in the place of any that they had."""
    keys = {_key(_which(dtype, program)) for program in unit}
    for field in ("measured", "skipped"):
        report[field] = [row for row in report[field] if _key(row) not in keys]
    for program, one in zip(unit, found, strict=True):
        if isinstance(one, str):
            row = _which(dtype, program) | {"reason": one, "seconds_left": seconds}
            report["skipped"].append(row)
        else:
            report["measured"].append(_measured(dtype, program, one, most))


def _measured(
    dtype: str, program: Program, found: Timing, most: ceilings.Ceilings
) -> dict[str, Any]:
    return _which(dtype, program) | {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "devices": program.devices,
        "flops": program.flops,
        "bytes": found.bytes,
        "compile_seconds": found.compile,
        "seconds": timing.spread(found.runs),
        "seconds_per_image": found.median / program.batch,
        "ceilings": most._asdict(),
        **ceilings.shares(program.flops, found.bytes, found.median, most),
    }


def _which(dtype: str, program: Program) -> dict[str, Any]:
    samplers = list(program.samplers)
    return {"dtype": dtype, "batch": program.batch, "part": program.part, "samplers": samplers}


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["dtype"], row["batch"], row["part"], *row["samplers"]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _size(tree: Any) -> int:
    return sum(array.size for array in jax.tree.leaves(tree))


if __name__ == "__main__":
    main()
