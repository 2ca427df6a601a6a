"""From the command to a picture on the host, in processes that begin with nothing compiled.

    python -m benchmarks.starts --config=add --cache=FOLDER

draws one picture in one step as `jaxgen.sample` would, with the compile cache in the folder, and
prints as JSON where the seconds went. `latency` does so twice: into an empty folder, and again.
"""

import time

BEGUN = time.monotonic()

import dataclasses  # noqa: E402
import functools  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Callable, Sequence  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any, Literal  # noqa: E402

import jax  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks import latency_programs as programs  # noqa: E402
from benchmarks import reports  # noqa: E402
from benchmarks import subject as subjects  # noqa: E402
from benchmarks.reports import Report  # noqa: E402
from jaxgen import config as configs  # noqa: E402
from jaxgen.errors import UserError, reported  # noqa: E402
from jaxgen.runtime import mesh as meshes  # noqa: E402

PROGRAM = "python -m benchmarks.starts"
STARTS = ("first", "second")
CACHE = "JAX_COMPILATION_CACHE_DIR"  # which goes before --cache


@dataclasses.dataclass(frozen=True)
class Options:
    run: str = ""
    """Folder of a finished run."""
    config: str = ""
    """In its place: a config whose shapes get random weights."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the activations."""
    cache: str = ""
    """Folder of compiled programs."""

    def check(self) -> None:
        """Raises UserError where there is nothing to draw with."""
        if bool(self.run) == bool(self.config) or not self.cache:
            raise UserError("give --run or --config, and --cache")


def main() -> None:
    with reported():
        options = configs.parse(Options(), sys.argv[1:], PROGRAM)
        imported = time.monotonic()
        meshes.prepare(1, Path(options.cache))
        found = subjects.of_run(options.run) if options.run else subjects.of_config(options.config)
        subject = found.computed_in(options.dtype)
        _, how = programs.compared(subject, 2, (1,)).values()
        place = programs.placing(subject)(1)
        jax.block_until_ready(place.weights)
        loaded = time.monotonic()
        whole = functools.partial(programs.whole, subject.config, how)
        whole = meshes.known(programs.mesh_of(1), whole)
        ids = subjects.captions(subject.model.text, 1)
        arguments = place.weights, place.key, jax.device_put(ids, place.over_batch)
        compiled = jax.jit(whole).lower(*arguments).compile()
        ready = time.monotonic()
        np.asarray(compiled(*arguments))
        drawn = time.monotonic()
        print(json.dumps({
            "imports": imported - BEGUN, "weights": loaded - imported,
            "compile": ready - loaded, "draw": drawn - ready,
        }))  # fmt: skip


def measure(
    what: str,
    dtypes: Sequence[str],
    end: float,
    report: Report,
    path: Path,
    say: Callable[[str], None],
) -> int:
    """Adds to `report`, and to its file at `path`, until time.monotonic() is `end`.

    For every type: the seconds of a start with an empty compile cache, and of the next one with
    what that left; `total` is the process's own time from its start to its end. `what` is --run or
    --config, with its value. `say` gets lines of progress. Returns how many types are left.
    """
    given = end - time.monotonic()
    for dtype in dtypes:
        seconds = end - time.monotonic()
        if seconds <= 0 or _is_done(report, dtype, seconds):
            continue
        say(f"{dtype}: a first start, and a second")
        for field in ("measured", "skipped"):
            report[field] = [row for row in report[field] if row["dtype"] != dtype]
        with tempfile.TemporaryDirectory() as cache:
            arguments = [what, f"--dtype={dtype}", f"--cache={cache}"]
            for start in STARTS:
                row: dict[str, Any] = {"dtype": dtype, "start": start}
                try:
                    report["measured"].append(row | _timed(arguments, end - time.monotonic()))
                    reports.write(report, path)
                except subprocess.TimeoutExpired:
                    # Of both starts, as a second one cannot be had without a first.
                    reason = f"does not end within the {seconds:.0f} s that were left for both"
                    report["skipped"].append(row | {"reason": reason, "seconds_left": seconds})
                    reports.write(report, path)
                    say(f"{dtype}: the {start} start {reason}")
                    break
    return sum(not _is_done(report, dtype, given) for dtype in dtypes)


def by_dtype(report: Report) -> dict[str, dict[str, dict[str, float]]]:
    """The seconds of each measured start, by type and by which it is."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for row in report["measured"]:
        seconds = {name: x for name, x in row.items() if name not in ("dtype", "start")}
        found.setdefault(row["dtype"], {})[row["start"]] = seconds
    return found


def _is_done(report: Report, dtype: str, seconds: float) -> bool:
    """Whether both starts were measured, or one skipped for a reason that still holds."""
    return {*STARTS} <= by_dtype(report).get(dtype, {}).keys() or any(
        row["dtype"] == dtype and reports.still_holds(row, seconds) for row in report["skipped"]
    )


def _timed(arguments: list[str], seconds: float) -> dict[str, float]:
    """What a process of its own tells, killed after so many seconds: subprocess.TimeoutExpired."""
    begun = time.monotonic()
    command = [sys.executable, "-m", "benchmarks.starts", *arguments]
    told = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        check=False,
        text=True,
        timeout=max(0.0, seconds),
        env={name: value for name, value in os.environ.items() if name != CACHE},
    )
    total = time.monotonic() - begun
    if told.returncode:
        raise UserError(f"{PROGRAM} {' '.join(arguments)} failed; its message is above")
    return {"total": total, **json.loads(told.stdout.splitlines()[-1])}


if __name__ == "__main__":
    main()
