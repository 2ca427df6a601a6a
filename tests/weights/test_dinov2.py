"""DINOv2's file for the judge: whoever named its tensors, and one line where it does not serve."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from transformers import Dinov2Config, Dinov2Model

from jaxgen.errors import UserError
from jaxgen.models.vit import DINOV2_VIT_S
from jaxgen.weights import vit

TINY = dataclasses.replace(DINOV2_VIT_S, patch=4, width=8, depth=2, heads=2, size=16)
AUTHORS = (
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.mask_token", "mask_token"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
    ("encoder.layer.", "blocks."),
    ("layer_scale1.lambda1", "ls1.gamma"),
    ("layer_scale2.lambda1", "ls2.gamma"),
    ("attention.o_proj", "attn.proj"),
    ("attention.output.dense", "attn.proj"),
    ("layernorm", "norm"),
)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vit, "DINOV2_VIT_S", TINY)


def transformers(width: int = 8, layers: int = 2) -> dict[str, np.ndarray]:
    torch.manual_seed(0)
    model = Dinov2Model(
        Dinov2Config(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=2,
            image_size=16,
            patch_size=4,
        )
    )
    return {k: torch.randn_like(v).numpy() for k, v in model.state_dict().items()}


def authors(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The names of the authors and of timm, with query, key and value one below the other."""
    found: dict[str, Any] = {}
    parts: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in state.items():
        for old, new in AUTHORS:
            name = name.replace(old, new)
        head, _, last = name.partition(".attention.")
        if last:
            part, kind = last.removeprefix("attention.").split(".")
            parts.setdefault(f"{head}.attn.qkv.{kind}", {})[part[0]] = tensor
        else:
            found[name] = tensor
    return found | {k: np.concatenate([v[p] for p in "qkv"]) for k, v in parts.items()}


def saved(path: Path, state: dict[str, np.ndarray]) -> str:
    save_file(state, path)
    return str(path)


def test_both_namings_are_the_same_network(tmp_path: Path) -> None:
    state = transformers()
    fused = authors(state)
    assert fused["blocks.0.attn.qkv.weight"].shape == (24, 8)
    assert {"pos_embed", "ls1.gamma"} <= {name.removeprefix("blocks.1.") for name in fused}
    ours = vit.load_dinov2_vits14(saved(tmp_path / "a.safetensors", state))
    theirs = vit.load_dinov2_vits14(saved(tmp_path / "b.safetensors", fused))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    del fused["mask_token"]  # timm leaves it out
    vit.load_dinov2_vits14(saved(tmp_path / "c.safetensors", fused))


EARLY = """
import dataclasses, sys, jax
from jaxgen.weights import vit
small = {"patch": 4, "width": 8, "depth": 2, "heads": 2, "size": 16}
vit.DINOV2_VIT_S = dataclasses.replace(vit.DINOV2_VIT_S, **small)
vit.load_dinov2_vits14(sys.argv[1])
jax.config.update("jax_num_cpu_devices", 3)
assert len(jax.devices()) == 3
"""


def test_the_file_is_read_before_devices_are_counted(tmp_path: Path) -> None:
    """As a plan is, and JAX takes no number of devices any more once it has some."""
    file = saved(tmp_path / "a.safetensors", transformers())
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", EARLY, file]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (transformers(width=12, layers=4), "class_token is (12,), the network's is (8,)"),
        (transformers(layers=3), "18 tensors left over, first block.2."),
        (
            authors(transformers()) | {"register_tokens": np.zeros((1, 4, 8), np.float32)},
            "1 tensors left over, first register_tokens (1, 4, 8)",
        ),
        (
            transformers() | {"layernorm.weight": np.zeros(9, np.float32)},
            "norm.weight is (9,), the network's is (8,)",
        ),
    ],
    ids=["wider", "deeper", "with registers", "one tensor"],
)
def test_other_networks_are_refused_by_the_tensor(
    tmp_path: Path, state: dict[str, np.ndarray], words: str
) -> None:
    file = saved(tmp_path / "other.safetensors", state)
    line = refused(file)
    assert words in line
    assert file in line


def test_what_is_no_file_of_weights_says_where_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "torn.safetensors").write_bytes(b"x" * 20)
    torch.save({}, tmp_path / "dinov2_vits14_pretrain.pth")
    for file, words in (
        ("", "does not come with jaxgen"),
        (str(tmp_path / "absent.safetensors"), "absent.safetensors cannot be read"),
        (str(tmp_path / "torn.safetensors"), "torn.safetensors cannot be read"),
        (str(tmp_path / "dinov2_vits14_pretrain.pth"), "a pickle is not opened, as it may run any"),
    ):
        line = refused(file)
        assert words in line
        assert "facebook/dinov2-small and timm/vit_small_patch14_dinov2.lvd142m" in line
        assert line.endswith("have it as model.safetensors")


def refused(file: str) -> str:
    with pytest.raises(UserError) as error:
        vit.load_dinov2_vits14(file)
    assert "\n" not in str(error.value)
    return str(error.value)
