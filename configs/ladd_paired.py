"""LADD with pairs: ladd_subgroups.py, its one step held to what its teacher draws from its noise.

Command:  python -m jaxgen.train --config=ladd_paired
Hardware: 2 CPU cores.
Time:     9 minutes of one core, the teacher and the drawing of its samples not included
          (cpu-1/ladd_paired_train.log).
Result:   Fréchet distance 6.4, recall 86 % at one step (README).
"""

import dataclasses

from jaxgen import config as configs
from jaxgen.config import Drawing
from jaxgen.methods.ladd import Ladd

ladd = configs.load("ladd_subgroups")
assert isinstance(ladd, Ladd)

config = dataclasses.replace(
    ladd,
    name="ladd_paired",
    drawn=Drawing(count=6000, steps=8, guidance=ladd.guidance),
    regression=60.0,
    optimizer=dataclasses.replace(ladd.optimizer, learning_rate=3e-4),
)
