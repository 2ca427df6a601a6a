"""Latent diffusion on OpenMoji: 64 px pictures as 16 x 16 codes of 4 channels, codec first.

Command:  python -m jaxgen.train --config=latent_diffusion
Hardware: 2 CPU cores.
Plan:     python -m jaxgen.plan --config=latent_diffusion --topology=v5e:2x2 --quick
          says that it fits: at most 0.32 of 15.75 GiB a chip. By the chips' peaks its
          program's step takes 0.967 ms, 1.47 ms if nothing hides what the links carry; to draw its
          grids, 12 images at once, takes at most 0.18 GiB.
Time:     15 minutes on a shared core, without the codec (cpu-2/latent_diffusion_train.log).
Result:   at 50 steps the hearts and the grinning face can be told; Fréchet distance 7.8
          (docs/methods.md).

Its networks and schedule are of Stable Diffusion's kinds, so that what is trained goes out by
python -m jaxgen.export --run=runs/latent_diffusion --to=diffusers --out=FOLDER
"""

import dataclasses

from jaxgen import config as configs
from jaxgen.config import Optimizer, Train
from jaxgen.diffusion.schedule import Schedule
from jaxgen.methods.diffusion import Diffusion
from jaxgen.methods.vae import Vae

pixels, codec = configs.load("diffusion"), configs.load("vae")
assert isinstance(pixels, Diffusion)
assert isinstance(codec, Vae)

config = dataclasses.replace(
    pixels,
    name="latent_diffusion",
    codec="vae",
    autoencoder=codec.autoencoder,
    data=dataclasses.replace(codec.data, flip=False),
    # A code has as many cells a side as the pixel model's patches.
    model=dataclasses.replace(
        pixels.model,
        # Stable Diffusion attends to the padding too, and sees captions in no other way.
        text=dataclasses.replace(pixels.model.text, masked=False),
        unet=dataclasses.replace(
            pixels.model.unet,
            channels=codec.autoencoder.latent_channels,
            patch=1,
            added_width=0,
        ),
        # Stable Diffusion's end, .012, leaves codes of so few cells too much of themselves: half of
        # its timesteps have less than 1.8 times as much noise as picture, here 3.1 times.
        schedule=Schedule(kind="scaled_linear", beta_end=0.03, zero_terminal_snr=True),
    ),
    shown=configs.load("flow_matching").shown,
    train=Train(steps=2000, batch=16, ema=0.998, log_every=100, sample_every=1000),
    optimizer=Optimizer(learning_rate=1e-3, warmup=200, decay="cosine"),
)
