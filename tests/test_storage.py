"""A run whose folder is in a bucket, as a user starts it; the bucket is a stand-in for Google's."""

import dataclasses
import os
import signal
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from bucket import Bucket, served
from PIL import Image
from tiny import DIT_MODEL

from jaxgen import sample, stages, storage, train
from jaxgen.errors import UserError
from jaxgen.runtime import mesh as meshes
from jaxgen.runtime.checkpoints import Checkpoints
from jaxgen.state import State

RUN = "gs://bucket/runs/teacher"
# TensorStore may still answer a refused save when Orbax has left its event loop.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

TRAIN = ("-m", "jaxgen.train")
HASTY = """
import types
import gcsfs.retry
from jaxgen import train
from jaxgen.runtime import loop

async def sleep(seconds):
    pass

gcsfs.retry.asyncio = types.SimpleNamespace(sleep=sleep)  # between its six tries
loop.GRACE = 3.0
train.main()
"""

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


def start(
    folder: Path, bucket: Bucket, workdir: str, *more: str, program: tuple[str, ...] = TRAIN
) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *program, "--config=teacher.py", f"--workdir={workdir}", *more],
        cwd=folder,
        env={**os.environ, **bucket.environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def trained(folder: Path, bucket: Bucket) -> str:
    """Trains in the bucket, with a kill in the midst of the second save; what the next run said."""
    whole = start(folder, bucket, "runs")
    killed = start(folder, bucket, "gs://bucket/runs")

    def kill(name: str) -> int:
        if name == "runs/teacher/checkpoints/6/commit_success.txt":
            killed.kill()
            killed.wait()
        return 200 if killed.poll() is None else 0

    bucket.before = kill
    said, _ = killed.communicate()
    bucket.before = lambda name: 200
    assert killed.returncode == -signal.SIGKILL, said[-2000:]
    assert "runs/teacher/checkpoints/6/state/manifest.ocdbt" in bucket.names()
    resumed = start(folder, bucket, "gs://bucket/runs")
    told, _ = resumed.communicate()
    said, _ = whole.communicate()
    assert (resumed.returncode, whole.returncode) == (0, 0), told[-2000:] + said[-2000:]
    return told


@pytest.mark.long
def test_killed_and_resumed_in_a_bucket_is_bit_for_bit_undisturbed_on_a_disk(
    folder: Path, bucket: Bucket, trained: str
) -> None:
    assert "going on from the checkpoint of step 3" in trained
    assert " images to do; its last checkpoint is of step 3" in trained
    assert "damaged" not in trained, "a save that was not finished is no damage"
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


@pytest.mark.parametrize(
    ("outage", "words"),
    [
        (0, "asked to stop, but gs://bucket/runs/cut0/checkpoints did not take the state within"),
        (503, "refused, 503)"),
    ],
)
def test_a_run_whose_bucket_answers_no_more_ends_soon_to_be_run_again(
    outage: int, words: str, folder: Path, bucket: Bucket
) -> None:
    """In the midst of the second save; SIGTERM comes at the same time where there is no answer."""
    name = f"--name=cut{outage}"
    cut = start(
        folder, bucket, "gs://bucket/runs", name, "--train.steps=100000", program=("-c", HASTY)
    )

    def cut_off(name: str) -> int:
        if name == f"runs/cut{outage}/checkpoints/6/commit_success.txt":
            bucket.outage = outage
            if not outage:
                cut.terminate()
            return 0
        return 200

    bucket.before = cut_off
    said, _ = cut.communicate()
    bucket.before, bucket.outage = lambda name: 200, None
    assert cut.returncode == 75, said[-3000:]
    (line,) = [line for line in said.splitlines() if line.startswith("jaxgen: ")]
    assert words in line
    assert "the same command" in line
    assert f"runs/cut{outage}/checkpoints/3/commit_success.txt" in bucket.names()


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


def test_what_a_bucket_refuses_is_one_line_and_the_good_checkpoint_is_used(
    bucket: Bucket, capsys: pytest.CaptureFixture
) -> None:
    folder = storage.folder("gs://bucket/refused/checkpoints")
    state = State(jnp.zeros((), int), {"p": jnp.arange(8.0)}, {}, {})
    checkpoints = Checkpoints(folder, 1)
    checkpoints.save(1, state, {}, 1.0)
    checkpoints.close()
    checkpoints = Checkpoints(folder, 1)
    bucket.before = lambda name: 403 if "/2/state/" in name else 200
    checkpoints.save(2, state, {}, 1.0)
    with pytest.raises(UserError, match=r"cannot write a checkpoint .*good ones are kept: \[1\]"):
        checkpoints.close()
    bucket.before = lambda name: 200
    again = Checkpoints(folder, 1)
    found = again.restore(state, print, mend=True)
    again.close()
    assert found is not None
    np.testing.assert_array_equal(found[0].params["p"], state.params["p"])
    assert "damaged" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("status", "words", "code"),
    [
        (401, r"HttpError: refused, 401\); see to rights", 2),
        (403, r"Forbidden.*; see to rights", 2),
        (404, "its bucket is gone", 2),
        (429, r"HttpError: refused, 429\); see to the network", 75),
        (502, r"ProxyError.*; see to the network", 75),
    ],
)
def test_only_what_may_pass_is_to_be_run_again(
    status: int, words: str, code: int, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def at_once(seconds: float) -> None:
        pass

    monkeypatch.setattr("gcsfs.retry.asyncio", types.SimpleNamespace(sleep=at_once))
    bucket.before = lambda name: status
    with pytest.raises(UserError, match=f"cannot write gs://bucket/a.txt.*{words}") as refusal:
        storage.write_text(storage.folder("gs://bucket/a.txt"), "")
    bucket.before = lambda name: 200
    assert refusal.value.code == code


@pytest.mark.parametrize(
    ("main", "arguments", "words"),
    [
        (train.main, ["--workdir=gs://nowhere/runs"], "there is no bucket gs://nowhere; make it"),
        (train.main, ["--workdir=s3://bucket/runs"], "--workdir s3://bucket/runs: give a folder"),
        (sample.main, ["--run=gs://bucket/no", "--prompt=a"], "bucket/no is no run folder: it has"),
    ],
)
def test_a_place_that_is_not_there_is_one_line(
    main, arguments: list[str], words: str, refused
) -> None:
    config = ["--config=teacher.py"] if main is train.main else []
    assert words in refused(main, *config, *arguments)


def test_without_gcsfs_or_a_network_one_line_says_so(
    refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--config=teacher.py", "--workdir=gs://bucket/runs"]
    monkeypatch.setattr(storage, "SECONDS", 0.1)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    assert "gs://bucket cannot be reached" in refused(train.main, *arguments, code=75)
    monkeypatch.setattr(storage.importlib.util, "find_spec", lambda name: None)
    assert 'needs gcsfs: pip install "jaxgen[gcs]"' in refused(train.main, *arguments)
