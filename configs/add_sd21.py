"""ADD of Stable Diffusion 2.1 base at 512 px, as SD-Turbo was made, on your own pictures.

Command:  python -m jaxgen.train --config=add_sd21 --teacher=FOLDER --data.name=imagefolder:PICTURES
          FOLDER holds the published weights in diffusers' layout;
          --judge.weights=FILE, those of DINOv2 ViT-S/14, is the paper's judge.
Hardware: meant for a TPU slice such as v5e:4x4, or for several GPUs; on none has it been trained.
          Its batch of 128 is 8 images a chip there, with learning rates that were never tried at
          it. On fewer or smaller devices lower --train.batch, and let --train.accumulate gather
          as many. From 16 chips on --mesh.data=-1 --mesh.fsdp=4 has links carry a fifth less on
          paper (docs/measures.md); as it is, any number of devices is taken.
Plan:     python -m jaxgen.plan --config=add_sd21 --topology=v5e:4x4 --quick
          says that it fits: at most 14.16 of 15.75 GiB a chip. By the chips' peaks its
          program's step takes 507 ms, 583 ms if nothing hides what the links carry; to draw its
          grids, 16 images at once, takes at most 2.56 GiB.
Result:   not trained yet: no published weights were at hand. The whole path, from a folder of
          random weights to one that diffusers opens, is a test.
"""

import dataclasses

from jaxgen.config import Data, Mesh, Optimizer, Train
from jaxgen.diffusion.denoiser import Denoiser
from jaxgen.diffusion.schedule import Schedule
from jaxgen.methods.add import Add
from jaxgen.models.autoencoder import SD_AUTOENCODER
from jaxgen.models.judge import JudgeConfig
from jaxgen.models.unet import SD21_UNET
from jaxgen.text.encoder import OPENCLIP_H

config = Add(
    name="add_sd21",
    teacher="hf:stabilityai/stable-diffusion-2-1-base",
    codec="the teacher's",
    data=Data(name="imagefolder:pictures", size=512, flip=True),
    model=Denoiser(
        text=dataclasses.replace(OPENCLIP_H, dtype="bfloat16"),
        unet=dataclasses.replace(SD21_UNET, dtype="bfloat16", remat="blocks", gather_once=True),
        schedule=Schedule(kind="scaled_linear"),
        prediction="epsilon",  # of the base model; the one for 768 px predicts v
    ),
    autoencoder=dataclasses.replace(SD_AUTOENCODER, dtype="bfloat16", remat="blocks"),
    # DINOv2 ViT-S/14 as the paper's judge, if --judge.weights names the file; else EfficientNet.
    judge=JudgeConfig(features="", resize=224, dtype="bfloat16", augment=("translation", "cutout")),
    mesh=Mesh(data=1, fsdp=-1, rules=("codec/decoder=whole",)),  # small, and only read
    train=Train(steps=4000, batch=128, ema=0.999, sample_every=500, checkpoint_every=250),
    optimizer=Optimizer(learning_rate=1e-5, warmup=100, b1=0.9, b2=0.999, weight_decay=0.01),
    judge_optimizer=Optimizer(learning_rate=1e-4, warmup=0, b1=0.0, b2=0.99, clip=10.0),
)
