"""Between pixels and the codes that are diffused in their place (Rombach et al. 2022, section 3.1).

A codec's weights are the autoencoder's parameters and `scale`, by which its codes have unit
deviation over the pictures that it was trained on. Where a channel's mean is far from 0, as in one
trained with a KL term of little weight, that is not enough: what tells pictures apart would be
small beside what they have in common, and drown early in noise (see `standardised`).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgen.models.autoencoder import Autoencoder, AutoencoderConfig

Images = Float[Array, "b h w c"]
Codes = Float[Array, "b h w c"]
Weights = dict[str, Any]


def init(config: AutoencoderConfig, key: PRNGKeyArray) -> Weights:
    """Fresh weights of the right shapes, with a scale of 1."""
    side = 2 * config.factor
    image = jnp.zeros((1, side, side, config.channels))
    return {**Autoencoder(config).init(key, image)["params"], "scale": jnp.ones(())}


def standardised(
    config: AutoencoderConfig,
    params: Weights,
    mean: Float[Array, " l"],
    deviation: Float[Array, " l"],
) -> Weights:
    """The codec of a trained autoencoder, whose channels each have mean 0 and deviation 1.

    `mean` and `deviation` are those of its own codes. It gives the same pictures, and is an
    autoencoder as others are: the change is made in the 1x1 convolutions beside the codes. Without
    those (`quant_conv` False) only the deviation can be changed, by one scale for all channels.
    """
    if not config.quant_conv:
        return {**params, "scale": jax.lax.rsqrt(jnp.mean(deviation**2))}
    first, last = params["quant_conv"], params["post_quant_conv"]
    divisor = jnp.concatenate([deviation, jnp.ones_like(deviation)])  # means, then log-variances
    shift = jnp.concatenate([mean / deviation, 2 * jnp.log(deviation)])
    return {
        **params,
        "quant_conv": {
            "kernel": first["kernel"] / divisor,
            "bias": first["bias"] / divisor - shift,
        },
        "post_quant_conv": {
            "kernel": last["kernel"] * deviation[:, None],
            "bias": last["bias"] + mean @ last["kernel"][0, 0],
        },
        "scale": jnp.ones(()),
    }


def encode(config: AutoencoderConfig, weights: Weights, image: Images) -> Codes:
    """The codes of images in [-1, 1]: the mean of each one's posterior, scaled."""
    posterior: Any = Autoencoder(config).apply({"params": weights}, image, method="encode")
    return weights["scale"] * posterior.mean


def decode(config: AutoencoderConfig, weights: Weights, codes: Codes) -> Images:
    """Images in about [-1, 1] from codes. Of what the backward pass needs, `config.remat` says what
    is kept."""
    latent = codes / weights["scale"]
    return Autoencoder(config).apply({"params": weights}, latent, method="decode")  # pyright: ignore[reportReturnType]
