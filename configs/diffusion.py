"""The teacher: text-conditioned rectified flow on OpenMoji, 32 px, predicting x0.

Command:  python -m jaxgen.train --config=diffusion
Hardware: 2 CPU cores, of which other work took a part.
Time:     28 minutes (2400 steps of 32 images, 48 images/s).
Result:   loss .100 at the end. Faces, hearts and plain round things are recognisable at 50 guided
          steps; most other captions give the right colours and a wrong or broken shape. The
          weights and the log are in jaxgen/pretrained/diffusion, put there by benchmarks/ship.py.
"""

from jaxgen.config import Data, Optimizer, Train
from jaxgen.diffusion.denoiser import Denoiser
from jaxgen.diffusion.schedule import Schedule
from jaxgen.methods.diffusion import Diffusion
from jaxgen.models.unet import UNetConfig
from jaxgen.text.encoder import TextConfig

config = Diffusion(
    name="diffusion",
    data=Data(
        name="openmoji",
        size=32,
        labels=("smileys-emotion", "animals-nature", "food-drink"),
    ),
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
    train=Train(steps=7000, batch=16, ema=0.999, log_every=100, sample_every=1000),
    optimizer=Optimizer(learning_rate=1e-3, warmup=200, decay="cosine"),
)
