"""Threshold corruption beside Gaussian noise: `diffusion` at a shorter budget, 32 px.

Command:  python -m jaxgen.train --config=threshold_diffusion
          and beside it: python -m jaxgen.train --config=diffusion --train.steps=2000
          --data.name=openmoji:smileys-emotion,food-drink
Hardware: 2 CPU cores.
Plan:     python -m jaxgen.plan --config=threshold_diffusion --topology=v5e:2x2 --quick
          says that it fits: at most 0.34 of 15.75 GiB a chip. By the chips' peaks its
          program's step takes 0.973 ms, 1.47 ms if nothing hides what the links carry; to draw its
          grids, 12 images at once, takes at most 0.17 GiB.
Time:     45 minutes beside much other work.
Result:   loss .114 (cpu-2/threshold_diffusion_train.log); most captions shown can be told at 50
          steps, some in a wrong colour (docs/methods.md).
"""

import dataclasses

from jaxgen import config as configs
from jaxgen.diffusion.schedule import Schedule
from jaxgen.methods.diffusion import Diffusion
from jaxgen.methods.threshold_diffusion import ThresholdDiffusion

gaussian, few = configs.load("diffusion"), configs.load("flow_matching")
assert isinstance(gaussian, Diffusion)

config = ThresholdDiffusion(
    name="threshold_diffusion",
    data=few.data,
    # A tenth of the pixels, kept exactly, still tells the picture; at this shift half of the
    # timesteps keep less. Not tuned.
    model=dataclasses.replace(gaussian.model, schedule=Schedule(kind="flow", shift=8.0)),
    shown=few.shown,
    guidance=gaussian.guidance,
    train=dataclasses.replace(gaussian.train, steps=2000, sample_every=500),
    optimizer=gaussian.optimizer,
)
