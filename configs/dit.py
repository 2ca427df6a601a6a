"""Diffusion with a transformer in the UNet's place (DiT), OpenMoji, 32 px.

Command:  python -m jaxgen.train --config=dit
Hardware: 2 CPU cores.
Time:     40 minutes of one core beside other work (cpu-1/add_dit_train.log).
Result:   loss .037; Fréchet distance 1.70 at 50 guided steps and 3.51 at one; one without guidance
          was not measured (cpu-2/quality_dit.json; docs/methods.md).
Plan:     python -m jaxgen.plan --config=dit --topology=v5e:2x2
          says that it fits: 0.19 of 15.75 GiB a chip; a step takes 0.602 ms
          at the least by the chips' peaks, 1.11 ms if nothing hides what the links carry.
"""

import dataclasses

from jaxgen import config as configs
from jaxgen.config import Optimizer, Train
from jaxgen.methods.diffusion import Diffusion
from jaxgen.models.dit import DiTConfig

base = configs.load("diffusion")
assert isinstance(base, Diffusion)

config = dataclasses.replace(
    base,
    name="dit",
    model=dataclasses.replace(
        base.model,
        network="dit",
        # As many parameters as the UNet of diffusion.py; 64 tokens, as attention is slow on CPUs.
        dit=DiTConfig(patch=4, width=160, depth=8, heads=4, context_width=64, added_width=64),
    ),
    train=Train(steps=6000, batch=16, ema=0.998, log_every=100, sample_every=2000),
    optimizer=Optimizer(learning_rate=1e-3, warmup=200, decay="cosine"),
)
