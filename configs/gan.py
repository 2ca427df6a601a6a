"""A text-conditioned GAN on OpenMoji, 32 px: one step from noise and caption to image.

Command:  python -m jaxgen.train --config=gan
Hardware: 2 CPU cores.
Plan:     python -m jaxgen.plan --config=gan --topology=v5e:2x2 --quick
          says that it fits: at most 0.22 of 15.75 GiB a chip. By the chips' peaks its
          program's step takes 0.832 ms, 1.29 ms if nothing hides what the links carry; to draw its
          grids, 12 images at once, takes at most 0.13 GiB.
Time:     16 minutes on a shared core (cpu-2/gan_train.log).
Result:   of eight captions shown the red heart, the pizza, the apple and the carrot can be
          told; Fréchet distance 6.6 and recall 81 % (docs/methods.md).
"""

from jaxgen import config as configs
from jaxgen.config import Optimizer, Train
from jaxgen.methods.diffusion import Diffusion
from jaxgen.methods.gan import Gan
from jaxgen.models.gan import GanConfig
from jaxgen.text.encoder import TextConfig

few = configs.load("flow_matching")
assert isinstance(few, Diffusion)

config = Gan(
    name="gan",
    data=few.data,
    # The table of 70 000 words is most of either player, and of the time of a step.
    text=TextConfig(width=32, layers=1, heads=2, length=16),
    model=GanConfig(
        noise=32,
        condition=128,
        generator=(64, 128, 256),
        discriminator=(32, 64, 128),
        blocks=2,
        patch=2,
    ),
    shown=few.shown,
    # The paper's .5 to .05 for 32 px ImageNet, and .05 to .005 for CIFAR, go with more images.
    gamma=(10.0, 2.0),
    train=Train(steps=2000, batch=16, ema=0.998, log_every=50, sample_every=500),
    optimizer=Optimizer(learning_rate=1e-3, warmup=0, b1=0.0, b2=0.99, clip=100.0),
    discriminator_optimizer=Optimizer(learning_rate=1e-3, warmup=0, b1=0.0, b2=0.99, clip=100.0),
)
