"""Weights in safetensors files."""

from pathlib import Path

import numpy as np
import pytest

from jaxgen.errors import UserError
from jaxgen.weights import files


@pytest.fixture
def tree() -> dict:
    rng = np.random.default_rng(0)
    table = np.zeros((1000, 8), np.float32)
    table[[3, 500, 999]] = rng.normal(size=(3, 8))
    return {"text": {"table": table}, "unet": {"a": {"kernel": rng.normal(size=(3, 4))}}}


def test_a_tree_comes_back_as_it_was_and_zero_rows_take_no_room(tree: dict, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    files.save(path, tree, {"step": "12"})
    loaded, metadata = files.load(path)
    assert metadata["step"] == files.load_metadata(path)["step"] == "12"
    np.testing.assert_array_equal(loaded["text"]["table"], tree["text"]["table"])
    np.testing.assert_allclose(loaded["unet"]["a"]["kernel"], tree["unet"]["a"]["kernel"], 1e-6)
    assert path.stat().st_size < 1000
    assert not [p for p in tmp_path.iterdir() if p != path], "nothing half-written is left"


def test_float16_keeps_three_digits(tree: dict, tmp_path: Path) -> None:
    files.save(tmp_path / "half", tree, {}, dtype="float16")
    loaded, _ = files.load(tmp_path / "half")
    np.testing.assert_allclose(loaded["unet"]["a"]["kernel"], tree["unet"]["a"]["kernel"], 1e-3)


@pytest.mark.parametrize("keep", [0, 5, 200])
def test_a_truncated_file_is_one_line(tree: dict, tmp_path: Path, keep: int) -> None:
    path = tmp_path / "model.safetensors"
    files.save(path, tree, {})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read"):
        files.load(path)
