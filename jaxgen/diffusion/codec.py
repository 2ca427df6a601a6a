"""Between pixels and the codes that are diffused in their place (Rombach et al. 2022, section 3.1).

A codec's weights are the autoencoder's parameters and `scale`, by which its codes have unit
deviation over the pictures that it was trained on.
"""

from typing import Any

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


def encode(config: AutoencoderConfig, weights: Weights, image: Images) -> Codes:
    """The codes of images in [-1, 1]: the mean of each one's posterior, scaled."""
    posterior: Any = Autoencoder(config).apply({"params": weights}, image, method="encode")
    return weights["scale"] * posterior.mean


def decode(config: AutoencoderConfig, weights: Weights, codes: Codes) -> Images:
    """Images in about [-1, 1] from codes. Of what the backward pass needs, `config.remat` says what
    is kept."""
    latent = codes / weights["scale"]
    return Autoencoder(config).apply({"params": weights}, latent, method="decode")  # pyright: ignore[reportReturnType]
