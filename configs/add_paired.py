"""ADD with pairs: what add_subgroups.py lacks, a reason to draw another picture for other noise.

Command:  python -m jaxgen.train --config=add_paired
Hardware: 2 CPU cores.
Time:     9 minutes of one core, the teacher and the drawing of its samples (2 minutes) not
          included (cpu-1/add_paired_train.log).
Result:   Fréchet distance 6.6, recall 84 % at one step; its teacher's 50 steps have 6.2 and 89 %
          (README).

The student learns from its teacher's samples, each with the noise that it was drawn from: given
that noise, its one step is held to that sample in the features by which the judge sees
(--regression), and the judge, told the sample (--judge.condition), asks for the same. ADD of the
paper has neither.
"""

import dataclasses

from jaxgen import config as configs
from jaxgen.config import Drawing
from jaxgen.methods.add import Add

add, teacher = configs.load("add_subgroups"), configs.load("diffusion_subgroups")
assert isinstance(add, Add)

config = dataclasses.replace(
    add,
    name="add_paired",
    drawn=Drawing(count=6000, steps=8, guidance=add.guidance),
    regression=60.0,
    judge=dataclasses.replace(add.judge, condition="both"),
    optimizer=dataclasses.replace(add.optimizer, learning_rate=5e-4),
)
