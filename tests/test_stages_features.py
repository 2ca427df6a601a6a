"""Where the judge's eyes come from: found before anything is trained, known again afterwards."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxgen import config as configs
from jaxgen import quality, stages, train
from jaxgen.errors import UserError
from jaxgen.methods.add import Add
from jaxgen.models.judge import JudgeConfig
from jaxgen.stages import Loaded

PARAMETERS = {"efficientnet-lite0": 4_630_000, "dinov2-vits14": 22_056_192}


def seeing_by(name: str, **fields: Any) -> Add:
    config = configs.load("add")
    assert isinstance(config, Add)
    judge = JudgeConfig(features=name, resize=224, **fields)
    return dataclasses.replace(config, judge=judge).resolved(40, 2)  # pyright: ignore[reportReturnType]


def run_of(config: Any) -> Loaded:
    return Loaded(config, None, None, 1, Path("runs/student"), ())  # pyright: ignore[reportArgumentType]


def test_a_missing_file_stops_the_plan(tmp_path: Path, refused) -> None:
    """Not the training of the student, after hours of the teacher's."""
    workdir = f"--workdir={tmp_path}"
    eyes = ("--judge.features=dinov2-vits14", "--judge.resize=224", "--judge.taps=2")
    line = refused(train.main, "--config=add", workdir, *eyes)
    assert "does not come with jaxgen" in line
    assert "facebook/dinov2-small" in line
    line = refused(train.main, "--config=add", workdir, *eyes, "--judge.weights=none.safetensors")
    assert "none.safetensors cannot be read" in line
    line = refused(train.main, "--config=add", workdir, f"--judge.features={tmp_path}")
    assert "is no run folder: it has no config.json" in line


def test_a_classifier_is_taken_from_where_it_is() -> None:
    (stage,) = stages.plan(seeing_by("shipped:classifier"))
    assert stage.sources["features"] == stages.shipped("classifier")
    shapes = stages.frozen_shapes(stage.config)
    classifier = stages.read(stages.shipped("classifier"))
    assert sizes(shapes["eyes"]) == sizes(classifier.weights)
    with pytest.raises(UserError, match="is a run of diffusion, no classifier"):
        stages.plan(seeing_by("shipped:diffusion"))


def test_stable_diffusion_is_judged_by_the_eyes_that_there_are() -> None:
    config = configs.load("add_sd21")
    for weights, eyes in (("", "efficientnet-lite0"), ("x", "dinov2-vits14")):
        chosen = configs.parse(config, [f"--judge.weights={weights}"], "")
        assert chosen.roles()["features"] == eyes
        shapes = stages.frozen_shapes(seeing_by("", weights=weights))
        assert abs(sizes(shapes["eyes"]) - PARAMETERS[eyes]) < 50_000


def sizes(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_other_weights_from_a_file_are_another_run() -> None:
    config = seeing_by("dinov2-vits14", weights="here.safetensors")
    weights = {"params": {"norm": {"scale": np.ones(3, np.float32)}}}
    same = jax.tree.map(np.copy, weights)
    other = jax.tree.map(lambda a: a + 1e-3, weights)
    one = stages.fingerprint(config, {"features": weights}, "data")
    moved = dataclasses.replace(config, judge=dataclasses.replace(config.judge, weights="b"))
    assert stages.fingerprint(moved, {"features": same}, "data") == one
    assert stages.fingerprint(config, {"features": other}, "data") != one
    assert stages.fingerprint(seeing_by("efficientnet-lite0"), {"features": weights}, "data") == (
        "data"
    ), "so that runs from before go on"


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shipped classifier as a run of the user's, and a copy of that; they work beside it."""
    monkeypatch.chdir(tmp_path)
    for name in ("runs/classifier", "copy"):
        shutil.copytree(stages.shipped("classifier"), tmp_path / name)
    weights = tmp_path / "runs/classifier/model.safetensors"
    weights.chmod(0o644)
    return tmp_path


@pytest.mark.parametrize(
    ("eyes", "grader", "allowed"),
    [
        ("shipped:classifier", "shipped:classifier", False),
        ("shipped:classifier", "efficientnet-lite0", True),
        ("efficientnet-lite0", "shipped:classifier", True),
        ("efficientnet-lite0", "efficientnet-lite0", False),
        ("dinov2-vits14", "efficientnet-lite0", True),
        ("runs/classifier", "copy", False),
        ("runs/classifier", "runs/../runs/classifier", False),
        ("gone/classifier", "copy", False),
        ("gone/classifier", "efficientnet-lite0", False),
    ],
)
def test_nobody_is_graded_by_the_eyes_of_its_judge(
    copied: Path, eyes: str, grader: str, allowed: bool
) -> None:
    student = run_of(seeing_by(eyes))
    if allowed:
        quality.grader(grader, None, [student], own_eyes=False)
        return
    with pytest.raises(UserError, match="would flatter it") as error:
        quality.grader(grader, None, [student], own_eyes=False)
    assert ("folder is gone" in str(error.value)) == eyes.startswith("gone")
    network = quality.grader(grader, None, [student], own_eyes=True)
    assert "(own judge)" in network.title


@pytest.mark.parametrize(
    ("eyes", "grader"),
    [
        ("efficientnet-lite0", "classifier of openmoji"),
        ("dinov2-vits14", "classifier of openmoji"),
        ("shipped:classifier", "efficientnet-lite0"),
        ("runs/classifier", "efficientnet-lite0"),
    ],
)
def test_the_usual_grader_is_never_the_judge(copied: Path, eyes: str, grader: str) -> None:
    runs = [run_of(configs.load("diffusion")), run_of(seeing_by(eyes))]
    assert quality.grader("", None, runs, own_eyes=False).title.startswith(grader)


def test_another_classifier_may_grade(copied: Path) -> None:
    weights = copied / "runs/classifier/model.safetensors"
    weights.write_bytes((stages.shipped("diffusion") / "model.safetensors").read_bytes())
    student = stages.judged_by(seeing_by("runs/classifier"))
    assert not student & stages.known_by("shipped:classifier")
    assert student & stages.known_by(str(copied / "runs/classifier"))


def test_a_classifier_grades_none_that_its_own_start_has_judged(copied: Path) -> None:
    """What it was tuned from sees much as it does."""
    described = copied / "runs/classifier/config.json"
    tuned = described.read_text().replace('"network": "resnet"', '"network": "efficientnet"')
    described.write_text(tuned)
    judges = stages.judged_by(seeing_by("efficientnet-lite0"))
    assert judges & stages.known_by("runs/classifier")
    assert not judges & stages.known_by("shipped:classifier")


@pytest.mark.parametrize(
    ("config", "field", "judges"),
    [
        ("latent_diffusion", {"codec": "vae"}, {"efficientnet-lite0"}),
        ("latent_diffusion", {"codec": "train"}, {"efficientnet-lite0"}),
        ("latent_diffusion", {"codec": "runs/vae"}, {"efficientnet-lite0"}),
        ("latent_diffusion", {"codec": "/nowhere/vae"}, {stages.GONE}),
        ("finetune", {"init_from": "shipped"}, set()),
        ("finetune", {"init_from": "hf:someone/diffusion"}, set()),
        ("finetune", {"init_from": "/nowhere/add"}, {stages.GONE}),
        ("ladd", {"teacher": "train"}, set()),
        ("ladd", {"teacher": "/nowhere/diffusion"}, {stages.GONE}),
    ],
)
def test_a_judge_is_found_behind_whatever_a_run_builds_on(
    copied: Path, config: str, field: dict[str, str], judges: set[str]
) -> None:
    vae = {"method": "vae", "config": json.loads(configs.to_json(configs.load("vae")))}
    shutil.copytree(copied / "copy", copied / "runs/vae")
    described = copied / "runs/vae/config.json"
    described.chmod(0o644)
    described.write_text(json.dumps(vae))
    built: Any = dataclasses.replace(configs.load(config), **field)
    assert stages.judged_by(built) == judges


@pytest.mark.parametrize("grader", ["", "efficientnet-lite0", "shipped:classifier"])
def test_nobody_that_may_have_judged_a_folder_that_is_gone_grades(grader: str) -> None:
    start: Any = dataclasses.replace(configs.load("finetune"), init_from="/nowhere/add")  # pyright: ignore[reportCallIssue]
    with pytest.raises(UserError, match=r"folder is gone, .* put that folder back"):
        quality.grader(grader, None, [run_of(start)], own_eyes=False)
