"""The comparison of all methods: what was measured before stays only where it may."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import check_readme, machine, methods, runs
from benchmarks.machine import RESULTS
from jaxgen.diffusion.sampler import Sampler
from jaxgen.errors import UserError
from jaxgen.metrics.measures import NAMES

COMMITTED = RESULTS / "cpu-2" / "methods.json"


def test_rows_of_other_methods_stay_where_all_options_are_the_same(tmp_path: Path) -> None:
    report = json.loads(COMMITTED.read_text(encoding="utf-8"))
    found = methods.standing(report, COMMITTED)
    assert list(found) == [spec.config for spec in methods.SPECS]
    assert [row for rows in found.values() for row in rows] == report["rows"]
    for name in methods.COMPARED:
        with pytest.raises(UserError, match=f"was measured with another {name}; leave --only out"):
            methods.standing(report | {name: "another"}, COMMITTED)
    assert methods.standing(report, tmp_path / "methods.json") == {}


def test_rows_by_older_measures_are_marked_beside_those_of_today() -> None:
    report = json.loads(COMMITTED.read_text(encoding="utf-8"))
    estimate = {"value": 0.5, "low": 0.4, "high": 0.6}
    older, newer = report["rows"][0], dict(report["rows"][-1])
    assert methods.unknown(older) == {"chance@1", "chance@5", "chance@10"}
    for captions in ("training", "held-out"):
        newer[captions] = dict.fromkeys(NAMES, estimate)
    text = methods.markdown(report | {"rows": [older, newer]})
    assert text.count(f"| {older['commit']} † |") == 2
    assert text.count(f"| {newer['commit']} |") == 2
    assert "† By older measures, without chance@1, chance@5, chance@10" in text
    assert "†" not in methods.markdown(report | {"rows": [newer]})


def test_a_table_says_where_its_seconds_are_of_several_machines() -> None:
    report = json.loads(COMMITTED.read_text(encoding="utf-8"))
    rows = [{**row, "processor": "one"} for row in report["rows"]]
    assert "Seconds are of" not in methods.markdown(report | {"rows": rows})
    rows[0]["processor"] = "another"
    assert "Seconds are of several machines: another, one." in methods.markdown(
        {**report, "rows": rows}
    )


@pytest.mark.parametrize(
    ("how", "usual", "title"),
    [
        ({"steps": 50, "guidance": 1.5}, Sampler(guidance=1.5), "50 steps"),
        ({"steps": 1, "guidance": 1.0}, Sampler(guidance=1.5), "1 step, unguided"),
        ({"steps": 4, "guidance": 1.0}, Sampler(guidance=1.0), "4 steps"),
        (None, None, "reconstructed"),
    ],
)
def test_rows_are_called_by_steps_and_by_guidance_that_is_not_the_usual(
    how: dict[str, Any] | None, usual: Sampler | None, title: str
) -> None:
    assert methods._title(how, usual) == title


def test_no_device_is_used_before_the_evaluations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = json.loads(COMMITTED.read_text(encoding="utf-8"))
    order = []
    monkeypatch.setattr(sys, "argv", ["methods", "--only=gan", f"--workdir={tmp_path}"])
    monkeypatch.setattr(machine, "RESULTS", tmp_path)
    monkeypatch.setattr(
        machine, "asked", lambda batch: (order.append("asked"), report)[1]["hardware"]
    )
    monkeypatch.setattr(machine, "hardware", lambda: order.append("used, and a TPU is refused"))
    monkeypatch.setattr(runs, "prepare", lambda workdir: None)
    monkeypatch.setattr(runs, "train", lambda *_: None)
    monkeypatch.setattr(runs, "grader_of", lambda *_: "grader")
    monkeypatch.setattr(methods.quality, "title_of", lambda features: "a grader")

    def measured(*_: Any) -> None:
        order.append("evaluated")
        raise SystemExit

    monkeypatch.setattr(runs, "measured", measured)
    with pytest.raises(SystemExit):
        methods.main()
    assert order == ["asked", "evaluated"]


def test_the_committed_table_and_grid_are_made_of_the_committed_numbers_and_columns() -> None:
    report = check_readme.of_file(COMMITTED)
    text = COMMITTED.with_suffix(".md").read_text(encoding="utf-8")
    assert methods.markdown(report) == text
    # A row for each method, sampler and set of captions, with as many cells as there are titles.
    rows = [line for line in text.splitlines() if re.match(r"\| [a-z_]+ \| [0-9a-f]{7}", line)]
    assert len(rows) == 2 * len(report["rows"])
    titles = next(line for line in text.splitlines() if line.startswith("| method"))
    assert {row.count(" |") for row in rows} == {titles.count(" |")}
    grid = methods._grid(report, COMMITTED.with_suffix(""))
    committed = Image.open(COMMITTED.with_suffix(".png")).convert("RGB")
    np.testing.assert_array_equal(np.asarray(grid), np.asarray(committed))
