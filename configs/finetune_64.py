"""A run of `diffusion_64` tuned by LoRA on your own pictures, 64 px, for one accelerator.

Command:  python -m jaxgen.train --config=finetune_64 --data.name=imagefolder:my_pictures
          It starts from runs/diffusion_64, whatever --workdir is; --init-from names another run.
Hardware: meant for one GPU or one TPU host; not trained yet, so neither time nor result is known.
Plan:     python -m jaxgen.plan --config=finetune_64 --topology=v5e:2x4 --quick
          says that it fits: at most 1.17 of 15.75 GiB a chip. By the chips' peaks its
          program's step takes 5.06 ms, 6.5 ms if nothing hides what the links carry.
"""

import dataclasses

from jaxgen import config as configs
from jaxgen.config import Data, Optimizer, Train
from jaxgen.methods.diffusion import Diffusion
from jaxgen.models.lora import Lora

base = configs.load("diffusion_64")
assert isinstance(base, Diffusion)

config = dataclasses.replace(
    base,
    name="finetune_64",
    init_from="runs/diffusion_64",
    lora=Lora(rank=16, alpha=16.0),
    data=Data(name="imagefolder:pictures", size=64),
    shown=(),
    train=Train(steps=2000, batch=64, ema=0.99, sample_every=500),
    optimizer=Optimizer(learning_rate=1e-3, warmup=50),
)
