"""Flow matching: the network of `diffusion_64` predicts the velocity, as `flow_matching` does.

Command:  python -m jaxgen.train --config=flow_matching_64
Hardware: meant for one GPU or one TPU host; not trained yet, so neither time nor result is known.
Plan:     python -m jaxgen.plan --config=flow_matching_64 --topology=v5e:2x4 --quick
          says that it fits: at most 2.66 of 15.75 GiB a chip. By the chips' peaks its
          program's step takes 18.6 ms, 22.2 ms if nothing hides what the links carry.
"""

import dataclasses

from jaxgen import config as configs
from jaxgen.diffusion.schedule import Schedule
from jaxgen.methods.diffusion import Diffusion

image = configs.load("diffusion_64")
assert isinstance(image, Diffusion)

config = dataclasses.replace(
    image,
    name="flow_matching_64",
    model=dataclasses.replace(
        image.model, schedule=Schedule(kind="flow", shift=3.0), prediction="flow"
    ),
    timesteps="logit_normal",
)
