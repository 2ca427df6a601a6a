"""A KL autoencoder of OpenMoji: 64 x 64 pixels to codes of 16 x 16 x 4 and back.

Command:  python -m jaxgen.train --config=vae
Hardware: 2 CPU cores.
Result:   not trained yet. One on patches of 2 x 2 pixels, which diffusers does not know, computed
          1/1.3 as much and came to 21.7 dB on 165 held-out pictures (21.4 to 22.1) in 34 minutes
          beside much other work: lines and shapes are right, some colours are lost.

The plain autoencoder that `python -m benchmarks.continuity` sets beside it:
python -m jaxgen.train --config=vae --name=vae_plain --kl=0
"""

from jaxgen.config import Data, Optimizer, Train
from jaxgen.methods.vae import Vae
from jaxgen.models.autoencoder import AutoencoderConfig
from jaxgen.models.patch_discriminator import PatchDiscriminatorConfig

config = Vae(
    name="vae",
    data=Data(name="openmoji", size=64, flip=True),
    autoencoder=AutoencoderConfig(block_out=(16, 32, 64), layers=1, groups=8, mid_attention=False),
    taps=(0, 2, 4),
    adversarial_from=0.6,
    discriminator=PatchDiscriminatorConfig(width=32, layers=2),
    train=Train(steps=1200, batch=16, ema=0.995, sample_every=0, checkpoint_every=200),
    optimizer=Optimizer(learning_rate=1e-3, warmup=50),
    discriminator_optimizer=Optimizer(learning_rate=5e-4, warmup=20, b1=0.5, clip=10.0),
)
