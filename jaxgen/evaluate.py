"""python -m jaxgen.evaluate --run=runs/add --steps=50,8,4,2,1: how good a run's samples are."""

import dataclasses
import datetime
import functools
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from jaxgen import config as configs
from jaxgen import methods, quality, stages, storage
from jaxgen.data.source import Source
from jaxgen.diffusion.sampler import network_calls
from jaxgen.errors import UserError, reported
from jaxgen.metrics.bootstrap import Estimate
from jaxgen.metrics.measures import LEAST, RETRIEVED
from jaxgen.metrics.networks import FeatureNetwork
from jaxgen.quality import HELD_OUT, TRAINING, Row
from jaxgen.runtime import classes
from jaxgen.runtime import mesh as meshes
from jaxgen.runtime.progress import duration
from jaxgen.stages import Loaded

PROGRAM = "python -m jaxgen.evaluate"


@dataclasses.dataclass(frozen=True)
class Options:
    run: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Folder of a run, or shipped:NAME; give it several times for one table of all."""
    steps: str = ""
    """Sampling steps, such as 50,8,4,2,1; for each run its method's own by default."""
    guidance: float | None = None
    """Classifier-free guidance; the method's own by default (a student needs none: 1)."""
    features: str = ""
    """Who grades: the folder of a classifier, shipped:classifier, efficientnet-lite0, inception,
    inception-legacy, dinov2-vitl14 or clip-vitl14-336; by default shipped:classifier, or
    efficientnet-lite0 for a run that a classifier judged in training."""
    weights: str = ""
    """File of the grader's weights, for those that do not come with jaxgen."""
    own_eyes: bool = False
    """Go on where the grader also judged the run in training; every number's name says so."""
    samples: int = 500
    """Most samples of each set of captions, one a caption."""
    data: str = ""
    """Data set with the real images; that of the run by default."""
    root: str = ""
    """Folder of prepared data sets; that of the run by default."""
    seed: int = 0
    """Seed of captions, noise and intervals."""
    out: str = ""
    """JSON file to write, by default quality.json in the run's folder, and quality_NAME.json here
    for what comes with jaxgen or was published; for a classifier the folder to write to."""

    def check(self) -> None:
        """Raises UserError for options that are wrong whatever the run is."""
        if not self.run:
            raise UserError("--run is missing; name a run's folder: --run=runs/add")
        if self.samples < LEAST:
            raise UserError(f"--samples is {self.samples}; the measures need {LEAST} or more")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"--seed is {self.seed}; give 0 to {2**32 - 1}")
        self.counts()

    def check_for_classifier(self) -> None:
        """Raises UserError for options that a classifier, which only predicts, does not take."""
        taken = ("run", "data", "root", "out")
        given = [
            f"--{field.name.replace('_', '-')}"
            for field in dataclasses.fields(self)
            if field.name not in taken and getattr(self, field.name) != field.default
        ]
        if given:
            raise UserError(
                f"{self.run[0]} is a classifier, whose held-out accuracy is all that is measured: "
                f"leave {', '.join(given)} out"
            )

    def counts(self) -> list[int]:
        """The numbers of steps; none where the method shall choose."""
        try:
            return [int(part) for part in self.steps.split(",")] if self.steps else []
        except ValueError:
            raise UserError(f"--steps {self.steps!r}: give whole numbers such as 8,4,1") from None


def main() -> None:
    with reported():
        begun = time.monotonic()
        options = configs.parse(Options(), sys.argv[1:], PROGRAM)
        folders = [stages.run_folder(run) for run in options.run]
        meshes.prepare(quality.BATCH, stages.compiled_beside(folders[0]))
        runs = [stages.read_unfinished(folder, _say) for folder in folders]
        if options.root:
            runs = [_with_root(loaded, options.root) for loaded in runs]
        if hasattr(methods.of(runs[0].config), "predict"):
            if options.out and len(runs) > 1:
                raise UserError(f"--out {options.out} is one folder for several classifiers")
            options.check_for_classifier()
            for loaded in runs:
                _accuracy(loaded, options)
            return
        _samples(runs, options)
        print(f"all done in {duration(time.monotonic() - begun)}")


def _samples(runs: Sequence[Loaded], options: Options) -> None:
    how = [quality.samplers(r, options.counts(), options.guidance) for r in runs]
    weights = Path(options.weights) if options.weights else None
    network = quality.grader(options.features, weights, runs, options.own_eyes)
    out = storage.folder(options.out) if options.out else _default_out(runs[0])
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; name a .json file in it")
    if not storage.is_remote(out) and not out.parent.is_dir():
        raise UserError(f"--out {out}: {out.parent} is no folder; make it first")
    first = runs[0].config.data
    for loaded in runs[1:]:
        data = loaded.config.data
        if (data.size, options.data or data.name) != (first.size, options.data or first.name):
            raise UserError(
                f"{runs[0].folder} draws {first.name} at {first.size} px, {loaded.folder} "
                f"{data.name} at {data.size} px; evaluate them one by one, or name one --data"
            )
    sources = quality.both_splits(runs[0].config, options.data)
    real = quality.real_images(*sources, network, Path(first.root) / ".features")
    for note in _notes(runs, network, options.data or first.name):
        _say(note)
    print(f"grader: {network.title}")
    floor = quality.floor(real, options.samples, options.seed)
    report = functools.partial(_report, options, network, options.data or first.name, sources)
    partial, rows = out.with_suffix(".partial.json"), list[Row]()
    for name, loaded, chosen in zip(options.run, runs, how, strict=True):
        for found in quality.rows(
            loaded, name, chosen, sources, real, network, options.samples, options.seed
        ):
            rows += found
            # After every row: whoever interrupts a long measurement keeps what is measured.
            _write(partial, report(rows, floor))
            _say(f"{found[-1].title}: {sum(row.count for row in found)} samples measured")
    _write(out, report(rows, floor))
    partial.unlink()
    print(_tables(rows, floor, sources))
    print(f"numbers, with all intervals: {out}")


def _with_root(loaded: Loaded, root: str) -> Loaded:
    data = dataclasses.replace(loaded.config.data, root=root)
    return dataclasses.replace(loaded, config=dataclasses.replace(loaded.config, data=data))


def _notes(runs: Sequence[Loaded], network: FeatureNetwork, data: str) -> list[str]:
    """Who learnt pictures of another set than those that are measured against."""
    learnt = {str(loaded.folder): loaded.config.data.name for loaded in runs}
    if network.description.learnt:
        learnt["the grader"] = network.description.learnt
    return [
        f"note: {who} learnt {name}, and is measured on {data}"
        for who, name in learnt.items()
        if _set(name) != _set(data)
    ]


def _set(name: str) -> str:
    """The data set's name; of OpenMoji without its groups."""
    kind = name.partition(":")[0]
    return kind if kind == "openmoji" else name


def _accuracy(loaded: Loaded, options: Options) -> None:
    """A classifier is measured by how often it is right."""
    method: Any = methods.of(loaded.config)
    if not hasattr(method, "predict"):
        raise UserError(f"{loaded.folder} is no classifier as the first run is; evaluate it alone")
    _, source = quality.both_splits(loaded.config, options.data)
    if source.labels != loaded.labels:
        raise UserError(
            f"{loaded.folder} tells {_some(loaded.labels)}; the class names of {source.name} "
            f"differ: {_some(source.labels)}"
        )
    predict = functools.partial(method.predict, loaded.config)
    mesh = meshes.dividing(quality.BATCH)
    folder = storage.folder(options.out) if options.out else loaded.folder
    if stages.comes_with_jaxgen(folder):
        folder = Path(f"{loaded.config.name}_evaluation")
    if not storage.is_remote(folder) and not folder.parent.is_dir():
        raise UserError(f"--out {folder}: {folder.parent} is no folder; make it first")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is no folder, which a classifier's numbers need")
    one = jax.ShapeDtypeStruct((1, source.size, source.size, 3), np.uint8)
    with stages.fitting(loaded):
        jax.eval_shape(predict, loaded.weights, one)
    if not storage.is_remote(folder):
        (folder / "samples").mkdir(parents=True, exist_ok=True)
    print(classes.grade(predict, loaded.weights, source, quality.BATCH, mesh, folder))


def _report(
    options: Options,
    network: FeatureNetwork,
    name: str,
    sources: tuple[Source, Source],
    rows: Sequence[Row],
    floor: dict[str, Estimate],
) -> dict[str, Any]:
    device = jax.devices()[0]
    perfect = min(options.samples, len(sources[1]))
    held_out = f"({network.title}; {perfect} held-out images)"
    return {
        "command": f"{PROGRAM} {shlex.join(sys.argv[1:])}",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "hardware": f"{jax.device_count()} x {device.device_kind}",
        "data": {"name": name, **{s.split: len(s) for s in sources}},
        "grader": {"title": network.title, "sha256": network.digest},
        "seed": options.seed,
        "floor": {f"{name} {held_out}": value._asdict() for name, value in floor.items()},
        "rows": [quality.as_json(row, network) for row in rows],
    }


COLUMNS: dict[str, tuple[str, float, int]] = {
    "Fréchet": ("frechet", 1, 1),
    "KID·10³": ("kid", 1000, 1),
    "CMMD": ("cmmd", 1, 3),
    "precision": ("precision", 100, 0),
    "recall": ("recall", 100, 0),
    "density": ("density", 100, 0),
    "coverage": ("coverage", 100, 0),
    "modes": ("modes", 100, 0),
    "told": ("expert", 100, 0),
    "R@1": ("retrieval@1", 100, 0),
    "R@5": ("retrieval@5", 100, 0),
    "R@10": ("retrieval@10", 100, 0),
    "nearest": ("nearest_ratio", 1, 2),
    "memorised": ("memorised", 100, 0),
}  # title: name, factor, digits


def _tables(rows: Sequence[Row], floor: dict[str, Estimate], sources: tuple[Source, Source]) -> str:
    """One table a set of captions; value ± the longer side of the 95 % interval."""
    columns = {title: what for title, what in COLUMNS.items() if what[0] in rows[0].found}
    parts = []
    for captions in (TRAINING, HELD_OUT):
        own = [row for row in rows if row.captions == captions]
        lines = [["", "s/image", "calls", *columns]]
        for row in own:
            calls = network_calls(row.sampler) if row.sampler else 1
            cost = [f"{row.seconds:.4f}", str(calls)]
            lines.append([row.title, *cost, *_cells(row.found, columns)])
        if captions == HELD_OUT:
            lines.append(["as many held-out real images", "", "", *_cells(floor, columns)])
        head = f"{own[0].count} samples of {captions} captions, {len(sources[0])} training images"
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = [
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
            for line in lines
        ]
        chance = [f"{100 * own[0].found[f'chance@{at}'].value:.2g}" for at in RETRIEVED]
        below = f"R@{', '.join(map(str, RETRIEVED))} by chance: {', '.join(chance)}"
        parts.append("\n".join([head, *table, below]))
    parts.append(
        "shares in %, ± the longer side of the 95 % interval (of KID, 1.96 standard errors); a "
        "classifier of few pictures as grader sees noise and blur in Fréchet, KID, recall and "
        "coverage, hardly in precision and density; told: held-out accuracy of the expert "
        "judge, 50 is fooled; R@k: an image of its caption is among the k nearest; "
        "modes: training images that are nearest to some sample, over the most possible; "
        "nearest: distance to the nearest training image over that of held-out real images; "
        "memorised: nearer to one training image than a third of the distance to the next"
    )
    return "\n\n".join(parts)


def _cells(found: dict[str, Estimate], columns: dict[str, tuple[str, float, int]]) -> list[str]:
    cells = []
    for name, factor, digits in columns.values():
        if estimate := found.get(name):
            value, low, high = (factor * number for number in estimate)
            cells.append(f"{value:.{digits}f}±{max(high - value, value - low):.{digits}f}")
        else:
            cells.append("")
    return cells


def _default_out(loaded: Loaded) -> Path:
    given = stages.is_given(loaded.folder)
    return Path(f"quality_{loaded.config.name}.json") if given else loaded.folder / "quality.json"


def _write(path: Path, values: dict[str, Any]) -> None:
    storage.write_text(path, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def _some(labels: Sequence[str]) -> str:
    return ", ".join(labels[:4]) + (f" and {len(labels) - 4} more" if len(labels) > 4 else "")


def _say(line: str) -> None:
    print(f"jaxgen: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
