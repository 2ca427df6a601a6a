"""What of a block is kept for its backward pass, and what is computed again there."""

from typing import Literal

import flax.linen as nn
import jax

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
