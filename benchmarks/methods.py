"""Every method on the same pictures, trained on as many of them, measured by the same measures.

Codes are of the same pictures at 64 px, and so are the real ones that their samples are compared
with; the grader sees all at its own size.

    python -m benchmarks.methods --images=32000

Trains each method's config as `methods/NAME` (a run that is finished is reused), evaluates it,
and writes one table and one grid of pictures: the same captions down, the methods across. Students
start from the diffusion run of the same comparison and see a quarter as many images again.
"""

import dataclasses
import functools
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from einops import repeat
from jaxtyping import UInt8

from benchmarks import machine
from benchmarks.machine import RESULTS
from jaxgen import config as configs
from jaxgen import evaluate, methods, quality, stages
from jaxgen.data.source import Source
from jaxgen.diffusion.sampler import Sampler
from jaxgen.errors import UserError, reported
from jaxgen.metrics.measures import LEAST
from jaxgen.runtime import mesh as meshes
from jaxgen.runtime import metrics as logs
from jaxgen.runtime import pictures
from jaxgen.stages import Loaded
from jaxgen.text import tokenizer as words

PROGRAM = "python -m benchmarks.methods"
SIDE = 64  # pixels of a picture in the grid
CAPTIONS = ("red heart", "cœur vert", "grinning face", "visage somnolent", "robot", "fantôme")
CAPTIONS += ("skull", "pomme rouge", "pizza", "fraise", "avocado", "carotte")  # of the grid


@dataclasses.dataclass(frozen=True)
class Spec:
    """One row: the config, what it builds on, and its sampling steps."""

    config: str
    steps: str = ""
    """Sampling steps to measure, the one for the grid first; none: the method's own."""
    share: float = 1.0
    """Images that it sees, over those of the others."""
    roles: tuple[tuple[str, str], ...] = ()
    """Roles that are filled by other rows' runs."""


SPECS = (
    Spec("diffusion", "50,1"),
    Spec("flow_matching", "50,1"),
    Spec("dit", "50,1"),
    Spec("threshold_diffusion", "50,1"),
    Spec("gan"),
    Spec("vae"),
    Spec("latent_diffusion", "50,1", roles=(("codec", "vae"),)),
    Spec("add", "1,4", 0.25, (("teacher", "diffusion"),)),
    Spec("ladd", "1,4", 0.25, (("teacher", "diffusion"),)),
    Spec("add_latent", "1,4", 0.25, (("teacher", "latent_diffusion"),)),
)


@dataclasses.dataclass(frozen=True)
class Options:
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
    only: str = ""
    """Some of the methods, such as gan,vae; none: all."""

    def check(self) -> None:
        """Raises UserError for what cannot be measured."""
        if self.samples < LEAST:
            raise UserError(f"--samples is {self.samples}; the measures need {LEAST} or more")
        if self.images < 1000:
            raise UserError(f"--images is {self.images}; give 1000 or more")
        if unknown := {name for name in self.only.split(",") if name} - {s.config for s in SPECS}:
            known = ", ".join(spec.config for spec in SPECS)
            raise UserError(f"--only {min(unknown)!r} is none of {known}")
        if not self.specs():
            raise UserError(f"--only {self.only!r} names no method")

    def specs(self) -> list[Spec]:
        """The rows of the table."""
        chosen = self.only.split(",") if self.only else [spec.config for spec in SPECS]
        return [spec for spec in SPECS if spec.config in chosen]


def main() -> None:
    with reported():
        options = configs.parse(Options(), sys.argv[1:], PROGRAM)
        for spec in options.specs():
            _train(spec, options)
        measured = {spec.config: _evaluated(spec, options) for spec in options.specs()}
        meshes.prepare(quality.BATCH, Path(options.workdir) / ".compiled")
        rows = [row for spec in options.specs() for row in _rows(spec, options, measured)]
        device = machine.hardware()
        folder = RESULTS / machine.slug(device["device"], device["count"])
        folder.mkdir(parents=True, exist_ok=True)
        name = f"methods_{options.only.replace(',', '_')}" if options.only else "methods"
        report = {
            "command": " ".join([PROGRAM, *sys.argv[1:]]),
            "hardware": device,
            "versions": machine.versions(),
            "images": options.images,
            "data": options.data,
            "rows": rows,
        }
        text = json.dumps(report, indent=1) + "\n"
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
        (folder / f"{name}.md").write_text(_table(rows), encoding="utf-8")
        pictures.save(_grid(options), folder / f"{name}.png")
        print(_table(rows))
        print(f"numbers: {folder / name}.json, pictures: {folder / name}.png")


def _train(spec: Spec, options: Options) -> None:
    config = configs.load(spec.config)
    steps = math.ceil(options.images * spec.share / config.train.batch)
    arguments = [f"--config={spec.config}", f"--workdir={options.workdir}"]
    arguments += [f"--data.root={options.root}", f"--data.name={options.data}"]
    arguments += [f"--train.steps={steps}"]
    arguments += [f"--{role}={Path(options.workdir) / name}" for role, name in spec.roles]
    _run("jaxgen.train", arguments)
    done = stages.read(Path(options.workdir) / spec.config).step
    if done != steps:
        raise UserError(
            f"{options.workdir}/{spec.config} has {done} steps, not {steps}; use another --workdir"
        )


def _evaluated(spec: Spec, options: Options) -> dict[str, Any]:
    """What `evaluate` says of the run; asked anew only where it is not known for these weights."""
    folder = Path(options.workdir) / spec.config
    out = folder / f"quality_{options.samples}_{spec.steps.replace(',', '_')}.json"
    if not out.is_file() or out.stat().st_mtime < (folder / "model.safetensors").stat().st_mtime:
        arguments = [f"--run={folder}", f"--out={out}", f"--samples={options.samples}"]
        _run("jaxgen.evaluate", arguments + ([f"--steps={spec.steps}"] if spec.steps else []))
    return json.loads(out.read_text(encoding="utf-8"))


def _run(module: str, arguments: list[str]) -> None:
    print(f"python -m {module} {' '.join(arguments)}", flush=True)
    code = subprocess.run([sys.executable, "-m", module, *arguments], check=False).returncode
    if code:
        raise UserError(f"python -m {module} ended with exit code {code}; its message is above")


def _rows(
    spec: Spec, options: Options, measured: dict[str, dict[str, Any]]
) -> list[dict[str, Any]]:
    """A row for each sampler, with what was found for training and for held-out captions."""
    loaded = stages.read(Path(options.workdir) / spec.config)
    config = loaded.config
    (stage,) = [s for s in stages.plan(config) if s.config.name == config.name]
    counts = stages.parameters(stage)
    log = logs.read(loaded.folder)
    cost = {
        "method": spec.config,
        "size": config.data.size,
        "steps": loaded.step,
        "images": loaded.step * config.train.batch,
        "parameters": {name: count for name, count in counts.items() if "frozen" not in name},
        "final_loss": log[-1]["loss"] if log else None,
    }
    found: dict[str, dict[str, Any]] = {}
    for row in measured[spec.config]["rows"]:
        title = f"{row['sampler']['steps']} steps" if row["sampler"] else "reconstructed"
        title = title.replace("1 steps", "1 step") if title == "1 steps" else title
        own = found.setdefault(title, {**cost, "sampler": title})
        own["seconds_per_image"] = row["seconds_per_image"]
        own[row["captions"]] = {name.split(" (")[0]: v for name, v in row["metrics"].items()}
    return list(found.values())


COLUMNS = {title: what for title, what in evaluate.COLUMNS.items() if what[0] != "cmmd"}


def _table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: one table for training captions, one for held-out ones."""
    parts = []
    for captions in (quality.TRAINING, quality.HELD_OUT):
        titles = ["method", "sampler", "px", "trained, M", "images", "s/image"]
        lines = [[*titles, *COLUMNS]]
        lines.append(["---"] * len(lines[0]))
        for row in rows:
            trained = sum(row["parameters"].values()) / 1e6
            line = [row["method"], row["sampler"], str(row["size"]), f"{trained:.1f}"]
            line += [str(row["images"]), f"{row['seconds_per_image']:.4f}"]
            for name, factor, digits in COLUMNS.values():
                value, low, high = (factor * row[captions][name][k] for k in ESTIMATE)
                line.append(f"{value:.{digits}f} ± {max(value - low, high - value):.{digits}f}")
            lines.append(line)
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        parts.append(f"{captions.capitalize()} captions\n\n{table}\n")
    return "\n".join(parts)


ESTIMATE = ("value", "low", "high")


def _grid(options: Options) -> Any:
    """What each method makes of the captions that the diffusion config shows."""
    loaded = {
        spec.config: stages.read(Path(options.workdir) / spec.config) for spec in options.specs()
    }
    source, _ = quality.both_splits(next(iter(loaded.values())).config, "")
    captions = [text for text in CAPTIONS if _row_of(source, text) >= 0]
    rows = [_row_of(source, caption) for caption in captions]
    columns = [("real", _enlarged(np.stack([source.images[row] for row in rows])))]
    for spec in options.specs():
        images, title = _drawn(loaded[spec.config], spec, captions)
        columns.append((f"{spec.config.replace('_', ' ')}\n{title}", _enlarged(images)))
    return pictures.grid(columns, captions, 1, blocks=1)


def _drawn(
    loaded: Loaded, spec: Spec, captions: list[str]
) -> tuple[UInt8[np.ndarray, "n h w 3"], str]:
    method = methods.of(loaded.config)
    if hasattr(method, "reconstruct"):
        source, _ = quality.both_splits(loaded.config, "")
        images = np.stack([source.images[_row_of(source, caption)] for caption in captions])
        return quality.reconstructed(loaded, images)[0], "reconstructed"
    counts = [int(spec.steps.split(",")[0])] if spec.steps else []
    sampler = quality.samplers(loaded.config, counts, None)[0]
    assert isinstance(sampler, Sampler)
    ids = words.encode(loaded.tokenizer, captions, loaded.config.caption_length)
    program = jax.jit(functools.partial(method.sample, loaded.config), static_argnums=3)
    images = np.asarray(program(loaded.weights, jax.random.key(0), ids, sampler))
    return images, f"{sampler.steps} step{'s' * (sampler.steps > 1)}"


def _row_of(source: Source, caption: str) -> int:
    """The picture that is called just that; -1 where none is."""
    rows = [n for n, texts in enumerate(source.captions) if caption in texts]
    return rows[0] if rows else -1


def _enlarged(images: UInt8[np.ndarray, "n h w 3"]) -> UInt8[np.ndarray, "n s s 3"]:
    factor = max(1, SIDE // images.shape[1])
    return repeat(images, "n h w c -> n (h y) (w x) c", y=factor, x=factor)


if __name__ == "__main__":
    main()
