"""What is kept for the backward pass: the same gradient, by more or less work."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.models.unet import UNet, UNetConfig

CONFIG = UNetConfig(
    patch=4, block_out=(8,), layers=1, attention=(True,), transformer_depth=(1,), heads=(1,),
    context_width=8, groups=4,
)  # fmt: skip
INPUTS = jnp.ones((1, 8, 8, 3)), jnp.zeros(1), jnp.ones((1, 2, 8)), None


@pytest.fixture(scope="module")
def params():
    shapes = jax.eval_shape(UNet(CONFIG).init, jax.random.key(0), *INPUTS)["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.2, s.shape), s.dtype), shapes)


def gradient(remat):
    config = dataclasses.replace(CONFIG, remat=remat)
    return jax.grad(lambda p: jnp.mean(UNet(config).apply({"params": p}, *INPUTS) ** 2))


def products(remat, params) -> int:
    told = str(jax.make_jaxpr(gradient(remat))(params))
    return told.count("dot_general[") + told.count("conv_general_dilated[")


def test_products_are_not_computed_again_unless_blocks_are(params) -> None:
    once = products("none", params)
    assert products("products", params) == once
    assert products("blocks", params) > 1.2 * once
