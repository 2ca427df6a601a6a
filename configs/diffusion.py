"""The teacher: text-conditioned flow matching on OpenMoji, 32 px."""

from jaxgen.config import Data, Optimizer, Train
from jaxgen.diffusion.denoiser import Denoiser
from jaxgen.diffusion.schedule import Schedule
from jaxgen.methods.diffusion import Diffusion
from jaxgen.models.unet import UNetConfig
from jaxgen.text.encoder import TextConfig

config = Diffusion(
    name="diffusion",
    data=Data(name="openmoji", size=32),
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
            groups=8,
        ),
        schedule=Schedule(kind="flow"),
        prediction="x0",
    ),
    shown=(
        "red heart",
        "cœur rouge",
        "pizza",
        "cat face",
        "dog",
        "sun",
        "house",
        "arbre",
        "car",
        "grinning face",
        "sleeping face",
        "pomme rouge",
    ),
    train=Train(steps=2400, batch=32, ema=0.998, log_every=50, sample_every=500),
    optimizer=Optimizer(learning_rate=1e-3, warmup=200, decay="cosine"),
)
