"""LADD of Stable Diffusion 2.1 base at 512 px: its student, judged by what it sees itself.

Command:  python -m jaxgen.train --config=ladd_sd21 --teacher=FOLDER --data.name=imagefolder:PATH
          FOLDER holds the published weights in diffusers' layout; of the pictures only the captions
          are used, for which the teacher draws its own.
Hardware: as add_sd21.py.
Plan:     python -m jaxgen.plan --config=ladd_sd21 --topology=v5e:4x4 --quick
          says that it fits: at most 9.98 of 15.75 GiB a chip. By the chips' peaks its
          program's step takes 373 ms, 474 ms if nothing hides what the links carry; to draw its
          grids, 16 images at once, takes at most 3.64 GiB.
Result:   not trained yet: no published weights were at hand.
"""

import dataclasses

from jaxgen import config as configs
from jaxgen.config import Drawing
from jaxgen.methods.add import Add
from jaxgen.methods.ladd import Ladd

like = configs.load("add_sd21")
assert isinstance(like, Add)

config = Ladd(
    name="ladd_sd21",
    teacher=like.teacher,
    codec=like.codec,
    data=like.data,
    model=like.model,
    autoencoder=like.autoencoder,
    drawn=Drawing(count=10_000, steps=25, guidance=5.0),
    # What is only read, and read whole, may be whole: there is room for the text encoder too.
    mesh=dataclasses.replace(like.mesh, rules=(*like.mesh.rules, "text/encoder=whole")),
    train=like.train,
    optimizer=like.optimizer,
    judge_optimizer=like.judge_optimizer,
)
