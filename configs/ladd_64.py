"""LADD on OpenMoji, 64 px, for one accelerator; its teacher is trained first, then draws.

Command:  python -m jaxgen.train --config=ladd_64
Hardware: meant for one GPU or one TPU host; not trained yet, so neither time nor result is known.
Plan:     python -m jaxgen.plan --config=ladd_64 --topology=v5e:2x4 --quick
          says that it fits: at most 3.15 of 15.75 GiB a chip. By the chips' peaks its
          program's step takes 48.1 ms, 51.3 ms if nothing hides what the links carry.
"""

import math

from jaxgen import config as configs
from jaxgen.config import Drawing, Optimizer, Train
from jaxgen.methods.diffusion import Diffusion
from jaxgen.methods.ladd import Ladd

teacher = configs.load("diffusion_64")
assert isinstance(teacher, Diffusion)

config = Ladd(
    name="ladd_64",
    teacher="train",
    teacher_config="diffusion_64",
    data=teacher.data,
    model=teacher.model,
    shown=teacher.shown,
    guidance=teacher.guidance,
    drawn=Drawing(count=20_000, steps=50, guidance=teacher.guidance),
    # As in ladd.py.
    noise_mean=1.0 - math.log(teacher.model.schedule.shift * 128 / teacher.data.size),
    train=Train(steps=10_000, batch=128, ema=0.999, sample_every=1000, checkpoint_every=500),
    optimizer=Optimizer(learning_rate=2e-5, warmup=100, b1=0.9, b2=0.99),
    judge_optimizer=Optimizer(learning_rate=2e-4, warmup=0, b1=0.0, b2=0.99, clip=10.0),
)
