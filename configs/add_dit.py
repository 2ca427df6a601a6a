"""ADD with a transformer (DiT) for student and teacher, OpenMoji, 32 px; trains the teacher first.

Command:  python -m jaxgen.train --config=add_dit
Hardware: 2 CPU cores.
Time:     53 minutes of one core beside other work, 40 of them for the teacher
          (cpu-1/add_dit_train.log).
Result:   Fréchet distance 1.25 at one step, where its teacher has 3.51 at one guided step and 1.70
          at fifty; 20 % of the samples are nearly a training picture, 14 % of the teacher's
          (cpu-2/quality_dit.json; docs/methods.md).

With pairs, as in add_paired.py: of a teacher of 2000 steps, whose first step was a blur, a student
without them stayed that blur (one trial, at the rate of add.py).
"""

import dataclasses

from jaxgen import config as configs
from jaxgen.config import Drawing
from jaxgen.methods.add import Add
from jaxgen.methods.diffusion import Diffusion

like, teacher = configs.load("add_paired"), configs.load("dit")
assert isinstance(like, Add)
assert isinstance(teacher, Diffusion)

config = dataclasses.replace(
    like,
    name="add_dit",
    teacher=teacher.name,
    teacher_config=teacher.name,
    data=teacher.data,
    shown=teacher.shown,
    model=teacher.model,
    drawn=Drawing(count=3000, steps=8, guidance=like.guidance),
)
