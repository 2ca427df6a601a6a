"""What cannot be is refused before anything is made, prepared or trained."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from test_doors import STUDENT, TEACHER

from jaxgen import cli, stages, train
from jaxgen import config as configs
from jaxgen.errors import reported
from jaxgen.runtime import mesh as meshes


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused) -> Callable[..., str]:
    """In a folder with two configs, a student's and its teacher's, on eight devices."""
    (tmp_path / "teacher.py").write_text(TEACHER)
    (tmp_path / "student.py").write_text(STUDENT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(meshes, "prepare", lambda *_: None)  # the devices are chosen already
    return refused


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--train.batch=12"], "student: --train.batch 12 does not divide over 8 x 1 devices"),
        (["--teacher-train-steps=1", "--mesh.data=16"], "student_teacher: a mesh of 16 x 1 needs"),
        (["--mesh.rules=nowhere/=whole"], "student: --mesh.rules 'nowhere/=whole' fits no array"),
        (["--mesh.rules=kernel=7"], "student_teacher: --mesh.rules asks for axis 7 of "),
        (["--mesh.rules=judge/.*bias=3"], "student: --mesh.rules asks for axis 3 of params/judge"),
    ],
)
def test_a_mesh_batch_or_rule_that_fits_no_stage_is_told_after_the_plan(
    options: list[str], line: str, refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "parameters", lambda _: {})  # in the plan; for speed
    before = sorted(tmp_path.rglob("*"))
    assert line in refused(train.main, "--config=student.py", *options)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "roles"), [("latent_diffusion", ["codec"]), ("add_latent_64", ["teacher", "codec"])]
)
def test_a_config_of_other_pictures_is_not_trained_first_unasked(
    name: str, roles: list[str], refused
) -> None:
    arguments, first = [f"--config={name}", "--data.name=digits"], configs.load(name)
    for role in roles:
        line = refused(train.main, *arguments)
        assert f"--{role} '{getattr(first, role)}' is a config that learns from --data.name" in line
        assert f"and this run from 'digits'; give --{role}=train to train it on these" in line
        arguments.append(f"--{role}=train")
    plan = stages.plan(cli.configured(arguments, "jaxgen.train"))
    assert [stage.role for stage in plan] == [*reversed(roles), ""]
    assert {stage.config.data.name for stage in plan} == {"digits"}
    for stage, usual in zip(plan, stages.plan(first), strict=True):
        unlike = configs.differences(stage.config, usual.config)
        own = {"name", "data.name", "teacher", "codec", "seed"}
        assert own.issuperset(unlike), "trained otherwise than on its own pictures"


def test_a_missing_run_to_start_from_offers_nothing_that_is_refused_then(refused) -> None:
    line = refused(train.main, "--config=finetune_64")
    assert "'runs/diffusion_64' is no folder of weights or finished run; train it first" in line
    assert "config (" not in line
    assert "shipped" not in line, "whose networks are smaller"


@pytest.mark.parametrize(
    ("name", "is_file"),
    [
        ("", True),
        ("samples", True),
        ("checkpoints", True),
        ("checkpoints/5", True),
        ("tensorboard", True),
        ("metrics.jsonl", False),
        ("config.json", False),
        ("tokenizer.json", False),
        ("model.safetensors", False),
    ],
)
def test_what_is_in_the_way_in_a_run_s_folder_is_named(
    name: str, is_file: bool, refused, tmp_path: Path
) -> None:
    path = Path("runs/teacher") / name
    if is_file:
        path.parent.mkdir(parents=True)
        path.write_text("")
    else:
        path.mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    line = refused(train.main, "--config=teacher.py")
    there, wanted = ("file", "folder") if is_file else ("folder", "file")
    assert line == f"jaxgen: {path} is a {there} where the run keeps a {wanted}; move it away"
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EEXIST, "mend that"),
        (errno.ENOTDIR, "mend that"),
        (errno.EISDIR, "mend that"),
        (errno.ENAMETOOLONG, "mend that"),
        (errno.EIO, "mend that"),
        (errno.ENOSPC, "free space there"),
        (errno.EFBIG, "raise the limit (ulimit -f) or use another disk"),
    ],
)
def test_what_a_disk_refuses_in_mid_run_is_one_line_that_names_the_file(
    number: int, remedy: str, refused
) -> None:
    def door() -> None:
        with reported():
            raise OSError(number, os.strerror(number), "runs/.a.partial", None, "runs/a")

    assert refused(door) == f"jaxgen: {os.strerror(number)}: runs/a; {remedy} and run again"
