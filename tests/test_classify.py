"""A classifier from the command line: trained, graded on held-out pictures, asked about others."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_doors import COLOURS, run

from jaxgen import classify, stages, train
from jaxgen.errors import UserError
from jaxgen.runtime import mesh as meshes

CONFIG = """
from jaxgen.config import Data, Optimizer, Train
from jaxgen.methods.classifier import Classifier
from jaxgen.models.resnet import ResNetConfig
config = Classifier(
    name="classifier",
    data=Data(name="imagefolder:pictures", size=8),
    resnet=ResNetConfig(widths=(8,), blocks=1, groups=4),
    augment=(),
    train=Train(steps=60, batch=8, ema=0.5, sample_every=0),
    optimizer=Optimizer(learning_rate=1e-2, warmup=5),
)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty-two pictures in four folders, and a classifier trained on nine tenths of them."""
    place = tmp_path_factory.mktemp("work")
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (place / "pictures" / name).mkdir(parents=True)
        for n in range(8):
            noise = rng.integers(-20, 20, (8, 8, 3))
            image = np.clip(noise + colour, 0, 255).astype(np.uint8)
            Image.fromarray(image).save(place / "pictures" / name / f"{n}.png")
    (place / "config.py").write_text(CONFIG)
    return place


@pytest.fixture(scope="module")
def trained(folder: Path) -> str:
    done = run(folder, "jaxgen.train", "--config=config.py")
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_training_ends_with_the_held_out_accuracy(folder: Path, trained: str) -> None:
    kept = json.loads((folder / "runs/classifier/evaluation.json").read_text())
    assert f"held-out accuracy 100.0 % ({100 * kept['accuracy']['low']:.1f} to 100.0), " in trained
    assert f"{kept['images']} images" in trained
    assert "confusion matrix: runs/classifier/samples/confusion.png" in trained
    assert (folder / "runs/classifier/samples/confusion.png").is_file()


@pytest.fixture
def here(folder: Path, trained: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a door in this process, which spares it the imports."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(meshes, "prepare", lambda *_: None)  # the devices are chosen already

    def door(main: Callable[[], None], *arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["door", *arguments])
        main()

    return door


def test_a_set_that_holds_nothing_out_says_so(folder: Path, here, capsys) -> None:
    few = folder / "few"
    for name in COLOURS:
        (few / name).mkdir(parents=True)
        shutil.copy(folder / "pictures" / name / "0.png", few / name)
    data = "--data.name=imagefolder:few"
    here(train.main, "--config=config.py", data, "--name=few", "--train.steps=1")
    said = capsys.readouterr().out
    assert "no held-out accuracy: imagefolder:few holds no labelled pictures out" in said
    assert (folder / "runs/few/model.safetensors").is_file()


def test_the_shipped_config_learns_other_data_by_another_network(
    folder: Path, here, capsys
) -> None:
    """Digits have one kind of classes, and are not to be mirrored."""
    options = ("--config=classifier", "--data.name=digits", "--name=digits", "--network=vit",
               "--vit.width=8", "--vit.depth=1", "--vit.heads=2", "--train.steps=1",
               "--train.batch=8")  # fmt: skip
    with pytest.raises(SystemExit, match="2"):
        here(train.main, *options)
    assert "give --data.label=" in capsys.readouterr().err
    here(train.main, *options, "--data.label=", "--data.no-flip")
    assert "held-out accuracy" in capsys.readouterr().out
    here(classify.main, "--run=runs/digits", "pictures/red/1.png")
    assert capsys.readouterr().out.count("%  ") == 5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--resnet.patch=0",), "patch, blocks, groups and widths are 1 or more"),
        (("--resnet.widths=",), "widths"),
        (("--resnet.groups=5",), "--resnet.groups 5 does not divide widths (8,)"),
        (("--data.name=imagefolder:pictures/red", "--name=one"), "has pictures of one class"),
    ],
)
def test_networks_and_data_that_cannot_be_are_refused(
    folder: Path, here, capsys, options: tuple[str, ...], words: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        here(train.main, "--config=config.py", *options)
    assert words in capsys.readouterr().err.strip().splitlines()[-1]


def test_classify_names_what_it_sees_in_pictures_of_any_kind(folder: Path, here, capsys) -> None:
    Image.new("RGB", (300, 200), COLOURS["red"]).save(folder / "large.jpg")
    Image.new("P", (5, 9), 0).save(folder / "tiny.webp")
    here(classify.main, "pictures/blue/1.png", "large.jpg", "tiny.webp")
    lines = capsys.readouterr().out.splitlines()
    assert [lines[0], lines[5], lines[10]] == ["pictures/blue/1.png", "large.jpg", "tiny.webp"]
    assert lines[1].endswith("%  blue")
    assert lines[6].endswith("%  red")
    for block in (lines[1:5], lines[6:10], lines[11:15]):
        assert {line.split()[2] for line in block} == set(COLOURS)
        shares = [float(line.split()[0]) for line in block]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(100, abs=0.3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name at least one picture"),
        (["nowhere.png"], "nowhere.png is no file"),
        (["pictures"], "pictures is a folder; name the pictures in it, such as pictures/*.png"),
        (["config.py"], "config.py cannot be read as a picture: no PNG, JPEG or WebP picture"),
        (["pictures/red/1.png", "empty.png"], "empty.png cannot be read as a picture: empty"),
        (["--run=runs/nothing", "pictures/red/1.png"], "runs/nothing is no run folder"),
        (["--run=shipped:nothing", "pictures/red/1.png"], "no weights called 'nothing'"),
        (
            ["--run=shipped:diffusion", "pictures/red/1.png"],
            "is a diffusion run, which tells no classes; give",
        ),
        (["--run=weightless", "pictures/red/1.png"], "has neither weights nor a checkpoint"),
        (["--run=nameless", "pictures/red/1.png"], "nameless/config.json names 0 labels"),
        (["--run=shorter", "pictures/red/1.png"], "names 3 labels, and its weights tell 4 classes"),
    ],
)
def test_classify_refuses_in_one_line(
    folder: Path, here, capsys, arguments: list[str], words: str
) -> None:
    (folder / "empty.png").write_bytes(b"")
    for name in ("weightless", "nameless", "shorter"):
        (folder / name).mkdir(exist_ok=True)
        for file in ("config.json", "tokenizer.json", "model.safetensors"):
            shutil.copy(folder / "runs/classifier" / file, folder / name)
    (folder / "weightless/model.safetensors").unlink()
    config = json.loads((folder / "nameless/config.json").read_text())
    (folder / "nameless/config.json").write_text(json.dumps(config | {"labels": []}))
    labels = config["labels"]
    (folder / "shorter/config.json").write_text(json.dumps(config | {"labels": labels[1:]}))
    with pytest.raises(SystemExit, match="2"):
        here(classify.main, *arguments)
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert words in lines[0]


def test_run_names_a_folder_or_weights_that_come_with_jaxgen() -> None:
    assert stages.run_folder("runs/add") == Path("runs/add")
    assert stages.compiled_beside(Path("runs/add")) == Path("runs/.compiled")
    shipped = stages.run_folder("shipped:diffusion")
    assert stages.read(shipped).labels[0] == "activities"
    assert stages.compiled_beside(shipped) == Path("runs/.compiled")
    for name in ("shipped:", "shipped:../pretrained/diffusion", "shipped:x"):
        with pytest.raises(UserError, match=r"come with jaxgen, only .*diffusion"):
            stages.run_folder(name)
