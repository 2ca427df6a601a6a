"""Checkpoints read as torch.load reads them, and never run."""

import hashlib
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch

from jaxgen.errors import UserError
from jaxgen.weights import efficientnet
from jaxgen.weights.pickles import load_tensors

BASE = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4) / 7
TENSORS = {
    "plain": BASE,
    "transposed": BASE.permute(2, 0, 1),
    "part": BASE[1, 1:],
    "scalar": torch.tensor(3, dtype=torch.int64),
    "half": torch.tensor([1.5, -2.0], dtype=torch.float16),
    "bool": torch.tensor([True, False]),
    "double": torch.tensor([[0.1]], dtype=torch.float64),
    "empty": torch.zeros(0, 3),
}


def checksum(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def load(path):
    return load_tensors(path, checksum(path))


@pytest.mark.parametrize("zipped", [True, False])
def test_reads_what_torch_wrote(tmp_path, zipped):
    path = tmp_path / "weights.pth"
    torch.save(TENSORS, path, _use_new_zipfile_serialization=zipped)
    read = load(path)
    assert list(read) == list(TENSORS)
    for name, tensor in TENSORS.items():
        assert read[name].dtype == tensor.numpy().dtype
        np.testing.assert_array_equal(read[name], tensor.numpy())


def test_published_weights_are_those_of_torch_load():
    path = efficientnet.weights_path()
    expected = torch.load(path, weights_only=True)
    read = load(path)
    assert list(read) == list(expected)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(read[name], tensor.numpy())


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("place", ["value", "before"])
@pytest.mark.parametrize("zipped", [True, False])
def test_malicious_checkpoint_is_refused_and_not_run(tmp_path, zipped, place):
    marker = tmp_path / "ran"
    path = tmp_path / "weights.pth"
    evil = Malicious(marker)
    if place == "value":
        torch.save({"w": BASE, "evil": evil}, path, _use_new_zipfile_serialization=zipped)
    elif zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("weights/data.pkl", pickle.dumps(evil))
    else:
        path.write_bytes(pickle.dumps(evil))
    with pytest.raises(UserError, match="system"):
        load(path)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["builtins eval", "torch.nn.modules.linear Linear", "os listdir"])
def test_no_other_name_is_reachable(tmp_path, name):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"c" + name.replace(" ", "\n").encode() + b"\n.")
    with pytest.raises(UserError, match=name.replace(" ", ".")):
        load(path)


def test_another_file_than_the_pinned_one_is_refused(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(TENSORS, path)
    pinned = checksum(path)
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(UserError, match=r"weights\.pth is not the expected file"):
        load_tensors(path, pinned)


def test_a_checksum_is_known_by_its_first_eight_digits(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(TENSORS, path)
    known = checksum(path)[:8]
    assert list(load_tensors(path, known)) == list(TENSORS)
    other = "0" * 7 + ("1" if known.startswith("0") else "0")
    with pytest.raises(UserError, match=rf"not {other}\): copy it again"):
        load_tensors(path, other, remedy="copy it again")
    with pytest.raises(ValueError, match="too short"):
        load_tensors(path, known[:7])


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"absent\.pth"):
        load_tensors(tmp_path / "absent.pth", "0" * 64)


@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_checkpoint_is_a_user_error(tmp_path, zipped):
    path = tmp_path / "weights.pth"
    torch.save(TENSORS, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    for size in (0, 10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(UserError, match="not a PyTorch checkpoint"):
            load(path)


def test_tensor_cannot_reach_past_its_storage(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"w": torch.ones(4)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    # The shape (4,) is pickled as K\x04 in a tuple; the storage's own count is not touched.
    assert content.count(b"K\x04\x85") == 1
    path.write_bytes(content.replace(b"K\x04\x85", b"K\xff\x85"))
    with pytest.raises(UserError, match="past the end"):
        load(path)


def test_anything_but_tensors_is_refused(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"epoch": 3}, path)
    with pytest.raises(UserError, match="it holds a int"):
        load(path)


def test_legacy_layout_starts_with_its_magic_number(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps(struct.calcsize("i")) * 4)
    with pytest.raises(UserError, match="another format"):
        load(path)
