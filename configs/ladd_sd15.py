"""LADD of Stable Diffusion 1.5 at 512 px: its student, judged by what it sees itself.

Command:  python -m jaxgen.train --config=ladd_sd15 --teacher=FOLDER --data.name=imagefolder:PATH
          FOLDER holds the published weights in diffusers' layout; of the pictures only the captions
          are used, for which the teacher draws its own.
Hardware: as ladd_sd21.py, whose network is nearly the same.
Plan:     python -m jaxgen.plan --config=ladd_sd15 --topology=v5e:4x4 --quick
          says that it fits: at most 9.50 of 15.75 GiB a chip. By the chips' peaks its
          program's step takes 348 ms, 448 ms if nothing hides what the links carry; to draw its
          grids, 16 images at once, takes at most 2.84 GiB.
Result:   not trained yet: no published weights were at hand.
"""

import dataclasses

from jaxgen import config as configs
from jaxgen.methods.add import Add
from jaxgen.methods.ladd import Ladd

like, teacher = configs.load("ladd_sd21"), configs.load("add_sd15")
assert isinstance(like, Ladd)
assert isinstance(teacher, Add)

config = dataclasses.replace(
    like,
    name="ladd_sd15",
    teacher=teacher.teacher,
    model=teacher.model,
    autoencoder=teacher.autoencoder,
)
