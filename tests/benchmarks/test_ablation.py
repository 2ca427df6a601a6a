"""The arms of ADD's Table 1: what they change, which orderings count, and that a stop loses little.

The runs have random weights: nothing is trained, only drawn and measured.
"""

import functools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import DIT_MODEL, SIZE, random_like

from benchmarks import ablation, ablation_report, machine, runs
from benchmarks.ablation import ARMS, Options
from benchmarks.ablation_report import MAIN, NOISE, PAIRS, REPRODUCED, REVERSED, UNKNOWN
from jaxgen import cli, quality, stages
from jaxgen import config as configs
from jaxgen.config import Data
from jaxgen.data.sources import open_source
from jaxgen.diffusion import denoiser
from jaxgen.diffusion.sampler import Sampler
from jaxgen.errors import EXIT_AGAIN
from jaxgen.methods import classifier
from jaxgen.methods.classifier import Classifier
from jaxgen.methods.diffusion import Diffusion
from jaxgen.models.resnet import ResNetConfig
from jaxgen.runtime import mesh as meshes
from jaxgen.runtime import run
from jaxgen.text import tokenizer as words

DATA = Data(name="imagefolder:pictures", size=SIZE)

ABLATED = """
from tiny import DIT_MODEL, SIZE

from jaxgen.config import Data
from jaxgen.methods.add import Add
from jaxgen.models.judge import JudgeConfig

config = Add(
    name="add",
    data=Data(name="imagefolder:pictures", size=SIZE),
    model=DIT_MODEL,
    judge=JudgeConfig(taps=(1,), resize=32),
)
"""


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_an_arm_changes_one_field_of_add_and_no_other(arm: ablation.Arm) -> None:
    plain = configs.load("add")
    changed = cli.configured(["--config=add", *arm.arguments], prog="door")
    fields = configs.differences(plain, changed)
    if arm.name == PAIRS:
        assert {name.split(".")[0] for name in fields} == {"regression", "drawn"}
    else:
        assert len(fields) == (0 if arm.name == MAIN else 1), fields


def test_a_classifier_can_be_one_more_pair_of_eyes() -> None:
    arms = Options(only="features", eyes="shipped:classifier").arms()
    assert [arm.group for arm in arms] == ["main", *["features"] * 3]
    changed: Any = cli.configured(["--config=add", *arms[-1].arguments], prog="door")
    assert (changed.judge.features, changed.judge.taps) == ("shipped:classifier", ())


def arm(*frechet: float) -> dict[str, Any]:
    metrics = [
        {
            "frechet": {"value": v},
            **{name: {"value": 0.5 - v / 100} for name in ("retrieval@1", "recall")},
        }
        for v in frechet
    ]
    return {"seeds": {str(seed): {"metrics": m} for seed, m in enumerate(metrics)}}


@pytest.mark.parametrize(
    ("main", "alone", "verdict"),
    [
        ((3.0, 3.1, 3.2), (4.0, 4.1, 4.3), REPRODUCED),
        ((4.0, 4.1, 4.3), (3.0, 3.1, 3.2), REVERSED),
        ((3.0, 4.0, 3.5), (4.0, 3.9, 3.6), NOISE),
        ((3.0, 9.0, 6.0), (4.1, 10.0, 7.1), REPRODUCED),  # seed by seed, whatever seeds do
        ((3.0,), (4.0,), UNKNOWN),
    ],
)
def test_an_ordering_counts_where_its_interval_over_the_seeds_leaves_out_0(
    main: tuple[float, ...], alone: tuple[float, ...], verdict: str
) -> None:
    found = ablation_report.orderings({MAIN: arm(*main), "adversarial only": arm(*alone)})
    assert [(one["metric"], one["verdict"]) for one in found] == [
        ("frechet", verdict),
        ("retrieval@1", verdict),
    ]
    assert found[0]["gain"] == pytest.approx(np.mean(alone) - np.mean(main))


def test_the_interval_is_student_s() -> None:
    # 1, 2, 3: mean 2, standard error 1/√3, and t of two degrees of freedom is 4.3027.
    assert ablation_report.spread([1.0, 2.0, 3.0]) == pytest.approx(4.3027 / 3**0.5, rel=1e-4)


def test_what_the_paper_does_not_order_is_compared_with_the_main_arm() -> None:
    arms = {MAIN: arm(3.0, 3.1), "SDS weighting": arm(4.0, 4.1), "judge told text": arm(4.0, 4.1)}
    found = ablation_report.orderings(arms)
    assert [(one["worse"], bool(one["paper"])) for one in found] == [
        ("judge told text", True),
        ("judge told text", True),
        ("SDS weighting", False),
        ("SDS weighting", False),
        ("SDS weighting", False),
    ]


def test_pairs_which_the_paper_lacks_are_to_be_better_than_the_main_arm() -> None:
    arms = {MAIN: arm(3.0, 3.1), PAIRS: arm(1.0, 1.2)}
    found = ablation_report.orderings(arms)
    assert [(one["better"], one["worse"], one["verdict"]) for one in found] == [
        (PAIRS, MAIN, REPRODUCED)
    ] * 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, and a teacher and a grader as finished runs."""
    place = tmp_path_factory.mktemp("work")
    rng = np.random.default_rng(0)
    for name, colour in {"red": (220, 30, 30), "blue": (40, 60, 220)}.items():
        (place / "pictures" / name).mkdir(parents=True)
        for n in range(120):
            image = np.clip(rng.integers(-40, 41, (SIZE, SIZE, 3)) + colour, 0, 255)
            Image.fromarray(image.astype(np.uint8)).save(place / "pictures" / name / f"{n}.png")
    (place / "ablated.py").write_text(ABLATED)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        grader = Classifier(name="grader", data=DATA, resnet=ResNetConfig(3, (8,), 1, groups=4))
        written(Diffusion(name="teacher", data=DATA, model=DIT_MODEL), 1)
        written(grader, 1)
    return place


@functools.cache
def read() -> tuple[Any, Any]:
    source = open_source(DATA.name, "train", SIZE, "data")
    return source, words.build([text for texts in source.captions for text in texts])


def written(config: Any, step: int) -> None:
    """A finished run of random weights."""
    source, tokenizer = read()
    config = config.resolved(tokenizer.get_vocab_size(), 2)
    with run.opened(config, type(config).__name__.lower(), tokenizer, source.labels, "") as folder:
        key = np.zeros(2, np.uint32)
        if isinstance(config, Classifier):
            made = functools.partial(classifier.init, config, {}, key)
            weights = random_like(lambda: made().params["classifier"])
        elif isinstance(config, Diffusion):
            weights = random_like(functools.partial(denoiser.init, config.model, SIZE, key))
        else:
            weights = {"nothing": np.zeros(1, np.float32)}  # `drawn` asks for none
        run.save_weights(folder, weights, step)
        line = {name: 0.5 for panel in ablation_report.curves.PANELS.values() for name in panel}
        (folder / "metrics.jsonl").write_text(json.dumps({"step": step, **line}) + "\n")


def test_a_stop_loses_nothing_and_what_is_done_is_taken(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(meshes, "prepare", lambda *_: None)  # the devices are chosen already
    monkeypatch.setattr(machine, "RESULTS", tmp_path)
    monkeypatch.setattr(machine, "asked", lambda _: machine.hardware())
    trained: list[tuple[str, int]] = []

    def command(module: str, arguments: list[str], clock: runs.Clock) -> None:
        if module == "benchmarks.ablation":
            with monkeypatch.context() as patch:
                patch.setattr(sys, "argv", ["door", *arguments])
                ablation.main()
            return
        config = cli.configured(arguments, prog="door")
        trained.append((config.name, config.train.steps))
        if len(trained) == 4:
            raise SystemExit(EXIT_AGAIN)
        written(config, config.train.steps)

    def drawn(loaded: stages.Loaded, sampler: Sampler, ids: np.ndarray, seed: int):
        assert (sampler.steps, sampler.guidance) == (1, 1.0)
        rng = np.random.default_rng((loaded.step, seed))
        return rng.integers(0, 256, (len(ids), SIZE, SIZE, 3), np.uint8), 0.1

    monkeypatch.setattr(runs, "command", command)
    monkeypatch.setattr(quality, "drawn", drawn)  # which compiles; tests/test_evaluate.py has it
    arguments = ["--only=start", "--seeds=2", "--steps=6", "--points=2", "--samples=32"]
    arguments += ["--teacher=runs/teacher", "--grader=runs/grader", "--config=ablated.py"]
    monkeypatch.setattr(sys, "argv", ["door", *arguments])
    with pytest.raises(SystemExit) as stop:
        ablation.main()
    assert stop.value.code == EXIT_AGAIN
    (path,) = tmp_path.rglob("ablation.json")
    half = json.loads(path.read_text())
    assert {name: [*one["seeds"]] for name, one in half["arms"].items()} == {
        MAIN: ["0"],
        "random start": ["0"],
    }
    assert [one["step"] for one in half["curve"]] == [0, 3, 6]
    ablation.main()
    whole = json.loads(path.read_text())
    assert trained == [
        *[("add_0", 3), ("add_0", 6), ("random_start_0", 6)],
        *[("add_1", 6)] * 2,
        ("random_start_1", 6),
    ]
    assert whole["curve"] == half["curve"]
    assert whole["arms"][MAIN]["seeds"]["0"] == half["arms"][MAIN]["seeds"]["0"]
    (ordering,) = whole["orderings"]
    assert ordering["seeds"] == 2
    found = whole["arms"][MAIN]["seeds"]
    assert found["0"]["metrics"]["frechet"] != found["1"]["metrics"]["frechet"]
    assert stages.read(folder / "runs/ablation/add_1").step == 6
    table = path.with_suffix(".md").read_text()
    assert "| random start | `--initialise=random` | 2 |" in table
    assert "20 < 293" in table
    assert "leaves out 0 by chance, and 1 are here" in table
    for name in ("ablation.png", "ablation_curves.png"):
        with Image.open(path.with_name(name)) as picture:
            assert picture.size[0] > 500
    # Other options in the same folder would have their names on what was trained by these.
    for other, field in (
        ("--batch=8", "train.batch 24, not 8"),
        ("--points=1", "optimizer.warmup 1, not 3"),
    ):
        line = refused(ablation.main, *arguments, other)
        assert f"add_0 holds a run with {field}; use another --workdir" in line


def test_settings_name_no_folder_of_this_machine() -> None:
    found = Options(teacher="/home/me/runs/add", overrides=("judge.weights=/home/me/x",)).settings()
    assert (found["teacher"], found["overrides"]) == ("add", ["judge.weights=x"])
