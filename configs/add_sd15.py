"""ADD of Stable Diffusion 1.5 at 512 px, on your own pictures.

Command:  python -m jaxgen.train --config=add_sd15 --teacher=FOLDER --data.name=imagefolder:PICTURES
          FOLDER holds the published weights in diffusers' layout.
Hardware: as add_sd21.py.
Plan:     python -m jaxgen.plan --config=add_sd15 --topology=v5e:4x4 --quick
          says that it fits: at most 14.10 of 15.75 GiB a chip. By the chips' peaks its
          program's step takes 506 ms, 577 ms if nothing hides what the links carry; to draw its
          grids, 16 images at once, takes at most 2.48 GiB.
Result:   not trained yet: no published weights were at hand.
"""

import dataclasses

from jaxgen import config as configs
from jaxgen.diffusion.denoiser import Denoiser
from jaxgen.diffusion.schedule import Schedule
from jaxgen.methods.add import Add
from jaxgen.models.unet import SD15_UNET
from jaxgen.text.encoder import CLIP_L

like = configs.load("add_sd21")
assert isinstance(like, Add)

config = dataclasses.replace(
    like,
    name="add_sd15",
    teacher="hf:stable-diffusion-v1-5/stable-diffusion-v1-5",
    model=Denoiser(
        text=dataclasses.replace(CLIP_L, dtype="bfloat16"),
        unet=dataclasses.replace(SD15_UNET, dtype="bfloat16", remat="blocks", gather_once=True),
        schedule=Schedule(kind="scaled_linear"),
        prediction="epsilon",
    ),
)
