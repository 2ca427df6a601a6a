"""A text-conditioned GAN on OpenMoji, 64 px, for one accelerator.

Command:  python -m jaxgen.train --config=gan_64
Hardware: meant for one GPU or one TPU host; not trained yet, so neither time nor result is known.
Plan:     python -m jaxgen.plan --config=gan_64 --topology=v5e:2x4
          says that it fits: 2.27 of 15.75 GiB a chip; a step takes 15 ms at the least
          by the chips' peaks, 19.6 ms if nothing hides what the links carry.
"""

from jaxgen import config as configs
from jaxgen.config import Data, Optimizer, Train
from jaxgen.methods.gan import Gan
from jaxgen.models.gan import GanConfig
from jaxgen.text.encoder import TextConfig

PLAYER = Optimizer(learning_rate=2e-4, warmup=0, b1=0.0, b2=0.99, clip=100.0)

config = Gan(
    name="gan_64",
    data=Data(name="openmoji", size=64),
    text=TextConfig(width=256, layers=4, heads=4, length=24),
    model=GanConfig(
        noise=64,
        condition=256,
        generator=(128, 256, 384, 512),
        discriminator=(128, 256, 384, 512),
        blocks=2,
        patch=2,
    ),
    gamma=(1.0, 0.1),
    shown=configs.load("gan").shown,
    train=Train(steps=40_000, batch=256, ema=0.9995, sample_every=2000, checkpoint_every=1000),
    optimizer=PLAYER,
    discriminator_optimizer=PLAYER,
)
