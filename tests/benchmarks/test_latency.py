import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback
from PIL import Image
from tiny import DIT_MODEL, SIZE

from benchmarks import ceilings, latency, latency_report, machine, reports, starts, timing
from benchmarks import latency_programs as programs
from benchmarks import subject as subjects
from benchmarks.ceilings import Ceilings
from benchmarks.latency import Options
from benchmarks.reports import Report
from benchmarks.subject import Flops, Subject
from benchmarks.timing import Candidate, Timing
from jaxgen import methods
from jaxgen.config import Data
from jaxgen.errors import UserError
from jaxgen.methods.add import Add
from jaxgen.methods.diffusion import Diffusion
from jaxgen.methods.ladd import Ladd
from jaxgen.methods.threshold_diffusion import ThresholdDiffusion
from jaxgen.models.autoencoder import AutoencoderConfig
from jaxgen.runtime import mesh as meshes
from jaxgen.runtime import run
from jaxgen.text import tokenizer

BATCH = 2
TITLES = ["3 steps, guided", "1 step"]
CONFIG = Diffusion(name="micro", data=Data(size=SIZE), model=DIT_MODEL, guidance=2.0)
LATENT = dataclasses.replace(
    CONFIG,
    codec="vae",
    autoencoder=AutoencoderConfig(block_out=(8, 8), layers=1, groups=4, mid_attention=False),
    model=dataclasses.replace(
        DIT_MODEL, dit=dataclasses.replace(DIT_MODEL.dit, channels=4, patch=2)
    ),
)
# Whose sequences are as long as those that kernels of their own are for, the codec's too.
LONG = dataclasses.replace(
    LATENT,
    data=Data(size=48),
    autoencoder=dataclasses.replace(LATENT.autoencoder, mid_attention=True),
    model=dataclasses.replace(
        DIT_MODEL, dit=dataclasses.replace(DIT_MODEL.dit, channels=4, patch=1)
    ),
)
OPTIONS = Options(batches=(BATCH,), dtypes=("float32",), iterative=3, steps=(1,), repeats=1)


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ceilings, "SIDE", {"cpu": 64})
        patch.setattr(ceilings, "COPIED", {"cpu": 2**16})
        patch.setattr(timing, "TURN", 0.0)
        before = jax.config.read("jax_disable_most_optimizations")
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject("micro", CONFIG, subjects.random_weights(CONFIG))


@pytest.fixture(scope="module")
def latent() -> Subject:
    """One that draws through a codec."""
    return Subject("latent", LATENT, subjects.random_weights(LATENT))


def begun(subject: Subject, options: Options, path: Path) -> tuple[Report, dict, Flops]:
    how = programs.compared(subject, options.iterative, options.steps)
    flops = Flops(1e3, 1e5, 1e4)
    head = latency._head(subject, how, options, flops, machine.hardware())
    head |= {"command": "", "dtypes": ["float32"], "starts": {}}
    return reports.taken_up(head, path, latency.COMPARED, False), how, flops


def measured(
    subject: Subject, path: Path, seconds: float, options: Options = OPTIONS, spent: float = 0.0
) -> int:
    report, how, flops = begun(subject, options, path)
    end = time.monotonic() + seconds
    return latency.measure(
        subject, how, flops, options, end, report, path, lambda line: None, spent
    )


@pytest.fixture(scope="module")
def report(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> Report:
    path = tmp_path_factory.mktemp("latency") / "latency_micro.json"
    assert measured(subject, path, 1e6) == 0
    return reports.read(path, "latency")


def test_every_sampler_is_measured_whole_and_in_parts(report: Report) -> None:
    assert list(report["samplers"]) == TITLES
    assert not report["skipped"]
    found = {(row["part"], title) for row in report["measured"] for title in row["samplers"]}
    assert found == {(p, t) for p in programs.PARTS for t in TITLES}
    for row in report["measured"]:
        seconds = row["seconds"]
        assert 0 < seconds["min"] <= seconds["median"] <= seconds["max"]
        assert row["seconds_per_image"] == seconds["median"] / BATCH
        assert row["compile_seconds"] > 0
        assert row["devices"] == BATCH
        assert row["flops_per_second"] == row["flops"] / seconds["median"]
        assert row["part"] == "whole" or row["bytes"] > 0
    (compared,) = report["comparison"]
    assert {"speed_up", "flop_ratio", "share", "lost", "share_without_overhead"} <= compared.keys()
    for place in (Path.cwd(), Path.home()):
        assert str(place) not in json.dumps(report)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The labels of what is measured, in place of measuring it."""
    labels = []

    def measure(
        candidates: list[Candidate], repeats: int, budget: float, say: Any
    ) -> list[Timing | str]:
        labels.extend(candidate.label for candidate in candidates)
        time.sleep(budget if budget < 1 else 0)  # all that there is of a short one
        return [Timing(1.0, (2.0,), 3.0) for _ in candidates]

    monkeypatch.setattr(timing, "measure", measure)
    return labels


def test_a_report_half_written_goes_on(
    subject: Subject, tmp_path: Path, counted: list[str]
) -> None:
    path = tmp_path / "latency_micro.json"
    both = dataclasses.replace(OPTIONS, batches=(BATCH, 4))
    assert measured(subject, path, 0.5, both) == 6  # the parts of the second batch
    assert len(counted) == 9
    assert len(reports.read(path, "latency")["measured"]) == 9
    assert measured(subject, path, 1e6, both) == 0
    assert len(counted) == len(set(counted)) == 18  # none of them twice
    compared = reports.read(path, "latency")["comparison"]
    assert [row["batch"] for row in compared] == [BATCH, 4]
    assert measured(subject, path, 1e6, both) == 0
    assert len(counted) == 18
    assert reports.read(path, "latency")["comparison"] == compared
    with pytest.raises(UserError, match="another repeats; --anew"):
        begun(subject, dataclasses.replace(OPTIONS, repeats=2), path)


def test_numbers_of_another_machine_are_not_gone_on_with(
    subject: Subject, tmp_path: Path, counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "latency_micro.json"
    measured(subject, path, 1e6)
    other = {**machine.hardware(), "processor": "another"}
    monkeypatch.setattr(machine, "hardware", lambda: other)
    with pytest.raises(UserError, match="another hardware; --anew"):
        begun(subject, OPTIONS, path)


def test_a_report_without_measurements_has_a_table(subject: Subject, tmp_path: Path) -> None:
    path = tmp_path / "latency_micro.json"
    assert measured(subject, path, -1) == 6
    assert "medians over 1 turns" in latency_report.table(reports.read(path, "latency"))


def test_what_does_not_fit_is_tried_again_only_with_more_time(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, tried = tmp_path / "latency_micro.json", []

    def measure(candidates: list[Candidate], *rest: Any) -> list[Timing | str]:
        tried.extend(labels := [candidate.label for candidate in candidates])
        short = "needs about 9 s, of which 8 s are left"
        return [timing.MEMORY if "whole" in label else short for label in labels]

    monkeypatch.setattr(timing, "measure", measure)
    assert measured(subject, path, 100) == 0  # the same command would try none of them again
    assert len(tried) == 9
    assert measured(subject, path, 100) == 0
    assert len(tried) == 9
    assert measured(subject, path, 90, spent=100) == 5  # the next one will have more
    assert len(tried) == 9
    assert measured(subject, path, 200) == 0
    assert len(tried) == 16  # all but the whole, whose memory stays what it is
    assert len(reports.read(path, "latency")["skipped"]) == 9
    assert "skipped: float32, batch 2, whole of 1 step: needs more memory" in latency_report.table(
        reports.read(path, "latency")
    )


def test_the_command_counts_starts_and_parts(
    subject: Subject,
    tmp_path: Path,
    counted: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(machine, "asked", lambda batch: machine.hardware())
    monkeypatch.setattr(machine, "folder", lambda device: tmp_path)
    monkeypatch.setattr(subjects, "of_config", lambda name: subject)
    monkeypatch.setattr(subjects, "counted", lambda subject: Flops(1e3, 1e5, 1e4))
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    monkeypatch.setattr(meshes, "prepare", lambda batch: None)  # the devices are there already
    monkeypatch.setattr(starts, "_timed", lambda *_: {"total": 9.0, "compile": 5.0})
    monkeypatch.setattr(latency_report, "draw", lambda report, path: "")
    said = ["--config=add", "--batches", "2", "--dtypes=float32", "--iterative=3", "--steps", "1"]
    monkeypatch.setattr(sys, "argv", ["latency", *said, "--minutes=1e-9"])
    latency.main()
    assert "7 part(s) are left: the same command goes on" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["latency", *said])
    latency.main()
    out = capsys.readouterr().out
    assert "first start 9.0 s (5.0 of compiling); second start 9.0 s" in out
    assert "are left" not in out
    assert len(counted) == 9


def row(part: str, title: str, seconds: float, flops: float) -> dict[str, Any]:
    return {
        "dtype": "float32", "batch": 8, "part": part, "samplers": [title], "flops": flops,
        "seconds": {"median": seconds},
    }  # fmt: skip


def test_the_shortfall_of_the_speed_up_is_accounted_for() -> None:
    few = {"text": (0.11, 10), "denoise": (0.31, 20), "decode": (0.02, 10), "transfer": (0.03, 0)}
    few["dispatch"] = (0.01, 0)
    rows = [row(part, "1 step", *both) for part, both in few.items()]
    rows += [row("whole", "1 step", 0.5, 40), row("whole", "50 steps", 20.0, 4000)]
    report = {"measured": rows, "samplers": {"50 steps": {}, "1 step": {}}}
    (found,) = latency_report.compared(report)
    assert found["speed_up"] == pytest.approx(40)
    assert found["flop_ratio"] == 100
    assert found["share"] == pytest.approx(0.4)
    assert found["goal_met"] is False
    # The teacher does 200 FLOPs a second, at which the student's 40 would take .2 s of its .5.
    expected = {"text": 0.1 - 0.05, "denoise": 0.3 - 0.1, "decode": 0.01 - 0.05}
    expected |= {"transfer": 0.03, "dispatch": 0.01, "rest": 0.5 - 0.45}
    assert found["lost"] == pytest.approx(expected)
    assert sum(found["lost"].values()) == pytest.approx(0.5 - 0.2)
    assert found["share_without_overhead"] == pytest.approx((20 - 0.04) / (0.5 - 0.04) / 100)


def test_shares_of_ceilings() -> None:
    assert ceilings.shares(4e9, 1e9, 2.0, Ceilings(8e9, 5e9)) == {
        "flops_per_second": 2e9,
        "share_of_flops": 0.25,
        "bytes_per_second": 5e8,
        "share_of_bytes": 0.1,
    }
    assert "share_of_bytes" not in ceilings.shares(4e9, None, 2.0, Ceilings(8e9, 5e9))
    most = ceilings.measured("float32")
    assert most.flops > 1e8 < most.bytes
    assert ceilings.published("bfloat16") is None  # a CPU's depends on more than its name


def test_bytes_are_those_that_are_read_and_written() -> None:
    """Of a product all of both; of a table the rows looked up; of a loop every turn."""
    x, table, rows = np.ones((256, 256), "f4"), np.ones((4000, 64), "f4"), np.arange(16)

    def counted(function: Callable[..., Any], *arguments: Any) -> float:
        found = timing.bytes_of(jax.jit(function).lower(*arguments).compile())
        assert found is not None
        return found

    assert counted(lambda a, b: a @ b, x, x) == 3 * x.nbytes
    assert counted(lambda t, i: t[i], table, rows) < 0.1 * table.nbytes
    once = counted(lambda a: jnp.tanh(a @ x), x)
    often = counted(lambda a: jax.lax.fori_loop(0, 50, lambda _, a: jnp.tanh(a @ x), a), x)
    assert 40 < often / once < 100  # and what the loop copies


def test_flops_follow_the_network_calls() -> None:
    subject = Subject("micro", CONFIG, {})
    how = programs.compared(subject, 50, (1, 4))
    flops = Flops(text=10.0, network=1000.0, decode=1.0)
    plan = programs.planned(subject, how, 8, "whole", flops, programs.placing(subject))
    assert {p.samplers[0]: p.flops for p in plan} == {
        "1 step": 8 * (10 + 1000 + 1),
        "4 steps": 8 * (10 + 4 * 1000 + 1),
        "50 steps, guided": 9 * 10 + 50 * 16 * 1000 + 8,
    }


def test_the_network_is_counted(latent: Subject) -> None:
    found = subjects.counted(latent)
    assert found.network > found.text > 0 < found.decode
    width, tokens = DIT_MODEL.dit.width, 16
    assert found.network > 2 * tokens * 12 * width**2  # attention's and the MLP's matrices


def test_parts_make_the_whole(latent: Subject) -> None:
    sampler = programs.compared(latent, 3, (1,))["3 steps, guided"]
    key, caption = jax.random.key(5), jnp.asarray(subjects.captions(DIT_MODEL.text, BATCH))

    def whole(weights):
        return methods.of(LATENT).sample(LATENT, weights, key, caption, sampler)

    def parts(weights):
        text = programs.text_part(LATENT.model, True, weights, caption)
        x0 = programs.denoise_part(LATENT, sampler, weights, key, text)
        return programs.decode_part(LATENT, weights, x0)

    a, b = (np.asarray(jax.jit(f)(latent.weights), np.int32) for f in (whole, parts))
    assert np.ptp(a) > 50
    assert np.abs(a - b).max() <= 1


@pytest.mark.parametrize("part", ["whole", "denoise", "decode"])
def test_what_is_timed_has_the_kernels_that_jaxgen_draws_with(part: programs.Part) -> None:
    subject = Subject("long", LONG, subjects.random_weights(LONG))
    how = programs.compared(subject, 3, (1,))
    place = programs.placing(subject)
    candidate = programs.planned(subject, how, 1, part, Flops(1, 1, 1), place)[0].candidate
    shapes = jax.eval_shape(lambda *arguments: arguments, *candidate.arguments())
    program = jax.jit(candidate.function).trace(*shapes).lower(lowering_platforms=("tpu",))
    assert "tpu_custom_call" in program.as_text()


def test_table_and_plot_from_the_file_alone(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "latency_micro.json"
    reports.write(report, path)
    table = latency_report.table(reports.read(path, "latency"))
    assert all(f"{BATCH}  {title}" in table for title in TITLES)
    assert f"{report['comparison'][0]['share']:.2f}" in table
    monkeypatch.setattr(sys, "argv", ["latency", f"--plot={path}"])
    latency.main()
    assert capsys.readouterr().out == f"plot: {tmp_path / 'latency_micro.png'}\n"
    assert len(Image.open(tmp_path / "latency_micro.png").getcolors(2**24) or ()) > 10


def test_without_matplotlib_one_line(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "matplotlib is missing" in latency_report.draw(report, tmp_path / "plot.png")
    assert not list(tmp_path.iterdir())


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


def test_for_an_accelerator_all_compile_before_any_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    happened = []

    def candidate(label: str) -> Candidate:
        def function(x):
            happened.append(f"{label} traced")
            io_callback(lambda: happened.append(f"{label} ran"), None, ordered=True)
            return x + 1

        return Candidate(label, "network", 1.0, function, lambda: (jnp.zeros(()),))

    found = timing.measure([candidate("A"), candidate("B")], 1, 60, lambda line: None)
    assert all(isinstance(one, timing.Timing) for one in found)
    assert sorted(happened[:2]) == ["A traced", "B traced"]
    assert happened.count("A ran") == happened.count("B ran") == 3


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


def test_a_config_has_shapes_in_both_types(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subjects, "noisy", lambda shapes: shapes)
    subject = subjects.of_config("add_latent")
    assert programs.compared(subject, 50, (1, 4))
    assert "codec" in subject.weights
    both = [subject.computed_in(dtype).config for dtype in ("float32", "bfloat16")]
    assert [config.model.backbone.dtype for config in both] == ["float32", "bfloat16"]
    assert both[0].autoencoder.dtype == "float32"


@pytest.mark.parametrize(
    ("device", "count", "expected"),
    [
        ("cpu", 2, "cpu-2"),
        ("NVIDIA H100 80GB HBM3", 1, "nvidia-h100-1"),
        ("TPU v5 lite", 8, "tpu-v5-lite-8"),
    ],
)
def test_slug(device: str, count: int, expected: str) -> None:
    assert machine.slug(device, count) == expected


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--batches", "8", "0"], "--batches 8 0: give whole numbers of 1 or more"),
        (["--steps", "-1"], "--steps -1"),
        (["--config=add", "--run=runs/add"], "give one of them"),
        (["--config=gan_65"], "no config 'gan_65'"),
        (["--minutes", "0"], "--minutes is 0"),
        (["--plot=nowhere.json"], "nowhere.json cannot be read"),
        (["--batch", "3"], "did you mean --batches?"),
        (["--dtypes=float16"], "float16"),
    ],
)
def test_bad_input_gets_one_line(
    arguments: list[str], said: str, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hardware = {"device": "cpu", "count": 1}
    monkeypatch.setattr("benchmarks.machine.asked", lambda batch: hardware)
    assert said in refused(latency.main, *arguments)


def test_what_draws_nothing_from_captions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no run folder"):
        subjects.of_run(str(tmp_path))
    with pytest.raises(UserError, match="no text-to-image model"):
        subjects.of_config("classifier")


def test_what_draws_in_a_way_of_its_own_is_refused() -> None:
    with pytest.raises(UserError, match="threshold_diffusion, which draws in a way of its own"):
        programs.compared(Subject("micro", ThresholdDiffusion(), {}), 3, (1,))
    for config in (Add(), Diffusion(), Ladd()):
        assert programs.compared(Subject("micro", config, {}), 3, (1,))


def test_a_run_is_read(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, workdir=str(tmp_path))
    weights = subjects.random_weights(config)
    with run.opened(config, "diffusion", tokenizer.build(["heart"], 0, 0), (), "") as folder:
        run.save_weights(folder, weights, step=7)
    read = subjects.of_run(str(folder))
    assert (read.name, read.config) == ("micro", config)
    chex.assert_trees_all_equal(read.weights, weights)


@pytest.mark.parametrize(
    "said", [["--run=/home/me/add"], ["--run", "/home/me/add", "step:/x/a.py"]]
)
def test_the_command_is_told_without_folders(said: list[str]) -> None:
    told = reports.command("python -m latency", said)
    assert told.replace("=", " ").startswith("python -m latency --run add")
    assert "/" not in told


def test_more_steps_than_the_schedule_has(subject: Subject) -> None:
    with pytest.raises(UserError, match="1001"):
        programs.compared(subject, 1001, (1,))
