"""Two real processes as one run: the same losses, a common end, and either count goes on."""

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image
from runtime import test_loop

from jaxgen.errors import UserError
from jaxgen.runtime import hosts, run
from jaxgen.weights import files

HANGS = 600  # seconds
SPLIT = ("--mesh.data=1", "--mesh.fsdp=-1", "--mesh.rules", "kernel=0")

CONFIG = """
from jaxgen.config import Data, Optimizer, Train
from jaxgen.methods.diffusion import Diffusion
from tiny import DIT_MODEL
config = Diffusion(
    data=Data(name="imagefolder:pictures", size=16),
    model=DIT_MODEL,
    train=Train(steps=24, batch=8, log_every=1, sample_every=0, checkpoint_every=8),
    optimizer=Optimizer(decay="constant", warmup=0),
    sampler_steps=1,
    guidance=1.0,
)
"""

PROGRAM = """
import os, resource
os.sched_setaffinity(0, {int(os.environ["CORE"])})  # one core, hence one device
from jaxgen import train
if most := int(os.environ["MOST"]):  # bytes in a file, once it trains: as good as a full disk
    fit = train.loop.fit
    def limited(*arguments, **options):
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        return fit(*arguments, **options)
    train.loop.fit = limited
train.main()
"""


PREPARING = """
import ctypes
from jaxgen import train
def opened(*_):
    print("now", flush=True)
    ctypes.CDLL(None).system(b"cat")  # no handler of Python's runs until it ends
train.opened = opened
train.main()
"""

TOLD = """
import os, signal, sys, time
from pathlib import Path
from jaxgen.config import Hosts
from jaxgen.runtime import hosts, loop, metrics
from runtime import test_loop

index, port, before = map(int, sys.argv[1:])
pause = lambda *_: time.sleep(0.05)  # so that a late SIGTERM still finds steps to be done
with hosts.told_to_go():
    hosts.join(Hosts(coordinator=f"localhost:{port}", count=2, index=index))
    if index:
        test_loop.logs.MetricsLog = metrics.NoLog
    if before:
        test_loop.fit(Path("first"), before)
    if index:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(4)  # in which JAX tells all, as it does while a step compiles
    try:
        test_loop.fit(Path("second"), 200, every=1000, sample=pause)
    except loop.Interrupted as stop:
        hosts.leave(stop.code, str(stop))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hosts")
    (folder / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for number in range(8):
        pixels = np.full((16, 16, 3), rng.integers(0, 256, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"square {number}.png")
    (folder / "config.py").write_text(CONFIG)
    return folder


class Process:
    """One host with one device; its output goes to a file."""

    def __init__(self, folder: Path, name: str, *more: str, core: int = 0, most: int = 0):
        self.log = folder / f"{name}.{time.monotonic_ns()}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, "--config=config.py", "--name", name, *more],
                cwd=folder,
                env={**os.environ, "CORE": str(core), "MOST": str(most)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def said(self) -> str:
        return self.log.read_text()

    def end(self) -> int:
        """Its exit code; a process that hangs is killed, and fails the test."""
        try:
            return self.process.wait(HANGS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"still runs after {HANGS} s:\n{self.said[-3000:]}") from None


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def two(
    folder: Path,
    name: str,
    both: tuple[str, ...] = (),
    second: tuple[str, ...] = (),
    elsewhere: Path | None = None,
    most: int = 0,
) -> tuple[Process, Process]:
    cores = sorted(os.sched_getaffinity(0))
    options = (
        f"--hosts.coordinator=localhost:{free_port()}",
        "--hosts.count=2",
        "--hosts.heartbeat=20",
        *both,
    )
    return tuple(  # pyright: ignore[reportReturnType]
        Process(
            where,
            name,
            *options,
            f"--hosts.index={n}",
            *more,
            core=cores[n % len(cores)],
            most=0 if n else most,
        )
        for n, (where, more) in enumerate(((folder, ()), (elsewhere or folder, second)))
    )


def rows(folder: Path, name: str) -> list[dict[str, float]]:
    log = folder / "runs" / name / "metrics.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []


def wait_for(folder: Path, name: str, step: int, *processes: Process) -> None:
    while not (found := rows(folder, name)) or found[-1]["step"] < step:
        for each in processes:
            assert each.process.poll() is None, each.said[-3000:]
        time.sleep(0.05)


@pytest.fixture(scope="module")
def alone(folder: Path) -> list[dict[str, float]]:
    """The metrics of the run that one process makes, undisturbed."""
    process = Process(folder, "alone")
    assert process.end() == 0, process.said[-3000:]
    return rows(folder, "alone")


def assert_same(found: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    for a, b in zip(found, expected, strict=True):
        for term in b:
            np.testing.assert_allclose(a[term], b[term], rtol=1e-4, err_msg=f"{term}, {b['step']}")


@pytest.mark.long
def test_two_are_stopped_killed_and_go_on_as_one(folder: Path, alone) -> None:
    """SIGTERM to one stops both after one step; SIGKILL to one ends the other; both go on."""
    first, second = two(folder, "both")
    wait_for(folder, "both", 3, first, second)
    second.process.send_signal(signal.SIGTERM)
    assert (first.end(), second.end()) == (75, 75), first.said[-3000:] + second.said[-3000:]
    (stopped,) = {p.said.split("interrupted after step ")[1].split(";")[0] for p in (first, second)}
    assert (folder / "runs/both/checkpoints" / stopped).is_dir()
    assert "plan" not in second.said, "one speaks for both"

    first, second = two(folder, "both")
    wait_for(folder, "both", int(stopped) + 4, first, second)
    second.process.kill()
    second.end()
    # By the connection that closed; where it was saving and had none open, aborted by JAX.
    assert first.end() in (75, -signal.SIGABRT), first.said[-3000:]
    assert f"going on from the checkpoint of step {stopped}" in first.said
    assert f" images to do; its last checkpoint is of step {stopped}" in first.said
    (line,) = [line for line in first.said.splitlines() if line.startswith("jaxgen: ")]
    assert "lost" in line
    assert "start all again" in line

    said = ended_well(*two(folder, "both"))
    assert "going on from the checkpoint" in said
    assert "compiled before" not in said, "which only the first finds, and the other's time is out"
    assert_same(rows(folder, "both"), alone)


@pytest.mark.parametrize("before", [0, 220], ids=["taken up", "after a longer stage"])
def test_two_told_before_the_first_step_of_a_run_stop_after_the_same(
    before: int, tmp_path: Path
) -> None:
    """Whatever steps the run begins from, or a stage before it has come to."""
    if not before:
        test_loop.fit(tmp_path / "second", 5)
    port, logs, both = free_port(), [tmp_path / f"{index}.log" for index in range(2)], []
    for index, log in enumerate(logs):
        with log.open("w") as out:
            program = [sys.executable, "-c", TOLD, str(index), str(port), str(before)]
            both.append(subprocess.Popen(program, cwd=tmp_path, stdout=out, stderr=out))
    try:
        codes = [process.wait(HANGS) for process in both]
    finally:
        for process in both:
            process.kill()
    said = [log.read_text() for log in logs]
    assert codes == [75, 75], "\n".join(each[-2000:] for each in said)
    (stopped,) = {each.split("interrupted after step ")[1].split(";")[0] for each in said}
    assert (tmp_path / "second/checkpoints" / stopped).is_dir()


@pytest.mark.long
def test_the_coordinator_killed_ends_the_other(folder: Path) -> None:
    first, second = two(folder, "headless")
    wait_for(folder, "headless", 3, first, second)
    first.process.kill()
    first.end()
    assert second.end() in (75, -signal.SIGABRT), second.said[-3000:]
    assert "start all again with the same command" in second.said


@pytest.mark.long
def test_one_that_cannot_write_its_checkpoint_says_so_and_ends_both(folder: Path) -> None:
    first, second = two(folder, "full", most=50_000)
    assert first.end() == 2, first.said[-3000:]
    (line,) = [line for line in first.said.splitlines() if line.startswith("jaxgen: ")]
    checkpoints = "runs/full/checkpoints"
    assert (
        f"cannot write a checkpoint in {checkpoints} (File too large); good ones are kept: none"
        in line
    )
    assert second.end() in (75, -signal.SIGABRT), second.said[-3000:]


def ended_well(*processes: Process) -> str:
    """What the first has said, once all have ended by 0."""
    codes = [process.end() for process in processes]
    assert not any(codes), "\n".join(process.said[-3000:] for process in processes)
    return processes[0].said


def weights(folder: Path, name: str) -> dict[str, Any]:
    tree, _ = files.load(folder / "runs" / name / "model.safetensors")
    return dict(flatten_dict(tree, sep="/"))


def assert_same_run(folder: Path, name: str, alone: list[dict[str, float]]) -> None:
    """Metrics and weights are those of the run that one process makes.

    But for the biases of keys: no softmax sees them, and Adam makes steps of their rounding.
    """
    assert_same(rows(folder, name), alone)
    found, expected = (weights(folder, each) for each in (name, "alone"))
    assert found.keys() == expected.keys()
    for array in found:
        if not array.endswith(("to_k/bias", "k_proj/bias")):
            np.testing.assert_allclose(found[array], expected[array], 1e-4, 1e-6, err_msg=array)
    assert (folder / "runs" / name / "samples/final.png").is_file()


@pytest.fixture(scope="module")
def halves(folder: Path) -> Path:
    """A run of one process, joined by a second at step 8: each with its half of the arrays at 16.

    Both are there, the checkpoint that one wrote and that of two.
    """
    ended_well(Process(folder, "halves", "--train.steps=8"))
    joined = ended_well(*two(folder, "halves", (*SPLIT, "--train.steps=16")))
    assert "going on from the checkpoint of step 8" in joined
    return shutil.copytree(folder / "runs/halves", folder / "halves")


@pytest.mark.long
def test_one_is_joined_by_a_second_and_goes_on_from_what_both_held_split(
    folder: Path, halves: Path, alone
) -> None:
    shutil.rmtree(folder / "runs/halves")
    shutil.copytree(halves, folder / "runs/halves")
    said = ended_well(Process(folder, "halves"))
    assert "going on from the checkpoint of step 16" in said
    assert_same_run(folder, "halves", alone)


@pytest.mark.long
def test_a_file_that_one_of_two_reads_is_cut_short_and_both_take_the_older(
    folder: Path, halves: Path, alone
) -> None:
    shutil.rmtree(folder / "runs/halves")
    shutil.copytree(halves, folder / "runs/halves")
    checkpoints = folder / "runs/halves/checkpoints"
    for file in (checkpoints / "16/state/ocdbt.process_1/d").iterdir():  # some are of no use
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    said = ended_well(*two(folder, "halves", SPLIT))
    assert "checkpoint 16 is damaged: its arrays, in runs/halves/" in said
    assert "going on from the checkpoint of step 8" in said
    assert (checkpoints / "unreadable-16").is_dir()
    assert_same_run(folder, "halves", alone)


def test_processes_that_differ_are_refused_by_the_field(folder: Path) -> None:
    for process in two(folder, "unlike", second=("--seed=1",)):
        assert process.end() == 2, process.said[-3000:]
        assert (
            "jaxgen: the processes differ in seed: 0 in process 0, 1 in process 1" in process.said
        )
    assert not (folder / "runs/unlike").exists()


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"train": {"batch": 8}}, "train.batch: 16 in process 0, 8 in process 1; mend that"),
        ({"version of": {"jax": "0.9"}}, "version of.jax: '1.0' in process 0, '0.9' in process 1;"),
        ({"version of": {"jax": "1.0"}}, "version of.numpy: '2.0' in process 0, None in process"),
        ({"hosts": {"index": 1}}, ""),
    ],
    ids=["config", "version", "package", "hosts"],
)
def test_what_processes_differ_in_is_named(
    other: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As process 1, by what both would have gathered."""
    first = {
        "train": {"batch": 16},
        "hosts": {"index": 0},
        "version of": {"jax": "1.0", "numpy": "2.0"},
    }
    told: list[Any] = []

    def gathered(value: Any) -> list[Any]:
        told.append(value)
        return [*told]

    monkeypatch.setattr(hosts, "gathered", gathered)
    hosts.agree(first, "mend that")
    if not words:
        hosts.agree(first | other, "mend that")
        return
    with pytest.raises(UserError) as refusal:
        hosts.agree(first | other, "mend that")
    assert str(refusal.value).startswith(f"the processes differ in {words}")


def test_the_code_of_jaxgen_is_another_when_a_line_of_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("__init__.py", "deep/a.py"):
        (tmp_path / name).write_text("a = 1\n")
    monkeypatch.setattr(hosts.jaxgen, "__file__", str(tmp_path / "__init__.py"))
    before = hosts.code()
    (tmp_path / "deep/a.py").write_text("a = 2\n")
    changed = hosts.code()
    (tmp_path / "deep/a.py").write_text("a = 1\n")
    assert before == hosts.code() != changed


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


CLOSED = jax.errors.JaxRuntimeError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer")


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (CLOSED, 75, "has lost contact with another (UNKNOWN: Gloo all-reduce failed: Connection"),
        (caused(RuntimeError("not saved"), CLOSED), 75, "has lost contact with another (UNKNOWN"),
        (ValueError(str(CLOSED)), 75, "has lost contact with another (UNKNOWN: Gloo all-reduce"),
        (ValueError("no picture called connection.png"), 1, "process 1 ends by a fault of its own"),
        (jax.errors.JaxRuntimeError("INTERNAL: no such kernel"), 1, "a fault of its own"),
        (OSError(errno.ENOSPC, "No space left on device", "a.npy"), 2, "No space left on device:"),
        (UserError("no words;\n give some"), 2, "no words; give some"),
    ],
)
def test_one_of_several_that_fails_ends_by_the_code_of_its_fault(
    error: Exception,
    code: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """Launchers start again on 75 for as long as it takes."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit) as ended, hosts.together():
        raise error
    assert ended.value.code == code
    told = capsys.readouterr().err.splitlines()
    assert told[-1].startswith("jaxgen: ")
    assert words in told[-1]
    assert (len(told) == 1) == (code != 1), "a traceback is for faults of the program"


@pytest.mark.parametrize(
    ("index", "line"),
    [
        (0, "process 1 of 2 did not come to localhost:{port} within 2 s"),
        (1, "the coordinator localhost:{port} was not reached within 2 s (Connection refused)"),
    ],
)
def test_the_others_not_there_are_one_line(index: int, line: str, folder: Path) -> None:
    port = free_port()
    one = Process(
        folder, "one", f"--hosts.coordinator=localhost:{port}", "--hosts.count=2",
        f"--hosts.index={index}", "--hosts.wait=2",
    )  # fmt: skip
    assert one.end() == 2, one.said[-3000:]
    (told,) = one.said.splitlines()
    assert told.startswith(f"jaxgen: {line.format(port=port)}")


def test_where_no_cluster_is_found_an_address_is_asked_for(folder: Path) -> None:
    one = Process(folder, "none", "--hosts.coordinator=auto")
    assert one.end() == 2, one.said[-3000:]
    (told,) = one.said.splitlines()
    assert told.startswith("jaxgen: --hosts.coordinator auto finds no cluster that JAX knows here;")


def test_one_told_to_go_while_it_prepares_its_data_ends_to_be_started_again(folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PREPARING, "--config=config.py", "--name=early"],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert any(line.startswith("now") for line in process.stdout), "it got so far"
    process.terminate()
    try:
        assert process.wait(HANGS) == 75
    finally:
        process.kill()
        _, said = process.communicate()
    assert f"jaxgen: told to go; {hosts.GOES_ON}" in said.splitlines()
    assert not (folder / "runs/early").exists()


def test_hosts_with_other_pictures_are_refused(folder: Path) -> None:
    shutil.copytree(folder / "pictures", folder / "others/pictures")
    (folder / "others/pictures/square 7.png").unlink()
    shutil.copy(folder / "config.py", folder / "others/config.py")
    for process in two(folder, "unlike-pictures", elsewhere=folder / "others"):
        assert process.end() == 2, process.said[-3000:]
        assert (
            "jaxgen: the processes differ in number of pictures: 8 in process 0, 7 in process 1; "
            "give every host the same data of imagefolder:pictures (--data.root)" in process.said
        )


def test_a_folder_that_one_process_does_not_see_is_refused_by_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As process 1, whose folder is there, but holds what another run has written."""
    (tmp_path / run.CONFIG).write_text("before")
    monkeypatch.setattr(run, "SEEN", 1)
    monkeypatch.setattr(hosts, "is_first", lambda: False)
    of_the_first: list[Any] = ["now", True]
    monkeypatch.setattr(hosts, "gathered", lambda value: [of_the_first.pop(0), value])
    with pytest.raises(UserError, match=rf"^process 1 does not see {tmp_path}, .* one --workdir$"):
        run._check_shared(tmp_path, "")
    (tmp_path / run.CONFIG).write_text("now")
    of_the_first += ["now", True]
    run._check_shared(tmp_path, "")
