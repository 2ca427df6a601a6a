"""The feature networks in whose spaces images are compared: one door to all of them.

A number means nothing without its network and its resize: `FeatureNetwork.title` names both.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float, UInt8

from jaxgen.errors import UserError
from jaxgen.metrics.resize import bicubic, bilinear_tf1
from jaxgen.models.efficientnet import BLOCKS, EfficientNetLite0
from jaxgen.models.inception import Inception
from jaxgen.models.vit import CLIP_VIT_L_336, DINOV2_VIT_L, IMAGENET, ViT
from jaxgen.weights import files
from jaxgen.weights.efficientnet import load_efficientnet_lite0
from jaxgen.weights.inception import SHA256 as INCEPTION_SHA256
from jaxgen.weights.inception import load_inception
from jaxgen.weights.vit import clip_params, dinov2_params

CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class Description:
    """A feature network before its weights are there."""

    name: str
    """What the user calls it."""
    weights: str
    """Which weights, as published; part of the title."""
    resize: str
    """How images come to the network; part of the title."""
    dims: int
    """Length of a feature vector."""
    batch: int
    """Images that go through at a time."""
    source: str
    """Where the file of its weights is to be had; empty: none is needed."""
    load: Callable[[Path], Any]
    """Reads the weights from a file of the user's (ignored where none is needed)."""
    see: Callable[[Any, UInt8[Array, "b h w 3"]], Float[Array, "b dims"]]
    """From weights and images to features; compiled by `FeatureNetwork`."""
    sha256: str = ""
    """First digits of the checksum of the published file, where it is known."""
    learnt: str = ""
    """The data set that a classifier of jaxgen's own learnt."""

    @property
    def title(self) -> str:
        """Network and resize, as they stand beside every number."""
        return f"{self.weights}, {self.resize}"


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureNetwork:
    """A feature network with its weights.

    One that is not in `NETWORKS`, such as a classifier trained here, is made from a description
    of its own.
    """

    description: Description
    params: Any

    @property
    def title(self) -> str:
        """That of its description."""
        return self.description.title

    @functools.cached_property
    def digest(self) -> str:
        """Hash of the weights: with the title, the key under which features can be kept."""
        digest = hashlib.sha256()
        for path, leaf in sorted(flatten_dict(jax.device_get(self.params)).items()):
            digest.update(f"{path} {leaf.shape} {leaf.dtype}".encode())
            digest.update(np.ascontiguousarray(leaf).data)
        return digest.hexdigest()

    def features(self, images: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n dims"]:
        """A vector for each image, in float32 all through, batch by batch.

        Any number of images of one size. The last batch is filled up with black ones, so one
        program serves all.
        """
        see, size = self.description.see, self.description.batch
        found = [np.zeros((0, self.description.dims), np.float32)]
        for start in range(0, len(images), size):
            batch = np.asarray(images[start : start + size])
            filled = np.zeros((size, *batch.shape[1:]), np.uint8)
            filled[: len(batch)] = batch
            found.append(np.asarray(_seen(see, self.params, filled))[: len(batch)])
        return np.concatenate(found)


def open_network(name: str, path: Path | None) -> FeatureNetwork:
    """The network called `name` with its weights from `path`, a file; None for the embedded one.

    A file that is not known to be the published one has its checksum in the title.

    Raises:
        UserError: no network of that name; a file missing, not needed, damaged, or of another
            model. Where weights are missing it says where they are to be had.
    """
    if name not in NETWORKS:
        raise UserError(f"no feature network {name!r}; there are {', '.join(NETWORKS)}")
    found = NETWORKS[name]
    if not found.source:
        if path is not None:
            raise UserError(f"{name} brings its weights with it: leave {path} out")
        return FeatureNetwork(found, jax.device_put(found.load(Path())))
    if path is None:
        raise UserError(f"{name} needs the file of its weights, which you find at {found.source}")
    try:
        params = found.load(path)
        return FeatureNetwork(_of_file(found, path), jax.device_put(params))
    except UserError as error:
        reason = str(error).rstrip(".")
        raise UserError(f"{reason}; {name}'s weights are to be had at {found.source}") from None


def _of_file(found: Description, path: Path) -> Description:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if found.sha256 and digest.startswith(found.sha256):
        return found
    return dataclasses.replace(found, weights=f"{found.weights} (file SHA-256 {digest[:8]}…)")


@functools.partial(jax.jit, static_argnames="see")
def _seen(see: Callable[[Any, Array], Array], params: Any, images: Array) -> Array:
    with jax.default_matmul_precision("highest"):  # a metric is the same on every machine
        return see(params, images)


def _efficientnet(params: Any, images: Array) -> Array:
    """Mean of the last feature map, the one that the classifier of ImageNet reads.

    At 128 px also for emoji of 32 px: by trials by hand, a linear probe told more of their groups
    than at 32, 64 or 96 px, and more blurred, noisy ones found themselves first among all.
    """

    def pooled(network: EfficientNetLite0, x: Array) -> Array:
        (last,) = network.features(x, (len(BLOCKS) - 1,))
        return nn.relu6(network.head(last)).mean((1, 2))

    return nn.apply(pooled, EfficientNetLite0())(params, bicubic(images, 128) / 127.5 - 1.0)


def _inception(params: Any, images: Array) -> Array:
    return _inception_of(params, bicubic(images, 299))


def _inception_legacy(params: Any, images: Array) -> Array:
    return _inception_of(params, bilinear_tf1(images, 299))


def _inception_of(params: Any, pixels: Array) -> Any:
    return Inception().apply({"params": params}, (pixels - 128.0) / 128.0)


def _dinov2(params: Any, images: Array) -> Any:
    x = _normalised(bicubic(images, 224), IMAGENET)
    return ViT(DINOV2_VIT_L).apply({"params": params}, x).pooled  # pyright: ignore[reportAttributeAccessIssue]


def _clip(params: Any, images: Array) -> Any:
    x = _normalised(bicubic(images, 336), CLIP)
    return ViT(CLIP_VIT_L_336).apply({"params": params}, x).pooled  # pyright: ignore[reportAttributeAccessIssue]


def _normalised(pixels: Array, statistics: tuple[tuple[float, ...], tuple[float, ...]]) -> Array:
    mean, deviation = (jnp.asarray(values) for values in statistics)
    return (pixels / 255.0 - mean) / deviation


_INCEPTION_SOURCE = (
    "release v0.2.0 of toshas/torch-fidelity on GitHub (weights-inception-2015-12-05-6726825d.pth)"
)
_SAFETENSORS = "on the Hugging Face Hub (model.safetensors, or what save_pretrained makes of it)"

NETWORKS = {
    description.name: description
    for description in (
        Description(
            name="efficientnet-lite0",
            weights="efficientnet-lite0 ImageNet",
            resize="bicubic 128",
            dims=1280,
            batch=64,
            source="",
            load=lambda _: load_efficientnet_lite0(),
            see=_efficientnet,
        ),
        Description(
            name="inception",
            weights="inception-2015-12-05",
            resize="clean-fid bicubic 299",
            dims=2048,
            batch=32,
            source=_INCEPTION_SOURCE,
            load=load_inception,
            sha256=INCEPTION_SHA256,
            see=_inception,
        ),
        Description(
            name="inception-legacy",
            weights="inception-2015-12-05",
            resize="TF-1 bilinear 299",
            dims=2048,
            batch=32,
            source=_INCEPTION_SOURCE,
            load=load_inception,
            sha256=INCEPTION_SHA256,
            see=_inception_legacy,
        ),
        Description(
            name="dinov2-vitl14",
            weights="DINOv2 ViT-L/14",
            resize="bicubic 224",
            dims=1024,
            batch=16,
            source=f"facebook/dinov2-large {_SAFETENSORS}",
            load=lambda path: dinov2_params(files.load(path)[0], DINOV2_VIT_L),
            see=_dinov2,
        ),
        Description(
            name="clip-vitl14-336",
            weights="CLIP ViT-L/14-336",
            resize="bicubic 336",
            dims=768,
            batch=16,
            source=f"openai/clip-vit-large-patch14-336 {_SAFETENSORS}",
            load=lambda path: clip_params(files.load(path)[0], CLIP_VIT_L_336),
            see=_clip,
        ),
    )
}
