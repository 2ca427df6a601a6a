"""Latent diffusion on OpenMoji at full width: 64 px as 16 x 16 codes, for one accelerator.

Command:  python -m jaxgen.train --config=latent_diffusion_64
Hardware: meant for one GPU or one TPU host; not trained yet, so neither time nor result is known.
Plan:     python -m jaxgen.plan --config=latent_diffusion_64 --topology=v5e:2x4 --quick
          says that it fits: at most 1.97 of 15.75 GiB a chip. By the chips' peaks its
          program's step takes 9 ms, 12.6 ms if nothing hides what the links carry.
"""

import dataclasses

from jaxgen import config as configs
from jaxgen.methods.diffusion import Diffusion
from jaxgen.methods.vae import Vae

small, pixels, codec = (configs.load(n) for n in ("latent_diffusion", "diffusion_64", "vae_64"))
assert isinstance(small, Diffusion)
assert isinstance(pixels, Diffusion)
assert isinstance(codec, Vae)

config = dataclasses.replace(
    pixels,
    name="latent_diffusion_64",
    codec="vae_64",
    autoencoder=codec.autoencoder,
    model=dataclasses.replace(
        pixels.model,
        text=dataclasses.replace(pixels.model.text, masked=False),
        unet=dataclasses.replace(
            pixels.model.unet,
            channels=codec.autoencoder.latent_channels,
            patch=1,
            added_width=0,
        ),
        schedule=small.model.schedule,
    ),
)
