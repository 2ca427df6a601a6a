"""ADD where the text leaves much open: a one-step student of diffusion_subgroups, trained first.

Command:  python -m jaxgen.train --config=add_subgroups
Hardware: 2 CPU cores.
Time:     8 minutes of one core, without the teacher (cpu-1/add_subgroups_train.log).
Result:   one sharp picture a caption where its teacher's first step is a blur, and hardly a
          second one: Fréchet distance 24.6, recall 11 % (README, docs/add.md).
"""

import dataclasses

from jaxgen import config as configs
from jaxgen.methods.add import Add

add, teacher = configs.load("add"), configs.load("diffusion_subgroups")
assert isinstance(add, Add)

config = dataclasses.replace(
    add,
    name="add_subgroups",
    teacher=teacher.name,
    teacher_config=teacher.name,
    data=teacher.data,
    shown=teacher.shown,
    # Told the real image too, the judge would ask of pure noise what only that image knows.
    judge=dataclasses.replace(
        add.judge, condition="text", augment=("translation", "cutout", "noise")
    ),
    distillation=300.0,
    train=dataclasses.replace(add.train, steps=667, ema=0.995, checkpoint_every=200),
    # The first step of this teacher is a blur, of which there is little to forget.
    optimizer=dataclasses.replace(add.optimizer, learning_rate=3e-4, b1=0.5),
)
