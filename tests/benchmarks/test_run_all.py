"""What is run first on a new accelerator, with a stand-in for Python that measures nothing."""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from benchmarks import runs
from jaxgen import config as configs

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "run_all.sh"
# The first quality is out of time, kill_resume fails, linear_probe and finetune_flags hang, the
# latter whatever it is told; who asks for the platform is told.
PYTHON = """#!/usr/bin/env bash
[[ $1 == -c ]] && echo gpu && exit 0
echo "$2" >>calls
printf '<%s>' "$@" >>words && echo >>words
[[ $2 == benchmarks.kill_resume ]] && exit 1
[[ $2 == benchmarks.finetune_flags ]] && trap '' TERM
[[ $2 == benchmarks.linear_probe || $2 == benchmarks.finetune_flags ]] && sleep 600
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
    first = ran(place, "--only=latency,quality,kill_resume,plots")
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
        "./python -m benchmarks.latency --config=add --dtypes bfloat16 float32 --minutes=8",
        "./python -m benchmarks.training --trace=runs/trace --minutes=8",
        "./python -m benchmarks.latency --config=add_64 --batches 1 8 64 --dtypes bfloat16 float32"
        " --minutes=8",
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
    assert re.search(r"--run=my\\ runs/add .*--anew", told)
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
    ran(place, "--anew", "--only=latency,quality", "--workdir=my runs")
    first, second, third, *_ = (place / "words").read_text().splitlines()
    assert first.startswith(
        "<-m><benchmarks.latency><--config=add><--dtypes><bfloat16><float32><--anew>"
    )
    assert second.startswith("<-m><benchmarks.latency>")
    assert "anew" not in second, "it goes on"
    assert third.startswith("<-m><benchmarks.quality><--workdir=my runs/quality><--minutes=")
    assert (done / "plots.done").exists(), "nobody asked for it"


@pytest.fixture
def hurried(place: Path) -> Path:
    """Its minutes are seconds."""
    script = place / "benchmarks" / "run_all.sh"
    text = script.read_text()
    for before, after in (
        ("60 * minutes", "minutes"),
        ("least=100 ", "least=2 "),
        ("saving=75 ", "saving=1 "),
        ("grace=10 ", "grace=1 "),
    ):
        assert text.count(before) == 1
        text = text.replace(before, after)
    script.write_text(text)
    return place


@pytest.mark.parametrize("name", ["linear_probe", "finetune_flags"])
def test_what_hangs_is_ended_with_the_minutes_and_fails_the_third_time(
    hurried: Path, name: str
) -> None:
    begun = time.monotonic()
    codes = [ran(hurried, f"--only={name},plots", "--minutes=3").returncode for _ in range(2)]
    assert codes == [75, 75]
    third = ran(hurried, f"--only={name}", "--minutes=3")
    assert (third.returncode, third.stdout.splitlines()[-1]) == (
        1, f"{name} failed: runs/run_all/{name}.failed"
    )  # fmt: skip
    assert time.monotonic() - begun < 300, "each was to take 4 s, and would have slept for 600"
    assert (hurried / "calls").read_text().split() == [f"benchmarks.{name}"] * 3
    ran(hurried, f"--only={name},plots", "--minutes=3")
    assert (hurried / "calls").read_text().split()[3:] == ["benchmarks.plots"], "it keeps no other"


def test_nothing_is_begun_that_has_no_time(hurried: Path) -> None:
    script = hurried / "benchmarks" / "run_all.sh"
    script.write_text(script.read_text().replace("least=2 ", "least=100 "))
    told = ran(hurried, "--only=plots", "--minutes=99")
    assert told.returncode == 75
    assert "the same command goes on with plots" in told.stdout
    assert not (hurried / "calls").exists()


def test_a_benchmark_saves_before_it_is_ended(place: Path) -> None:
    ran(place, "--only=methods", "--minutes=9")
    (words,) = (place / "words").read_text().splitlines()
    minutes = float(re.findall(r"<--minutes=([\d.]+)>", words)[0])
    assert 0 < minutes <= (9 * 60 - runs.PATIENCE) / 60 - 0.25


@pytest.mark.parametrize(
    ("only", "code"), [("plots", 0), ("kill_resume", 1), ("linear_probe,plots", 75)]
)
def test_results_and_logs_are_copied_however_it_ends(hurried: Path, only: str, code: int) -> None:
    result = hurried / "benchmarks" / "results" / "abacus-1" / "training.json"
    result.parent.mkdir(parents=True)
    result.write_text("{}")
    told = ran(hurried, f"--only={only}", "--minutes=3", "--copy=out/put", "--workdir=my runs")
    assert told.returncode == code, told.stderr
    assert [path.name for path in (hurried / "out" / "put").iterdir()] == ["results.tar.gz"]
    with tarfile.open(hurried / "out" / "put" / "results.tar.gz") as archive:
        names = archive.getnames()
    assert "benchmarks/results/abacus-1/training.json" in names
    assert any(name.startswith(f"run_all/{only.split(',')[0]}.") for name in names)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--only=latency,nothing", "--only: nothing is none of latency training"),
        ("--minutes=1", "--minutes=1: give 2 or more, whole ones"),
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
    scripts = [SCRIPT.with_name(name) for name in ("run_all.sh", "pack.sh", "lease.sh")]
    subprocess.run(["shellcheck", *scripts], check=True)
