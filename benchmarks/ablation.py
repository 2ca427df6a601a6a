"""Which parts of ADD matter: the arms of Table 1 of its paper (arXiv 2311.17042), at small scale.

    python -m benchmarks.ablation --minutes=9           (again and again, until it ends with code 0)
    python -m benchmarks.ablation --only=loss,start --seeds=2 --steps=100

Every arm is `python -m jaxgen.train --config=add_subgroups` with one field changed (two for pairs,
which the paper lacks: the samples, and what they are for), trained from several seeds and measured
at one step without guidance: Fréchet distance, retrieval, recall and others of `jaxgen.evaluate`,
on the same captions for all. What is trained or measured already is taken as it is, a training that
was interrupted goes on, and the results are written after every arm. What is in the folder of runs
must have been trained by the same options. All arms keep a constant learning rate, so that the main
one can be measured on its way.

Training and measuring have a process each, one after the other, for a TPU serves one at a time.
"""

import dataclasses
import datetime
import itertools
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import ablation_report as told
from benchmarks import machine, reports, runs
from benchmarks.runs import Clock
from jaxgen import cli, quality, stages
from jaxgen import config as configs
from jaxgen.diffusion.sampler import Sampler
from jaxgen.errors import UserError, reported
from jaxgen.metrics import bootstrap, retrieval
from jaxgen.metrics.measures import LEAST, Pictures, likeness
from jaxgen.runtime import metrics as logs
from jaxgen.runtime import run

PROGRAM = "python -m benchmarks.ablation"
MEASURED = "measured.json"  # in the folder of a run

Measured = dict[str, Any]


class Arm(NamedTuple):
    """One row: what of Table 1 it belongs to, and what it changes."""

    name: str
    group: str
    arguments: tuple[str, ...] = ()


PAIRED = ("--regression=60", "--drawn.count=6000", "--drawn.steps=8", "--drawn.guidance=1.5")
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
    Arm(told.PAIRS, "pairs", PAIRED),
)
CLASSIFIER = "classifier's eyes"
GROUPS = tuple(dict.fromkeys(arm.group for arm in ARMS if arm.group != "main"))


@dataclasses.dataclass(frozen=True)
class Options:
    only: str = ""
    """Some groups of arms beside the main one: loss, start, condition, weighting, features,
    teacher, pairs; none: all."""
    seeds: int = 3
    """Trainings of each arm; all arms have had one seed before any has the next."""
    steps: int = 150
    """Train steps of each."""
    batch: int = 24
    """Images a step."""
    samples: int = 500
    """Most training captions that are drawn to measure."""
    points: int = 4
    """How often the main arm is measured along its first training."""
    config: str = "add_subgroups"
    """What is ablated: ADD of a teacher whose one step leaves something to gain."""
    teacher: str = ""
    """Its teacher: shipped, or the folder of a run; the config's by default, trained first."""
    data: str = ""
    """Its pictures; the config's by default."""
    eyes: str = ""
    """Folder of a classifier's run, to judge by in one more arm of the group features."""
    grader: str = quality.CLASSIFIER
    """Who grades: a feature network of `jaxgen.evaluate` that judges in no arm."""
    overrides: tuple[str, ...] = ("judge.condition=both", "train.ema=0.98")
    """Further FIELD=VALUE for every arm. By default the judge is told what the paper's is, which
    add_subgroups leaves out, and the average forgets the start within so few steps."""
    workdir: str = "runs/ablation"
    """Folder of the runs."""
    root: str = "data"
    """Folder of prepared data sets."""
    minutes: float = 0.0
    """Minutes after which it saves and ends with exit code 75, to be run again; 0: no limit."""
    one: str = ""
    """The run in the folder of runs that this process measures: what the command above starts."""

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
        free = ("only", "seeds", "eyes", "workdir", "root", "minutes", "one")
        said = {k: v for k, v in dataclasses.asdict(self).items() if k not in free}
        said["overrides"] = list(map(reports.bare, self.overrides))
        return {k: reports.bare(v) if isinstance(v, str) else v for k, v in said.items()}


def main() -> None:
    with reported():
        options = configs.parse(Options(), sys.argv[1:], PROGRAM)
        runs.prepare(options.workdir)
        if options.one:
            _measure(options, Path(options.workdir) / options.one)
            return
        clock = Clock(options.minutes)
        device = machine.asked(quality.BATCH)
        path = machine.folder(device) / "ablation.json"
        found: dict[str, dict[str, Any]] = {}
        curve: list[Measured] = []
        for seed, arm in itertools.product(range(options.seeds), options.arms()):
            folder = _folder(options, arm.name, seed)
            own = found.setdefault(arm.name, {"group": arm.group, "seeds": {}})
            own["arguments"] = " ".join(map(reports.bare, arm.arguments))
            on_the_way = (arm.name, seed) == (told.MAIN, 0)
            for steps in _stops(options) if on_the_way else [options.steps]:
                _train(options, arm, seed, steps, folder, clock)
                measured = _measured(options, steps, folder, clock)
                if on_the_way:
                    curve = [one for one in measured if one["step"] <= steps]
                if steps == options.steps:
                    (own["seeds"][str(seed)],) = [one for one in measured if one["step"] == steps]
                    _write(options, device, found, curve, path)
        report = json.loads(path.read_text(encoding="utf-8"))
        print(told.markdown(report))
        print(f"numbers: {path}")
        print(told.draw(report, path.with_suffix(".png")))


def _folder(options: Options, arm: str, seed: int) -> Path:
    return Path(options.workdir) / f"{_slug(arm)}_{seed}"


def _stops(options: Options) -> list[int]:
    """The numbers of steps at which the main arm is measured."""
    parts = np.linspace(0, options.steps, options.points + 1)[1:]
    return sorted({max(1, round(part)) for part in parts})


def _train(options: Options, arm: Arm, seed: int, steps: int, folder: Path, clock: Clock) -> None:
    """Trains an arm up to `steps`, from where it stands, if it is not so far.

    Raises UserError where the folder holds a run of other options.
    """
    arguments = [f"--config={options.config}", f"--name={folder.name}", f"--seed={seed}"]
    arguments += [f"--workdir={options.workdir}", f"--data.root={options.root}"]
    arguments += [f"--train.batch={options.batch}"]
    arguments += [f"--teacher={options.teacher}"] if options.teacher else []
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
    arguments += arm.arguments
    if run.finished_steps(folder) >= steps:
        runs.refuse_other(cli.configured(arguments, PROGRAM))
        return
    runs.command("jaxgen.train", arguments, clock)
    if steps == options.steps:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # 70 MB an arm and seed


def _measured(options: Options, steps: int, folder: Path, clock: Clock) -> list[Measured]:
    """What is known of a run, among it the measures at `steps` steps.

    Those miss where it has gone on since, which for the last of all is a UserError.
    """
    if not any(one["step"] == steps for one in _known(options, folder)):
        done = run.finished_steps(folder)
        if done == steps:
            runs.command("benchmarks.ablation", [*sys.argv[1:], f"--one={folder.name}"], clock)
        elif steps == options.steps:
            raise UserError(
                f"{folder} has {done} steps and was not measured at {steps}; use another --workdir"
            )
    return _known(options, folder)


def _known(options: Options, folder: Path) -> list[Measured]:
    """What stands in a run's folder, by this grader on as many samples."""
    by = {"grader": quality.title_of(options.grader), "samples": options.samples}
    return [one for one in _kept(folder) if all(one[name] == value for name, value in by.items())]


def _kept(folder: Path) -> list[Measured]:
    file = folder / MEASURED
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []


def _measure(options: Options, folder: Path) -> None:
    """Adds the measures of a run as it stands to its folder; for the first also its teacher's."""
    loaded = stages.read(folder)
    config: Any = loaded.config
    if stages.judged_by(config) & stages.known_by(options.grader):
        raise UserError(
            f"{folder} was judged by {options.grader}, which would flatter it; choose another "
            "--grader"
        )
    wanted = [(loaded, loaded.step)]
    if folder == _folder(options, told.MAIN, 0) and not _known(options, folder):
        wanted.insert(0, (stages.read(Path(stages.plan(config)[-1].sources["teacher"])), 0))
    network = quality.grader(options.grader, None, [], own_eyes=False)
    sources = quality.both_splits(config, "")
    real = quality.real_images(*sources, network, Path(options.root) / ".features")
    kept = _kept(folder)
    for shown, step in wanted:
        asked = quality.asked(shown, sources[0], 0, options.samples, 0)
        images, _ = quality.drawn(shown, _once(loaded), asked.ids, config.seed)
        samples = Pictures(images, network.features(images))
        found = likeness(samples.features, real.train, np.random.default_rng(0), asked.own)
        ranks = retrieval.ranks(samples.features, real.all.features, asked.own, real.captions)
        for at in (1, 10):
            found[f"retrieval@{at}"] = bootstrap.of_share(retrieval.hits(ranks, at), asked.own)
        kept.append({
            "step": step,
            "grader": network.title,
            "samples": options.samples,
            "captions": len(asked.own),
            "metrics": {name: estimate._asdict() for name, estimate in found.items()},
        })  # fmt: skip
    reports.write(kept, folder / MEASURED)


def _once(loaded: stages.Loaded) -> Sampler:
    """One step, as a student takes it."""
    (sampler,) = quality.samplers(loaded, [1], None)
    assert sampler is not None
    return sampler


def _write(
    options: Options,
    device: dict[str, Any],
    found: dict[str, dict[str, Any]],
    curve: Sequence[Measured],
    path: Path,
) -> None:
    """The results so far."""
    done = {name: arm for name, arm in found.items() if arm["seeds"]}
    first = done[told.MAIN]["seeds"]["0"]
    report = {
        "benchmark": "ablation",
        "command": reports.command(PROGRAM, sys.argv[1:]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "hardware": device,
        "versions": machine.versions(),
        "settings": options.settings(),
        "grader": first["grader"],
        "captions": first["captions"],
        "arms": done,
        "curve": list(curve),
        "log": logs.read(_folder(options, told.MAIN, 0)),
        "orderings": told.orderings(done),
    }
    reports.write(report, path)
    path.with_suffix(".md").write_text(told.markdown(report), encoding="utf-8")
    print(f"{sum(len(arm['seeds']) for arm in done.values())} runs in {path}", flush=True)


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name.lower())


if __name__ == "__main__":
    main()
