"""A KL autoencoder of OpenMoji: 64 x 64 pixels to codes of 16 x 16 x 4 and back.

Command:  python -m jaxgen.train --config=vae
Hardware: 2 CPU cores.
Plan:     python -m jaxgen.plan --config=vae --topology=v5e:2x2 --quick
          says that it fits: at most 0.43 of 15.75 GiB a chip. By the chips' peaks its
          program's step takes 2.4 ms, 2.46 ms if nothing hides what the links carry.
Time:     54 minutes on a shared core (cpu-2/vae_train.log).
Result:   27.0 dB on 26 held-out pictures (25.9 to 28.0), most hardly changed to the eye. The
          discriminator tells pictures at the end, as it did not before it had a head start; that
          they are the better for it is not seen (docs/methods.md).

The plain autoencoder that `python -m benchmarks.continuity` sets beside it:
python -m jaxgen.train --config=vae --name=vae_plain --kl=0
"""

from jaxgen.config import Data, Optimizer, Train
from jaxgen.methods.vae import Vae
from jaxgen.models.autoencoder import AutoencoderConfig
from jaxgen.models.patch_discriminator import PatchDiscriminatorConfig

config = Vae(
    name="vae",
    data=Data(name="openmoji:smileys-emotion,food-drink", size=64, flip=True),
    autoencoder=AutoencoderConfig(block_out=(16, 32, 64), layers=1, groups=8, mid_attention=False),
    taps=(0, 2, 4),
    adversarial_from=0.6,
    discriminator=PatchDiscriminatorConfig(width=32, layers=2),
    train=Train(steps=2000, batch=16, ema=0.995, sample_every=0, checkpoint_every=200),
    optimizer=Optimizer(learning_rate=1e-3, warmup=50),
    discriminator_optimizer=Optimizer(learning_rate=5e-4, warmup=20, b1=0.5, clip=10.0),
)
