"""Which parts of ADD matter: the arms of Table 1 of its paper (arXiv 2311.17042), at small scale.

    python -m benchmarks.ablation --minutes=9           (again and again, until it ends with code 0)
    python -m benchmarks.ablation --only=loss,start --seeds=2 --steps=100

Every arm is `python -m jaxgen.train --config=add` with one field changed, trained from several
seeds and measured at one step without guidance: Fréchet distance, retrieval, recall and others of
`jaxgen.evaluate`, on the same captions for all. What is trained or measured already is taken as it
is, a training that was interrupted goes on, and the results are written after every arm. All arms
keep a constant learning rate, so that the main one can be measured on its way.
"""

import dataclasses
import datetime
import itertools
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import ablation_report as told
from benchmarks import machine, reports, runs
from benchmarks.runs import Clock
from jaxgen import config as configs
from jaxgen import quality, stages
from jaxgen.diffusion.sampler import Sampler
from jaxgen.errors import UserError, reported
from jaxgen.metrics import bootstrap, retrieval
from jaxgen.metrics.measures import LEAST, Pictures, Real, likeness
from jaxgen.metrics.networks import FeatureNetwork
from jaxgen.runtime import metrics as logs
from jaxgen.runtime import run
from jaxgen.stages import Loaded

PROGRAM = "python -m benchmarks.ablation"
MEASURED, SECONDS = "measured.json", "seconds.json"


class Arm(NamedTuple):
    """One row: what of Table 1 it belongs to, and what it changes."""

    name: str
    group: str
    arguments: tuple[str, ...] = ()


ARMS = (
    Arm(told.MAIN, "main"),
    Arm("adversarial only", "loss", ("--distillation=0",)),
    Arm("distillation only", "loss", ("--adversarial=0",)),
    Arm("random start", "start", ("--initialise=random",)),
    Arm("judge told nothing", "condition", ("--judge.condition=none",)),
    Arm("judge told text", "condition", ("--judge.condition=text",)),
    Arm("judge told image", "condition", ("--judge.condition=image",)),
    Arm("SDS weighting", "weighting", ("--weighting=sds",)),
    Arm("NFSD weighting", "weighting", ("--weighting=nfsd",)),
    Arm("EfficientNet, tap 2", "features", ("--judge.taps", "2")),
    Arm("EfficientNet, tap 10", "features", ("--judge.taps", "10")),
    Arm("teacher 2 steps", "teacher", ("--teacher-steps=2",)),
    Arm("teacher 4 steps", "teacher", ("--teacher-steps=4",)),
)
CLASSIFIER = "classifier's eyes"
GROUPS = tuple(dict.fromkeys(arm.group for arm in ARMS if arm.group != "main"))


@dataclasses.dataclass(frozen=True)
class Options:
    only: str = ""
    """Some groups of arms beside the main one: loss, start, condition, weighting, features,
    teacher; none: all."""
    seeds: int = 3
    """Trainings of each arm; all arms have had one seed before any has the next."""
    steps: int = 150
    """Train steps of each."""
    batch: int = 16
    """Images a step."""
    samples: int = 500
    """Most training captions that are drawn to measure."""
    points: int = 4
    """How often the main arm is measured along its first training."""
    config: str = "add"
    """What is ablated."""
    teacher: str = "shipped"
    """Its teacher: shipped, or the folder of a run."""
    data: str = ""
    """Its pictures; the config's by default."""
    eyes: str = ""
    """Folder of a classifier's run, to judge by in one more arm of the group features."""
    grader: str = quality.CLASSIFIER
    """Who grades: a feature network of `jaxgen.evaluate` that judges in no arm."""
    overrides: tuple[str, ...] = ()
    """Further FIELD=VALUE for every arm, such as optimizer.learning-rate=1e-4."""
    workdir: str = "runs/ablation"
    """Folder of the runs."""
    root: str = "data"
    """Folder of prepared data sets."""
    minutes: float = 0.0
    """Minutes after which it saves and ends with exit code 75, to be run again; 0: no limit."""

    def check(self) -> None:
        """Raises UserError for what cannot be measured."""
        if unknown := {name for name in self.only.split(",") if name} - set(GROUPS):
            raise UserError(f"--only {min(unknown)!r} is none of {', '.join(GROUPS)}")
        for name, least in {"seeds": 1, "steps": 1, "batch": 1, "points": 1}.items():
            if getattr(self, name) < least:
                raise UserError(f"--{name} is {getattr(self, name)}; give {least} or more")
        if self.samples < LEAST:
            raise UserError(f"--samples is {self.samples}; the measures need {LEAST} or more")
        if self.minutes < 0:
            raise UserError(f"--minutes is {self.minutes:g}; give 0 or more")
        if any("=" not in text or text.startswith("-") for text in self.overrides):
            raise UserError(f"--overrides {' '.join(self.overrides)}: give FIELD=VALUE")

    def arms(self) -> list[Arm]:
        """The rows of the table, the main arm first."""
        groups = {"main", *(self.only.split(",") if self.only else GROUPS)}
        arms = [arm for arm in ARMS if arm.group in groups]
        if self.eyes and "features" in groups:
            # Taps of EfficientNet are none of a classifier's: it has its own.
            said = (f"--judge.features={self.eyes}", "--judge.taps")
            arms.append(Arm(CLASSIFIER, "features", said))
        return arms

    def settings(self) -> dict[str, Any]:
        """What must be the same for numbers to be of one table."""
        free = ("only", "seeds", "points", "eyes", "workdir", "root", "minutes")
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in free}


def main() -> None:
    with reported():
        options = configs.parse(Options(), sys.argv[1:], PROGRAM)
        clock = Clock(options.minutes)
        runs.prepare(options.workdir)
        eyes: _Eyes | None = None
        found: dict[str, dict[str, Any]] = {}
        curve: list[dict[str, Any]] = []
        for seed, arm in itertools.product(range(options.seeds), options.arms()):
            folder = Path(options.workdir) / f"{_slug(arm.name)}_{seed}"
            own = found.setdefault(arm.name, {"group": arm.group, "seeds": {}})
            own["arguments"] = " ".join(arm.arguments)
            on_the_way = (arm.name, seed) == (told.MAIN, 0)
            for steps in _stops(options) if on_the_way else [options.steps]:
                _train(options, arm, seed, steps, folder, clock)
                # Only now, for programs of ours would compete with the first training.
                eyes = eyes or _Eyes(options, stages.read(folder))
                if not curve:
                    curve.append(eyes.start(folder))
                measured = eyes.measured(folder, steps, seed)
                if on_the_way and measured:
                    curve.append(measured)
                if steps == options.steps:
                    own["seeds"][str(seed)] = {**measured, "seconds": _seconds(folder)}
                    _write(options, eyes, found, curve)
        path = _path()
        report = json.loads(path.read_text(encoding="utf-8"))
        print(told.markdown(report))
        print(f"numbers: {path}")
        print(told.draw(report, path.with_suffix(".png")))


def _stops(options: Options) -> list[int]:
    """The numbers of steps at which the main arm is measured."""
    parts = np.linspace(0, options.steps, options.points + 1)[1:]
    return sorted({max(1, round(part)) for part in parts})


def _train(options: Options, arm: Arm, seed: int, steps: int, folder: Path, clock: Clock) -> None:
    """Trains an arm up to `steps`, from where it stands, if it is not so far."""
    if run.finished_steps(folder) >= steps:
        return
    arguments = [f"--config={options.config}", f"--name={folder.name}", f"--seed={seed}"]
    arguments += [f"--workdir={options.workdir}", f"--data.root={options.root}"]
    arguments += [f"--teacher={options.teacher}", f"--train.batch={options.batch}"]
    arguments += [f"--data.name={options.data}"] if options.data else []
    arguments += ["--optimizer.decay=constant", "--judge-optimizer.decay=constant"]
    # A run that is measured on its way is first one of fewer steps, and no warm-up is longer than
    # half of those: with a longer one it would become another run on its way.
    arguments += [f"--optimizer.warmup={min(50, _stops(options)[0] // 2)}"]
    arguments += ["--judge-optimizer.warmup=0"]
    # Its pictures are not looked at, and its checkpoints are for interruptions alone.
    arguments += ["--train.sample-every=0", "--sampler-steps=2", "--train.log-every=5"]
    arguments += ["--train.checkpoint-every=1000", f"--train.steps={steps}"]
    arguments += [f"--{text}" for text in options.overrides]
    before, begun = _seconds(folder), time.monotonic()
    try:
        runs.command("jaxgen.train", [*arguments, *arm.arguments], clock)
    finally:
        if folder.is_dir():
            took = round(before + time.monotonic() - begun, 1)
            (folder / SECONDS).write_text(json.dumps(took))
    if steps == options.steps:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # 70 MB an arm and seed


def _seconds(folder: Path) -> float:
    """How long the run was trained so far, compiling and all."""
    file = folder / SECONDS
    return json.loads(file.read_text()) if file.is_file() else 0.0


class _Eyes:
    """The same captions, real images and feature network for every arm."""

    def __init__(self, options: Options, first: Loaded):
        self.options = options
        self.network: FeatureNetwork = quality.grader(options.grader, None, [], own_eyes=False)
        self.sources = quality.both_splits(first.config, "")
        cache = Path(options.root) / ".features"
        self.real: Real = quality.real_images(*self.sources, self.network, cache)

    def start(self, folder: Path) -> dict[str, Any]:
        """The measures of the teacher itself, drawn as its students are."""
        config: Any = stages.read(folder).config
        teacher = stages.plan(config)[-1].sources["teacher"]
        loaded = stages.read(Path(teacher))
        return {"step": 0, "metrics": self._look(loaded, _once(config), 0)}

    def measured(self, folder: Path, steps: int, seed: int) -> dict[str, Any]:
        """The measures of a run at `steps` steps, from its folder where they are known.

        Nothing where it has gone on since, which for the last of all is a UserError.
        """
        kept = folder / MEASURED
        known = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else []
        by = {"step": steps, "grader": self.network.title, "samples": self.options.samples}
        for one in known:
            if all(one[name] == value for name, value in by.items()):
                return one
        loaded = stages.read(folder)
        if loaded.step > steps < self.options.steps:
            return {}
        if loaded.step != steps:
            raise UserError(
                f"{folder} has {loaded.step} steps and was not measured at {steps}; use another "
                "--workdir"
            )
        if stages.judged_by(loaded.config) & stages.known_by(self.options.grader):
            raise UserError(
                f"{folder} was judged by {self.options.grader}, which would flatter it; choose "
                "another --grader"
            )
        found = {**by, "metrics": self._look(loaded, _once(loaded.config), seed)}
        reports.write([*known, found], kept)
        return found

    def _look(self, loaded: Loaded, sampler: Sampler, seed: int) -> dict[str, Any]:
        asked = quality.asked(loaded, self.sources[0], 0, self.options.samples, 0)
        images, _ = quality.drawn(loaded, sampler, asked.ids, seed)
        samples = Pictures(images, self.network.features(images))
        rng = np.random.default_rng(0)
        found = likeness(samples.features, self.real.train, rng, asked.own)
        ranks = retrieval.ranks(samples.features, self.real.all.features, asked.own)
        for at in (1, 10):
            found[f"retrieval@{at}"] = bootstrap.of_share(retrieval.hits(ranks, at), asked.own)
        return {name: estimate._asdict() for name, estimate in found.items()}


def _once(config: Any) -> Sampler:
    """One step, as a student takes it."""
    (sampler,) = quality.samplers(config, [1], None)
    assert sampler is not None
    return sampler


def _write(
    options: Options,
    eyes: _Eyes,
    found: dict[str, dict[str, Any]],
    curve: Sequence[dict[str, Any]],
) -> None:
    """The results so far."""
    done = {name: arm for name, arm in found.items() if arm["seeds"]}
    path = _path()
    report = {
        "benchmark": "ablation",
        "command": " ".join([PROGRAM, *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "hardware": machine.hardware(),
        "versions": machine.versions(),
        "settings": options.settings(),
        "grader": eyes.network.title,
        "captions": min(options.samples, len(eyes.sources[0])),
        "arms": done,
        "curve": list(curve),
        "log": logs.read(Path(options.workdir) / f"{_slug(told.MAIN)}_0"),
        "orderings": told.orderings(done),
    }
    reports.write(report, path)
    path.with_suffix(".md").write_text(told.markdown(report), encoding="utf-8")
    print(f"{sum(len(arm['seeds']) for arm in done.values())} runs in {path}", flush=True)


def _path() -> Path:
    return machine.folder(machine.hardware()) / "ablation.json"


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name.lower())


if __name__ == "__main__":
    main()
