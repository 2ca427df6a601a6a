"""Inception v3 of 2015-12-05 computes torch-fidelity's features."""

import dataclasses
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest
import torch
from reference import torch_fidelity
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from jaxgen.errors import UserError
from jaxgen.metrics.resize import bilinear_tf1
from jaxgen.models.inception import Inception
from jaxgen.weights import inception as weights

assert torch_fidelity
SIZE = 139  # the same layers over a fifth of the pixels


@dataclasses.dataclass(frozen=True)
class Published:
    """torch-fidelity's network, with random weights, and its state dict."""

    network: Any
    state: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def published() -> Published:
    """Weights that keep the scale of the maps, and no batch normalisation that does nothing."""
    with mock.patch.object(torch, "load"), mock.patch.object(torch.nn.Module, "load_state_dict"):
        network = FeatureExtractorInceptionV3("inception", ["2048"], "absent")
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
        if isinstance(module, torch.nn.BatchNorm2d):
            for name in ("weight", "running_var"):
                getattr(module, name).uniform_(0.7, 1.3)
            for name in ("bias", "running_mean"):
                getattr(module, name).uniform_(-0.3, 0.3)
    return Published(network, {name: x.numpy() for name, x in network.state_dict().items()})


def test_features_from_pixels_are_those_of_torch_fidelity(
    published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FeatureExtractorInceptionV3, "INPUT_IMAGE_SIZE", SIZE)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)

    def see(params: Any, images: Any) -> Any:
        pixels = bilinear_tf1(images, SIZE)
        return Inception().apply({"params": params}, (pixels - 128) / 128)

    fast_to_compile = {"xla_backend_optimization_level": 0}
    ours = jax.jit(see, compiler_options=fast_to_compile)(
        weights.from_torch(published.state), images
    )
    with torch.no_grad():
        (theirs,) = published.network(torch.from_numpy(images).permute(0, 3, 1, 2))
    assert theirs.std(0).mean() > 1e-2, "the two images differ in the features"
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4)


def test_the_published_file_is_known_by_its_checksum(
    published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "inception.pth"
    torch.save({"fc.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(UserError, match="not 6726825d"):
        weights.load_inception(path)
    monkeypatch.setattr(weights, "load_tensors", lambda *_, **__: published.state)
    loaded = weights.load_inception(path)
    assert loaded["Mixed_7c"]["branch_pool"]["kernel"].shape == (1, 1, 2048, 192)


def test_other_networks_are_refused(published: Published) -> None:
    with pytest.raises(UserError, match=r"fc\.weight is \(1000, 2048\), not \(1008, 2048\)"):
        weights.from_torch(published.state | {"fc.weight": np.zeros((1000, 2048), np.float32)})
    with pytest.raises(UserError, match=r"another network .* fc\.weight is missing"):
        weights.from_torch({"conv.weight": np.zeros((3, 3, 3, 3), np.float32)})
    name = "Mixed_7c.branch_pool.bn.running_var"
    without = {key: x for key, x in published.state.items() if key != name}
    with pytest.raises(UserError, match=f"{name} is missing"):
        weights.from_torch(without)
