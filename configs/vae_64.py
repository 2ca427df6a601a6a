"""The autoencoder of `vae.py` with wider networks, for one GPU or TPU host; the same shape of code.

Command:  python -m jaxgen.train --config=vae_64
Hardware: meant for one accelerator; not trained yet, so neither time nor result is known.
Plan:     python -m jaxgen.plan --config=vae_64 --topology=v5e:2x4 --quick
          says that it fits: at most 1.23 of 15.75 GiB a chip. By the chips' peaks its
          program's step takes 7.53 ms, 9.69 ms if nothing hides what the links carry.
"""

import dataclasses

from jaxgen import config as configs
from jaxgen.config import Optimizer, Train
from jaxgen.methods.vae import Vae
from jaxgen.models.autoencoder import AutoencoderConfig
from jaxgen.models.patch_discriminator import PatchDiscriminatorConfig

small = configs.load("vae")
assert isinstance(small, Vae)

config = dataclasses.replace(
    small,
    name="vae_64",
    data=dataclasses.replace(small.data, name="openmoji"),
    autoencoder=AutoencoderConfig(block_out=(128, 256, 512), dtype="bfloat16"),
    taps=(0, 2, 4, 10),
    discriminator=PatchDiscriminatorConfig(width=64, layers=3),
    train=Train(steps=20_000, batch=64, ema=0.999, sample_every=0, checkpoint_every=1000),
    optimizer=Optimizer(learning_rate=2e-4, warmup=500, b1=0.5, b2=0.9),
    discriminator_optimizer=Optimizer(learning_rate=2e-4, warmup=0, b1=0.5, b2=0.9, clip=10.0),
)
