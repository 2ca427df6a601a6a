"""Every method on the same pictures, trained on as many of them, measured by the same measures.

Codes are of the same pictures at 64 px, and so are the real ones that their samples are compared
with; the grader sees all at its own size.

    python -m benchmarks.methods --images=32000

Trains each method's config as `methods/NAME` (a run that is finished is reused), evaluates it,
and writes one table and one grid of pictures: the same captions down, the methods across. Students
start from the diffusion run of the same comparison and see a quarter as many images again.
With --only, what was measured of the others by the same options stays, each row with its commit,
and with a mark where the measures were older; each method's column of the grid lies in
results/HARDWARE/methods/, from which it is put together.
"""

import dataclasses
import datetime
import functools
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from einops import rearrange, repeat
from jaxtyping import UInt8
from PIL import Image

from benchmarks import machine, reports, runs
from benchmarks.runs import Budget, Clock, Spec
from jaxgen import config as configs
from jaxgen import evaluate, methods, quality, stages
from jaxgen.data.source import Source
from jaxgen.diffusion.sampler import Sampler
from jaxgen.errors import UserError, reported
from jaxgen.metrics import measures
from jaxgen.runtime import metrics as logs
from jaxgen.runtime import pictures
from jaxgen.stages import Loaded

PROGRAM = "python -m benchmarks.methods"
SIDE = 64  # pixels of a picture in the grid


SPECS = (
    Spec("diffusion", "50,1", unguided="1"),
    Spec("threshold_diffusion", "50,1"),
    Spec("flow_matching", "50,1"),
    Spec("dit", "50,1"),
    Spec("gan"),
    Spec("vae"),
    Spec("latent_diffusion", "50,1", unguided="1", roles=(("codec", "vae"),)),
    Spec("add", "1,4", share=0.25, roles=(("teacher", "diffusion"),)),
    Spec("ladd", "1,4", share=0.25, roles=(("teacher", "diffusion"),)),
    Spec("add_latent", "1,4", share=0.25, roles=(("teacher", "latent_diffusion"),)),
)


@dataclasses.dataclass(frozen=True)
class Options(Budget):
    only: str = ""
    """Some of the methods, such as gan,vae; none: all."""

    def check(self) -> None:
        """Raises UserError for what cannot be measured."""
        super().check()
        if unknown := {name for name in self.only.split(",") if name} - {s.config for s in SPECS}:
            known = ", ".join(spec.config for spec in SPECS)
            raise UserError(f"--only {min(unknown)!r} is none of {known}")
        if not self.specs():
            raise UserError(f"--only {self.only!r} names no method")

    def specs(self) -> list[Spec]:
        """The rows of the table."""
        chosen = self.only.split(",") if self.only else [spec.config for spec in SPECS]
        return [spec for spec in SPECS if spec.config in chosen]


COMPARED = ("images", "data", "grader", "samples", "seed")


def main() -> None:
    with reported():
        options = configs.parse(Options(), sys.argv[1:], PROGRAM)
        clock = Clock(options.minutes)
        runs.prepare(options.workdir)
        for spec in options.specs():
            runs.train(spec, options, clock)
        grader = runs.grader_of(options.specs(), options)
        device = machine.asked(quality.BATCH)  # a TPU is for the evaluations that follow
        path = machine.folder(device) / "methods.json"
        head = {
            "benchmark": "methods",
            "command": reports.command(PROGRAM, sys.argv[1:]),
            "hardware": device,
            "versions": machine.versions(),
            "images": options.images,
            "data": options.data,
            "grader": quality.title_of(grader),
            "samples": options.samples,
            "seed": 0,
        }
        kept = standing(head, path) if options.only else {}
        measured = {
            spec.config: runs.measured(spec, options, grader, clock) for spec in options.specs()
        }
        processor = device["processor"]
        kept |= {s.config: _rows(s, options, measured, processor) for s in options.specs()}
        rows = [row for spec in SPECS for row in kept.get(spec.config, [])]
        report = {**head, "captions": _draw(options, path.with_suffix("")), "rows": rows}
        reports.write(report, path)
        path.with_suffix(".md").write_text(markdown(report), encoding="utf-8")
        pictures.save(_grid(report, path.with_suffix("")), path.with_suffix(".png"))
        print(markdown(report))
        print(f"numbers: {path}, pictures: {path.with_suffix('.png')}")


def standing(head: dict[str, Any], path: Path) -> dict[str, list[dict[str, Any]]]:
    """By method, the rows of the last comparison; UserError where its options were others."""
    if not path.is_file():
        return {}
    report = reports.read(path, "methods")
    for name in COMPARED:
        if report.get(name) != head[name]:
            raise UserError(f"{path} was measured with another {name}; leave --only out")
    found: dict[str, list[dict[str, Any]]] = {}
    for row in report["rows"]:
        found.setdefault(row["method"], []).append(row)
    return found


def _rows(
    spec: Spec, options: Options, measured: dict[str, list[dict[str, Any]]], processor: str
) -> list[dict[str, Any]]:
    """A row for each sampler, with what was found for training and for held-out captions."""
    loaded = stages.read(options.folder(spec))
    config = loaded.config
    (stage,) = [s for s in stages.plan(config) if s.config.name == config.name]
    counts = stages.parameters(stage)
    log = logs.read(loaded.folder)
    usual = runs.wanted_samplers(loaded, spec)[0]
    cost = {
        "method": spec.config,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": machine.commit(),
        "processor": processor,
        "size": config.data.size,
        "steps": loaded.step,
        "images": loaded.step * config.train.batch,
        "parameters": {name: count for name, count in counts.items() if "frozen" not in name},
        "final_loss": log[-1]["loss"] if log else None,
    }
    found: dict[str, dict[str, Any]] = {}
    for row in measured[spec.config]:
        title = _title(row["sampler"], usual)
        own = found.setdefault(title, {**cost, "sampler": title})
        own["seconds_per_image"] = row["seconds_per_image"]
        own[row["captions"]] = {name.split(" (")[0]: v for name, v in row["metrics"].items()}
    return list(found.values())


def _title(how: dict[str, Any] | None, usual: Sampler | None) -> str:
    if how is None or usual is None:
        return "reconstructed"
    steps = "1 step" if how["steps"] == 1 else f"{how['steps']} steps"
    return steps if how["guidance"] == usual.guidance else f"{steps}, unguided"


LEGEND = (
    "Shares in %, ± the longer side of the 95 % interval. Commit: of the evaluation, not of the "
    "training. Trained: all parameters that are, of discriminators and judges too. Told: how often "
    "a fresh classifier tells samples from real images. Modes: distinct nearest training images, "
    "over the most possible. Nearest: distance to the nearest training image over that of held-out "
    "pictures. Memorised: nearer to one training image than a third of the distance to the next. "
    "Unguided: without guidance, where a student starts. Seconds were taken in evaluating, beside "
    "whatever else ran."
)
OLDER = (
    "† By older measures, without {names}: not to be compared with the other rows by what goes by "
    "the same name (R@k then knew one image of a caption alone)."
)
RESCALED = "c82f900"
SINCE = f"Modes in rows of {RESCALED} were put over the most possible afterwards, at 8f517a7."
COLUMNS = {title: what for title, what in evaluate.COLUMNS.items() if what[0] != "cmmd"}


def markdown(report: dict[str, Any]) -> str:
    """What was measured and how, and a table for training captions and one for held-out ones."""
    rows, device = report["rows"], report["hardware"]
    parts = [
        f"`{report['command']}` on {device['count']} x {device['device']}: {report['data']}, "
        f"{report['images']} images seen (students: a quarter of that, after their teacher), "
        f"graded by {report['grader']}, at most {report['samples']} samples, seed "
        f"{report['seed']}.\n\n{LEGEND}\n"
    ]
    if len(processors := sorted({row["processor"] for row in rows})) > 1:
        parts.append(f"Seconds are of several machines: {', '.join(processors)}.\n")
    if missing := [name for name in measures.NAMES if any(name in unknown(row) for row in rows)]:
        parts.append(OLDER.format(names=", ".join(missing)) + "\n")
    if any(row["commit"] == RESCALED for row in rows):
        parts.append(SINCE + "\n")
    for captions in (quality.TRAINING, quality.HELD_OUT):
        titles = ["method", "commit", "sampler", "px", "trained, M", "images", "s/image"]
        lines = [[*titles, *COLUMNS]]
        lines.append(["---"] * len(lines[0]))
        for row in rows:
            trained = sum(row["parameters"].values()) / 1e6
            line = [
                row["method"],
                row["commit"] + (" †" if unknown(row) else ""),
                row["sampler"],
                str(row["size"]),
                f"{trained:.1f}",
            ]
            line += [str(row["images"]), f"{row['seconds_per_image']:.4f}"]
            for name, factor, digits in COLUMNS.values():
                if name not in row[captions]:  # measured before there was such a column
                    line.append("")
                    continue
                value, low, high = (factor * row[captions][name][k] for k in ESTIMATE)
                line.append(f"{value:.{digits}f} ± {max(value - low, high - value):.{digits}f}")
            lines.append(line)
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        parts.append(f"{captions.capitalize()} captions\n\n{table}\n")
    return "\n".join(parts)


def unknown(row: dict[str, Any]) -> set[str]:
    """Today's measures that a row was written without."""
    return set(measures.NAMES) - set(row[quality.TRAINING])


ESTIMATE = ("value", "low", "high")


def _draw(options: Options, folder: Path) -> list[str]:
    """Writes columns of the grid, real pictures and what each method makes of the same captions.

    Returns the captions: of those that `flow_matching` shows, those that the pictures have.
    """
    loaded = {spec.config: stages.read(options.folder(spec)) for spec in options.specs()}
    source, _ = quality.both_splits(next(iter(loaded.values())).config, "")
    captions = [text for text in configs.load("flow_matching").shown if _row_of(source, text) >= 0]
    real = np.stack([source.images[_row_of(source, caption)] for caption in captions])
    columns = {"real": real}
    columns |= {
        spec.config: _drawn(loaded[spec.config], spec, captions) for spec in options.specs()
    }
    folder.mkdir(exist_ok=True)
    for name, images in columns.items():
        strip = rearrange(_enlarged(images), "n h w c -> (n h) w c")
        pictures.save(Image.fromarray(strip), folder / f"{name}.png")
    return captions


def _grid(report: dict[str, Any], folder: Path) -> Image.Image:
    """The same captions down, the methods across."""
    titles = {"real": "real"}
    for row in report["rows"]:
        name = row["method"].replace("_", "\n")
        titles.setdefault(row["method"], f"{name}\n{row['sampler']}")
    columns = []
    for name, title in titles.items():
        strip = np.asarray(Image.open(folder / f"{name}.png"))
        columns.append((title, rearrange(strip, "(n h) w c -> n h w c", h=SIDE)))
    return pictures.grid(columns, report["captions"], 1, blocks=1)


def _drawn(loaded: Loaded, spec: Spec, captions: list[str]) -> UInt8[np.ndarray, "n h w 3"]:
    method = methods.of(loaded.config)
    if hasattr(method, "reconstruct"):
        source, _ = quality.both_splits(loaded.config, "")
        images = np.stack([source.images[_row_of(source, caption)] for caption in captions])
        return quality.reconstructed(loaded, images)[0]
    counts = [int(spec.steps.split(",")[0])] if spec.steps else []
    sampler = quality.samplers(loaded, counts, None)[0]
    assert isinstance(sampler, Sampler)
    ids = methods.encode(loaded.config, loaded.tokenizer, captions)
    program = jax.jit(functools.partial(method.sample, loaded.config), static_argnums=3)
    return np.asarray(program(loaded.weights, jax.random.key(0), ids, sampler))


def _row_of(source: Source, caption: str) -> int:
    """The picture that is called just that; -1 where none is."""
    rows = [n for n, texts in enumerate(source.captions) if caption in texts]
    return rows[0] if rows else -1


def _enlarged(images: UInt8[np.ndarray, "n h w 3"]) -> UInt8[np.ndarray, "n s s 3"]:
    factor = max(1, SIDE // images.shape[1])
    return repeat(images, "n h w c -> n (h y) (w x) c", y=factor, x=factor)


if __name__ == "__main__":
    main()
