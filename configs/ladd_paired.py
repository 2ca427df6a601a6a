"""LADD with pairs: ladd_subgroups.py, its one step held to what its teacher draws from its noise.

Command:  python -m jaxgen.train --config=ladd_paired
Hardware: 2 CPU cores.
Time:     TIME_LADD
Result:   RESULT_LADD
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
