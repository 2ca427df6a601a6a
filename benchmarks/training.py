"""How fast training is, of what the machine could do and beside PyTorch, and what memory it takes.

    python -m benchmarks.training                                 (the same again goes on)
    python -m benchmarks.training --items step:dit_64 unet:sd21:bfloat16 --minutes=9
    python -m benchmarks.training --items step:add --trace=trace  (and a trace for Perfetto)

An item is measured in a process of its own, and its result written at once:

- step:CONFIG, the train step that `jaxgen.train` runs, on its pictures or, where these are the
  user's, on generated ones: images per second, shares of the peak, the pipeline alone, memory
  (`benchmarks.training_step`);
- unet:SHAPE:DTYPE, the UNet's step against diffusers', eager and compiled
  (`benchmarks.training_unet`);
- data:SIDE, batches from picture files against PyTorch's DataLoader (`benchmarks.training_data`).

FLOPs are those of the step as it is lowered, before any compiler's choices; with gradient
checkpoints what is computed twice counts twice.
"""

import dataclasses
import datetime
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from benchmarks import machine, reports, training_data, training_step, training_unet
from benchmarks.reports import Report, figure
from jaxgen import config as configs
from jaxgen.errors import EXIT_FAULT, UserError, reported

PROGRAM = "python -m benchmarks.training"
SMALL = ("diffusion", "add", "dit", "gan", "ladd", "vae", "latent_diffusion", "add_latent")
SMALL += ("threshold_diffusion", "classifier", "flow_matching")
LARGE = ("dit_64", "add_64", "diffusion_64", "add_sd21", "gan_64", "ladd_64", "vae_64")
LARGE += ("latent_diffusion_64", "add_latent_64", "threshold_diffusion_64", "classifier_64")
STEPS_BATCH = 64  # of which CPU devices are a divisor
# Numbers that differ in these do not belong in one table; machines of one folder may.
COMPARED = ("hardware", "versions", "repeats")
CRASHES = 2  # of an item, after which it has failed

ITEMS = {
    "cpu": ("unet:tiny:float32", "data:32", *(f"step:{name}" for name in SMALL)),
}
ON_ACCELERATOR = ("unet:sd21:bfloat16", "step:dit_64", "data:64")
ON_ACCELERATOR += tuple(f"step:{name}" for name in LARGE if name != "dit_64")
ON_ACCELERATOR += ("unet:tiny:bfloat16", "unet:sd21:float32", "data:512")


@dataclasses.dataclass(frozen=True)
class Options:
    items: tuple[str, ...] = ()
    """What is measured, in order; none: all that this kind of machine is meant for."""
    repeats: int = 7
    """Counted turns of each."""
    minutes: float = 9.0
    """Minutes that a command may take; the next one goes on."""
    trace: str = ""
    """Folder for a profile of each train step."""
    anew: bool = False
    """Measure again what was measured before."""
    show: str = ""
    """JSON file written before: prints its table again, and measures nothing."""
    one: str = ""
    """The item that this process measures, to print its JSON: what the command above starts."""

    def check(self) -> None:
        """Raises UserError for options that cannot be served."""
        for item in (*self.items, *filter(None, (self.one,))):
            check(item)
        if self.repeats < 1 or not self.minutes > 0:
            raise UserError("--repeats and --minutes must be numbers above 0")


def check(item: str) -> None:
    """Raises UserError for an item that is none."""
    kind, *rest = item.split(":")
    dtypes, shapes = ("float32", "bfloat16"), training_unet.BATCHES
    if kind == "step" and len(rest) == 1:
        configs.load(rest[0])
    elif kind == "unet" and len(rest) == 2:
        if rest[0] not in shapes or rest[1] not in dtypes:
            raise UserError(
                f"{item}: give unet:SHAPE:DTYPE, of {', '.join(shapes)} and {', '.join(dtypes)}"
            )
    elif kind != "data" or len(rest) != 1 or not rest[0].isdigit() or int(rest[0]) < 1:
        raise UserError(f"--items {item}: give step:CONFIG, unet:SHAPE:DTYPE or data:SIDE")


def main() -> None:
    with reported():
        options = configs.parse(Options(), sys.argv[1:], PROGRAM)
        if options.show:
            print(table(reports.read(Path(options.show), "training")))
            return
        if options.one:
            jax.config.update("jax_enable_compilation_cache", False)
            print(json.dumps(measured(options.one, options.repeats, options.trace)))
            return
        end = time.monotonic() + 60 * options.minutes
        device = machine.asked(STEPS_BATCH)
        path = machine.folder(device) / "training.json"
        head = {
            "benchmark": "training",
            "command": reports.command(PROGRAM, sys.argv[1:]),
            "hardware": device,
            "versions": machine.versions(),
            "repeats": options.repeats,
        }
        report = reports.taken_up(head, path, COMPARED, options.anew)
        report["skipped"] = [  # what is asked for by its name is tried again
            row
            for row in report["skipped"]
            if row.get("crashed", 0) < CRASHES or row["item"] not in options.items
        ]
        items = options.items or ITEMS.get(device["platform"], ON_ACCELERATOR)
        left = measure(items, options, end, report, path, _child)
        print(table(report))
        print(f"numbers: {path}")
        if left:
            print(f"{left} item(s) are left: the same command goes on")
        elif failed := [item for item in items if _crashes(report, item) >= CRASHES]:
            print(f"failed: {' '.join(failed)}; --items with these names tries them again")
            sys.exit(EXIT_FAULT)


def measure(
    items: tuple[str, ...],
    options: Options,
    end: float,
    report: Report,
    path: Path,
    child: Callable[[str, Options, float], dict[str, Any]],
) -> int:
    """Adds to `report`, and to its file, until time.monotonic() is `end`; how many are left.

    `child(item, options, seconds)` measures one; a result with a `reason` is why it was skipped.
    One whose process crashed is left, and done with when it has crashed `CRASHES` times. With a
    trace, a train step is done only when its row says where the time went.
    """
    whole = end - time.monotonic()

    def is_done(item: str, seconds: float) -> bool:
        return _is_done(report, item, seconds, bool(options.trace))

    for item in items:
        seconds = end - time.monotonic()
        if seconds <= 0 or is_done(item, seconds):
            continue
        row: dict[str, Any] = {"item": item}
        row["date"] = datetime.datetime.now(datetime.UTC).isoformat("T", "seconds")
        row |= child(item, options, seconds)
        if "crashed" in row:
            row["crashed"] += _crashes(report, item)
        for field in ("measured", "skipped"):
            report[field] = [other for other in report[field] if other["item"] != item]
        if "reason" in row:
            report["skipped"].append(row | {"seconds_left": seconds})
        else:
            report["measured"].append(row)
        reports.write(report, path)
        print(line(row), flush=True)
    return sum(not is_done(item, whole) for item in items)


def measured(item: str, repeats: int, trace: str) -> dict[str, Any]:
    """One item, by this process, or the `reason` why not."""
    kind, *rest = item.split(":")
    try:
        match kind:
            case "step":
                return training_step.measured(rest[0], repeats, trace)
            case "unet":
                return training_unet.measured(*rest, repeats=repeats)
        return training_data.measured(int(rest[0]), repeats)
    except UserError as error:
        return {"reason": str(error)}


def table(report: Report) -> str:
    """Plain text: a line for each item."""
    hardware, versions = report["hardware"], report["versions"]
    head = (
        f"training on {hardware['count']} {hardware['device']} device(s) "
        f"({hardware['processor']}, {hardware['cores']} cores), jax {versions['jax']}; "
        f"medians of {report['repeats']}"
    )
    return "\n".join([head, *map(line, report["measured"]), *map(line, report["skipped"])])


def line(row: dict[str, Any]) -> str:
    """One item's result in a line."""
    item = f"{row['item']:28}"
    if "reason" in row:
        return f"{item} skipped: {row['reason']}"
    if "readers" in row:
        told = [f"{who} {figure(r['images_per_second'])}" for who, r in row["readers"].items()]
        told += filter(None, [row.get("rivals_missing")])
        return f"{item} images/s: {', '.join(told)}"
    peak = f"{100 * row['share_of_flops']:.0f} % of the measured FLOP/s"
    if row["share_of_published"] is not None:
        peak += f", {100 * row['share_of_published']:.0f} % of the published"
    if "times_faster" in row:
        told = [f"{figure(times)} x {who}" for who, times in row["times_faster"].items()]
        told += filter(None, [row.get("rivals_missing")])
        return (
            f"{item} batch {row['batch']}, {figure(row['images_per_second']['jaxgen'])} images/s, "
            f"{', '.join(told)}, {peak}"
        )
    return (
        f"{item} batch {row['batch']}, {figure(row['images_per_second'])} images/s, {peak}, "
        f"pipeline {figure(row['pipeline']['times_consumed'])} x, "
        f"{row['memory']['program'] / 2**30:.2f} GiB, compiled in {row['compile_seconds']:.0f} s"
    )


def _is_done(report: Report, item: str, seconds: float, traced: bool) -> bool:
    wanted = traced and item.startswith("step:")
    done = any(row["item"] == item and ("where" in row or not wanted) for row in report["measured"])
    if crashes := _crashes(report, item):
        return crashes >= CRASHES
    return done or any(
        row["item"] == item and reports.still_holds(row, seconds) for row in report["skipped"]
    )


def _crashes(report: Report, item: str) -> int:
    """How often the item's process crashed, one time after the other."""
    return sum(row.get("crashed", 0) for row in report["skipped"] if row["item"] == item)


def _child(item: str, options: Options, seconds: float) -> dict[str, Any]:
    """What a process of its own finds, so that memory and its peaks are this item's alone."""
    command = [sys.executable, "-m", "benchmarks.training", f"--one={item}"]
    command += [f"--repeats={options.repeats}", f"--trace={options.trace}"]
    try:
        told = subprocess.run(
            command, stdout=subprocess.PIPE, check=False, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return {"reason": f"takes longer than the {seconds:.0f} s that were left"}
    if told.returncode:
        return {"reason": f"its process ended with exit code {told.returncode}", "crashed": 1}
    return json.loads(told.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
