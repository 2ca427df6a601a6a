"""The loop and its checkpoints, with a method small enough to reason about."""

import contextlib
import dataclasses
import errno
import functools
import gc
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxgen.config import Mesh
from jaxgen.errors import UserError
from jaxgen.runtime import hosts, loop
from jaxgen.runtime import mesh as meshes
from jaxgen.runtime import metrics as logs
from jaxgen.runtime.checkpoints import Checkpoints
from jaxgen.state import State


@dataclasses.dataclass
class Counted:
    """Batches that hold their own number."""

    position: int = 0

    def __next__(self) -> dict[str, np.ndarray]:
        self.position += 1
        return {"n": np.full((8,), self.position, np.float32)}

    def get_state(self) -> dict[str, Any]:
        return {"next_index": self.position}

    def set_state(self, state: dict[str, Any]) -> None:
        self.position = state["next_index"]


def init(frozen: Any) -> State:
    params = {"p": jnp.zeros(3)}
    return State(jnp.zeros((), jnp.int32), params, params, {"p": jnp.ones(3)})


def train_step(state: State, frozen: Any, batch: Any, poison: int = -1) -> tuple[State, Any]:
    """Every number depends on all batches before, and on their order."""
    p = state.params["p"] * 1.01 + jnp.sin(batch["n"].mean()) + frozen
    broken = jnp.where(state.step + 1 == poison, jnp.nan, 0.0)
    new = State(state.step + 1, {"p": p}, {"p": p / 2}, state.opt_state)
    return new, {"loss": jnp.sum(p**2), "penalty": p[0] + broken}


def fit(
    folder: Path,
    steps: int,
    every: int = 5,
    step=train_step,
    sample=None,
    data=None,
    log_every: int = 1,
) -> State:
    checkpoints = Checkpoints(folder / "checkpoints", every)
    try:
        return loop.fit(
            title="toy",
            mesh=meshes.make(Mesh(), 8),
            init=init,
            train_step=step,
            frozen=jnp.ones(()),
            data=data or Counted(),
            steps=steps,
            batch=8,
            log_every=log_every,
            checkpoints=checkpoints,
            open_log=functools.partial(logs.MetricsLog, folder),
            sample=sample or (lambda *_: None),
            sample_every=1 if sample else 0,
        )
    finally:
        checkpoints.close()


def same(a: State, b: State) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture
def whole(tmp_path: Path) -> State:
    return fit(tmp_path / "whole", 23)


def test_a_resumed_run_is_the_undisturbed_one(whole: State, tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    fit(folder, 12)
    same(fit(folder, 23), whole)
    assert [m["step"] for m in logs.read(folder)] == list(range(1, 24))
    assert logs.read(folder) == logs.read(tmp_path / "whole")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_an_interrupted_run_saves_where_it_is_and_goes_on(
    number: signal.Signals,
    code: int,
    whole: State,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    """Launchers start again what ended with 75; no thread is to end the run while it saves."""

    def stop(state: State, step: int, log: Any) -> None:
        if step == 8:
            os.kill(os.getpid(), number)
            assert signal.getsignal(number) not in (hosts._noted, hosts._interrupted)

    told = pytest.raises(loop.Interrupted, match="after step 9")
    with hosts.told_to_go(), told as stopped:  # which else would end the process at once
        fit(tmp_path / "cut", 23, every=100, sample=stop)
    assert stopped.value.code == code
    same(fit(tmp_path / "cut", 23), whole)
    assert "going on from the checkpoint of step 9" in capsys.readouterr().out


def test_a_run_told_to_go_by_several_at_once_saves_all_the_same(tmp_path: Path) -> None:
    """As where a machine goes: the script beside the run passes on what the run has heard too."""

    def stop(state: State, step: int, log: Any) -> None:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)

    told = pytest.raises(loop.Interrupted, match="after step 2")
    with hosts.told_to_go(), told as stopped:
        fit(tmp_path, 23, every=100, sample=stop)
    assert stopped.value.code == 75
    assert (tmp_path / "checkpoints/2").is_dir()


def test_a_signal_waits_for_few_steps_however_seldom_metrics_are_read(tmp_path: Path) -> None:
    """A device would take whatever is asked of it, and a signal wait for all of that."""
    done: list[float] = []
    asked: list[int] = []

    class Watched(Counted):
        def __next__(self) -> dict[str, np.ndarray]:
            asked.append(self.position - len(done))
            return super().__next__()

    def slow(n: np.ndarray) -> np.ndarray:
        time.sleep(0.02)
        done.append(float(n))
        return n

    def step(state: State, frozen: Any, batch: Any) -> tuple[State, Any]:
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        n = jax.pure_callback(slow, shape, batch["n"].mean() + 0 * state.params["p"][0])
        return train_step(state, frozen, {"n": n[None]})

    fit(tmp_path, 30, every=100, step=step, data=Watched(), log_every=100)
    assert len(done) == 30
    assert 0 < max(asked) <= loop.AHEAD


def test_a_run_told_to_go_while_it_saves_its_last_step_does_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The grids and grades that follow may take minutes."""
    monkeypatch.setattr(logs.MetricsLog, "save", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(loop.Interrupted, match="after step 3") as stopped:
        fit(tmp_path, 3)
    assert stopped.value.code == 75


def test_a_checkpoint_killed_while_it_was_being_deleted_is_no_news(
    whole: State, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    fit(tmp_path / "cut", 12)
    checkpoints = tmp_path / "cut/checkpoints"
    (checkpoints / "3/state").mkdir(parents=True)  # what is left of it
    same(fit(tmp_path / "cut", 23), whole)
    assert "damaged" not in capsys.readouterr().out
    assert not [path for path in checkpoints.iterdir() if path.name == "3" or "un" in path.name]


def test_an_older_checkpoint_with_a_damaged_file_is_set_aside_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    fit(tmp_path / "cut", 12)
    checkpoints = tmp_path / "cut/checkpoints"
    older = min(int(path.name) for path in checkpoints.iterdir())
    (checkpoints / str(older) / "metrics/metrics").write_text("{")
    fit(tmp_path / "cut", 14)
    aside = checkpoints / f"unreadable-{older}"
    assert (
        f"checkpoint {older} is damaged: its loss, in metrics/metrics, cannot be read; it is set "
        f"aside as {aside}"
    ) in capsys.readouterr().out
    assert (aside / "state").is_dir(), "its state may be good"


def test_a_term_that_is_not_finite_stops_the_run_by_name_and_spares_the_checkpoint(
    whole: State, tmp_path: Path
) -> None:
    folder = tmp_path / "poisoned"
    with pytest.raises(UserError, match=r"penalty is nan at step 13"):
        fit(folder, 23, step=functools.partial(train_step, poison=13))
    assert Checkpoints(folder / "checkpoints", 5).steps()[-1] == 10
    same(fit(folder, 23), whole)


def test_the_last_two_and_the_best_checkpoint_are_kept(tmp_path: Path) -> None:
    fit(tmp_path, 40)  # the loss grows, so the first checkpoint is the best one
    assert Checkpoints(tmp_path / "checkpoints", 5).steps() == [5, 35, 40]
    fit(tmp_path, 60)
    assert Checkpoints(tmp_path / "checkpoints", 5).steps() == [5, 55, 60], "also after a resume"


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def damage(
    folder: Path, step: int, part: str = "*", fault: Callable[[Path], None] = cut_short
) -> None:
    for file in sorted((folder / "checkpoints" / str(step)).rglob(part)):
        if file.is_file():
            fault(file)


@pytest.fixture
def collected() -> Iterator[None]:
    """What Python says of dropped coroutines, it says of this test, and not of a later one."""
    yield
    gc.collect()


def late(test: Callable[..., None]) -> Callable[..., None]:
    """Of the arrays of a damaged checkpoint the first ends Orbax's event loop.

    Tensorstore then has nobody to tell of the others, and Python says so.
    """
    told = "ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning"
    return pytest.mark.usefixtures("collected")(pytest.mark.filterwarnings(told)(test))


@late
@pytest.mark.parametrize(
    ("fault", "part", "told"),
    [
        (cut_short, "data/metadata", "{20}/data/metadata is cut short or changed"),
        (cut_short, "state/_METADATA", "{20}/state/_METADATA is cut short or changed"),
        (cut_short, "state/manifest.ocdbt", "its arrays, in {20}/state, cannot be read (DATA_LOSS"),
        (cut_short, "state/d/*", "its arrays, in {20}/state, cannot be read (OUT_OF_RANGE in "),
        (Path.unlink, "data/metadata", "{20}/data/metadata is missing"),
        (Path.unlink, "state/_METADATA", "{20}/state/_METADATA is missing"),
        (Path.unlink, "state/manifest.ocdbt", "{20}/state/manifest.ocdbt is missing"),
        (Path.unlink, "state/d/*", "its arrays, in {20}/state, cannot be read (NOT_FOUND in "),
    ],
)
def test_a_checkpoint_with_a_file_cut_short_or_missing_is_named_and_the_one_before_is_used(
    fault: Callable[[Path], None],
    part: str,
    told: str,
    whole: State,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    folder = tmp_path / "cut"
    fit(folder, 20)
    damage(folder, 20, part, fault)
    same(fit(folder, 23), whole)
    out, checkpoints = capsys.readouterr().out, folder / "checkpoints"
    assert f"checkpoint 20 is damaged: {told.replace('{20}', f'{checkpoints}/20')}" in out
    assert "; an older one is tried\n" in out
    assert f"checkpoint 20 is set aside as {checkpoints}/unreadable-20\n" in out
    assert "going on from the checkpoint of step 15" in out


def test_the_newest_checkpoint_without_its_loss_is_named_and_the_one_before_is_used(
    whole: State, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "cut"
    fit(folder, 20)
    damage(folder, 20, "metrics/metrics", Path.unlink)
    same(fit(folder, 23), whole)
    out = capsys.readouterr().out
    assert "checkpoint 20 is damaged: its loss, in metrics/metrics, cannot be read; it is" in out
    assert "going on from the checkpoint of step 15" in out


@late
def test_an_array_that_cannot_be_read_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """One so large that its numbers have a file of their own."""
    large = jnp.asarray(np.random.default_rng(0).random(10_000), jnp.float32)
    state = State(jnp.zeros((), int), {"p": large}, {}, {})
    with contextlib.closing(Checkpoints(tmp_path, 1)) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state, {}, 1.0)
    files = [path for path in (tmp_path / "2/state").rglob("d/*") if path.is_file()]
    cut_short(max(files, key=lambda file: file.stat().st_size))
    with contextlib.closing(Checkpoints(tmp_path, 1)) as checkpoints:
        checkpoints.restore(state, print, mend=False)
    assert "cannot be read (OUT_OF_RANGE in params.p: Requested" in capsys.readouterr().out


@pytest.mark.parametrize(
    "fault",
    [
        jax.errors.JaxRuntimeError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer"),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes"),
        MemoryError(),
        OSError(errno.EIO, "Input/output error", "state"),
        OSError(errno.EACCES, "Permission denied", "state"),
        ValueError("UNKNOWN: Failed to read [os_error_code='5']"),
    ],
    ids=["lost", "device memory", "memory", "disk", "rights", "disk, by TensorStore"],
)
def test_a_failure_that_is_no_damage_leaves_the_checkpoint_where_it_is(
    fault: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cut"
    fit(folder, 10)

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("not read") from fault

    monkeypatch.setattr(ocp.Checkpointer, "restore", fails)
    with pytest.raises(RuntimeError, match="not read"):
        fit(folder, 12)
    assert Checkpoints(folder / "checkpoints", 5).steps() == [5, 10]


def test_a_checkpoint_that_another_process_cannot_read_is_not_taken(
    whole: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    fit(tmp_path / "cut", 20)
    others = iter([[], [], "no such file", ""])
    monkeypatch.setattr(hosts, "gathered", lambda value: [value, next(others, value)])
    same(fit(tmp_path / "cut", 23), whole)
    out = capsys.readouterr().out
    assert "checkpoint 20 is damaged: no such file; an older one is tried" in out
    assert "going on from the checkpoint of step 15" in out


@late
def test_never_a_silent_restart(tmp_path: Path) -> None:
    fit(tmp_path, 20)
    for step in (5, 15, 20):
        damage(tmp_path, step)
    with pytest.raises(UserError, match=r"none of the checkpoints \[5, 15, 20\] .* can be read"):
        fit(tmp_path, 23)


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        ValueError(  # TensorStore's, whose status is a bucket's too
            'RESOURCE_EXHAUSTED: Error writing "a/0" in OCDBT database at local file "/c/": Failed '
            "to write 48 bytes to file 4: No space left on device [os_error_code='28']"
        ),
    ],
    ids=["Python's", "TensorStore's"],
)
def test_a_full_disk_is_one_line_and_the_good_checkpoint_survives(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(tmp_path, 10)
    before = shutil.copytree(tmp_path / "checkpoints" / "10", tmp_path / "copy")
    checkpoints = Checkpoints(tmp_path / "checkpoints", 5)

    def full(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(checkpoints._manager, "save", full)
    state = init(None)
    kept = r"\(No space left on device\); good ones are kept: \[5, 10\]; free space there"
    with pytest.raises(UserError, match=kept) as told:
        checkpoints.save(15, state, {}, 1.0)
    assert told.value.code == 2, "a launcher would start it again for ever"
    for file in before.rglob("*"):
        if file.is_file():
            kept = tmp_path / "checkpoints" / "10" / file.relative_to(before)
            assert kept.read_bytes() == file.read_bytes()


def test_a_file_size_limit_in_the_saving_threads_is_one_line(tmp_path: Path) -> None:
    """As a full disk, but felt by the real writers."""
    program = f"""
import resource, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import jax.numpy as jnp
from pathlib import Path
from jaxgen.errors import reported
from jaxgen.runtime.checkpoints import Checkpoints
from jaxgen.state import State
state = State(jnp.zeros((), int), {{"p": jnp.arange(1e6)}}, {{}}, {{}})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with reported():
    checkpoints = Checkpoints(Path({str(tmp_path)!r}) / "checkpoints", 1)
    checkpoints.save(1, state, {{}}, 1.0)
    checkpoints.close()
    checkpoints = Checkpoints(Path({str(tmp_path)!r}) / "checkpoints", 1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    checkpoints.save(2, state, {{}}, 1.0)
    checkpoints.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr[-2000:]
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr[-2000:]
    assert "cannot write a checkpoint" in done.stderr
    assert Checkpoints(tmp_path / "checkpoints", 1).steps() == [1]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no disk that is always full")
def test_a_metrics_log_on_a_full_disk_is_named(tmp_path: Path) -> None:
    log = logs.MetricsLog(tmp_path, 0)
    log._lines.close()
    log._lines = open("/dev/full", "w")  # noqa: SIM115
    for act in (lambda: log.write(1, {"loss": 2.0}), log.close):
        with pytest.raises(OSError, match="No space") as full:
            act()
        assert full.value.filename == "/dev/full"
    log._board.close()


def test_a_metrics_log_cut_short_by_a_kill_is_mended(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    log = logs.MetricsLog(tmp_path, 1)
    log.write(2, {"loss": 1.0})
    log.close()
    assert logs.read(tmp_path) == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]
