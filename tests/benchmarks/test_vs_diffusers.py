"""Beside diffusers: what is missing or cannot be compiled takes nothing else with it."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import machine, vs_diffusers
from benchmarks.vs_diffusers import Options

PICTURE = np.zeros((1, 2, 2, 3), np.uint8)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """Draws of no time, and the folder of the results."""
    draws: dict[str, Any] = {"eager": lambda ids, noise: PICTURE}
    draws["compile"] = lambda ids, noise: PICTURE
    monkeypatch.setattr(machine, "RESULTS", tmp_path)
    monkeypatch.setattr(vs_diffusers, "_torch", lambda folder, options: draws)
    monkeypatch.setattr(vs_diffusers.stages, "read", lambda folder: None)
    monkeypatch.setattr(vs_diffusers, "_jaxgen", lambda *_: (lambda: PICTURE, PICTURE))
    return draws


def test_what_cannot_be_compiled_is_left_out(drawn: dict[str, Any]) -> None:
    def compiled(ids: Any, noise: Any) -> Any:
        raise RuntimeError("Cannot find a working triton installation")

    drawn["compile"] = compiled
    report = json.loads(vs_diffusers.measure(Options(batches=(1, 2), repeats=1)).read_text())
    assert [(row["batch"], row["who"]) for row in report["rows"]] == [
        (batch, who) for batch in (1, 2) for who in ("jaxgen", "eager")
    ]


def test_a_batch_that_does_not_fit_leaves_the_others_written(
    drawn: dict[str, Any], tmp_path: Path
) -> None:
    def compiled(ids: Any, noise: Any) -> Any:
        if len(ids) > 1:
            raise MemoryError
        return PICTURE

    drawn["compile"] = compiled
    with pytest.raises(MemoryError):
        vs_diffusers.measure(Options(batches=(1, 2), repeats=1))
    (path,) = tmp_path.rglob("vs_diffusers_tiny_float32.json")
    assert [row["batch"] for row in json.loads(path.read_text())["rows"]] == [1, 1, 1]


def test_without_diffusers_it_says_so_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def import_module(name: str, *rest: Any, **more: Any) -> Any:
        raise ModuleNotFoundError("No module named 'diffusers'")

    monkeypatch.setattr(importlib, "import_module", import_module)
    monkeypatch.setattr(machine, "without_broken_torchvision", lambda: None)
    monkeypatch.setattr(sys, "argv", ["vs_diffusers"])
    with pytest.raises(SystemExit) as ended:
        vs_diffusers.main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "No module named 'diffusers'" in said
