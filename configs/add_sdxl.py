"""ADD of Stable Diffusion XL base at 512 px, as SDXL-Turbo was made, on your own pictures.

Command:  python -m jaxgen.train --config=add_sdxl --teacher=FOLDER --data.name=imagefolder:PICTURES
          FOLDER holds the published weights in diffusers' layout.
Hardware: as add_sd21.py, for half as many images; to plan it takes 18 GB of a host.
Plan:     python -m jaxgen.plan --config=add_sdxl --topology=v5e:4x4 --quick
          says that it fits: at most 12.97 of 15.75 GiB a chip. By the chips' peaks its
          program's step takes 748 ms, 1.06 s if nothing hides what the links carry; to draw its
          grids, 16 images at once, takes at most 4.72 GiB. That was when the decoder was computed
          twice over in the backward pass: it is less work now, and some more memory.
Result:   not trained yet: no published weights were at hand.
"""

import dataclasses

from jaxgen import config as configs
from jaxgen.diffusion.denoiser import Denoiser
from jaxgen.diffusion.schedule import Schedule
from jaxgen.methods.add import Add
from jaxgen.models.unet import SDXL_UNET
from jaxgen.text.encoder import CLIP_L, OPENCLIP_BIGG

like = configs.load("add_sd21")
assert isinstance(like, Add)
side = like.data.size

config = dataclasses.replace(
    like,
    name="add_sdxl",
    teacher="hf:stabilityai/stable-diffusion-xl-base-1.0",
    model=Denoiser(
        text=dataclasses.replace(CLIP_L, penultimate=True, dtype="bfloat16"),
        text_2=dataclasses.replace(OPENCLIP_BIGG, dtype="bfloat16"),
        time_ids=(side, side, 0, 0, side, side),
        zero_empty=True,
        unet=dataclasses.replace(SDXL_UNET, dtype="bfloat16", remat="blocks"),
        schedule=Schedule(kind="scaled_linear"),
        prediction="epsilon",
    ),
    # Its decoder is known to overflow in float16, and is no better for bfloat16's eight bits.
    autoencoder=dataclasses.replace(like.autoencoder, dtype="float32"),
    mesh=dataclasses.replace(like.mesh, rules=()),  # as it was planned
    train=dataclasses.replace(like.train, batch=64),
)
