"""Tuning on one's own pictures, shown: the shipped model, which never saw a flag, learns 30 flags.

    python -m benchmarks.finetune_flags

Thirty flags are written to a folder as a user would have them, with captions in metadata.jsonl, and
the public command line tunes the shipped model on them twice, for as many steps: all of its
weights, and LoRA. A tenth of the folder is held out by the data pipeline; the others' captions,
English and French, are then drawn in one step by the model before and after. Measured are the
distance to the real flag, whether the drawing is nearer to it than to any other flag (in the
features of the shipped classifier), and how far the drawings of old captions moved. Of a run that
was there already the seconds are null.
"""

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from benchmarks import machine, reports
from jaxgen import config as configs
from jaxgen import methods, quality, stages
from jaxgen.data.source import Source
from jaxgen.data.sources import open_source
from jaxgen.diffusion.sampler import Sampler
from jaxgen.errors import UserError, reported
from jaxgen.metrics import retrieval
from jaxgen.metrics.bootstrap import of_share
from jaxgen.runtime import mesh as meshes
from jaxgen.runtime import pictures, run
from jaxgen.stages import Loaded

PROGRAM = "python -m benchmarks.finetune_flags"
FLAGS, SHOWN, OLD_SHOWN = 30, 12, 4
LANGUAGES = 2  # the first captions of a flag: English, French
EYES = "shipped:classifier"
WAYS = {
    "full": ("--lora.rank=0", "--optimizer.learning-rate=5e-4"),
    "lora": ("--lora.rank=8", "--optimizer.learning-rate=3e-3", "--new-word-rate=1"),
}
Images = UInt8[np.ndarray, "n h w 3"]


@dataclasses.dataclass(frozen=True)
class Options:
    folder: str = "runs/finetune_flags"
    """Where the flags and the two runs are put; runs that are finished there are taken as they
    are."""
    root: str = "data"
    """Folder where prepared data sets are kept."""
    steps: int = 800
    """Train steps of each run."""
    seed: int = 0
    """Seed of the choice of flags, and of the noise."""

    def check(self) -> None:
        """Raises UserError for options that are wrong whatever there is."""
        if self.steps < 1:
            raise UserError(f"--steps is {self.steps}; give 1 or more")


@dataclasses.dataclass(frozen=True)
class Asked:
    """Captions, and the real picture of each."""

    captions: list[str]
    images: Images
    own: Int[np.ndarray, "m"]
    """For each caption its picture's row in `images`."""


def main() -> None:
    with reported():
        options = configs.parse(Options(), sys.argv[1:], PROGRAM)
        meshes.prepare(quality.BATCH, Path(options.folder) / ".compiled")
        flags = _written(options)
        seconds = {way: _tuned(options, flags, way) for way in WAYS}
        models = {"before": stages.read(stages.shipped("diffusion"))}
        models |= {way: stages.read(Path(options.folder) / way) for way in WAYS}
        new, old = _new(options, flags), _old(options, models["before"])
        drawn = {
            name: (_drawn(loaded, new, options.seed), _drawn(loaded, old, options.seed))
            for name, loaded in models.items()
        }
        device = machine.hardware()
        found = {
            "command": reports.command(PROGRAM, sys.argv[1:]),
            "commit": machine.commit(),
            "hardware": device,
            "versions": machine.versions(),
            "flags": len(new.images),
            "captions": len(new.captions),
            "steps": options.steps,
            "seed": options.seed,
            "seconds": seconds,
            "measures": _measured(new, old, drawn),
        }
        _print(found["measures"])
        folder = machine.folder(device)
        reports.write(found, folder / "finetune_flags.json")
        pictures.save(_grid(new, old, drawn), folder / "finetune_flags.png")
        print(f"numbers and picture: {folder}/finetune_flags.json, .png")


def _written(options: Options) -> Path:
    """The folder of flags with their captions, written as a user would have it."""
    folder = Path(options.folder) / "flags"
    source = open_source("openmoji", "flags", _size(), options.root)
    chosen = np.sort(np.random.default_rng(options.seed).permutation(len(source))[:FLAGS])
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for n in chosen:
        record = source[int(n)]
        Image.fromarray(record.image).save(folder / f"{record.id}.png")
        entry = {"file_name": f"{record.id}.png", "text": record.captions[:LANGUAGES]}
        lines.append(json.dumps(entry, ensure_ascii=False) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines), "utf-8")
    return folder


def _tuned(options: Options, flags: Path, way: str) -> float | None:
    """Trains one way by the public command line; the seconds that it took, compiling included.

    None where the run, or some of its steps, was there already: what those took is not known.
    UserError where it was trained for more steps than are asked for.
    """
    folder = Path(options.folder) / way
    begun, done = (folder / run.CONFIG).is_file(), run.finished_steps(folder)
    if done > options.steps:
        raise UserError(
            f"{folder} was trained for {done} steps, not {options.steps}; give --steps={done}, or "
            "another --folder"
        )
    command = [sys.executable, "-m", "jaxgen.train", "--config=finetune", f"--name={way}"]
    command += ["--sampler-steps=8", "--train.sample-every=0"]  # their pictures are not looked at
    command += [f"--workdir={options.folder}", f"--data.name=imagefolder:{flags}"]
    command += [f"--data.root={options.root}", f"--train.steps={options.steps}", *WAYS[way]]
    began = time.monotonic()
    print(" ".join(["python", *command[1:]]), flush=True)
    if code := subprocess.run(command, check=False).returncode:
        raise UserError(f"tuning ({way}) ended with code {code}; its message is above")
    return None if begun else time.monotonic() - began


def _new(options: Options, flags: Path) -> Asked:
    """Every caption of the flags that were learnt from, all English ones first."""
    source = open_source(f"imagefolder:{flags}", "train", _size(), options.root)
    rows = np.tile(np.arange(len(source)), LANGUAGES)
    language = np.repeat(np.arange(LANGUAGES), len(source))
    captions = [source.captions[n][k] for n, k in zip(rows, language, strict=True)]
    return Asked(captions, _images(source), rows)


def _old(options: Options, before: Loaded) -> Asked:
    """Captions that the shipped model was trained on: those of its sample grids."""
    source = open_source(before.config.data.name, "train", _size(), options.root)
    captions = list(before.config.shown)
    rows = [next(n for n, own in enumerate(source.captions) if text in own) for text in captions]
    return Asked(captions, _images(source)[rows], np.arange(len(rows)))


def _drawn(loaded: Loaded, asked: Asked, seed: int) -> Images:
    ids = methods.encode(loaded.config, loaded.tokenizer, asked.captions)
    return quality.drawn(loaded, Sampler(steps=1), ids, seed)[0]


def _measured(
    new: Asked, old: Asked, drawn: dict[str, tuple[Images, Images]]
) -> dict[str, dict[str, Any]]:
    """For every model: RMSE to the real flags, retrieval among them, change of old captions.

    RMSE is of pixel values from 0 to 255, a mean over captions. `unlike` is the change that it
    would be to draw another old caption's picture in place of one's own.
    """
    eyes = quality.grader(EYES, None, [], own_eyes=False)
    gallery = eyes.features(new.images)
    before = drawn["before"][1]
    unlike = _rmse(before, np.roll(before, 1, axis=0))
    found = {}
    for name, (flags, others) in drawn.items():
        ranks = retrieval.ranks(eyes.features(flags), gallery, new.own, np.arange(len(gallery)))
        found[name] = {
            "flags, RMSE": _rmse(flags, new.images[new.own]),
            "flags, retrieval@1": of_share(retrieval.hits(ranks, 1), groups=new.own)._asdict(),
            "old captions, RMSE to real": _rmse(others, old.images),
            "old captions, change": _rmse(others, before),
            "old captions, unlike": unlike,
        }
    return found


def _rmse(a: Images, b: Images) -> float:
    difference = a.astype(np.float64) - b
    return float(np.sqrt((difference**2).mean(axis=(1, 2, 3))).mean())


def _print(measures: dict[str, dict[str, Any]]) -> None:
    print(f"{'':8} {'flags: RMSE':>12} {'retrieval@1':>22} {'old: RMSE':>10} {'change':>8}")
    for name, row in measures.items():
        share, low, high = (100 * v for v in row["flags, retrieval@1"].values())
        told = f"{share:.0f} % ({low:.0f} to {high:.0f})"
        print(f"{name:8} {row['flags, RMSE']:12.1f} {told:>22} "
              f"{row['old captions, RMSE to real']:10.1f} "
              f"{row['old captions, change']:8.1f}")  # fmt: skip


def _grid(new: Asked, old: Asked, drawn: dict[str, tuple[Images, Images]]) -> Image.Image:
    """Flags, their captions by turns English and French, then some old captions."""
    count = len(new.images)
    rows = [n + count * (n % LANGUAGES) for n in range(min(SHOWN, count))]
    captions = [new.captions[n] for n in rows] + old.captions[:OLD_SHOWN]
    real = np.concatenate([new.images[new.own[rows]], old.images[:OLD_SHOWN]])
    columns = [("real", real)]
    for name, (flags, others) in drawn.items():
        columns.append((name, np.concatenate([flags[rows], others[:OLD_SHOWN]])))
    return pictures.grid(columns, captions, scale=2)


def _images(source: Source) -> Images:
    return np.stack([source.images[n] for n in range(len(source))])


def _size() -> int:
    return configs.load("finetune").data.size


if __name__ == "__main__":
    main()
