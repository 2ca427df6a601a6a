"""One step of a student beside the many of its teacher, from what was measured before."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from benchmarks import machine, plots, quality, quality_report, runs
from benchmarks.machine import RESULTS
from benchmarks.runs import Clock
from jaxgen import config as configs
from jaxgen import stages
from jaxgen.diffusion.sampler import Sampler
from jaxgen.errors import EXIT_AGAIN, UserError
from jaxgen.metrics.measures import NAMES

GRADER = "eyes, bicubic 32"


def row(run: str, captions: str, steps: int, frechet: float, count: int = 400) -> dict[str, Any]:
    """As `evaluate` writes it; everything but the Fréchet distance is the same for all."""
    values = dict.fromkeys(NAMES, 0.8) | {"frechet": frechet}
    return {
        "run": run,
        "captions": captions,
        "sampler": dataclasses.asdict(Sampler(steps=steps)),
        "network_calls": steps,
        "seconds_per_image": 0.01 * steps,
        "batch": 64,
        "metrics": {
            f"{name} ({GRADER}; {count} samples)": {"value": v, "low": v - 0.1, "high": v + 0.1}
            for name, v in values.items()
        },
    }


def evaluated(*runs: tuple[str, int, float], grader: str = GRADER) -> dict[str, Any]:
    sets = (("training", 400), ("held-out", 20))
    rows = [row(run, *captions[:1], steps, frechet, captions[1])
            for run, steps, frechet in runs for captions in sets]  # fmt: skip
    return {"rows": rows, "grader": {"title": grader}, "seed": 0, "hardware": "2 x cpu",
            "date": "", "data": {"name": "set", "train": 400, "test": 20}}  # fmt: skip


def test_targets_are_met_or_missed_by_a_share_and_surely_or_not() -> None:
    teacher = [("runs/diffusion", n, v) for n, v in ((50, 3.0), (4, 4.0), (2, 5.0), (1, 9.0))]
    paired = ("runs/add_paired", 1, 2.5)
    rows = quality.entries([evaluated(*teacher), evaluated(("runs/add", 1, 3.5), paired)])
    assert [entry["method"] for entry in rows] == ["teacher"] * 4 + ["ADD", "ADD with pairs"]
    few, fifty, retrieval, recall, *others = quality.judged(rows)
    assert [other["method"] for other in others] == ["ADD with pairs"] * 4
    assert others[1]["met"]
    assert (few["limit"], few["met"], few["sure"]) == (4.0, True, True)
    assert few["by"] == pytest.approx(0.125)
    assert fifty["limit"] == pytest.approx(3.45)
    assert (fifty["met"], fifty["sure"]) == (False, False), "0.05 beyond, within the intervals"
    assert retrieval["by"] == pytest.approx(0.8 / 0.72 - 1)
    assert recall["met"]
    told = quality_report.targets({"targets": [few, fifty]})
    assert "| ADD | lower" in told
    assert "| 3.5 | 4 | met by 12% |" in told
    assert "| 3.5 | 3.45 | missed by 1%, within the noise |" in told
    equal = quality.judged(quality.entries([evaluated(*teacher[:2], ("runs/diffusion", 2, 5.0),
                           ("runs/diffusion", 1, 9.0), ("runs/add", 1, 4.0))]))  # fmt: skip
    assert not equal[0]["met"], "lower, not as low"
    assert quality.judged(quality.entries([evaluated(("runs/add", 1, 3.5))])) == []


def test_all_samplers_are_timed_in_turn_and_the_median_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = {
        name: evaluated(*((f"runs/{name}", n, 3.0) for n in steps))["rows"]
        for name, steps in {quality.TEACHER: (8, 1), "add_subgroups": (1,)}.items()
    }
    order: list[tuple[str, int]] = []

    def drawn(loaded: str, sampler: Sampler, ids: Any, seed: int) -> tuple[None, float]:
        order.append((loaded, sampler.steps))
        return None, sampler.steps + (len(order) <= 3)  # the first round is slow

    monkeypatch.setattr(quality.stages, "read", lambda folder: SimpleNamespace(config=folder))
    monkeypatch.setattr(quality.measures, "both_splits", lambda *_: (None, None))
    monkeypatch.setattr(quality.measures, "asked", lambda *_: SimpleNamespace(ids=None))
    monkeypatch.setattr(quality.measures, "drawn", lambda loaded, *rest: drawn(
        loaded.config.name, *rest))  # fmt: skip
    quality._time(rows, quality.Options(rounds=3))
    assert order == [(quality.TEACHER, 8), (quality.TEACHER, 1), ("add_subgroups", 1)] * 3
    assert [row["seconds_per_image"] for row in rows[quality.TEACHER]] == [8, 8, 1, 1]
    assert [row["seconds_per_image"] for row in rows["add_subgroups"]] == [1, 1]


def test_runs_that_are_not_compared_and_several_graders_are_refused() -> None:
    with pytest.raises(UserError, match="runs/dit is none of diffusion, add"):
        quality.entries([evaluated(("runs/dit", 1, 2.0))])
    rows = quality.entries([evaluated(("runs/add", 1, 2.0))])
    other = json.loads(json.dumps(rows).replace(GRADER, "others"))
    with pytest.raises(UserError, match="graded by eyes, bicubic 32 and others"):
        quality._grader([*rows, *other])


def test_what_stands_beside_the_weights_is_taken_if_of_the_same_options(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.touch()
    os.utime(weights, (1000, 1000))

    def written(name: str, report: dict[str, Any], when: int = 2000) -> None:
        (tmp_path / name).write_text(json.dumps(report))
        os.utime(tmp_path / name, (when, when))

    written("quality.json", evaluated(("runs/add", 1, 2.0)))
    written("quality_b.json", evaluated(("runs/add", 2, 2.0), ("runs/add", 1, 5.0)))
    written("quality_old.json", evaluated(("runs/add", 4, 2.0)), when=500)
    written("quality_other.json", evaluated(("runs/add", 8, 2.0), grader="others"))
    written("quality_c.partial.json", evaluated(("runs/add", 16, 2.0)))
    written("quality_all.json", {"benchmark": "quality", "grader": GRADER, "rows": []})
    found = runs.standing(tmp_path, GRADER, 500)
    assert sorted(json.loads(key)["steps"] for key in found) == [1, 2]
    older = evaluated(("runs/add", 3, 2.0))
    for row in older["rows"]:
        del row["sampler"]["strength"]  # a field that came later
    written("quality_d.json", older)
    assert len(runs.standing(tmp_path, GRADER, 500)) == 3
    first = found[runs._key(Sampler(steps=1))][0]
    assert first["metrics"][f"frechet ({GRADER}; 400 samples)"]["value"] == 2.0
    assert runs.standing(tmp_path, GRADER, 300) == {}, "from 400 samples, not 300"
    lacking = evaluated(("runs/add", 5, 2.0))
    for row in lacking["rows"]:
        (name,) = (name for name in row["metrics"] if name.startswith("chance@1 "))
        del row["metrics"][name]
    written("quality_e.json", lacking)
    assert len(runs.standing(tmp_path, GRADER, 500)) == 3, "by older measures"


def test_a_command_that_is_out_of_time_saves_and_so_do_we(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "door.py").write_text(
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path('saved').touch(), sys.exit(75)))\n"
        "pathlib.Path('ready').touch()\n"
        "if '--fail' in sys.argv: sys.exit(3)\n"
        "time.sleep(0 if '--quick' in sys.argv else 60)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    runs.command("door", ["--quick"], Clock(0))
    with pytest.raises(UserError, match="door ended with exit code 3"):
        runs.command("door", ["--fail"], Clock(0))
    (tmp_path / "ready").unlink()
    wait = subprocess.Popen.wait

    def until_ready(process: subprocess.Popen, timeout: float | None = None) -> int:
        while timeout and timeout < runs.PATIENCE and not Path("ready").exists():
            pass
        return wait(process, 0.01 if timeout and timeout < runs.PATIENCE else timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", until_ready)
    with pytest.raises(SystemExit) as stop:
        runs.command("door", [], Clock(0.5))
    assert stop.value.code == EXIT_AGAIN
    assert (tmp_path / "saved").exists()
    assert "0.5 minutes are over" in capsys.readouterr().out


def test_what_was_evaluated_when_the_minutes_were_over_is_not_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "add" / "model.safetensors"
    weights.parent.mkdir()
    weights.touch()
    os.utime(weights, (1000, 1000))
    asked: list[str] = []

    def command(module: str, arguments: list[str], clock: Clock) -> None:
        told = dict(argument.removeprefix("--").split("=", 1) for argument in arguments)
        asked.append(told["steps"])
        if len(asked) == 2:
            raise SystemExit(EXIT_AGAIN)
        report = evaluated(*(("runs/add", int(n), 2.0) for n in told["steps"].split(",")))
        Path(told["out"]).write_text(json.dumps(report))

    monkeypatch.setattr(runs, "command", command)
    monkeypatch.setattr(runs.stages, "read", lambda folder: None)
    monkeypatch.setattr(runs.quality, "title_of", lambda features: GRADER)
    monkeypatch.setattr(
        runs.quality, "samplers", lambda loaded, counts, _: [Sampler(steps=n) for n in counts]
    )
    spec, budget = runs.Spec("add", "1,2,4"), runs.Budget(workdir=str(tmp_path))
    with pytest.raises(SystemExit):
        runs.measured(spec, budget, GRADER, Clock(0))
    rows = runs.measured(spec, budget, GRADER, Clock(0))
    assert asked == ["1", "2", "2", "4"]
    assert [row["sampler"]["steps"] for row in rows] == [1, 1, 2, 2, 4, 4]


def test_a_teacher_may_be_asked_for_without_guidance_too() -> None:
    shipped = runs.stages.read(runs.stages.shipped("diffusion"))
    found = runs.wanted_samplers(shipped, runs.Spec("diffusion", "50,1", unguided="1"))
    assert [(how.steps, how.guidance) for how in found if how] == [(50, 1.5), (1, 1.5), (1, 1.0)]


def test_table_and_plot_come_from_files_of_evaluate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"quality.json": "quality_add.json", "other.json": "quality_teacher_unguided.json"}
    files = {tmp_path / name: (RESULTS / "cpu-2" / its).read_text() for name, its in given.items()}
    for file, text in files.items():
        file.write_text(text)
    monkeypatch.setattr(machine, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(sys, "argv", ["door", "--name=ours", "--evaluated", *map(str, files)])
    quality.main()
    assert {file: file.read_text() for file in files} == files, "what was measured is kept"
    path = tmp_path / "results" / "cpu-2" / "quality_ours.json"
    found = json.loads(path.read_text())
    assert found["command"] == f"{quality.PROGRAM} --name=ours --evaluated quality.json other.json"
    assert found["rows"] == quality.entries([json.loads(text) for text in files.values()])
    assert found["targets"] == quality.judged(found["rows"])
    drawn = path.with_suffix(".png").read_bytes()
    path.with_suffix(".png").unlink()
    assert plots.drawn(tmp_path / "results") == [f"plot: {path.with_suffix('.png')}"]
    assert path.with_suffix(".png").read_bytes() == drawn


def test_the_committed_verdicts_and_tables_are_those_of_the_committed_numbers() -> None:
    reports = {path: json.loads(path.read_text()) for path in RESULTS.glob("*/quality*.json")}
    compared = {path: r for path, r in reports.items() if r.get("benchmark") == "quality"}
    assert compared
    for path, found in compared.items():
        assert found["targets"] == quality.judged(found["rows"])
        assert path.with_suffix(".md").read_text() == quality_report.markdown(found)


def test_neither_a_comparison_nor_what_would_be_overwritten_is_compared(
    refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "RESULTS", tmp_path)
    line = refused(quality.main, "--evaluated", str(RESULTS / "cpu-2" / "quality_shipped.json"))
    assert "is a comparison made of such files" in line
    path = tmp_path / "cpu-2" / "quality.json"
    path.parent.mkdir()
    path.write_text(json.dumps(evaluated(("runs/add", 1, 2.0))))
    line = refused(quality.main, "--evaluated", str(path))
    assert "is where the result goes" in line
    assert "benchmark" not in json.loads(path.read_text())


def test_no_device_is_used_before_another_process_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def used(*_: Any, **__: Any) -> None:
        raise AssertionError("a TPU is refused to the process that is started next")

    def command(*_: Any) -> None:
        raise SystemExit

    for name in ("device_put", "devices", "local_devices", "eval_shape", "jit"):
        monkeypatch.setattr(jax, name, used)
    monkeypatch.setattr(runs, "command", command)
    spec = runs.Spec("diffusion", "1")
    budget = runs.Budget(workdir=str(stages.shipped("diffusion").parent))
    grader = runs.grader_of([spec], budget)
    with pytest.raises(SystemExit):
        runs.measured(spec, budget, grader, Clock(0))


def test_a_file_that_evaluate_did_not_write_is_refused(refused, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[]")
    for name in ("a.json", "none.json"):
        line = refused(quality.main, "--evaluated", str(tmp_path / name))
        assert f"{name} is no file of jaxgen.evaluate" in line


def test_runs_of_another_config_or_of_older_weights_are_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, budget = runs.Spec("add", "1", roles=(("teacher", "diffusion"),)), runs.Budget(
        images=12 * 24, workdir=str(tmp_path))  # fmt: skip
    monkeypatch.setattr(runs, "command", lambda *_: pytest.fail("both are trained"))
    monkeypatch.setattr(runs.run, "finished_steps", lambda folder: 12)
    for seconds, name in enumerate(("diffusion", "add")):
        weights = tmp_path / name / runs.run.WEIGHTS
        weights.parent.mkdir()
        weights.touch()
        os.utime(weights, (seconds, seconds))
    arguments = ["--config=add", f"--workdir={tmp_path}", f"--data.name={budget.data}",
                 "--train.steps=12", f"--teacher={tmp_path}/diffusion"]  # fmt: skip
    config: Any = configs.parse(configs.load("add"), arguments[1:], "test")
    _describe(config)
    runs.train(spec, budget, Clock(0))
    os.utime(tmp_path / "diffusion" / runs.run.WEIGHTS, (2, 2))
    with pytest.raises(UserError, match=r"newer than what .*add made of its teacher"):
        runs.train(spec, budget, Clock(0))
    _describe(dataclasses.replace(config, r1=config.r1 + 1))
    with pytest.raises(UserError, match=r"holds a run with r1 .*; use another --workdir"):
        runs.train(spec, budget, Clock(0))


def _describe(config: Any) -> None:
    text = runs.run._description(config, "add", (), "")
    (config.folder / runs.run.CONFIG).write_text(text, encoding="utf-8")
    (config.folder / runs.run.TOKENIZER).touch()
