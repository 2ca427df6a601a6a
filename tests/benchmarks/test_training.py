import dataclasses
import functools
import importlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable
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
    training_unet,
)
from benchmarks.training import Options
from jaxgen.data import source as sources
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
    order = []
    for module, name in ((training_step, "peaks"), (ceilings, "measured")):
        told = getattr(module, name)
        said = functools.partial(
            lambda name, told, *a: (order.append(name), told(*a))[1], name, told
        )
        monkeypatch.setattr(module, name, said)
    row = training_step.measured(str(tmp_path / "micro.py"), 2, str(trace))
    assert order == ["peaks", "measured"]  # what the ceilings take is not the step's
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
    fits = 0

    def measured(config: Any, *rest: Any) -> dict[str, Any]:
        tried.append(config.train.batch)
        if config.train.batch > fits:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return _row({"device_peak": 9, "process_peak": 9, "program": 7}, "alone")

    monkeypatch.setattr(meshes, "prepare", lambda batch: None)
    monkeypatch.setattr(training_step, "_measured", measured)
    monkeypatch.setattr(training_step, "_source", lambda config, folder: None)
    found = training.measured("step:add", 1, "")
    assert tried == [24, 12, 6, 3]
    assert found["reason"].startswith(timing.MEMORY)
    fits = 24
    assert training.measured("step:add", 1, "")["memory"]["device_peak"] == 9
    fits = 12  # and the peaks are those of 24
    memory = training.measured("step:add", 1, "")["memory"]
    assert memory == {"device_peak": None, "process_peak": None, "program": 7}


def _of_too_much() -> list[Callable[[], Any]]:
    import torch
    from torch._dynamo.exc import BackendCompilerFailed

    def met(error: Exception) -> None:
        raise BackendCompilerFailed(len, error, None)

    def raised(error: Exception) -> None:
        raise error

    much = torch.cuda.OutOfMemoryError("CUDA out of memory.")
    return [
        lambda: torch.empty(2**60, dtype=torch.uint8),
        lambda: np.empty(2**60, np.uint8),
        lambda: jax.block_until_ready(jax.numpy.zeros(2**50, np.uint8)),
        lambda: raised(much),
        lambda: met(much),
    ]


@pytest.mark.parametrize("number", range(5), ids=["torch", "numpy", "jax", "cuda", "compile"])
def test_too_little_memory_is_known_by_its_error(number: int) -> None:
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        _of_too_much()[number]()
    assert timing.exhausted(caught.value) == timing.MEMORY


@pytest.mark.parametrize("kind", [RuntimeError, jax.errors.JaxRuntimeError, ValueError])
def test_an_error_that_speaks_of_memory_is_another(kind: type[Exception]) -> None:
    with pytest.raises(kind, match="memory format"):
        timing.exhausted(kind("unsupported memory format"))


def test_the_unet_is_measured_before_the_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    order = []

    def measured(shape: str, dtype: str, batch: int, repeats: int) -> dict[str, Any]:
        order.append(batch)
        if batch > 8:
            raise MemoryError
        return _row({"device_peak": 9, "torch_peaks": {"eager": 5}}, "jaxgen")

    most = ceilings.Ceilings(8.0, 8.0)
    monkeypatch.setattr(meshes, "prepare", lambda batch: None)
    monkeypatch.setattr(training_unet, "_measured", measured)
    monkeypatch.setattr(training_unet, "_free", lambda: order.append("freed"))
    monkeypatch.setattr(ceilings, "measured", lambda dtype: (order.append("ceilings"), most)[1])
    row = training_unet.measured("tiny", "float32", 1)
    assert order == [16, "freed", 8, "freed", "ceilings"]
    assert (row["share_of_flops"], row["share_of_bytes"]) == (0.25, 0.5)
    assert row["memory"] == {"device_peak": None, "torch_peaks": {"eager": 5}}


UNET = {
    "sample_size": 8,
    "block_out_channels": (32,),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",),
    "cross_attention_dim": 8,
}


@pytest.mark.parametrize("package", ["torch", "diffusers"])
def test_without_a_rival_jaxgen_is_measured_all_the_same(
    monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    found = importlib.import_module

    def import_module(name: str, *rest: Any, **more: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {package!r}")
        return found(name, *rest, **more)

    monkeypatch.setattr(importlib, "import_module", import_module)
    monkeypatch.setattr(machine, "without_broken_torchvision", lambda: None)
    monkeypatch.setattr(meshes, "prepare", lambda batch: None)
    monkeypatch.setitem(training_unet.SHAPES, "micro", {"unet": UNET})
    monkeypatch.setitem(training_unet.BATCHES, "micro", 2)
    row = training.measured("unet:micro:float32", 2, "")
    assert row["times_faster"] == {}
    assert row["goal_met"] is None
    assert row["images_per_second"].keys() == row["losses"].keys() == {"jaxgen"}
    assert row["share_of_flops"] > 0
    told = training.line({"item": "unet:micro:float32", **json.loads(json.dumps(row))})
    assert "images/s, no PyTorch rival: " in told
    assert package in told


def test_without_torch_the_pipeline_is_measured_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.data", None)
    row = training_data.measured(16, 1, pictures=90)
    assert set(row["readers"]) == {"jaxgen, in memory", "jaxgen, decoding"}
    assert row["times_torch"] == {}
    told = training.line({"item": "data:16", **json.loads(json.dumps(row))})
    assert "no PyTorch rival: " in told


def test_torch_has_the_faster_order_of_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    unet = UNET
    paces = iter((1.0, 2.0, 2.0, 1.0))
    monkeypatch.setitem(training_unet.SHAPES, "micro", {"unet": unet})
    monkeypatch.setattr(training_unet, "_pace", lambda step: next(paces))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda precision: None)
    monkeypatch.setattr(torch, "compile", lambda network: network)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    values = training_unet._batch(unet, 2)
    first, second = (training_unet._torch("micro", "float32", values) for _ in range(2))
    assert (first.layout, second.layout) == ("channels_last", "contiguous_format")
    losses = [loss for rivals in (first, second) for loss in rivals.losses.values()]
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-4)  # all from the same weights
    assert first.steps.keys() == first.peaks.keys() == {"eager", "compile"}
    assert torch.backends.cudnn.benchmark  # with False, a convolution's first guess is timed


def test_readers_give_the_same_pictures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(), raising=False)
    monkeypatch.setattr(sources, "IN_MEMORY_BYTES", 1000)  # too few for them
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


def test_large_pictures_are_few() -> None:
    assert [training_data.count_of(side) for side in (32, 64, 512, 4096)] == [2000, 2000, 341, 64]


def test_torch_reads_across_the_end_of_an_epoch() -> None:
    rows = np.arange(96)
    reader = training_data._torch(training_data.Arrays(rows, rows), 0)
    read = np.concatenate([next(reader)["image"].numpy() for _ in range(3)])
    first, second = read[:96], read[96:]  # three batches of 64 are two epochs
    assert sorted(first) == sorted(second) == rows.tolist()
    assert first.tolist() != second.tolist()


def test_what_workers_had_ready_is_not_timed() -> None:
    workers = 16
    slow = (time.sleep(0.002 * (number >= 2 * workers)) for number in itertools.count())
    assert training_data.taken(slow, 4, training_data.ahead(workers)) >= 0.002


@pytest.fixture
def begun(tmp_path: Path) -> Any:
    path = tmp_path / "training.json"
    head = {"benchmark": "training", "hardware": machine.hardware(), "repeats": 1}
    head |= {"versions": machine.versions()}

    def measure(
        items: tuple[str, ...], seconds: float, child: Any, cores: int = 0, **more: Any
    ) -> int:
        hardware = head["hardware"] | ({"cores": cores} if cores else {})
        report = reports.taken_up(head | {"hardware": hardware}, path, training.COMPARED, False)
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
        found = {"readers": {"jaxgen": {"images_per_second": 5.0}}}
        return found | ({"where": []} if options.trace and item != "data:8" else {})

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
    for _ in range(2):  # once more for the trace, which a reader of pictures has none of
        assert measure(("step:dit", "data:8"), 100.0, child, trace="folder") == 0
        assert asked[6:] == ["step:dit", "data:8"]
    report = reports.read(path, "training")
    assert [len(report[field]) for field in ("measured", "skipped")] == [3, 2]
    assert "step:add                     skipped: needs more memory" in training.table(report)
    with pytest.raises(UserError, match="measured with another hardware; --anew"):
        measure(items, 100.0, child, cores=1000)


def test_a_crash_is_tried_again_and_then_fails(
    begun: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    _, path = begun
    asked: list[str] = []

    def child(item: str, options: Options, seconds: float) -> dict[str, Any]:
        asked.append(item)
        return {"reason": "its process ended with exit code 1", "crashed": 1}

    monkeypatch.setattr(machine, "asked", lambda batch: machine.hardware())
    monkeypatch.setattr(machine, "folder", lambda device: path.parent)
    monkeypatch.setattr(training, "_child", child)
    monkeypatch.setitem(training.ITEMS, "cpu", ("step:dit",))
    monkeypatch.setattr(sys, "argv", ["training"])
    training.main()
    assert "1 item(s) are left: the same command goes on" in capsys.readouterr().out
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            training.main()
        assert ended.value.code == 1
        assert "failed: step:dit;" in capsys.readouterr().out
    assert asked == ["step:dit"] * 2, "and no more, until it is asked for"
    monkeypatch.setattr(sys, "argv", ["training", "--items", "step:dit"])
    training.main()
    assert len(asked) == 3


def test_a_process_that_crashes_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "false")
    found = training._child("step:dit", Options(), 60.0)
    assert found == {"reason": "its process ended with exit code 1", "crashed": 1}


@pytest.mark.parametrize(
    ("backend", "seconds", "goal", "met"),
    [("gpu", 2.0, True, True), ("gpu", 2.1, True, False), ("gpu", 1.0, False, None),
     ("cpu", 1.0, True, None)],
)  # fmt: skip
def test_the_share_of_the_published_peak_is_judged_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, backend: str, seconds: float, goal: bool, met: bool | None
) -> None:
    most = ceilings.Ceilings(8.0, 8.0)
    monkeypatch.setattr(ceilings, "measured", lambda dtype: most)
    monkeypatch.setattr(ceilings, "published", lambda dtype: most)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    row = training_step.reached({"flops": 8.0, "bytes": 8.0}, "bfloat16", seconds, goal)
    assert row["goal_of_published_met"] is met


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


def test_kernels_without_a_name_do_not_vanish_from_a_profile() -> None:
    def called(what: str, name: str, pid: int, tid: int | None = None) -> dict[str, Any]:
        return {"ph": "M", "name": what, "args": {"name": name}, "pid": pid, "tid": tid}

    def took(microseconds: float, pid: int, tid: int, **args: Any) -> dict[str, Any]:
        return {"ph": "X", "dur": microseconds, "pid": pid, "tid": tid, "args": args}

    events = [called("process_name", "/device:GPU:0", 1), called("process_name", "/host:CPU", 2)]
    events += [called("thread_name", "Stream #13(Compute)", 1, 4)]
    events += [called("thread_name", "XLA Modules", 1, 5), called("thread_name", "Stream", 2, 4)]
    events += [took(10, 1, 4), took(20, 1, 4, hlo_op="dot.1"), took(900, 1, 5), took(900, 2, 4)]
    rows = {row["operation"]: row["share"] for row in profiles.summed(events)}
    assert rows == pytest.approx({"dot": 2 / 3, profiles.UNNAMED: 1 / 3})
    many = [took(50, 1, 4, hlo_op=f"{letter}.1") for letter in "abcdefghijklmnop"]
    assert profiles.summed(events + many)[-1]["operation"] == profiles.UNNAMED


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


def _row(memory: dict[str, Any], name: str) -> dict[str, Any]:
    """A step of 2 operations, 4 bytes and a second."""
    found = {"flops": 2.0, "bytes": 4.0, "memory": memory}
    return found | {"seconds_per_step": {name: {"median": 1.0}}}


_build = training_step.words.build
