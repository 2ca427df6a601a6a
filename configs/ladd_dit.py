"""LADD with a transformer (DiT) for student and teacher, OpenMoji, 32 px; trains the teacher first.

Command:  python -m jaxgen.train --config=ladd_dit
Hardware: 2 CPU cores.
Time:     14 minutes of one core beside other work, without the teacher
          (cpu-1/ladd_dit_train.log).
Result:   Fréchet distance 1.41 at one step, where its teacher has 3.51 at one guided step and 1.70
          at fifty; with specks that its teacher's pictures lack (cpu-2/quality_dit.json;
          docs/methods.md).
"""

import dataclasses

from jaxgen import config as configs
from jaxgen.config import Drawing
from jaxgen.methods.diffusion import Diffusion
from jaxgen.methods.ladd import Ladd

like, teacher = configs.load("ladd_paired"), configs.load("dit")
assert isinstance(like, Ladd)
assert isinstance(teacher, Diffusion)

config = dataclasses.replace(
    like,
    name="ladd_dit",
    teacher=teacher.name,
    teacher_config=teacher.name,
    data=teacher.data,
    shown=teacher.shown,
    model=teacher.model,
    drawn=Drawing(count=3000, steps=8, guidance=like.guidance),
    taps=(1, 3, 5, 7),  # every second of its eight blocks
)
