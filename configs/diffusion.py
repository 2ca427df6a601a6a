"""The teacher: text-conditioned rectified flow on OpenMoji, 32 px, predicting x0.

Command:  python -m jaxgen.train --config=diffusion
Hardware: 2 CPU cores.
Plan:     python -m jaxgen.plan --config=diffusion --topology=v5e:2x2 --quick
          says that it fits: at most 0.34 of 15.75 GiB a chip. By the chips' peaks its
          program's step takes 0.973 ms, 1.47 ms if nothing hides what the links carry; to draw its
          grids, 12 images at once, takes at most 0.17 GiB.
Time:     43 minutes (7000 steps of 16 images, 44 images/s).
Result:   loss .056. Of the 12 captions shown we recognise 11. The weights and the metrics are in
          jaxgen/pretrained/diffusion, put there by benchmarks/ship.py (the groups stood in a field
          of their own then), the log in benchmarks/results/cpu-2.

It learns 425 faces, hearts, animals and foods, 263 times each, so nearly by rote that one step of
it is cleaner than 50 guided ones. All 1474 pictures (`--data.name=openmoji`) want an accelerator:
an earlier version of this config got most captions' colours right and their shapes wrong after 28
minutes of them.
"""

from jaxgen.config import Data, Optimizer, Train
from jaxgen.diffusion.denoiser import Denoiser
from jaxgen.diffusion.schedule import Schedule
from jaxgen.methods.diffusion import Diffusion
from jaxgen.models.unet import UNetConfig
from jaxgen.text.encoder import TextConfig

config = Diffusion(
    name="diffusion",
    data=Data(name="openmoji:smileys-emotion,animals-nature,food-drink", size=32),
    model=Denoiser(
        text=TextConfig(width=64, layers=2, heads=2, length=16),
        unet=UNetConfig(
            patch=2,
            block_out=(32, 64, 128),
            layers=1,
            attention=(False, True, True),
            transformer_depth=(1, 1, 1),
            heads=(1, 2, 4),
            context_width=64,
            added_width=64,
            groups=8,
        ),
        schedule=Schedule(kind="flow", shift=4.0),
        prediction="x0",
    ),
    shown=(
        "red heart",
        "cœur vert",
        "pizza",
        "cat face",
        "panda",
        "grenouille",
        "mushroom",
        "pingouin",
        "grinning face",
        "sleeping face",
        "pomme rouge",
        "carotte",
    ),
    # At 3 the Fréchet distance, KID, retrieval and the expert judge are all worse.
    guidance=1.5,
    train=Train(steps=7000, batch=16, ema=0.999, log_every=100, sample_every=1000),
    optimizer=Optimizer(learning_rate=1e-3, warmup=200, decay="cosine"),
)
