"""Feature networks: the right pixels go in, one vector an image comes out, faults are one line."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
)

from jaxgen.data.openmoji import draw
from jaxgen.errors import UserError
from jaxgen.metrics import networks
from jaxgen.metrics.networks import NETWORKS, FeatureNetwork, open_network
from jaxgen.models.efficientnet import EfficientNetLite0

TINY: Any = {"width": 32, "depth": 1, "heads": 2}
TINY_TORCH: Any = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """A grinning face, a red heart, a dog, a car and the sun."""
    return np.stack([draw(code, 24) for code in ("1F600", "2764", "1F415", "1F697", "2600")])


@pytest.fixture(scope="module")
def embedded() -> FeatureNetwork:
    return in_twos(open_network("efficientnet-lite0", None), dims=1280)


@pytest.fixture(scope="module")
def features(embedded: FeatureNetwork, images: np.ndarray) -> np.ndarray:
    return embedded.features(images)


def in_twos(network: FeatureNetwork, dims: int) -> FeatureNetwork:
    description = dataclasses.replace(network.description, batch=2, dims=dims)
    return dataclasses.replace(network, description=description)


def pillow(image: np.ndarray, size: int) -> np.ndarray:
    """Each channel by Pillow's bicubic filter in floating point, clipped."""
    channels = [Image.fromarray(c) for c in image.astype(np.float32).transpose(2, 0, 1)]
    resized = [np.asarray(c.resize((size, size), Image.Resampling.BICUBIC)) for c in channels]
    return np.stack(resized, axis=-1).clip(0, 255)


def test_the_embedded_network_sees_what_its_classifier_reads(
    embedded: FeatureNetwork, images: np.ndarray, features: np.ndarray
) -> None:
    pixels = networks.bicubic(jax.numpy.asarray(images[:2]), 128) / 127.5 - 1
    logits = jax.jit(EfficientNetLite0().apply)(embedded.params, pixels)
    classifier = embedded.params["params"]["classifier"]
    expected = features[:2] @ classifier["kernel"] + classifier["bias"]
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert embedded.title == "efficientnet-lite0 ImageNet, bicubic 128"


def test_features_do_not_depend_on_the_batch(
    embedded: FeatureNetwork, images: np.ndarray, features: np.ndarray
) -> None:
    assert features.shape == (5, embedded.description.dims)
    assert features.dtype == np.float32
    alone = np.concatenate([embedded.features(images[i : i + 1]) for i in (4, 3, 0)])
    np.testing.assert_allclose(alone, features[[4, 3, 0]], atol=1e-5)
    assert embedded.features(images[:0]).shape == (0, 1280)


def test_an_image_is_nearer_to_itself_with_noise_than_to_others(
    embedded: FeatureNetwork, images: np.ndarray, features: np.ndarray
) -> None:
    noise = np.random.default_rng(1).integers(-9, 10, images.shape)
    noisy = embedded.features((images + noise).clip(0, 255).astype(np.uint8))
    distances = np.linalg.norm(noisy[:, None] - features, axis=-1)
    assert distances.argmin(axis=1).tolist() == [0, 1, 2, 3, 4]


def test_the_digest_is_that_of_the_weights(embedded: FeatureNetwork) -> None:
    params = jax.tree.map(np.array, embedded.params)
    assert FeatureNetwork(embedded.description, params).digest == embedded.digest
    params["params"]["stem"]["bias"][3] += 1e-3
    assert FeatureNetwork(embedded.description, params).digest != embedded.digest


def test_both_inceptions_get_the_pixels_that_they_are_known_by(
    images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Mirror:
        def apply(self, params: Any, x: Any) -> Any:
            return x

    monkeypatch.setattr(networks, "Inception", Mirror)
    seen = {name: NETWORKS[name].see({}, images[:1]) for name in ("inception", "inception-legacy")}  # pyright: ignore[reportArgumentType]
    image = images[0]
    np.testing.assert_allclose(seen["inception"][0] * 128 + 128, pillow(image, 299), atol=1e-2)
    # Legacy resizing starts at the middle of the first pixel.
    np.testing.assert_allclose(seen["inception-legacy"][0, 0, 0] * 128 + 128, image[0, 0])
    assert np.abs(seen["inception"] - seen["inception-legacy"]).max() > 0.1


def dinov2() -> Any:
    return Dinov2Model(Dinov2Config(**TINY_TORCH, patch_size=14, image_size=518))


def clip() -> Any:
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            **TINY_TORCH, intermediate_size=128, projection_dim=16, patch_size=14, image_size=336
        )
    )


@pytest.mark.parametrize(
    ("name", "constant", "model", "size", "output", "mean", "deviation"),
    [
        (
            "dinov2-vitl14",
            "DINOV2_VIT_L",
            dinov2,
            224,
            "pooler_output",
            [0.485, 0.456, 0.406],
            [0.229, 0.224, 0.225],
        ),
        (
            "clip-vitl14-336",
            "CLIP_VIT_L_336",
            clip,
            336,
            "image_embeds",
            [0.48145466, 0.4578275, 0.40821073],
            [0.26862954, 0.26130258, 0.27577711],
        ),
    ],
    ids=["DINOv2", "CLIP"],
)
def test_from_a_file_to_features_as_transformers(
    name: str,
    constant: str,
    model: Any,
    size: int,
    output: str,
    mean: list[float],
    deviation: list[float],
    images: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    theirs = model().eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.2)
    pixels = np.stack([pillow(image, size) for image in images[:3]]) / 255
    pixels = torch.from_numpy((pixels - mean) / deviation).float().permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = getattr(theirs(pixels), output)
    path = tmp_path / "model.safetensors"
    save_file({key: x.contiguous() for key, x in theirs.state_dict().items()}, path)
    # transformers resamples positions by the plain ratio of the sides.
    small = dataclasses.replace(getattr(networks, constant), **TINY, offset=0.0)
    small = dataclasses.replace(small, projection=16 if small.projection else 0)
    monkeypatch.setattr(networks, constant, small)
    network = open_network(name, path)
    ours = in_twos(network, dims=len(expected[0])).features(images[:3])
    np.testing.assert_allclose(ours, expected, atol=2e-3)
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    assert f"(file SHA-256 {checksum}…), bicubic" in network.title, "not the published weights"


def test_only_the_published_file_has_the_plain_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "inception.safetensors"
    path.write_bytes(b"weights")
    checksum = hashlib.sha256(b"weights").hexdigest()
    known = dataclasses.replace(NETWORKS["inception"], load=lambda _: {})
    assert known.sha256, "as far as its name says"
    for published, title in (
        (
            known.sha256,
            f"inception-2015-12-05 (file SHA-256 {checksum[:8]}…), clean-fid bicubic 299",
        ),
        (checksum[:8], "inception-2015-12-05, clean-fid bicubic 299"),
    ):
        chosen = dataclasses.replace(known, sha256=published)
        monkeypatch.setitem(NETWORKS, "inception", chosen)
        assert open_network("inception", path).title == title


@pytest.mark.parametrize("name", [name for name in NETWORKS if NETWORKS[name].source])
def test_absent_weights_say_where_they_are_to_be_had(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as none:
        open_network(name, None)
    with pytest.raises(UserError, match=r"absent\.safetensors") as absent:
        open_network(name, tmp_path / "absent.safetensors")
    for error in (none, absent):
        assert NETWORKS[name].source in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("model.safetensors", "(do not fit this network|holds another network)"),
        ("model.pth", r"(model\.pth cannot be read|model\.pth is not the expected file)"),
        ("", "cannot (be read|read the weights)"),
    ],
    ids=["another model", "another format", "a folder"],
)
@pytest.mark.parametrize("name", ["inception", "dinov2-vitl14"])
def test_files_that_do_not_serve_are_one_line(
    name: str, file: str, message: str, tmp_path: Path
) -> None:
    save_file({"stem.weight": torch.zeros(3, 3)}, tmp_path / "model.safetensors")
    torch.save({"stem.weight": torch.zeros(3, 3)}, tmp_path / "model.pth")
    with pytest.raises(UserError, match=message) as error:
        open_network(name, tmp_path / file)
    assert NETWORKS[name].source in str(error.value)


def test_unknown_names_and_needless_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'resnet'; there are efficientnet-lite0, inception, "):
        open_network("resnet", None)
    with pytest.raises(UserError, match="brings its weights with it"):
        open_network("efficientnet-lite0", tmp_path)
