import functools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback
from PIL import Image

from benchmarks import sampling_latency, sampling_report, timing
from benchmarks import sampling_programs as programs
from benchmarks import subject as subjects
from benchmarks.machine import slug
from benchmarks.subject import Subject
from benchmarks.timing import Candidate
from jaxgen.config import Data
from jaxgen.diffusion import denoiser
from jaxgen.diffusion.denoiser import Denoiser
from jaxgen.errors import UserError
from jaxgen.methods.diffusion import Diffusion
from jaxgen.models.unet import UNetConfig
from jaxgen.pixels import to_uint8
from jaxgen.runtime import run
from jaxgen.text import tokenizer
from jaxgen.text.encoder import TextConfig

MODEL = Denoiser(
    text=TextConfig(vocabulary=50, width=16, layers=1, heads=2, length=6),
    unet=UNetConfig(
        patch=2,
        block_out=(16,),
        layers=1,
        attention=(False,),
        transformer_depth=(1,),
        heads=(2,),
        context_width=16,
        groups=8,
    ),
)
SIZE, BATCH = 16, 2
TITLES = ["3 steps, guided", "1 step"]


@pytest.fixture(scope="module", autouse=True)
def quick_compiles() -> Iterator[None]:
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject("micro", MODEL, SIZE, 3.0, subjects.random_weights(MODEL, SIZE))


def reported(subject: Subject, budget: float) -> dict[str, Any]:
    how = programs.compared(subject, 3, (1,))
    return sampling_latency.report(subject, how, (BATCH,), 1, budget, lambda line: None)


@pytest.fixture(scope="module")
def report(subject: Subject) -> dict[str, Any]:
    return reported(subject, 1e9)


def test_every_sampler_is_measured_whole_and_in_parts(report: dict[str, Any]) -> None:
    assert list(report["samplers"]) == TITLES
    assert not report["skipped"]
    found = {(row["part"], title) for row in report["measured"] for title in row["samplers"]}
    assert found == {(p, t) for p in ("whole", "text", "denoise", "decode") for t in TITLES}
    for row in report["measured"]:
        seconds = row["seconds"]
        assert 0 < seconds["min"] <= seconds["median"] <= seconds["max"]
        assert row["seconds_per_image"] == seconds["median"] / BATCH
        assert row["compile_seconds"] > 0
        assert row["devices"] == 2


def test_flops_follow_the_network_calls(subject: Subject) -> None:
    flops = text, network = subjects.counted(subject)
    plan = programs.planned(subject, programs.compared(subject, 50, (1, 4)), (8,), flops)
    whole = {p.samplers[0]: p.flops for p in plan if p.part == "whole"}
    assert whole == {
        "1 step": 8 * (text + network),
        "4 steps": 8 * (text + 4 * network),
        "50 steps, guided": 9 * text + 50 * 16 * network,
    }

    # One image's count stands for any batch.
    encode = functools.partial(denoiser.encode, MODEL)
    features = jax.eval_shape(encode, subject.weights["text"], subjects.captions(MODEL.text, 4))
    four = subjects.flops_of(
        functools.partial(denoiser.predict_x0, MODEL),
        subject.weights["denoiser"],
        jnp.zeros((4, SIZE, SIZE, 3)),
        jnp.zeros(4),
        features,
    )
    assert four == pytest.approx(4 * network, rel=1e-3)


def test_speed_up_is_the_ratio_of_medians_beside_that_of_flops(report: dict[str, Any]) -> None:
    guided, one = (
        next(r for r in report["measured"] if r["part"] == "whole" and r["samplers"] == [title])
        for title in TITLES
    )
    (found,) = report["comparison"]
    assert (found["batch"], found["sampler"]) == (BATCH, "1 step")
    assert found["speed_up"] == guided["seconds"]["median"] / one["seconds"]["median"]
    assert found["flop_ratio"] == guided["flops"] / one["flops"]


def test_parts_make_the_whole(subject: Subject) -> None:
    sampler = programs.compared(subject, 3, (1,))["3 steps, guided"]
    key, caption = jax.random.key(5), jnp.asarray(subjects.captions(MODEL.text, BATCH))

    def whole(weights):
        return to_uint8(denoiser.sample(MODEL, SIZE, weights, key, caption, sampler))

    def parts(weights):
        text = programs.text_part(MODEL, True, weights, caption)
        return to_uint8(programs.denoise_part(MODEL, SIZE, sampler, weights, key, text))

    a, b = (np.asarray(jax.jit(f)(subject.weights), np.int32) for f in (whole, parts))
    assert np.ptp(a) > 100
    assert np.abs(a - b).max() <= 1


def test_json_table_and_plot(report: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "sampling_latency_micro.json"
    sampling_report.write(report, path)
    again = sampling_report.read(path)
    assert again == json.loads(json.dumps(report))
    assert {"date", "hardware", "versions", "subject", "repeats"} <= again.keys()
    assert {"python", "jax", "jaxlib", "numpy", "jaxgen"} <= again["versions"].keys()
    assert again["subject"]["parameters"]["denoiser"] > 10_000
    for place in (Path.cwd(), Path.home(), tmp_path):
        assert str(place) not in path.read_text()

    table = sampling_report.table(again)
    assert all(f"{BATCH}  {title}" in table for title in TITLES)
    assert f"{again['comparison'][0]['flop_ratio']:.2f} x" in table
    line = sampling_report.draw(again, tmp_path / "plot.png")
    assert line == f"plot: {tmp_path / 'plot.png'}"
    assert len(Image.open(tmp_path / "plot.png").getcolors(2**24) or ()) > 10


def test_without_matplotlib_one_line(
    report: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "matplotlib is missing" in sampling_report.draw(report, tmp_path / "plot.png")
    assert not list(tmp_path.iterdir())


def test_nothing_fits(subject: Subject, tmp_path: Path) -> None:
    report = reported(subject, 0.0)
    assert report["measured"] == []
    assert len(report["skipped"]) == 7
    assert all(row["speed_up"] is None for row in report["comparison"])
    assert sampling_report.table(report).count("of the budget are left") == 7
    assert sampling_report.draw(report, tmp_path / "plot.png").startswith("plot: ")


def test_programs_take_turns_and_the_long_one_is_skipped() -> None:
    ran = []

    def candidate(label: str, work: float) -> Candidate:
        def function(x):
            io_callback(lambda: ran.append(label), None, ordered=True)
            return x + 1

        return Candidate(label, "network", work, function, lambda: (jnp.zeros(()),))

    plan = [candidate("A", 1), candidate("long", 1e12), candidate("B", 1)]
    lines = []
    a, long, b = timing.measure(plan, 2, 60, lines.append)
    assert isinstance(a, timing.Timing)
    assert isinstance(b, timing.Timing)
    assert len(a.runs) == len(b.runs) == 2
    assert isinstance(long, str)
    assert "needs about" in long
    assert ran == ["A", "A", "B", "B", *["A", "B"] * 2]  # two uncounted runs each, then in turn
    assert len(lines) == 2


def test_what_is_too_slow_warns_of_what_is_slower() -> None:
    ran = []

    def candidate(work: float) -> Candidate:
        def slow():
            ran.append(work)
            time.sleep(0.5)

        def function(x):
            io_callback(slow, None, ordered=True)
            return x + 1

        return Candidate("", "network", work, function, lambda: (jnp.zeros(()),))

    one, fifty = timing.measure([candidate(1), candidate(50)], 5, 3.0, lambda line: None)
    assert isinstance(one, str)
    assert "5 more exceed the budget" in one
    assert isinstance(fifty, str)
    assert set(ran) == {1}


def test_shapes_are_sound() -> None:
    for make in subjects.SHAPES.values():
        model, size = make()
        model.check(size)
        weights = Subject("", model, size, 3.0, {})
        assert programs.compared(weights, 50, (1, 2, 4))
    model, size = subjects.SHAPES["sd21"]()
    assert Subject("sd21", model, size, 3.0, {}).output == "latents, no decoder"


@pytest.mark.parametrize(
    ("device", "count", "expected"),
    [
        ("cpu", 2, "cpu-2"),
        ("NVIDIA H100 80GB HBM3", 1, "nvidia-h100-1"),
        ("TPU v5 lite", 8, "tpu-v5-lite-8"),
    ],
)
def test_slug(device: str, count: int, expected: str) -> None:
    assert slug(device, count) == expected


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--shape=sd3"], "no shape 'sd3'; known: tiny, 64px, sd21"),
        (["--batches", "8", "0"], "--batches 8 0: give whole numbers of 1 or more"),
        (["--steps", "-1"], "--steps -1"),
        (["--shape=tiny", "--run=runs/add"], "give one of them"),
        (["--budget", "0"], "--budget is 0"),
        (["--plot=nowhere.json"], "--plot nowhere.json cannot be read"),
        (["--batch", "3"], "did you mean --batches?"),
        (["--dtype=float16"], "float16"),
    ],
)
def test_bad_input_gets_one_line(
    arguments: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["sampling_latency", *arguments])
    with pytest.raises(SystemExit) as stop:
        sampling_latency.main()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_run_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no run folder"):
        subjects.of_run(tmp_path)


def test_a_run_is_read(subject: Subject, tmp_path: Path) -> None:
    data = Data(size=SIZE)
    config = Diffusion(name="micro", workdir=str(tmp_path), data=data, model=MODEL, guidance=2.0)
    words = tokenizer.build(["red heart"], french=0, english=0)
    with run.opened(config, "diffusion", words, (), "") as folder:
        run.save_weights(folder, subject.weights, step=7)
    read = subjects.of_run(folder)
    assert (read.name, read.model, read.size, read.guidance) == ("micro", MODEL, SIZE, 2.0)
    chex.assert_trees_all_equal(read.weights, subject.weights)


def test_more_steps_than_the_schedule_has(subject: Subject) -> None:
    with pytest.raises(UserError, match="1001"):
        programs.compared(subject, 1001, (1,))
