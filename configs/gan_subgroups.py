"""The GAN of gan.py on the captions of diffusion_subgroups.py.

Command:  python -m jaxgen.train --config=gan_subgroups
Hardware: 2 CPU cores.
"""

import dataclasses

from jaxgen import config as configs

subgroups = configs.load("diffusion_subgroups")
config = dataclasses.replace(
    configs.load("gan"), name="gan_subgroups", data=subgroups.data, shown=subgroups.shown
)
