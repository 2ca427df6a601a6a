"""A run whose folder is in a bucket, as a user starts it; the bucket is a stand-in of this machine."""

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from bucket import Bucket, served
from PIL import Image
from tiny import DIT_MODEL

from jaxgen import config as configs
from jaxgen import sample, stages, storage, train
from jaxgen.errors import UserError
from jaxgen.runtime import mesh as meshes
from jaxgen.runtime import metrics, run

RUN = "gs://bucket/runs/teacher"
CONFIG = """
from jaxgen.config import Data, Optimizer, Train
from jaxgen.methods.diffusion import Diffusion
from tiny import DIT_MODEL
config = Diffusion(
    name="teacher",
    data=Data(name="imagefolder:pictures", size=16),
    model=DIT_MODEL,
    train=Train(steps=9, batch=8, log_every=1, sample_every=0, checkpoint_every=3),
    optimizer=Optimizer(decay="constant"),
    sampler_steps=3,
)
"""


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    with served() as bucket:
        yield bucket


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("work")
    (place / "pictures").mkdir()
    for n in range(8):
        image = np.full((16, 16, 3), 30 * n, np.uint8)
        Image.fromarray(image).save(place / f"pictures/{n}.png")
        (place / f"pictures/{n}.txt").write_text(f"picture {n}")
    (place / "teacher.py").write_text(CONFIG)
    return place


@pytest.fixture(autouse=True)
def here(folder: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the folder, with the bucket as Google's, and with this process's devices as they are."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(meshes, "prepare", lambda *_: None)
    storage._reach.cache_clear()
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)


def start(folder: Path, bucket: Bucket, workdir: str) -> subprocess.Popen:
    paths = [str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {"PYTHONPATH": os.pathsep.join(paths), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, "-m", "jaxgen.train", "--config=teacher.py", f"--workdir={workdir}"],
        cwd=folder,
        env={**os.environ, **bucket.environment, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def trained(folder: Path, bucket: Bucket) -> str:
    """Trains in the bucket, with a kill in the midst of the second save; what the next run said."""
    whole = start(folder, bucket, "runs")
    killed = start(folder, bucket, "gs://bucket/runs")

    def kill(name: str) -> bool:
        if name == "runs/teacher/checkpoints/6/commit_success.txt":
            killed.kill()
        return killed.poll() is None

    bucket.before = kill
    said, _ = killed.communicate()
    bucket.before = lambda name: True
    assert killed.returncode == -signal.SIGKILL, said[-2000:]
    assert "runs/teacher/checkpoints/6/state/manifest.ocdbt" in bucket.names()
    resumed = start(folder, bucket, "gs://bucket/runs")
    for process in (resumed, whole):
        said, _ = process.communicate()
        assert process.returncode == 0, said[-2000:]
        if process is resumed:
            told = said
    return told


def test_killed_and_resumed_in_a_bucket_is_bit_for_bit_undisturbed_on_a_disk(
    folder: Path, bucket: Bucket, trained: str
) -> None:
    assert "going on from the checkpoint of step 3" in trained
    assert "cannot be read" not in trained, "a save that was not finished is no damage"
    for name in ("model.safetensors", "metrics.jsonl"):
        there, here = bucket.read(f"runs/teacher/{name}"), folder / "runs/teacher" / name
        assert there == here.read_bytes(), name
    names = {name.removeprefix("runs/teacher/") for name in bucket.names()}
    assert {"config.json", "tokenizer.json", "samples/final.png"} <= names
    assert [n for n in names if n.startswith("tensorboard/")]
    steps = {n.split("/")[1] for n in names if n.startswith("checkpoints/")}
    assert steps == {"6", "9"}
    assert ".lock" not in names
    assert not (folder / "gs:").exists()


def test_a_run_in_a_bucket_is_sampled_and_builds_others(
    folder: Path, trained: str, monkeypatch: pytest.MonkeyPatch, add_config
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["sample", f"--run={RUN}", "--prompt=picture 3", "--out=one.png"]
    )
    sample.main()
    with Image.open(folder / "one.png") as image:
        assert image.size == (16, 16)
    student = dataclasses.replace(
        add_config, teacher=RUN, workdir="gs://bucket/runs", model=DIT_MODEL
    )
    assert str(stages.plan(student)[-1].sources["teacher"]) == RUN
    assert stages.read(storage.folder(RUN)).step == 9
