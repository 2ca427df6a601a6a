"""The classifier of `classifier.py` at 64 px with a larger network, for one GPU or TPU host.

Command:  python -m jaxgen.train --config=classifier_64
Hardware: written for one accelerator; never trained yet, so neither time nor accuracy is known.
Plan:     python -m jaxgen.plan --config=classifier_64 --topology=v5e:2x4
          says that it fits: 0.23 of 15.75 GiB a chip; a step takes 0.817 ms at the
          least by the chips' peaks, 1.62 ms if nothing hides what the links carry.
"""

import dataclasses

from jaxgen import config as configs
from jaxgen.config import Train
from jaxgen.methods.classifier import Classifier
from jaxgen.models.resnet import ResNetConfig

small = configs.load("classifier")
assert isinstance(small, Classifier)

config = dataclasses.replace(
    small,
    name="classifier_64",
    data=dataclasses.replace(small.data, size=64),
    resnet=ResNetConfig(patch=2, widths=(64, 128, 256, 512), blocks=2, groups=16),
    train=Train(steps=10_000, batch=128, ema=0.999, sample_every=0, checkpoint_every=1000),
)
