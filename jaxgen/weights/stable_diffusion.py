"""Stable Diffusion's parameters between PyTorch's names and layouts and ours.

The networks in `jaxgen.models` carry the names of the PyTorch modules, so the map of names is built
from our tree alone and serves every one of them: `down_blocks_0/resnets_1/conv1/kernel` is
`down_blocks.0.resnets.1.conv1.weight`.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxgen.errors import UserError

_MODULES = {  # where a trailing number is no index into a list, or a list is not last
    "linear_1": "linear_1",
    "linear_2": "linear_2",
    "ff_net_0_proj": "ff.net.0.proj",
    "ff_net_2": "ff.net.2",
}
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
_TO_TORCH = {2: "i o -> o i", 4: "h w i o -> o i h w"}
_FROM_TORCH = {2: "o i -> i o", 4: "o i h w -> h w i o"}


def params_from_torch(
    state: Mapping[str, np.ndarray], target: Mapping[str, Any], cast: bool = True
) -> dict[str, Any]:
    """Brings a PyTorch state dict into the tree of a Flax network.

    Args:
      state: every tensor of the network, by PyTorch's name.
      target: the network's `params` or their shapes (`jax.eval_shape` of `init`).
      cast: to `target`'s types, which copies where they are others; else the types of `state`.

    Returns:
      A tree like `target` of NumPy arrays, views of `state` wherever no cast is needed.

    Raises:
      UserError: a tensor is missing, left over, of another shape than the network's, or of
        integers.
    """
    flat: dict[tuple[str, ...], Any] = flatten_dict(target)
    names = {path: torch_name(path) for path in flat}
    missing = {names[path]: leaf for path, leaf in flat.items() if names[path] not in state}
    left_over = {name: state[name] for name in state.keys() - set(names.values())}
    for tensors, how in ((missing, "missing"), (left_over, "left over")):
        if tensors:
            first = min(tensors)
            raise UserError(
                f"weights do not fit this network: {len(tensors)} tensors {how}, "
                f"first {first} {tuple(tensors[first].shape)}"
            )
    leaves = {path: _leaf(state, names[path], path, flat[path]) for path in flat}
    if cast:
        leaves = {path: leaf.astype(flat[path].dtype, copy=False) for path, leaf in leaves.items()}
    return unflatten_dict(leaves)


def params_to_torch(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The inverse of `params_from_torch`: every tensor by PyTorch's name, in its layout."""
    return {
        torch_name(path): _arranged(np.asarray(leaf), path, _TO_TORCH)
        for path, leaf in flatten_dict(params).items()
    }


def torch_name(path: tuple[str, ...]) -> str:
    """PyTorch's name: `("resnets_1", "conv1", "kernel")` → `resnets.1.conv1.weight`."""
    *modules, leaf = path
    dotted = [_MODULES.get(m) or re.sub(r"_(\d+)$", r".\1", m) for m in modules]
    return ".".join([*dotted, _LEAVES.get(leaf, leaf)])


def _leaf(state, name, path, target) -> np.ndarray:
    tensor = np.asarray(state[name])
    if not jnp.issubdtype(tensor.dtype, jnp.floating):  # bfloat16 is no type of NumPy's own
        raise UserError(
            f"weights do not fit this network: {name} is of {tensor.dtype}, and no float"
        )
    if tensor.ndim == len(target.shape):
        arranged = _arranged(tensor, path, _FROM_TORCH)
        if arranged.shape == target.shape:
            return arranged
    own = _arranged(np.broadcast_to(np.float32(0.0), target.shape), path, _TO_TORCH)
    raise UserError(
        f"weights do not fit this network: {name} is {tensor.shape}, the network's is {own.shape}"
    )


def _arranged(tensor: np.ndarray, path, patterns: Mapping[int, str]) -> np.ndarray:
    if path[-1] != "kernel":
        return tensor
    return rearrange(tensor, patterns[tensor.ndim])
