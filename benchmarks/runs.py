"""Runs that benchmarks compare: trained where they are missing, measured where that is not known.

Both by the public command lines, so that whatever was trained or measured before is taken as it is,
and what was interrupted goes on. Nothing here uses a device itself: a TPU is refused to a process
while another has it.
"""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxgen import cli, methods, quality, stages
from jaxgen import config as configs
from jaxgen.config import Experiment
from jaxgen.diffusion.sampler import Sampler
from jaxgen.errors import EXIT_AGAIN, UserError
from jaxgen.metrics.measures import LEAST, NAMES
from jaxgen.runtime import mesh as meshes
from jaxgen.runtime import run
from jaxgen.stages import Loaded

Row = dict[str, Any]
PATIENCE = 60  # seconds that a command has for saving, once it is told to go


@dataclasses.dataclass(frozen=True)
class Spec:
    """One run: its config, what it builds on, and its sampling steps."""

    config: str
    steps: str = ""
    """Sampling steps to measure; none: the method's own."""
    unguided: str = ""
    """Steps to measure without guidance as well; one of them is where a student starts."""
    share: float = 1.0
    """Images that it sees, over those of the others."""
    roles: tuple[tuple[str, str], ...] = ()
    """Roles that are filled by other runs."""


@dataclasses.dataclass(frozen=True)
class Budget:
    """What is equal for all runs that are compared."""

    images: int = 32_000
    """Images that each method sees in training, counted with their repetitions."""
    workdir: str = "runs/methods"
    """Folder of the runs."""
    root: str = "data"
    """Folder of prepared data sets."""
    data: str = "openmoji:smileys-emotion,food-drink"
    """The pictures: few, so that each is seen often enough to be learnt."""
    samples: int = 500
    """Most samples of each set of captions."""
    minutes: float = 0.0
    """Minutes after which it saves and ends with exit code 75, to be run again; 0: no limit."""

    def check(self) -> None:
        """Raises UserError for what cannot be measured."""
        if self.samples < LEAST:
            raise UserError(f"--samples is {self.samples}; the measures need {LEAST} or more")
        if self.images < 1000:
            raise UserError(f"--images is {self.images}; give 1000 or more")
        if self.minutes < 0:
            raise UserError(f"--minutes is {self.minutes:g}; give 0 or more")

    def folder(self, spec: Spec) -> Path:
        """That of the spec's run."""
        return Path(self.workdir) / spec.config


class Clock:
    """How long may still be worked; made when a door opens."""

    def __init__(self, minutes: float):
        self.minutes = minutes
        self._end = time.monotonic() + 60 * minutes if minutes else math.inf

    def left(self) -> float | None:
        """Seconds; None without a limit. Ends the program with `EXIT_AGAIN` where none are left."""
        left = self._end - time.monotonic()
        if left <= 0:
            self.stop()
        return None if math.isinf(left) else left

    def stop(self) -> None:
        """Says that the time is up, and ends."""
        print(f"{self.minutes:g} minutes are over; the same command goes on from here", flush=True)
        sys.exit(EXIT_AGAIN)


def prepare(workdir: str) -> None:
    """Before anything touches JAX in a door that runs others: they shall have the accelerator."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    meshes.prepare(quality.BATCH, Path(workdir) / ".compiled")


def command(module: str, arguments: Sequence[str], clock: Clock) -> None:
    """Runs a door of jaxgen to its end; when the time is up it is told to save, and so are we.

    Raises UserError where it fails.
    """
    left = clock.left()
    print(f"python -m {module} {' '.join(arguments)}", flush=True)
    process = subprocess.Popen([sys.executable, "-m", module, *arguments])
    try:
        code = process.wait(left)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        with_patience(process)
        clock.stop()
        return
    except KeyboardInterrupt:  # the terminal has told it too
        with_patience(process)
        raise
    if code == EXIT_AGAIN:
        sys.exit(EXIT_AGAIN)
    if code:
        raise UserError(f"python -m {module} ended with exit code {code}; its message is above")


def with_patience(process: subprocess.Popen) -> None:
    """Waits for a process that is saving; one that takes too long is killed."""
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def train(spec: Spec, budget: Budget, clock: Clock) -> None:
    """Trains the run to its share of the images, if it is not.

    Raises UserError where its folder holds another, or one that builds on older weights.
    """
    config, folder = configs.load(spec.config), budget.folder(spec)
    steps = math.ceil(budget.images * spec.share / config.train.batch)
    arguments = [f"--config={spec.config}", f"--workdir={budget.workdir}"]
    arguments += [f"--data.root={budget.root}", f"--data.name={budget.data}"]
    arguments += [f"--train.steps={steps}"]
    arguments += [f"--{role}={Path(budget.workdir) / name}" for role, name in spec.roles]
    if run.finished_steps(folder) != steps:
        command("jaxgen.train", arguments, clock)
    refuse_other(cli.configured(arguments, "jaxgen.train"))
    if (done := run.finished_steps(folder)) != steps:
        raise UserError(f"{folder} has {done} steps, not {steps}; use another --workdir")
    begun = folder / run.WEIGHTS
    for role, name in spec.roles:
        source = Path(budget.workdir) / name / run.WEIGHTS
        if source.stat().st_mtime > begun.stat().st_mtime:
            raise UserError(f"{source} is newer than what {folder} made of its {role}; remove that")


def refuse_other(config: Experiment) -> None:
    """Raises UserError where the config's folder holds a run of another config."""
    try:
        run.refuse_other(config, methods.name(config))
    except UserError as error:  # whose remedy is for who trains a single run
        raise UserError(f"{str(error).partition(';')[0]}; use another --workdir") from None


def measured(spec: Spec, budget: Budget, features: str, clock: Clock) -> list[Row]:
    """What `evaluate` says of the run by the grader `features`, a row a sampler and captions.

    Whatever stands beside the weights, newer than them and by the same options, is taken; only the
    rest is asked for.
    """
    folder = budget.folder(spec)
    wanted = wanted_samplers(stages.read(folder), spec)
    title = quality.title_of(features)
    found = standing(folder, title, budget.samples)
    for how in (how for how in wanted if _key(how) not in found):
        # One at a time: what is found stands when the minutes are over.
        arguments = [f"--run={folder}", f"--samples={budget.samples}", f"--features={features}"]
        kind = ""
        if how:
            kind = f"{how.steps}_{how.guidance:g}"
            arguments += [f"--steps={how.steps}", f"--guidance={how.guidance}"]
        arguments += [f"--out={folder / f'quality_{budget.samples}_{kind}.json'}"]
        command("jaxgen.evaluate", arguments, clock)
    found = standing(folder, title, budget.samples)
    return [row for how in wanted for row in found[_key(how)]]


def wanted_samplers(loaded: Loaded, spec: Spec) -> list[Sampler] | list[None]:
    """The samplers that the run is to be measured by, each once."""

    def counts(steps: str) -> list[int]:
        return [int(n) for n in steps.split(",") if n]

    wanted: list[Any] = list(quality.samplers(loaded, counts(spec.steps), None))
    if spec.unguided:
        also = quality.samplers(loaded, counts(spec.unguided), 1.0)
        wanted += [how for how in also if how not in wanted]
    return wanted


def standing(folder: Path, grader: str, samples: int) -> dict[str, list[Row]]:
    """By sampler, the rows of `evaluate`'s files in a run's folder that are of these options."""
    weights = (folder / run.WEIGHTS).stat().st_mtime
    found: dict[str, list[Row]] = {}
    for file in sorted(folder.glob("quality*.json")):
        if file.name.endswith(".partial.json") or file.stat().st_mtime < weights:
            continue
        report = json.loads(file.read_text(encoding="utf-8"))
        if "benchmark" in report:  # a comparison made of such files
            continue
        if report["grader"]["title"] != grader or report["seed"] != 0:
            continue
        for row, key in _rows(report, samples):
            if all(own["captions"] != row["captions"] for own in found.get(key, [])):
                found.setdefault(key, []).append(row)
    return {key: rows for key, rows in found.items() if len(rows) == 2}


def _rows(report: dict[str, Any], samples: int) -> Iterator[tuple[Row, str]]:
    """The rows of a report from as many samples as `samples` at most would be."""
    data = report["data"]
    for row in report["rows"]:
        split = data["train" if row["captions"] == quality.TRAINING else "test"]
        names = {name.partition(" (")[0] for name in row["metrics"]}
        if not names.issuperset(NAMES):  # by older measures
            continue
        if all(f"; {min(samples, split)} samples)" in name for name in row["metrics"]):
            # A file may be older than a field, which then was what it is by default.
            yield row, _key(Sampler(**row["sampler"]) if row["sampler"] else None)


def _key(how: Sampler | None) -> str:
    return json.dumps(dataclasses.asdict(how) if how else None, sort_keys=True)


def grader_of(specs: Sequence[Spec], budget: Budget) -> str:
    """The usual grader of all the runs together: the name for `evaluate --features`."""
    loaded = [stages.read(budget.folder(spec)) for spec in specs]
    drawing = [one for one in loaded if not hasattr(methods.of(one.config), "predict")]
    return quality.grader_of(drawing)
