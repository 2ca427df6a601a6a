"""LADD with a transformer (DiT) for student and teacher, OpenMoji, 32 px; trains the teacher first.

Command:  python -m jaxgen.train --config=ladd_dit
Hardware: 2 CPU cores.
Result:   not trained yet.
"""

import dataclasses

from jaxgen import config as configs
from jaxgen.methods.diffusion import Diffusion
from jaxgen.methods.ladd import Ladd

like, teacher = configs.load("ladd"), configs.load("dit")
assert isinstance(like, Ladd)
assert isinstance(teacher, Diffusion)

config = dataclasses.replace(
    like,
    name="ladd_dit",
    teacher="dit",
    teacher_config="dit",
    model=teacher.model,
    taps=(1, 3, 5, 7),  # every second of its eight blocks
)
