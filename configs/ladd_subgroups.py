"""LADD where the text leaves much open: a one-step student of diffusion_subgroups, trained first.

Command:  python -m jaxgen.train --config=ladd_subgroups
Hardware: 2 CPU cores.
Time:     13 minutes of one core, evaluations beside it, without the teacher
          (cpu-1/ladd_subgroups_train.log).
Result:   Fréchet distance 17.2 at one step, recall 43 % (README).
"""

import dataclasses

from jaxgen import config as configs
from jaxgen.methods.ladd import Ladd

ladd, teacher = configs.load("ladd"), configs.load("diffusion_subgroups")
assert isinstance(ladd, Ladd)

config = dataclasses.replace(
    ladd,
    name="ladd_subgroups",
    teacher=teacher.name,
    teacher_config=teacher.name,
    data=teacher.data,
    shown=teacher.shown,
    drawn=dataclasses.replace(ladd.drawn, count=1000),
    train=dataclasses.replace(ladd.train, steps=667, ema=0.995, checkpoint_every=200),
    # The first step of this teacher is a blur, of which there is little to forget.
    optimizer=dataclasses.replace(ladd.optimizer, learning_rate=2e-4),
)
