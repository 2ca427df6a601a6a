"""Killed at random moments, taken up again: is the end that of the run which nobody disturbed?

    python -m benchmarks.kill_resume --kills=20

Trains a small teacher and its student from nothing (data prepared, teacher, student, pictures)
undisturbed, then once for every kill: SIGKILL after a random part of the time that the whole took,
and the same command again to its end. Weights, both last checkpoints (parameters, moving average,
moments, place in the data) and metrics logs must be those of the undisturbed run, bit for bit.
Exit code 1 where they are not.
"""

import dataclasses
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from benchmarks import machine, reports
from jaxgen import config as configs
from jaxgen.errors import UserError, reported
from jaxgen.runtime import mesh as meshes

PROGRAM = "python -m benchmarks.kill_resume"
STAGES = ("student_teacher", "student")
CONFIG = '''"""A student and its teacher, as small as they can be."""

import dataclasses

from jaxgen.config import Data, Optimizer, Train
from jaxgen.diffusion.denoiser import Denoiser
from jaxgen.methods.add import Add
from jaxgen.methods.diffusion import Diffusion
from jaxgen.models.dit import DiTConfig
from jaxgen.models.judge import JudgeConfig
from jaxgen.text.encoder import TextConfig

model = Denoiser(
    network="dit",
    text=TextConfig(width=16, layers=1, heads=2, length=8),
    dit=DiTConfig(patch=4, width=32, depth=1, heads=2, context_width=16, added_width=16),
)
data = Data(name="openmoji:food-drink", size=16)
steady = Optimizer(decay="constant")
train = Train(steps=60, batch=16, log_every=1, sample_every=0, checkpoint_every=5)
teacher = Diffusion(
    name="teacher", data=data, model=model, train=train, optimizer=steady, sampler_steps=2
)
config = Add(
    name="student", teacher="train", teacher_config="teacher.py", data=data, model=model,
    judge=JudgeConfig(taps=(0,), resize=32), train=dataclasses.replace(train, steps=30),
    optimizer=steady, judge_optimizer=steady, sampler_steps=2,
)
'''
TEACHER = 'import runpy\n\nconfig = runpy.run_path("student.py")["teacher"]\n'


@dataclasses.dataclass(frozen=True)
class Options:
    kills: int = 20
    """Runs to kill, once each."""
    seed: int = 0
    """Of the moments."""

    def check(self) -> None:
        """Raises UserError where nothing would be killed."""
        if self.kills < 1:
            raise UserError(f"--kills is {self.kills}; give 1 or more")


def main() -> None:
    with reported():
        options = configs.parse(Options(), sys.argv[1:], PROGRAM)
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax misses a file of no concern
        meshes.prepare(1 << 10)  # so that the hardware below is told as the trainings have it
        with tempfile.TemporaryDirectory() as scratch:
            rows = _measured(options, Path(scratch))
        survived = sum(not row["difference"] for row in rows)
        print(f"{survived} of {len(rows)} killed runs ended as the undisturbed one, bit for bit")
        device = machine.hardware()
        report = {
            "command": reports.command(PROGRAM, sys.argv[1:]),
            "hardware": device,
            "versions": machine.versions(),
            "survived": survived,
            "rows": rows,
        }
        few = "" if options.kills >= Options.kills else f"_{options.kills}"  # beside the whole
        path = machine.folder(device) / f"kill_resume{few}.json"
        reports.write(report, path)
        print(f"numbers: {path}")
        sys.exit(survived < len(rows))


def _measured(options: Options, scratch: Path) -> list[dict[str, Any]]:
    rng = np.random.default_rng(options.seed)
    _run(_place(scratch, "warm"), scratch)  # fills the cache of compiled programs
    begun = time.monotonic()
    whole = _place(scratch, "whole")
    _run(whole, scratch)
    seconds = time.monotonic() - begun
    expected = _found(whole)
    print(f"undisturbed: {seconds:.0f} s, {len(expected)} arrays and files to compare", flush=True)
    rows = []
    for number in range(options.kills):
        place = _place(scratch, f"killed_{number}")
        after = float(rng.uniform(0, seconds))
        where = _run(place, scratch, kill_after=after)
        if where != "not at all: it had ended":
            _run(place, scratch)
        difference = _first_difference(expected, _found(place))
        rows.append({"seconds": round(after, 2), "killed": where, "difference": difference})
        told = difference or "the same, bit for bit"
        print(f"{number + 1:3}. killed after {after:5.1f} s, {where}: {told}", flush=True)
    return rows


def _place(scratch: Path, name: str) -> Path:
    place = scratch / name
    place.mkdir()
    (place / "student.py").write_text(CONFIG, encoding="utf-8")
    (place / "teacher.py").write_text(TEACHER, encoding="utf-8")
    return place


def _run(place: Path, scratch: Path, kill_after: float = float("inf")) -> str:
    """Runs the training to its end, or kills it; where it was then."""
    with (place / "log").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jaxgen.train", "--config=student.py"],
            cwd=place,
            env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(scratch / "compiled")},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            process.wait(None if kill_after == float("inf") else kill_after)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return _where(place)
    if process.returncode:
        raise UserError(f"the training failed: {(place / 'log').read_text()[-600:]}")
    return "not at all: it had ended"


def _where(place: Path) -> str:
    """What a killed run was doing, told by what it left."""
    for stage in reversed(STAGES):
        folder = place / "runs" / stage
        if not folder.is_dir():
            continue
        log = folder / "metrics.jsonl"
        steps = len(log.read_text().splitlines()) if log.is_file() else 0
        saving = any("tmp" in path.name for path in (folder / "checkpoints").glob("*"))
        finished = (folder / "model.safetensors").is_file()
        how = "after its end" if finished else "in a save" if saving else "in training"
        return f"{stage}, {steps} steps logged, {how}"
    return "before any stage" if (place / "data").is_dir() else "before anything was written"


def _found(place: Path) -> dict[str, bytes]:
    """All that a run learnt: files as they are, checkpoints array by array."""
    found: dict[str, bytes] = {}
    for stage in STAGES:
        folder = place / "runs" / stage
        for name in ("model.safetensors", "metrics.jsonl"):
            found[f"{stage}/{name}"] = (folder / name).read_bytes()
        steps = sorted(int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdigit())
        last = folder / "checkpoints" / str(steps[-1])
        found[f"{stage}/data"] = next((last / "data").rglob("*metadata*")).read_bytes()
        state = _arrays(last / "state")
        for path, leaf in jax.tree_util.tree_leaves_with_path(state):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            found[f"{stage}/{steps[-1]}/{name}"] = np.asarray(leaf).tobytes()
    return found


def _arrays(path: Path) -> Any:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        shapes = reader.metadata(path.absolute()).item_metadata
        how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), dict(shapes))
        return reader.restore(path.absolute(), args=ocp.args.PyTreeRestore(restore_args=how))


def _first_difference(expected: dict[str, bytes], found: dict[str, bytes]) -> str:
    for name in sorted({*expected, *found}):
        if name not in found:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} is there"
        if expected[name] != found[name]:
            return f"{name} differs"
    return ""


if __name__ == "__main__":
    main()
