"""What is kept for the backward pass: the same gradient, by more or less work."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.diffusion import codec as codecs
from jaxgen.models.autoencoder import AutoencoderConfig
from jaxgen.models.unet import UNet, UNetConfig

UNET = UNetConfig(
    patch=4, block_out=(8,), layers=1, attention=(True,), transformer_depth=(1,), heads=(1,),
    context_width=8, groups=4,
)  # fmt: skip
CODEC = AutoencoderConfig(patch=4, block_out=(8, 8), layers=1, groups=4)
INPUTS = jnp.ones((1, 8, 8, 3)), jnp.zeros(1), jnp.ones((1, 2, 8)), None
CODES = jnp.ones((1, 2, 2, 4))


def unet(remat: Any) -> tuple[Callable[[Any], Any], Callable[[], Any]]:
    network = UNet(dataclasses.replace(UNET, remat=remat))
    return (
        lambda params: network.apply({"params": params}, *INPUTS),
        lambda: network.init(jax.random.key(0), *INPUTS)["params"],
    )


def decoder(remat: Any) -> tuple[Callable[[Any], Any], Callable[[], Any]]:
    """As add_latent's judge and distance look through it."""
    config = dataclasses.replace(CODEC, remat=remat)
    return (
        lambda params: codecs.decode(config, {**params, "scale": jnp.ones(())}, CODES),
        lambda: codecs.init(config, jax.random.key(0)),
    )


def gradient(network: Any, remat: str) -> Callable[[Any], Any]:
    run = network(remat)[0]
    return jax.grad(lambda params: jnp.mean(run(params) ** 2))


def weights(network: Any) -> Any:
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(network("none")[1])
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.2, s.shape), s.dtype), shapes)


def products(network: Any, remat: str) -> int:
    told = str(jax.make_jaxpr(gradient(network, remat))(jax.eval_shape(network("none")[1])))
    return told.count("dot_general[") + told.count("conv_general_dilated[")


@pytest.mark.parametrize("network", [unet, decoder])
def test_products_are_not_computed_again_unless_blocks_are(network: Any) -> None:
    once = products(network, "none")
    assert products(network, "products") == once
    assert products(network, "blocks") > 1.1 * once


def test_the_gradient_through_the_decoder_is_the_same() -> None:
    params = weights(decoder)
    whole = jax.jit(gradient(decoder, "none"))(params)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(whole)) > 1e-3
    for remat in ("blocks", "products"):
        found = jax.jit(gradient(decoder, remat))(params)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, whole
        )
