"""Threshold corruption beside Gaussian noise: `diffusion_64` with pixels replaced, 64 px.

Command:  python -m jaxgen.train --config=threshold_diffusion_64
Hardware: meant for one GPU or one TPU host; not trained yet, so neither time nor result is known.
Plan:     python -m jaxgen.plan --config=threshold_diffusion_64 --topology=v5e:2x4 --quick
          says that it fits: at most 2.64 of 15.75 GiB a chip. By the chips' peaks its
          program's step takes 18.6 ms, 22.2 ms if nothing hides what the links carry.
"""

import dataclasses

from jaxgen import config as configs
from jaxgen.diffusion.schedule import Schedule
from jaxgen.methods.diffusion import Diffusion
from jaxgen.methods.threshold_diffusion import ThresholdDiffusion

gaussian = configs.load("diffusion_64")
assert isinstance(gaussian, Diffusion)

config = ThresholdDiffusion(
    name="threshold_diffusion_64",
    data=gaussian.data,
    # Near pure noise this keeps as many pixels at a timestep as `threshold_diffusion` does.
    model=dataclasses.replace(gaussian.model, schedule=Schedule(kind="flow", shift=32.0)),
    shown=gaussian.shown,
    guidance=gaussian.guidance,
    train=gaussian.train,
    optimizer=gaussian.optimizer,
)
