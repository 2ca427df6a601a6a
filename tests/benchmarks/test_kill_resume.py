"""A short version of benchmarks.kill_resume: one kill, between the stages of the chain."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import kill_resume
from benchmarks.kill_resume import BETWEEN, Options


def test_trainings_are_told_to_compute_the_same_bits_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_one=1")
    found = kill_resume._environment(tmp_path)["XLA_FLAGS"]
    assert found.split() == ["--xla_one=1", "--xla_gpu_deterministic_ops=true"]


def test_a_chain_killed_between_its_stages_ends_bit_for_bit_undisturbed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a step, in a save and in the data: test_doors, test_storage, data/test_openmoji."""
    monkeypatch.setattr(kill_resume, "MOMENTS", (BETWEEN,))
    monkeypatch.setattr(kill_resume, "TEACHER_STEPS", 8)
    monkeypatch.setattr(kill_resume, "STUDENT_STEPS", 6)
    (row,) = kill_resume.measured(Options(kills=1, seed=3), tmp_path)
    assert row["killed"].startswith(BETWEEN)
    assert "8 steps of student_teacher logged" in row["killed"]
    assert not row["difference"]
    # That it would have seen a difference, in whatever the run learnt:
    whole = kill_resume.outcome(tmp_path / "whole")
    assert kill_resume.first_difference(whole, dict(whole)) == ""
    names = [name for name in whole if name.startswith("student/6/")]
    assert {name.split("/")[2] for name in names} >= {"params", "ema", "opt_state", "step"}
    changed = np.frombuffer(whole[names[0]], np.uint8).copy()
    changed[0] ^= 1
    said = kill_resume.first_difference(whole, {**whole, names[0]: changed.tobytes()})
    assert said == f"{names[0]} differs"
    log = whole.pop("student/metrics.jsonl")
    assert kill_resume.first_difference({"student/metrics.jsonl": log}, {}).endswith("is missing")
