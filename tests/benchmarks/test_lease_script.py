"""What is done on a machine that is lent for minutes, with a stand-in for Python."""

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "lease.sh"
# What is to be compiled ahead goes on for ever, but for saying that it has been.
PYTHON = """#!/usr/bin/env bash
echo "${@:2}" >>calls
[[ "$*" == *--name=warm* ]] && echo 'warm: compiled in 1 s' && sleep 600
[[ "$*" == *unet:sd21* ]] && exit 1
echo done
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    shutil.copy(SCRIPT, tmp_path / "benchmarks")
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def ran(place: Path, *parts: str, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", "benchmarks/lease.sh", *parts],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"], "PYTHON": "./python", "OUT": "out", **variables},
    )


def test_parts_run_in_order_and_a_failure_ends_none_of_the_others(place: Path) -> None:
    told = ran(place, "unet", "latency:add_64", BATCHES="1", MINUTES="2").stdout
    assert (place / "calls").read_text().splitlines() == [
        "benchmarks.training --items unet:sd21:bfloat16 --minutes=2",
        "benchmarks.latency --config=add_64 --batches 1 --dtypes bfloat16 --steps 1 --no-starts "
        "--minutes=2",
    ]
    assert "== unet: exit code 1" in told
    assert "== latency:add_64: exit code 0" in told


def test_the_student_is_compiled_beside_its_teacher_and_all_logs_come_back(place: Path) -> None:
    assert ran(place, "train", "measure", TEACHER="7", STUDENT="5").returncode == 0
    calls = (place / "calls").read_text().splitlines()
    how = "--train.batch=128 --train.sample-every=0 --train.steps"
    teacher = f"jaxgen.train --config=diffusion_64 {how}=7"
    student = f"jaxgen.train --config=add_64 {how}=5 --teacher=runs/diffusion_64"
    assert calls.index(teacher) < calls.index(student)
    assert sum("jaxgen.evaluate --run=runs/add_64" in call for call in calls) == 1
    with tarfile.open(place / "out" / "results.tar.gz") as found:
        assert {"runs/diffusion_64.log", "runs/add_64.log", "runs/warm.log"} <= {*found.getnames()}


@pytest.mark.parametrize(
    ("part", "variables", "line"),
    [
        ("latency", {}, "jaxgen: no part latency; see --help"),
        ("unet", {"MINUTES": "0.5"}, "jaxgen: MINUTES=0.5: give a whole number, 1 or more"),
    ],
)
def test_what_makes_no_sense_is_a_line(place: Path, part: str, variables, line: str) -> None:
    found = ran(place, part, **variables)
    assert (found.returncode, found.stderr.strip()) == (2, line)
    assert not (place / "calls").exists()
