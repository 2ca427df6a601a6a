"""What of a block is kept for its backward pass, and what is computed or gathered again there."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

Remat = Literal["none", "blocks", "products"]
"""none: everything is kept. products: the outputs of matrix products and convolutions are, the rest
(norms, activations, attention's softmax) is computed again. blocks: a block's input alone is, which
takes least memory and about a third more time (Chen et al. 2016, arXiv 1604.06174)."""

_PRODUCTS = {jax.lax.dot_general_p, jax.lax.conv_general_dilated_p}


def rematerialised(module: type[nn.Module], remat: Remat) -> type[nn.Module]:
    """The module with its backward pass as `remat` says; names of parameters stay."""
    match remat:
        case "none":
            return module
        case "blocks":
            return nn.remat(module)
        case "products":
            return nn.remat(module, policy=_is_product)


def _is_product(primitive, *_, **__) -> bool:
    return primitive in _PRODUCTS


def gathered(params: Any, dtype: str) -> Any:
    """The weights with their matrices whole on every device, in `dtype`, where they are split.

    A block whose forward pass is computed again gathers its matrices again, for each pass: this
    gathers each once, for as many passes as use what comes back, and a device keeps it as long
    (PyTorch's FSDP without resharding after the forward pass: Zhao et al. 2023, arXiv 2304.11277).
    In ADD of Stable Diffusion 2.1 on 16 x 16 chips of v5e that takes 23 % off what
    the links carry, for 1.3 GiB a chip (benchmarks/results/tpu-gather-once.json). Gradients are
    summed over devices in `dtype`, as without this, and come back in float32.
    """
    if jax.sharding.get_abstract_mesh().shape.get("fsdp", 1) == 1:
        return params

    # With a derivative of its own: that of the constraint would want the gradient whole.
    @jax.custom_vjp
    def whole(array: Any) -> Any:
        # Behind the barrier, or XLA gathers first and narrows then, for twice the bytes.
        narrow = jax.lax.optimization_barrier(array.astype(dtype))
        return jax.lax.with_sharding_constraint(narrow, PartitionSpec())

    def back(_: None, gradient: Any) -> Any:
        return (gradient.astype(jnp.float32),)

    whole.defvjp(lambda array: (whole(array), None), back)
    return jax.tree.map(lambda array: whole(array) if array.ndim > 1 else array, params)
