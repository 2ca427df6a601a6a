"""What is run first on a new accelerator, with a stand-in for Python that measures nothing."""

import importlib
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from jaxgen import config as configs

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "run_all.sh"
# The first quality is out of time, kill_resume fails; who asks for the platform is told.
PYTHON = """#!/usr/bin/env bash
[[ $1 == -c ]] && echo gpu && exit 0
echo "$2" >>calls
printf '<%s>' "$@" >>words && echo >>words
[[ $2 == benchmarks.kill_resume ]] && exit 1
[[ $2 == benchmarks.quality && $(grep -c quality calls) == 1 ]] && exit 75
[[ $2 == benchmarks.latency && $(grep -c latency calls) == 1 ]] &&
  echo '2 part(s) are left: the same command goes on'
exit 0
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "benchmarks").mkdir()
    shutil.copy(SCRIPT, tmp_path / "benchmarks")
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def ran(place: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", "benchmarks/run_all.sh", "--python=./python", *arguments],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"]},
    )


def test_what_is_done_is_not_done_again_and_what_failed_is_named(place: Path) -> None:
    first = ran(place, "--minutes=1", "--only=latency,quality,kill_resume,plots")
    assert first.returncode == 1
    calls = (place / "calls").read_text().split()
    assert calls == [
        *["benchmarks.latency"] * 2,
        *["benchmarks.quality"] * 2,
        "benchmarks.kill_resume",
        "benchmarks.plots",
    ]
    assert "kill_resume failed: runs/run_all/kill_resume.failed" in first.stdout
    second = ran(place, "--only=latency,quality,plots")
    assert (second.returncode, second.stdout) == (0, "all done\n")
    assert (place / "calls").read_text().split() == calls


def test_a_dry_run_prints_the_commands_in_order_and_runs_none(place: Path) -> None:
    told = ran(place, "--dry-run", "--platform=gpu", "--minutes=8").stdout.splitlines()
    assert told[:3] == [
        "./python -m benchmarks.latency --config=add --minutes=8",
        "./python -m benchmarks.latency --config=add_64 --minutes=8",
        "./python -m benchmarks.latency --config=add_sd21 --minutes=8",
    ]
    assert told[-1] == "./python -m benchmarks.plots"
    assert not (place / "calls").exists()
    assert not (place / "runs").exists()


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_every_command_has_the_options_that_it_is_given(place: Path, platform: str) -> None:
    student = place / "my runs" / "add"
    student.mkdir(parents=True)
    (student / "model.safetensors").touch()
    told = ran(place, "--dry-run", f"--platform={platform}", "--workdir=my runs", "--anew").stdout
    assert "--run=my\\ runs/add --anew" in told
    for line in told.splitlines():
        _, _, name, *arguments = shlex.split(line)
        module = importlib.import_module(name)
        if arguments:
            configs.parse(module.Options(), arguments, name)


def test_anew_is_told_once_and_a_folder_may_have_a_space(place: Path) -> None:
    done = place / "my runs" / "run_all"
    done.mkdir(parents=True)
    for name in ("latency", "plots"):
        (done / f"{name}.done").touch()
    ran(place, "--anew", "--only=latency,quality", "--workdir=my runs", "--minutes=1")
    first, second, third, *_ = (place / "words").read_text().splitlines()
    assert first.startswith("<-m><benchmarks.latency><--config=add><--anew><--minutes=")
    assert second.startswith("<-m><benchmarks.latency><--config=add><--minutes="), "it goes on"
    assert third.startswith("<-m><benchmarks.quality><--workdir=my runs/methods><--minutes=")
    assert (done / "plots.done").exists(), "nobody asked for it"


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--only=latency,nothing", "--only: nothing is none of latency training"),
        ("--minutes=0", "--minutes=0: give whole minutes above 0"),
        ("--platform=abacus", "--platform=abacus: give cpu, gpu or tpu"),
        ("--fast", "unknown option --fast"),
    ],
)
def test_bad_input_is_one_line(place: Path, argument: str, words: str) -> None:
    told = ran(place, "--dry-run", argument)
    assert told.returncode == 2
    assert words in told.stderr
    assert told.stderr.count("\n") == 1


def test_shellcheck_has_nothing_to_say() -> None:
    subprocess.run(["shellcheck", SCRIPT, SCRIPT.with_name("pack.sh")], check=True)
