"""Latent diffusion on OpenMoji at full width: 64 px as 16 x 16 codes, for one accelerator.

Command:  python -m jaxgen.train --config=latent_diffusion_64
Hardware: meant for one GPU or one TPU host; not trained yet, so neither time nor result is known.
"""

import dataclasses

from jaxgen import config as configs
from jaxgen.methods.diffusion import Diffusion
from jaxgen.methods.vae import Vae

pixels, codec = configs.load("diffusion_64"), configs.load("vae_64")
assert isinstance(pixels, Diffusion)
assert isinstance(codec, Vae)

config = dataclasses.replace(
    pixels,
    name="latent_diffusion_64",
    codec="vae_64",
    autoencoder=codec.autoencoder,
    model=dataclasses.replace(
        pixels.model,
        unet=dataclasses.replace(
            pixels.model.unet, channels=codec.autoencoder.latent_channels, patch=1
        ),
    ),
)
