"""Text to images where the text leaves much open: OpenMoji by the name of its subgroup, 32 px.

Command:  python -m jaxgen.train --config=diffusion_subgroups
Hardware: 2 CPU cores.
Time:     23 minutes for 4000 steps of 16 on one core, much beside it
          (cpu-1/diffusion_subgroups_train.log).
Result:   Fréchet distance 6.2 at 50 guided steps and at 4, 26.8 at one (README).

All that is said of a picture is its subgroup, "face smiling" or "food fruit", of which there are up
to 31 pictures. So one step can only draw their mean, a blur, and many steps draw one of them: here
a one-step student has something to learn that its teacher's first step does not know.
"""

import dataclasses

from jaxgen import config as configs
from jaxgen.config import Data
from jaxgen.methods.diffusion import Diffusion

diffusion = configs.load("diffusion")
assert isinstance(diffusion, Diffusion)

config = dataclasses.replace(
    diffusion,
    name="diffusion_subgroups",
    data=Data(name="openmoji:smileys-emotion,food-drink", label="sublabel", caption="label"),
    shown=(
        "heart",
        "cat face",
        "face smiling",
        "face sleepy",
        "food fruit",
        "food sweet",
        "drink",
        "food prepared",
    ),
    train=dataclasses.replace(diffusion.train, steps=4000),
)
