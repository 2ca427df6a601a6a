"""Flow matching: the network of `diffusion` predicts the velocity, at a shorter budget, 32 px.

Rectified flow with logit-normal timesteps, as in Stable Diffusion 3 (Esser et al. 2024, section
3.1); `diffusion` takes the same path but predicts the image, at uniform timesteps.

Command:  python -m jaxgen.train --config=flow_matching
Hardware: 2 CPU cores.
Plan:     python -m jaxgen.plan --config=flow_matching --topology=v5e:2x2 --quick
          says that it fits: at most 0.34 of 15.75 GiB a chip. By the chips' peaks its
          program's step takes 0.973 ms, 1.47 ms if nothing hides what the links carry; to draw its
          grids, 12 images at once, takes at most 0.17 GiB.
Time:     27 minutes beside other work (2000 steps of 16 images at 20 images/s; alone on the machine
          `diffusion`, the same network, does 44).
Result:   loss .198 (cpu-2/flow_matching_train.log): hearts of the right colour, faces, apple and
          carrot can be told, the pizza cannot; one step is blurred (docs/methods.md).

Its 274 pictures are those on which docs/methods.md compares the methods.
"""

import dataclasses

from jaxgen import config as configs
from jaxgen.diffusion.schedule import Schedule
from jaxgen.methods.diffusion import Diffusion

image = configs.load("diffusion")
assert isinstance(image, Diffusion)

config = dataclasses.replace(
    image,
    name="flow_matching",
    data=dataclasses.replace(image.data, name="openmoji:smileys-emotion,food-drink"),
    # The timesteps drawn have their median at sigma .75, and one in 30 is above .95.
    model=dataclasses.replace(
        image.model, schedule=Schedule(kind="flow", shift=3.0), prediction="flow"
    ),
    timesteps="logit_normal",
    shown=(
        "red heart",
        "cœur vert",
        "grinning face",
        "visage somnolent",
        "robot",
        "fantôme",
        "skull",
        "pomme rouge",
        "pizza",
        "fraise",
        "avocado",
        "carotte",
    ),
    train=dataclasses.replace(image.train, steps=2000, sample_every=500),
)
