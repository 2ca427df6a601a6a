"""The shipped diffusion model tuned on your own 20 to 200 pictures, 32 px.

Command:  python -m jaxgen.train --config=finetune --data.name=imagefolder:my_pictures
"""

import dataclasses

from jaxgen import config as configs
from jaxgen.config import Data, Optimizer, Train
from jaxgen.methods.diffusion import Diffusion

base = configs.load("diffusion")
assert isinstance(base, Diffusion)

config = dataclasses.replace(
    base,
    name="finetune",
    init_from="shipped",
    data=Data(name="imagefolder:pictures", size=32),
    shown=(),
    train=Train(
        steps=400, batch=16, ema=0.99, log_every=20, sample_every=100, checkpoint_every=100
    ),
    optimizer=Optimizer(learning_rate=5e-4, warmup=20),
)
