"""One process at a time in a run's folder: on a disk, and in a bucket."""

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bucket import Bucket, served

from jaxgen import storage
from jaxgen.errors import UserError
from jaxgen.runtime import lease

FOLDER = "gs://bucket/runs/one"
LOCK = "runs/one/.lock"


@pytest.fixture(autouse=True)
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    with served() as bucket:
        for name, value in bucket.environment.items():
            monkeypatch.setenv(name, value)
        storage._reach.cache_clear()
        yield bucket


def held_by(bucket: Bucket, **said: str) -> None:
    """A lease of this process, but for what is said of it, that nobody refreshes."""
    taken = lease._Lease(storage.folder(FOLDER))
    taken._ended.set()
    holder = {**json.loads(taken._me), **said}
    taken._object.write("", json.dumps(holder)).result()


@pytest.mark.parametrize("where", [FOLDER, "one"])
def test_a_second_one_is_refused_and_the_next_one_let_in(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = storage.folder(where)
    for _ in range(2):
        with lease.held(folder), pytest.raises(UserError, match=rf"{where} is in use by .*process"):
            lease.held(folder).__enter__()


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (lambda runs: runs.write_text(""), "Not a directory"),
        (lambda runs: (runs.mkdir(), (runs / "one").write_text("")), "File exists"),
        (lambda runs: (runs / "one/.lock").mkdir(parents=True), "Is a directory"),
        (lambda runs: (runs / "one").mkdir(0o555, parents=True), "Permission denied"),
        (lambda runs: runs.mkdir(0o555), "Permission denied"),
    ],
    ids=[
        "file-for-workdir",
        "file-for-folder",
        "folder-for-lock",
        "read-only",
        "workdir-read-only",
    ],
)
def test_a_folder_that_cannot_be_written_is_one_line_at_the_start(
    fault: Callable[[Path], object], reason: str, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    fault(runs)
    read_only = reason == "Permission denied"
    if read_only and os.access(max(tmp_path.rglob("*")), os.W_OK):
        pytest.skip("to this user permissions mean nothing")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError) as refusal:
        lease.held(runs / "one").__enter__()
    words = f"cannot write to {runs}/one ({reason}); choose another --workdir"
    assert str(refusal.value) == words
    assert sorted(tmp_path.rglob("*")) == before


def test_of_many_that_start_at_once_one_goes_on(bucket: Bucket) -> None:
    entered, refused = [], []

    def enter() -> None:
        try:
            entered.append(lease._Lease(storage.folder(FOLDER)))
        except UserError as error:
            refused.append(error)

    threads = [threading.Thread(target=enter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(entered), len(refused)) == (1, 7)
    entered[0].release()
    assert LOCK not in bucket.names()


def test_one_that_was_killed_on_this_machine_keeps_nobody_out(bucket: Bucket) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    started = lease._started(dead.pid)
    dead.wait()
    held_by(bucket, pid=dead.pid, started=started)
    with lease.held(storage.folder(FOLDER)):
        pass
    assert LOCK not in bucket.names()


def test_another_machine_s_is_taken_over_once_it_is_silent_and_not_before(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(lease, "LOOK", 0.01)
    monkeypatch.setattr(lease, "STALE", 0.3)
    held_by(bucket, machine="another", host="far")
    with lease.held(storage.folder(FOLDER)):
        assert "in use by process" in capsys.readouterr().out
    monkeypatch.setattr(lease, "STALE", 30.0)
    monkeypatch.setattr(lease, "REFRESH", 0.1)
    monkeypatch.setattr(lease, "_process", lambda pid: {"host": "far", "machine": "", "pid": pid})
    alive = lease._Lease(storage.folder(FOLDER))
    with pytest.raises(UserError, match=r"in use by process .* on far"):
        lease.held(storage.folder(FOLDER)).__enter__()
    alive.release()


def test_a_displaced_holder_ends_at_its_next_refresh(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = []
    monkeypatch.setattr(lease, "REFRESH", 0.05)
    holder = lease._Lease(storage.folder(FOLDER))
    monkeypatch.setattr(
        lease.hosts, "leave", lambda *said: (left.append(said), holder._ended.set())
    )
    holder._object.write("", '{"id": "the successor"}').result()
    holder._ended.wait()
    ((code, line),) = left
    assert code == 2
    assert "was taken over by another process" in line
    holder.release()
    assert json.loads(bucket.read(LOCK))["id"] == "the successor", "never another's"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (errno.EWOULDBLOCK, "{one} is in use by another process"),
        (errno.ENOLCK, r"cannot lock {one}/.lock \(No locks available\); choose a --workdir on a"),
        (errno.EOPNOTSUPP, r"cannot lock {one}/.lock \(Operation not supported\); choose a --work"),
    ],
)
def test_a_disk_without_locks_is_not_told_as_another_process(
    fault: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: Any) -> None:
        raise OSError(fault, os.strerror(fault))

    monkeypatch.setattr(lease.fcntl, "flock", flock)
    with pytest.raises(UserError, match=words.format(one=tmp_path / "one")):
        lease.held(tmp_path / "one").__enter__()
