"""ADD in latents at full width, for one accelerator; codec and teacher are trained first.

Command:  python -m jaxgen.train --config=add_latent_64
Hardware: meant for one GPU or one TPU host; not trained yet, so neither time nor result is known.
Plan:     python -m jaxgen.plan --config=add_latent_64 --topology=v5e:2x4 --quick
          says that it fits: at most 2.28 of 15.75 GiB a chip. By the chips' peaks its
          program's step takes 16.4 ms, 19 ms if nothing hides what the links carry.
"""

import dataclasses

from jaxgen import config as configs
from jaxgen.methods.add import Add
from jaxgen.methods.diffusion import Diffusion

latent, pixels, teacher = map(configs.load, ("add_latent", "add_64", "latent_diffusion_64"))
assert isinstance(latent, Add)
assert isinstance(pixels, Add)
assert isinstance(teacher, Diffusion)

config = dataclasses.replace(
    pixels,
    name="add_latent_64",
    teacher="latent_diffusion_64",
    teacher_config="latent_diffusion_64",
    data=teacher.data,
    codec=teacher.codec,
    autoencoder=teacher.autoencoder,
    model=teacher.model,
    teacher_range=latent.teacher_range,
)
