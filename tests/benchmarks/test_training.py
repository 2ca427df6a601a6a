import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from benchmarks import (
    ceilings,
    machine,
    profiles,
    reports,
    timing,
    training,
    training_data,
    training_step,
)
from benchmarks.training import Options
from jaxgen.errors import UserError
from jaxgen.runtime import mesh as meshes

CONFIG = """
from jaxgen.config import Data, Train
from jaxgen.methods.classifier import Classifier
from jaxgen.models.resnet import ResNetConfig

config = Classifier(
    name="micro",
    data=Data(name="imagefolder:not_here", size=16),
    resnet=ResNetConfig(patch=2, widths=(8,), blocks=1, groups=4),
    train=Train(steps=10, batch=8),
)
"""


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "SIDE", {"cpu": 64})
    monkeypatch.setattr(ceilings, "COPIED", {"cpu": 2**16})
    monkeypatch.setattr(training_step, "BLOCK", 0.01)
    monkeypatch.setattr(training_step, "PICTURES", 20)
    monkeypatch.setattr(training_data, "BLOCK", 0.01)
    monkeypatch.setattr(training_data, "REST", 0.0)


def test_a_train_step_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meshes, "prepare", lambda batch: None)  # the devices are there already
    monkeypatch.setattr(training_step.words, "build", lambda captions: _build(captions, 10, 10))
    (tmp_path / "micro.py").write_text(CONFIG, encoding="utf-8")
    trace = tmp_path / "trace"
    row = training_step.measured(str(tmp_path / "micro.py"), 2, str(trace))
    assert (row["config"], row["method"], row["dtype"]) == ("micro", "classifier", "float32")
    fed, alone = (row["seconds_per_step"][how] for how in ("fed", "alone"))
    assert len(fed["runs"]) == len(alone["runs"]) == 2
    assert row["images_per_second"] == 8 / fed["median"]
    assert row["flops_per_second"] == row["flops"] / alone["median"]
    assert row["share_of_flops"] == row["flops_per_second"] / row["ceilings"]["flops"]
    assert row["share_of_published"] is None
    pipeline = row["pipeline"]
    assert pipeline["times_consumed"] == pipeline["images_per_second"] / row["images_per_second"]
    assert pipeline["goal_met"] == (pipeline["times_consumed"] >= 10)
    assert row["memory"]["program"] > 4 * row["parameters"]
    assert row["memory"]["process_peak"] > 2**26
    assert list(trace.rglob("perfetto_trace.json.gz"))
    assert sum(found["share"] for found in row["where"]) <= 1.0001
    assert "images/s" in training.line({"item": "step:micro", **json.loads(json.dumps(row))})


def test_the_batch_is_halved_until_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def measured(config: Any, *rest: Any) -> dict[str, Any]:
        tried.append(config.train.batch)
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(meshes, "prepare", lambda batch: None)
    monkeypatch.setattr(training_step, "_measured", measured)
    monkeypatch.setattr(training_step, "_source", lambda config, folder: None)
    found = training.measured("step:add", 1, "")
    assert tried == [24, 12, 6, 3]
    assert found["reason"].startswith(timing.MEMORY)


def test_readers_give_the_same_pictures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(), raising=False)
    row = training_data.measured(16, 1, pictures=90)
    pace = {name: found["images_per_second"] for name, found in row["readers"].items()}
    assert len(pace) == 4
    assert row["times_torch"]["decoding"] == pace["jaxgen, decoding"] / pace["torch, decoding"]
    training_data.write_pictures(tmp_path, 90, 16)
    kept, _ = training_data._opened(tmp_path, 16, 10**9)
    lazy, _ = training_data._opened(tmp_path, 16, 0)
    files = tuple(str(tmp_path / name) for name in kept.ids)
    torch = training_data.Files(files, np.zeros((90, 4), np.int32), 16)
    assert isinstance(kept.images, np.ndarray) > isinstance(lazy.images, np.ndarray)
    for n in (0, 40):
        np.testing.assert_array_equal(kept.images[n], torch[n]["image"])
        np.testing.assert_array_equal(lazy.images[n], torch[n]["image"])


@pytest.fixture
def begun(tmp_path: Path) -> Any:
    path = tmp_path / "training.json"
    head = {"benchmark": "training", "hardware": machine.hardware(), "repeats": 1}
    head |= {"versions": machine.versions()}

    def measure(items: tuple[str, ...], seconds: float, child: Any, **more: Any) -> int:
        report = reports.taken_up(head, path, ("repeats",), False)
        end = time.monotonic() + seconds
        options = Options(minutes=seconds / 60, **more)
        return training.measure(items, options, end, report, path, child)

    return measure, path


def test_a_stopped_measurement_goes_on(begun: Any) -> None:
    measure, path = begun
    asked: list[str] = []

    def child(item: str, options: Options, seconds: float) -> dict[str, Any]:
        asked.append(item)
        if item == "step:gan" and len(asked) == 2:
            raise KeyboardInterrupt
        if item == "step:add":
            return {"reason": f"{timing.MEMORY}, even for a batch of 1"}
        if item == "step:vae":
            return {"reason": "takes longer than the 100 s that were left"}
        return {"readers": {"jaxgen": {"images_per_second": 5.0}}}

    items = ("step:dit", "step:gan", "step:add", "step:vae")
    with pytest.raises(KeyboardInterrupt):
        measure(items, 100.0, child)
    assert [row["item"] for row in reports.read(path, "training")["measured"]] == ["step:dit"]
    assert measure(items, 100.0, child) == 0
    assert asked == ["step:dit", *items[1:2], *items[1:]]
    measure(items, 100.0, child)
    assert len(asked) == 5
    measure(items, 200.0, child)  # memory stays what it was; there is more time
    assert asked[5:] == ["step:vae"]
    measure(("step:dit",), 100.0, child, trace="folder")
    assert asked[6:] == ["step:dit"]
    report = reports.read(path, "training")
    assert len(report["measured"]) == len(report["skipped"]) == 2
    assert "step:add                     skipped: needs more memory" in training.table(report)


def test_lines_say_how_far_from_the_goals() -> None:
    common = {"batch": 8, "share_of_flops": 0.5, "share_of_published": 0.25}
    unet = {"images_per_second": {"jaxgen": 12.0}, "times_faster": {"eager": 1.5}}
    told = training.line({"item": "unet:tiny:float32", **common, **unet})
    assert told.endswith(
        "batch 8, 12 images/s, 1.5 x eager, 50 % of the measured FLOP/s, 25 % of the published"
    )


def test_a_profile_is_summed_by_operation() -> None:
    def event(name: str, microseconds: float, **more: Any) -> dict[str, Any]:
        return {"ph": "X", "dur": microseconds, "args": {"hlo_op": name}, **more}

    events = [event("dot.1", 300), event("dot.27", 100), event("fusion", 600), {"ph": "M"}]
    events += [{"ph": "X", "dur": 9e9, "name": "$loop.py:3 step"}]
    rows = profiles.summed(events)
    assert [row["operation"] for row in rows] == ["fusion", "dot"]
    assert [row["seconds"] for row in rows] == pytest.approx([6e-4, 4e-4])
    assert [row["share"] for row in rows] == pytest.approx([0.6, 0.4])


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ("step:gam", "did you mean gan"),
        ("unet:tiny", "give step:CONFIG"),
        ("unet:huge:float32", "of tiny, sd21"),
        ("data:big", "give step:CONFIG"),
    ],
)
def test_unknown_items_are_refused(item: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        dataclasses.replace(Options(), items=(item,)).check()


def test_all_items_are_known() -> None:
    for items in (training.ITEMS["cpu"], training.ON_ACCELERATOR):
        Options(items=items).check()


_build = training_step.words.build
