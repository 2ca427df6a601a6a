"""Killed at random moments, taken up again: is the end that of the run which nobody disturbed?

    python -m benchmarks.kill_resume --kills=20

Trains a small teacher and its student from nothing (data prepared, teacher, student, pictures)
undisturbed, then once for every kill: SIGKILL, and the same command again to its end. The kills
take turns: while the data is prepared, in a step, in a save, between the stages. Each falls when
the run has spent a random part of the time that the undisturbed one spent so. Weights, both last
checkpoints (parameters, moving average, moments, place in the data) and metrics logs must be those
of the undisturbed run, bit for bit, and what was saved must not have been done again. Exit code 1
where it is otherwise.

On a GPU the trainings run with XLA's --xla_gpu_deterministic_ops=true: without it, two undisturbed
runs need not be the same either.
"""

import dataclasses
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
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
DATA, STEP, SAVE, BETWEEN = "preparing the data", "in a step", "in a save", "between the stages"
MOMENTS = (DATA, STEP, SAVE, BETWEEN)
OTHER = "at another moment"  # imports, compiling, the end
LOOK = 0.01  # seconds between two looks at what a run does
TEACHER_STEPS, STUDENT_STEPS = 60, 30
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
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
train = Train(steps=TEACHER_STEPS, batch=16, log_every=1, sample_every=0, checkpoint_every=5)
teacher = Diffusion(
    name="teacher", data=data, model=model, train=train, optimizer=steady, sampler_steps=2
)
config = Add(
    name="student", teacher="train", teacher_config="teacher.py", data=data, model=model,
    judge=JudgeConfig(taps=(0,), resize=32),
    train=dataclasses.replace(train, steps=STUDENT_STEPS), optimizer=steady,
    judge_optimizer=steady, sampler_steps=2,
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
            rows = measured(options, Path(scratch))
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


def measured(options: Options, scratch: Path) -> list[dict[str, Any]]:
    """Trains undisturbed into `scratch`/whole, then kills and resumes; a row for every kill."""
    rng = np.random.default_rng(options.seed)
    _run(_place(scratch, "warm"), scratch)  # fills the cache of compiled programs
    whole = _place(scratch, "whole")
    spent, _ = _run(whole, scratch)
    expected = outcome(whole)
    print(f"undisturbed: {_told(spent)}; {len(expected)} arrays and files to compare", flush=True)
    rows = []
    while len(rows) < options.kills:
        moment = MOMENTS[len(rows) % len(MOMENTS)]
        place, after = _place(scratch, "killed"), float(rng.uniform(0, spent[moment]))
        _, where = _run(place, scratch, moment, after)
        if where:
            kept, told = _kept(place), len((place / "log").read_text())
            _run(place, scratch)
            anew = _begun_anew(place, kept, (place / "log").read_text()[told:])
            difference = anew or first_difference(expected, outcome(place))
            rows.append({"moment": moment, "seconds": round(after, 2), "killed": where})
            rows[-1]["kept"] = {stage: step for stage, (step, _) in kept.items()}
            rows[-1]["difference"] = difference
            told = difference or "the same, bit for bit"
            print(f"{len(rows):3}. {moment}, after {after:.2f} s: {where}: {told}", flush=True)
        shutil.rmtree(place)  # where it ended before it was that long so, the next try draws anew
    return rows


def _place(scratch: Path, name: str) -> Path:
    place = scratch / name
    place.mkdir()
    text = CONFIG.replace("TEACHER_STEPS", str(TEACHER_STEPS))
    text = text.replace("STUDENT_STEPS", str(STUDENT_STEPS))
    (place / "student.py").write_text(text, encoding="utf-8")
    (place / "teacher.py").write_text(TEACHER, encoding="utf-8")
    return place


def _run(
    place: Path, scratch: Path, moment: str = "", after: float = 0.0
) -> tuple[dict[str, float], str]:
    """Runs the training to its end, or kills it when it has been `after` seconds at a moment.

    Returns seconds spent at each moment, and where it was killed; empty where it was not.
    """
    spent = defaultdict[str, float](float)
    with (place / "log").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jaxgen.train", "--config=student.py"],
            cwd=place,
            env=_environment(scratch),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        looked = time.monotonic()
        while process.poll() is None:
            now, looked_before = _moment(place), looked
            looked = time.monotonic()
            spent[now] += looked - looked_before
            if now == moment and spent[now] >= after:
                process.send_signal(signal.SIGKILL)
                process.wait()
                return spent, _where(place)
            time.sleep(LOOK)
    if process.returncode:
        raise UserError(f"the training failed: {(place / 'log').read_text()[-600:]}")
    return spent, ""


def _environment(scratch: Path) -> dict[str, str]:
    """That of the trainings: a cache of compiled programs in `scratch`, and the same bits again."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC}".strip()
    cache = str(scratch / "compiled")
    return {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache, "XLA_FLAGS": flags}


def _moment(place: Path) -> str:
    """What a run is doing, told by what it has written so far."""
    teacher, student = (place / "runs" / stage for stage in STAGES)
    if any((place / "data").glob("*/*/*incomplete*")):
        return DATA
    if any((place / "runs").glob("*/checkpoints/*tmp*")):
        return SAVE
    taught, learnt = _steps(teacher), _steps(student)
    if taught == TEACHER_STEPS and not learnt:
        return BETWEEN
    return STEP if taught and learnt < STUDENT_STEPS else OTHER


def _steps(folder: Path) -> int:
    """Steps in a run's log."""
    log = folder / "metrics.jsonl"
    return log.read_bytes().count(b"\n") if log.is_file() else 0


def _where(place: Path) -> str:
    """How far a killed run had come, told by what it left."""
    steps = {stage: _steps(place / "runs" / stage) for stage in STAGES}
    done = [f"{n} steps of {stage} logged" for stage, n in steps.items() if n]
    return f"{_moment(place)}, {' and '.join(done) or 'no step logged'}"


def _kept(place: Path) -> dict[str, tuple[int, int | None]]:
    """Of each stage the step of the newest checkpoint, and when its weights were written if so."""
    found = {}
    for stage in STAGES:
        folder = place / "runs" / stage
        steps = [int(path.name) for path in folder.glob("checkpoints/*") if path.name.isdigit()]
        weights = folder / "model.safetensors"
        written = weights.stat().st_mtime_ns if weights.is_file() else None
        found[stage] = max(steps, default=0), written
    return found


def _begun_anew(place: Path, kept: dict[str, tuple[int, int | None]], log: str) -> str:
    """What a run that was taken up did once more though it was kept, by its log; else empty.

    The end would be the same, bit for bit.
    """
    for stage, (step, written) in kept.items():
        if written is not None and _kept(place)[stage][1] != written:
            return f"{stage} was trained again though it was finished"
        if written is None and step and f"going on from the checkpoint of step {step}\n" not in log:
            return f"{stage} did not go on from its step {step}"
    return ""


def _told(spent: dict[str, float]) -> str:
    return ", ".join(f"{spent[moment]:.1f} s {moment}" for moment in (*MOMENTS, OTHER))


def outcome(place: Path) -> dict[str, bytes]:
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


def first_difference(expected: dict[str, bytes], found: dict[str, bytes]) -> str:
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
