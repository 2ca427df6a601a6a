"""The GAN of gan.py on the captions of diffusion_subgroups.py.

Command:  python -m jaxgen.train --config=gan_subgroups
Hardware: 2 CPU cores.
Time:     14 minutes of one core for the 4000 steps of the comparison, twice as many as here
          (cpu-1/gan_subgroups_train.log).
Result:   after those, Fréchet distance 16.4, recall 19 % (README).
"""

import dataclasses

from jaxgen import config as configs

subgroups = configs.load("diffusion_subgroups")
config = dataclasses.replace(
    configs.load("gan"), name="gan_subgroups", data=subgroups.data, shown=subgroups.shown
)
