"""Diffusion with a transformer in the UNet's place (DiT), OpenMoji, 64 px, for one accelerator.

Command:  python -m jaxgen.train --config=dit_64
Hardware: meant for one GPU or one TPU host; not trained yet, so neither time nor result is known.
Plan:     python -m jaxgen.plan --config=dit_64 --topology=v5e:2x4
          says that it fits: 3.97 of 15.75 GiB a chip; a step takes 22.5 ms
          at the least by the chips' peaks, 26.2 ms if nothing hides what the links carry.
"""

import dataclasses

from jaxgen import config as configs
from jaxgen.methods.diffusion import Diffusion
from jaxgen.models.dit import DiTConfig

base = configs.load("diffusion_64")
assert isinstance(base, Diffusion)

config = dataclasses.replace(
    base,
    name="dit_64",
    model=dataclasses.replace(
        base.model,
        network="dit",
        dit=DiTConfig(
            patch=4,
            width=512,
            depth=12,
            heads=8,
            context_width=256,
            added_width=256,
            dtype="bfloat16",
        ),
    ),
)
