"""First and second starts, with a stand-in for the processes."""

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import reports, starts

DTYPES = ("float32", "bfloat16")
TOLD = {"imports": 1.0, "weights": 2.0, "compile": 3.0, "draw": 4.0}


class Processes:
    """Records what is run; those from `late` on, counted from 0, do not end in time."""

    def __init__(self, late: int) -> None:
        self.late = late
        self.ran: list[dict[str, Any]] = []

    def run(self, command: list[str], **how: Any) -> subprocess.CompletedProcess:
        self.ran.append({"command": command, **how})
        if len(self.ran) > self.late:
            raise subprocess.TimeoutExpired(command, how["timeout"])
        return subprocess.CompletedProcess(command, 0, stdout=f"{json.dumps(TOLD)}\n")


def measured(path: Path, seconds: float) -> int:
    report = reports.taken_up({"benchmark": "starts"}, path, (), False)
    end = time.monotonic() + seconds
    return starts.measure("--config=add", DTYPES, end, report, path, lambda line: None)


def test_the_first_start_finds_nothing_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes = Processes(late=4)
    monkeypatch.setattr(subprocess, "run", processes.run)
    monkeypatch.setenv(starts.CACHE, str(tmp_path / "compiled"))
    path = tmp_path / "starts_add.json"
    assert measured(path, 100) == 0
    assert all(starts.CACHE not in process["env"] for process in processes.ran)
    assert all(0 < process["timeout"] <= 100 for process in processes.ran)
    caches = [process["command"][-1] for process in processes.ran]
    assert caches[0] == caches[1] != caches[2] == caches[3]
    found = starts.by_dtype(reports.read(path, "starts"))
    for dtype in DTYPES:
        assert list(found[dtype]) == ["first", "second"]
        assert found[dtype]["first"] == {"total": found[dtype]["first"]["total"], **TOLD}
    assert measured(path, 100) == 0
    assert len(processes.ran) == 4


def test_what_was_measured_outlives_a_start_that_does_not_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "starts_add.json"
    slow = Processes(late=3)
    monkeypatch.setattr(subprocess, "run", slow.run)
    assert measured(path, 100) == 0  # the same command would not try again
    report = reports.read(path, "starts")
    assert [(row["dtype"], row["start"]) for row in report["measured"]] == [
        ("float32", "first"),
        ("float32", "second"),
        ("bfloat16", "first"),
    ]
    (skipped,) = report["skipped"]
    assert (skipped["dtype"], skipped["start"]) == ("bfloat16", "second")
    assert skipped["seconds_left"] == pytest.approx(100, abs=5)
    assert measured(path, 100) == 0
    assert len(slow.ran) == 4
    quick = Processes(late=2)
    monkeypatch.setattr(subprocess, "run", quick.run)
    assert measured(path, 200) == 0
    assert len(quick.ran) == 2  # both of the type, as the second needs a first
    assert not reports.read(path, "starts")["skipped"]


def test_a_start_that_was_not_tried_is_left(tmp_path: Path) -> None:
    assert measured(tmp_path / "starts_add.json", -1) == 2
