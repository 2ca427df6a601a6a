"""Beside diffusers: what is missing or cannot be compiled takes nothing else with it."""

import importlib
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import machine, vs_diffusers
from benchmarks.vs_diffusers import Options
from jaxgen.models.unet import SDXL_UNET
from jaxgen.text.encoder import CLIP_L, OPENCLIP_BIGG
from jaxgen.weights import layouts

# What XL has beside the others: two text encoders, and the pooled words and sizes that it is told.
TINY_XL = {
    "unet": {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": [2, 4],
        "transformer_layers_per_block": [1, 2],
        "cross_attention_dim": 40,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 6 * 4 + 12,
    },
    "vae": {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4},
    "text": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vocab_size": 49408,
    },
    "text_2": {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "vocab_size": 49408,
        "hidden_act": "gelu",
        "projection_dim": 12,
    },
}
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


def test_what_does_not_fit_leaves_all_else_written(drawn: dict[str, Any], tmp_path: Path) -> None:
    def compiled(ids: Any, noise: Any) -> Any:
        if len(ids) > 1:
            raise MemoryError
        return PICTURE

    drawn["compile"] = compiled
    with pytest.raises(MemoryError):
        vs_diffusers.measure(Options(batches=(1, 2), repeats=1))
    (path,) = tmp_path.rglob("vs_diffusers_tiny_float32.json")
    rows = [(row["batch"], row["who"]) for row in json.loads(path.read_text())["rows"]]
    assert rows == [(1, "jaxgen"), (1, "eager"), (1, "compile"), (2, "jaxgen"), (2, "eager")]


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


def test_xl_is_drawn_by_both_alike_and_by_its_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In miniature, and with louder weights than a new network's, which hardly listens to words.

    What is compiled is left to the machines that have a compiler.
    """
    monkeypatch.setitem(vs_diffusers.SHAPES, "tiny_xl", TINY_XL)
    monkeypatch.setattr(machine, "RESULTS", tmp_path)
    monkeypatch.setattr("torch.compile", lambda network: network)
    options: Any = Options(shape="tiny_xl", batches=(2,), repeats=1)  # pyright: ignore[reportArgumentType]
    made: list[dict[str, vs_diffusers.Draw]] = []
    write, save = vs_diffusers._torch, vs_diffusers._save

    def louder(folder: Path, unet: Any, vae: Any, texts: list[Any]) -> None:
        with torch.no_grad():
            for weight in itertools.chain(*(part.parameters() for part in (unet, vae, *texts))):
                weight += 0.05 * torch.randn(weight.shape)
        save(folder, unet, vae, texts)

    monkeypatch.setattr(vs_diffusers, "_save", louder)
    monkeypatch.setattr(vs_diffusers, "_torch", lambda *a: made.append(write(*a)) or made[0])
    rows = json.loads(vs_diffusers.measure(options).read_text())["rows"]
    assert [row["who"] for row in rows] == ["jaxgen", "eager", "compile"]
    assert max(row["largest_difference"] for row in rows) <= 1
    noise = np.random.default_rng(0).normal(size=(2, 8, 8, 4)).astype(np.float32)
    ids = np.random.default_rng(0).integers(1, 49000, (2, 2 * 77))
    one, other = made[0]["eager"](ids, noise[[0, 0]]).astype(int)
    assert np.abs(one - other).max() > 8


def test_xl_is_the_published_shape() -> None:
    shape = vs_diffusers.SHAPES["sdxl"]
    assert layouts.unet(shape["unet"], "unet") == SDXL_UNET
    for name, known in (("text", CLIP_L), ("text_2", OPENCLIP_BIGG)):
        text = shape[name]
        told = (text["hidden_size"], text["num_hidden_layers"], text["num_attention_heads"])
        assert told == (known.width, known.layers, known.heads)
        assert text.get("hidden_act", "quick_gelu") == known.activation
        assert text.get("projection_dim", 0) == known.projection
