"""Inception v3 of 2015-12-05, FID's own network, from the PyTorch file that all ports share."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxgen.errors import UserError
from jaxgen.models.inception import Inception
from jaxgen.weights import files
from jaxgen.weights.pickles import load_tensors

SHA256 = "6726825d"  # the first digits, which the published file's name ends with
_EPS = 1e-3
_CLASSES = 1008  # torchvision's Inception v3 has the same names, but 1000 classes


def load_inception(path: Path) -> dict[str, Any]:
    """Parameters of `Inception` from the published `.pth`, or the same tensors as `.safetensors`.

    Raises `UserError` when the file is missing, damaged, another `.pth` than the published one, or
    holds another network.
    """
    if path.suffix == ".safetensors":
        return from_torch(files.load(path)[0])
    return from_torch(load_tensors(path, SHA256, remedy="copy it again"))


def from_torch(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The state dict as Linen parameters, batch normalisation folded in; UserError if it is not.

    y = γ·(W∗x - μ)/√(v + ε) + β is a convolution by W·s with bias β - μ·s, s = γ/√(v + ε).
    """
    _need(tensors, "fc.weight", (_CLASSES, 2048))
    target = _shapes()
    params = {}
    for path in (path[:-1] for path in target if path[-1] == "kernel"):
        kernel, bias = target[*path, "kernel"].shape, target[*path, "bias"].shape
        name = ".".join(path)

        def of(part: str, name: str = name, shape: tuple[int, ...] = bias) -> np.ndarray:
            return _need(tensors, f"{name}.bn.{part}", shape).astype(np.float64)

        h, w, i, o = kernel
        weight = _need(tensors, f"{name}.conv.weight", (o, i, h, w))
        scale = of("weight") / np.sqrt(of("running_var") + _EPS)
        folded = rearrange(weight, "o i h w -> h w i o") * scale
        params[*path, "kernel"] = folded.astype(np.float32)
        params[*path, "bias"] = (of("bias") - of("running_mean") * scale).astype(np.float32)
    return unflatten_dict(params)


@functools.cache
def _shapes() -> dict[tuple[str, ...], Any]:
    """The network's parameters by path; tracing it takes seconds."""
    image = jax.ShapeDtypeStruct((1, 299, 299, 3), jnp.float32)
    return flatten_dict(jax.eval_shape(Inception().init, jax.random.key(0), image)["params"])


def _need(tensors: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    found = tensors.get(name)
    if found is None or np.shape(found) != shape:
        there = "missing" if found is None else f"{np.shape(found)}"
        raise UserError(
            f"the file holds another network than Inception v3 of 2015-12-05: {name} is {there}, "
            f"not {shape}"
        )
    return found
