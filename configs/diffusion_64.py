"""The teacher of `add_64`: text-conditioned diffusion on OpenMoji, 64 px, for one accelerator.

Command:  python -m jaxgen.train --config=diffusion_64
Hardware: meant for one GPU or one TPU host; not trained yet, so neither time nor result is known.
Plan:     python -m jaxgen.plan --config=diffusion_64 --topology=v5e:2x4 --quick
          says that it fits: at most 2.65 of 15.75 GiB a chip. By the chips' peaks its
          program's step takes 18.6 ms, 22.2 ms if nothing hides what the links carry.
"""

from jaxgen import config as configs
from jaxgen.config import Data, Optimizer, Train
from jaxgen.diffusion.denoiser import Denoiser
from jaxgen.diffusion.schedule import Schedule
from jaxgen.methods.diffusion import Diffusion
from jaxgen.models.unet import UNetConfig
from jaxgen.text.encoder import TextConfig

small = configs.load("diffusion")
assert isinstance(small, Diffusion)

config = Diffusion(
    name="diffusion_64",
    data=Data(name="openmoji", size=64),
    model=Denoiser(
        text=TextConfig(width=256, layers=4, heads=4, length=24),
        unet=UNetConfig(
            patch=2,
            block_out=(128, 256, 384),
            layers=2,
            attention=(False, True, True),
            transformer_depth=(1, 1, 1),
            heads=(2, 4, 6),
            context_width=256,
            added_width=256,
            dtype="bfloat16",
        ),
        schedule=Schedule(kind="flow", shift=4.0),
        prediction="x0",
    ),
    shown=small.shown,
    guidance=small.guidance,
    train=Train(steps=40_000, batch=256, ema=0.9995, sample_every=2000, checkpoint_every=2000),
    optimizer=Optimizer(learning_rate=5e-4, warmup=500),
)
