"""A short version of benchmarks.kill_resume: one kill, between the stages of the chain."""

import os
from pathlib import Path

import numpy as np
import pytest

from benchmarks import kill_resume
from benchmarks.kill_resume import BETWEEN, DATA, MOMENTS, OTHER, SAVE, STEP, Options


def test_trainings_are_told_to_compute_the_same_bits_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_one=1")
    found = kill_resume._environment(tmp_path)["XLA_FLAGS"]
    assert found.split() == ["--xla_one=1", "--xla_gpu_deterministic_ops=true"]


@pytest.mark.long
def test_a_chain_killed_between_its_stages_ends_bit_for_bit_undisturbed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a step, in a save and in the data: test_doors, test_storage, data/test_openmoji."""
    monkeypatch.setattr(kill_resume, "TEACHER_STEPS", 8)
    monkeypatch.setattr(kill_resume, "STUDENT_STEPS", 6)
    places = [kill_resume._place(tmp_path, name) for name in ("whole", "killed")]
    spent, where = kill_resume._run(places[0], tmp_path)
    assert not where
    assert spent[BETWEEN] > 0
    _, where = kill_resume._run(places[1], tmp_path, BETWEEN, after=0.3)
    assert where.startswith(BETWEEN)
    assert "8 steps of student_teacher logged" in where
    kept, told = kill_resume._kept(places[1]), len((places[1] / "log").read_text())
    assert kept["student_teacher"][0] == 8
    kill_resume._run(places[1], tmp_path)
    log = (places[1] / "log").read_text()[told:]
    assert not kill_resume._begun_anew(places[1], kept, log)
    whole, mended = map(kill_resume.outcome, places)
    assert not kill_resume.first_difference(whole, mended)
    # That it would have seen a difference, in whatever the run learnt:
    assert kill_resume.first_difference(whole, dict(whole)) == ""
    names = [name for name in whole if name.startswith("student/6/")]
    assert {name.split("/")[2] for name in names} >= {"params", "ema", "opt_state", "step"}
    changed = np.frombuffer(whole[names[0]], np.uint8).copy()
    changed[0] ^= 1
    said = kill_resume.first_difference(whole, {**whole, names[0]: changed.tobytes()})
    assert said == f"{names[0]} differs"
    log = whole.pop("student/metrics.jsonl")
    assert kill_resume.first_difference({"student/metrics.jsonl": log}, {}).endswith("is missing")


def test_a_run_that_did_again_what_was_saved_is_told(tmp_path: Path) -> None:
    """Its end is the same, bit for bit."""
    teacher, student = (tmp_path / "runs" / stage for stage in kill_resume.STAGES)
    for folder in (
        teacher / "checkpoints/60",
        student / "checkpoints/5",
        student / "checkpoints/9",
    ):
        folder.mkdir(parents=True)
    (student / "checkpoints/15.orbax-checkpoint-tmp").mkdir()
    (teacher / "model.safetensors").write_bytes(b"")
    kept = kill_resume._kept(tmp_path)
    assert (kept["student_teacher"][0], kept["student"]) == (60, (9, None))
    log = "going on from the checkpoint of step {}\n"
    assert not kill_resume._begun_anew(tmp_path, kept, log.format(9))
    for other in ("", log.format(5), log.format(90)):
        said = kill_resume._begun_anew(tmp_path, kept, other)
        assert said == "student did not go on from its step 9"
    os.utime(teacher / "model.safetensors", (1, 1))
    said = kill_resume._begun_anew(tmp_path, kept, log.format(9))
    assert said == "student_teacher was trained again though it was finished"


def test_every_kind_of_moment_has_its_turn_and_a_try_that_came_too_late_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[tuple[str, str, float]] = []

    def run(place: Path, scratch: Path, moment: str = "", after: float = 0.0):
        (place / "log").write_text("")
        tries.append((place.name, moment, after))
        late = len([each for each in tries if each[1]]) == 2
        return dict.fromkeys(MOMENTS, 3.0) | {OTHER: 1.0}, "" if late or not moment else "there"

    monkeypatch.setattr(kill_resume, "_run", run)
    learnt = iter([{"a": b"1"}, *({"a": b"2"} if n == 3 else {"a": b"1"} for n in range(5))])
    monkeypatch.setattr(kill_resume, "outcome", lambda _: next(learnt))
    rows = kill_resume.measured(Options(kills=5), tmp_path)
    assert [row["moment"] for row in rows] == [*MOMENTS, MOMENTS[0]]
    assert [row["difference"] for row in rows] == ["", "", "", "a differs", ""]
    assert all(0 <= row["seconds"] <= 3 for row in rows)
    killed = [each[1] for each in tries if each[1]]
    assert killed == [DATA, STEP, STEP, SAVE, BETWEEN, DATA], "the second came too late"
    assert [each[0] for each in tries[:2]] == ["warm", "whole"]
