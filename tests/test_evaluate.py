"""Quality from the command line, on runs whose weights were never trained: a minute is saved."""

import functools
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from tiny import DIT_MODEL, SIZE, random_like

from jaxgen import config as configs
from jaxgen import evaluate, quality, stages
from jaxgen.config import Data
from jaxgen.data.sources import open_source
from jaxgen.diffusion import denoiser
from jaxgen.errors import UserError
from jaxgen.methods import classifier
from jaxgen.methods.add import Add
from jaxgen.methods.classifier import Classifier
from jaxgen.methods.diffusion import Diffusion
from jaxgen.methods.vae import Vae
from jaxgen.metrics import expert
from jaxgen.models.resnet import ResNetConfig
from jaxgen.runtime import mesh as meshes
from jaxgen.runtime import run
from jaxgen.text import tokenizer as words

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 220)}
DATA = Data(name="imagefolder:pictures", size=SIZE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hundred and forty pictures; a teacher, a student and a classifier as finished runs."""
    place = tmp_path_factory.mktemp("work")
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (place / "pictures" / name).mkdir(parents=True)
        for n in range(80):
            image = np.full((SIZE, SIZE, 3), 255, np.uint8)
            y, x = rng.integers(0, SIZE // 2, 2)
            image[y : y + SIZE // 2, x : x + SIZE // 2] = colour
            image = np.clip(image + rng.integers(-20, 21, image.shape), 0, 255).astype(np.uint8)
            Image.fromarray(image).save(place / "pictures" / name / f"{n}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        source = open_source(DATA.name, "train", SIZE, "data")
        tokenizer = words.build([text for texts in source.captions for text in texts])
        vocabulary, key = tokenizer.get_vocab_size(), jax.random.key(0)
        grader = Classifier(name="grader", data=DATA, resnet=ResNetConfig(3, (8,), 1, groups=4))
        for config in (
            Diffusion(name="teacher", data=DATA, model=DIT_MODEL, sampler_steps=3, guidance=2.0),
            Add(name="student", data=DATA, model=DIT_MODEL),
            grader,
        ):
            config = config.resolved(vocabulary, 3)
            with run.opened(
                config, type(config).__name__.lower(), tokenizer, source.labels, ""
            ) as f:
                if isinstance(config, Classifier):
                    made = functools.partial(classifier.init, config, {}, key)
                    weights = random_like(made).params["classifier"]
                else:
                    weights = random_like(functools.partial(denoiser.init, config.model, SIZE, key))
                run.save_weights(f, weights, 1)
    return place


@pytest.fixture
def door(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(expert, "_STEPS", 40)  # enough to tell noise from squares
    monkeypatch.setattr(expert, "_JUDGES", 1)
    monkeypatch.setattr(meshes, "prepare", lambda *_: None)  # the devices are chosen already

    def door(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["door", *arguments])
        evaluate.main()

    return door


def test_one_table_of_teacher_and_student(folder: Path, door, capsys) -> None:
    runs = ("--run=runs/teacher", "--run=runs/student", "--features=runs/grader")
    door(*runs, "--samples=32", "--steps=2,1", "--out=q.json")
    out = capsys.readouterr().out
    assert "grader: grader of imagefolder:pictures, 1 steps, bicubic 16" in out
    found = json.loads(Path("q.json").read_text())
    assert [row["sampler"]["steps"] for row in found["rows"]] == [2, 2, 1, 1] * 2
    guidance = [row["sampler"]["guidance"] for row in found["rows"]]
    assert guidance == [2.0] * 4 + [1.0] * 4, "each method's own"
    held_out = found["data"]["test"]
    assert 16 <= held_out < 32
    for row in found["rows"]:
        count = 32 if row["captions"] == "training" else held_out
        which = f"(grader of imagefolder:pictures, 1 steps, bicubic 16; {count} samples)"
        for name, value in row["metrics"].items():
            assert name.endswith(which), name
            assert value["low"] <= value["value"] <= value["high"], name
        assert row["seconds_per_image"] > 0
        value = {name.partition(" ")[0]: v["value"] for name, v in row["metrics"].items()}
        assert value["expert"] > 0.9, "untrained samples are noise"
        assert value["retrieval@1"] < value["chance@1"] + 0.3, "and look like no picture"
    floor = {name.partition(" ")[0]: v["value"] for name, v in found["floor"].items()}
    assert floor["frechet"] < 0.2 * value["frechet"]
    assert floor["coverage"] > value["coverage"]
    assert "held-out real images" in out


def test_features_of_real_images_are_kept(folder: Path, door) -> None:
    door("--run=runs/student", "--features=runs/grader", "--samples=16", "--steps=1")
    kept = {file: file.stat().st_mtime_ns for file in Path("data/.features").iterdir()}
    assert len(kept) == 2
    torn = next(iter(kept))
    torn.write_bytes(torn.read_bytes()[:50])
    door("--run=runs/student", "--features=runs/grader", "--samples=16", "--steps=1")
    after = {file: file.stat().st_mtime_ns for file in Path("data/.features").iterdir()}
    assert {file for file in kept if kept[file] != after[file]} == {torn}
    assert Path("runs/student/quality.json").is_file()


def test_an_interrupted_measurement_keeps_what_is_measured(
    folder: Path, door, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = quality.drawn

    def once(loaded, sampler, *rest):
        if sampler.steps == 1:
            raise KeyboardInterrupt
        return drawn(loaded, sampler, *rest)

    monkeypatch.setattr(quality, "drawn", once)
    with pytest.raises(SystemExit) as stop:
        door("--run=runs/student", "--features=runs/grader", "--samples=16", "--steps=2,1",
             "--out=part.json")  # fmt: skip
    assert stop.value.code == 130
    assert capsys.readouterr().err.splitlines()[-1] == "jaxgen: interrupted"
    rows = json.loads((folder / "part.partial.json").read_text())["rows"]
    assert [row["sampler"]["steps"] for row in rows] == [2, 2]
    assert not (folder / "part.json").exists(), "what was measured before is not touched"


def test_who_learnt_other_pictures_is_named(folder: Path, door, capsys) -> None:
    """And what is prepared of them lies under --root."""
    copied = shutil.copytree(folder / "pictures", folder / "copied")
    options = ("--run=runs/student", "--features=runs/grader", "--samples=16", "--steps=1")
    door(*options, "--out=own.json", "--root=elsewhere")
    assert "note:" not in capsys.readouterr().err
    assert list(Path("elsewhere/.features").iterdir())
    door(*options, "--out=other.json", f"--data=imagefolder:{copied.name}")
    told = capsys.readouterr().err
    learnt = "learnt imagefolder:pictures, and is measured on imagefolder:copied"
    assert f"note: runs/student {learnt}" in told
    assert f"note: the grader {learnt}" in told
    kid = [v for r in json.loads(Path("own.json").read_text())["rows"]
           for name, v in r["metrics"].items() if name.startswith("kid")]  # fmt: skip
    for value in kid:
        assert value["error"] == pytest.approx((value["high"] - value["value"]) / 1.959964)


def test_a_classifier_is_measured_by_its_accuracy(folder: Path, door, capsys) -> None:
    door("--run=runs/grader")
    assert "held-out accuracy" in capsys.readouterr().out
    (folder / "other/red").mkdir(parents=True)
    (folder / "other/green").mkdir()
    for name in ("red", "green"):
        Image.new("RGB", (SIZE, SIZE)).save(folder / "other" / name / "0.png")
    with pytest.raises(SystemExit) as stop:
        door("--run=runs/grader", "--data=imagefolder:other")
    assert stop.value.code == 2
    assert "tells blue, green, red; the class names of imagefolder:other differ: green, red" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--run is missing"),
        (("--run=runs/nothing",), "runs/nothing is no run folder"),
        (("--run=runs/student", "--steps=x"), "--steps 'x': give whole numbers"),
        (("--run=runs/student", "--steps=0"), "--steps is 0"),
        (("--run=runs/student", "--steps=2,,1"), "--steps '2,,1': give whole numbers"),
        (("--run=runs/grader", "--out=no/where/x"), "--out no/where/x: no/where is no folder"),
        (("--run=runs/student", "--samples=3"), "--samples is 3"),
        (
            ("--run=runs/student", "--features=efficientnet-lite0"),
            "was trained by the verdict of efficientnet-lite0, which would flatter it",
        ),
        (("--run=runs/student", "--features=runs/teacher"), "is a run of diffusion, no classifier"),
        (("--run=runs/student", "--features=inception"), "inception needs the file of its weights"),
        (
            ("--run=runs/student", "--features=inception", "--weights=pictures/red/0.png"),
            "SHA-256",
        ),
        (("--run=runs/student", "--features=inceptionv3"), "and none of shipped:classifier, eff"),
        (
            ("--run=runs/student", "--features=runs/grader", "--weights=pictures/red/0.png"),
            "--weights pictures/red/0.png goes with efficientnet-lite0, inception",
        ),
        (("--run=runs/student", "--features=runs/grader", "--out=no/q.json"), "no is no folder"),
        (("--run=runs/student", "--features=runs/grader", "--out=pictures"), "pictures is a fold"),
        (("--run=runs/grader", "--out=runs/grader/config.json"), "config.json is no folder"),
        (("--run=runs/grader", "--run=runs/grader", "--out=x"), "one folder for several"),
        (
            ("--run=runs/student", "--run=runs/grader"),
            "runs/grader is a run of classifier, which makes no samples to measure",
        ),
        (
            ("--run=runs/vae", "--steps=2"),
            "runs/vae is a run of vae, which takes no sampling steps; leave --steps and --guidance",
        ),
        (
            ("--run=runs/grader", "--run=runs/student"),
            "runs/student is no classifier as the first run is; evaluate it alone",
        ),
        (
            ("--run=runs/grader", "--steps=4", "--guidance=2", "--seed=3", "--samples=20"),
            "runs/grader is a classifier, whose held-out accuracy is all that is measured: "
            "leave --steps, --guidance, --samples, --seed out",
        ),
        (
            ("--run=runs/grader", "--weights=nothere", "--features=bogus", "--own-eyes"),
            "leave --features, --weights, --own-eyes out",
        ),
        (("--run=runs/mixed_grader", "--out=none"), "do not fit the config.json"),
        (("--run=runs/mixed", "--features=runs/grader"), "runs/mixed do not fit the config.json"),
        (("--run=runs/student", "--features=runs/mixed_grader"), "do not fit the config.json"),
        (
            ("--run=runs/student", "--features=runs/grader", "--data=imagefolder:few"),
            "in its split 'train'; the measures need 16 or more, so about 160 in all",
        ),
    ],
)
def test_bad_input_is_one_line(folder: Path, door, capsys, arguments, words: str) -> None:
    (folder / "few").mkdir(exist_ok=True)
    for name, network, described in (
        ("mixed", "grader", "student"),
        ("mixed_grader", "student", "grader"),
    ):
        shutil.copytree(folder / "runs" / described, folder / "runs" / name, dirs_exist_ok=True)
        shutil.copy(folder / "runs" / network / "model.safetensors", folder / "runs" / name)
    shutil.copytree(folder / "runs/student", folder / "runs/vae", dirs_exist_ok=True)
    vae = Vae(name="vae", data=DATA)
    described = {"method": "vae", "config": json.loads(configs.to_json(vae))}
    (folder / "runs/vae/config.json").write_text(json.dumps(described))
    for n in range(12):
        Image.new("RGB", (SIZE, SIZE)).save(folder / "few" / f"{n}.png")
    with pytest.raises(SystemExit) as stop:
        door(*arguments)
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1


def test_both_splits_have_the_labels_that_the_run_was_trained_by() -> None:
    """Or the shipped grader, which tells subgroups, could not be measured."""
    loaded = stages.read(stages.run_folder("shipped:classifier"))
    with pytest.MonkeyPatch.context() as patch:
        asked = []
        patch.setattr(quality, "opened", lambda d, split: asked.append((d.name, split, d.label)))
        quality.both_splits(loaded.config, "")
        quality.both_splits(loaded.config, "digits")
    assert asked == [
        ("openmoji", "train", "sublabel"),
        ("openmoji", "test", "sublabel"),
        ("digits", "train", ""),
        ("digits", "test", ""),
    ]


def test_own_eyes_are_named_in_the_title(folder: Path) -> None:
    student = stages.read(folder / "runs/student")
    network = quality.grader("efficientnet-lite0", None, [student, student], own_eyes=True)
    assert network.title.count("(own judge)") == 1
    with pytest.raises(UserError, match="flatter"):
        quality.grader("efficientnet-lite0", None, [student], own_eyes=False)
