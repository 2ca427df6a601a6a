"""Seconds per image of sampling in 50 guided steps and in 1, 2, 4: what distillation buys.

    python -m benchmarks.sampling_latency --shape=tiny        (or 64px, sd21: random weights)
    python -m benchmarks.sampling_latency --run=runs/add      (a finished run)
    python -m benchmarks.sampling_latency --plot FILE.json    (draws its plot again)

For every batch: the whole program, from token ids on the device to uint8 pixels on the device, and
its parts compiled apart: text (captions to features; with guidance the empty caption too), denoise
(noise to image) and decode (image to pixels). `benchmarks.timing` says how they are timed. sd21 has
no decoder yet: its decode turns latents to uint8, and table and JSON say so.

FLOPs: XLA counts the body of a loop once, whatever its turns, so a sampler's FLOPs are counted as
text + network calls x one call, a guided call being one on the doubled batch. What a sampler adds
to its calls, some operations a pixel, is left out.
"""

import dataclasses
import datetime
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax

from benchmarks import machine, sampling_report, timing
from benchmarks import sampling_programs as programs
from benchmarks import subject as subjects
from benchmarks.sampling_programs import Program
from benchmarks.subject import Subject
from benchmarks.timing import Timing
from jaxgen import config as configs
from jaxgen.diffusion import sampler as sampling
from jaxgen.diffusion.sampler import Sampler
from jaxgen.errors import UserError, reported
from jaxgen.runtime import mesh as meshes

PROGRAM = "python -m benchmarks.sampling_latency"
RESULTS = Path(__file__).parent / "results"

Report = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Options:
    run: str | None = None
    """Folder of a finished run, whose weights are measured."""
    shape: str | None = None
    """tiny (the default), 64px or sd21: a network of that shape with random weights."""
    batches: tuple[int, ...] = (1, 8, 64)
    """Numbers of images drawn at once."""
    iterative: int = 50
    """Steps of the guided sampler, with which the others are compared."""
    steps: tuple[int, ...] = (1, 2, 4)
    """Steps of the samplers without guidance."""
    repeats: int = 5
    """Counted runs of each program."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Type of the UNet's activations; that of the run or shape by default."""
    budget: float = 280.0
    """Seconds that all may take; what would not fit is skipped, and listed as skipped."""
    plot: str | None = None
    """JSON file written before: draws its plot again, beside it, and measures nothing."""

    def check(self) -> None:
        """Raises UserError for options that cannot be served."""
        if self.run is not None and self.shape is not None:
            raise UserError(f"--run {self.run} and --shape {self.shape}: give one of them")
        if self.shape is not None and self.shape not in subjects.SHAPES:
            raise UserError(f"no shape {self.shape!r}; known: {', '.join(subjects.SHAPES)}")
        counts = {"batches": self.batches, "steps": self.steps}
        counts |= {"iterative": (self.iterative,), "repeats": (self.repeats,)}
        for name, values in counts.items():
            if not values or min(values) < 1:
                given = " ".join(map(str, values)) or "is empty"
                raise UserError(f"--{name} {given}: give whole numbers of 1 or more")
        if not self.budget > 0:
            raise UserError(f"--budget is {self.budget:g}; give a number of seconds above 0")


def main() -> None:
    begun = time.monotonic()
    with reported():
        options = configs.parse(Options(), sys.argv[1:], PROGRAM)
        if options.plot is not None:
            path = Path(options.plot)
            print(sampling_report.draw(sampling_report.read(path), path.with_suffix(".png")))
            return
        jax.config.update("jax_enable_compilation_cache", False)
        meshes.prepare(max(options.batches))
        subject = _subject(options)
        how = programs.compared(subject, options.iterative, options.steps)
        path = _destination(subject)
        left = options.budget - (time.monotonic() - begun)
        found = report(subject, how, options.batches, options.repeats, left, _say)
        found = {"command": _command(options), **found}
        sampling_report.write(found, path)
        print(sampling_report.table(found))
        print(f"numbers: {path}")
        print(sampling_report.draw(found, path.with_suffix(".png")))


def report(
    subject: Subject,
    how: dict[str, Sampler],
    batches: Sequence[int],
    repeats: int,
    budget: float,
    say: Callable[[str], None],
) -> Report:
    """Measures, in about `budget` seconds, and returns all of the JSON file but the command.

    The first sampler is the one that the others are compared with. `say` gets lines of progress.
    """
    begun = time.monotonic()
    flops = subjects.counted(subject)
    plan = programs.planned(subject, how, sorted(set(batches)), flops)
    left = budget - (time.monotonic() - begun)
    timings = timing.measure([p.candidate for p in plan], repeats, left, say)
    both = list(zip(plan, timings, strict=True))
    backbone = subject.model.backbone
    precision = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    return {
        "benchmark": "sampling_latency",
        "name": subject.name,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "hardware": machine.hardware(),
        "versions": machine.versions(),
        "subject": {
            "size": subject.size,
            "channels": backbone.channels,
            "output": subject.output,
            "dtype": backbone.dtype,
            "matmul_precision": precision or "default",
            "parameters": {name: _size(tree) for name, tree in subject.weights.items()},
            "flops_per_image": flops._asdict(),
        },
        "samplers": {
            title: {**dataclasses.asdict(sampler), "calls": sampling.network_calls(sampler)}
            for title, sampler in how.items()
        },
        "batches": sorted(set(batches)),
        "repeats": repeats,
        "measured": [_measured(p, found) for p, found in both if isinstance(found, Timing)],
        "skipped": [_which(p) | {"reason": why} for p, why in both if isinstance(why, str)],
        "comparison": _comparison(both, next(iter(how))),
    }


def _which(program: Program) -> dict[str, Any]:
    return {"batch": program.batch, "part": program.part, "samplers": list(program.samplers)}


def _measured(program: Program, found: Timing) -> dict[str, Any]:
    return _which(program) | {
        "devices": program.devices,
        "flops": program.flops,
        "compile_seconds": found.compile,
        "seconds": {
            "median": found.median,
            "min": min(found.runs),
            "max": max(found.runs),
            "runs": list(found.runs),
        },
        "seconds_per_image": found.median / program.batch,
    }


def _comparison(both: Sequence[tuple[Program, Timing | str]], against: str) -> list[dict[str, Any]]:
    """How much faster each sampler is than the one called `against`, measured and by FLOPs."""
    flops = {(p.batch, p.samplers[0]): p.flops for p, _ in both if p.part == "whole"}
    median = {
        (p.batch, p.samplers[0]): found.median
        for p, found in both
        if p.part == "whole" and isinstance(found, Timing)
    }
    return [
        {
            "batch": batch,
            "sampler": title,
            "speed_up": median[batch, against] / median[batch, title]
            if {(batch, against), (batch, title)} <= median.keys()
            else None,
            "flop_ratio": flops[batch, against] / flops[batch, title],
        }
        for batch, title in flops
        if title != against
    ]


def _subject(options: Options) -> Subject:
    if options.run is not None:
        subject = subjects.of_run(Path(options.run))
    else:
        subject = subjects.named(options.shape or "tiny")
    if options.dtype is None:
        return subject
    backbone: Any = dataclasses.replace(subject.model.backbone, dtype=options.dtype)
    model = dataclasses.replace(subject.model, **{subject.model.network: backbone})
    return dataclasses.replace(subject, name=f"{subject.name}-{options.dtype}", model=model)


def _destination(subject: Subject) -> Path:
    """The JSON file to be written, in a folder that is there."""
    device = machine.hardware()
    folder = RESULTS / machine.slug(device["device"], device["count"])
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror})") from None
    return folder / f"sampling_latency_{subject.name}.json"


def _command(options: Options) -> str:
    """The command line again, without the folders of this machine."""
    said = [PROGRAM]
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if value == field.default:
            continue
        if field.name == "run" and Path(value).is_absolute():
            value = Path(value).name
        values = value if isinstance(value, tuple) else (value,)
        said.append(f"--{field.name} {shlex.join(map(str, values))}")
    return " ".join(said)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _size(tree: Any) -> int:
    return sum(array.size for array in jax.tree.leaves(tree))


if __name__ == "__main__":
    main()
