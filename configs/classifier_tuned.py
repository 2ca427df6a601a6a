"""A classifier of OpenMoji's subgroups that starts from what ImageNet has taught it, 64 px.

Command:  python -m jaxgen.train --config=classifier_tuned
Hardware: 2 CPU cores.
"""

import dataclasses

from jaxgen import config as configs
from jaxgen.config import Optimizer, Train
from jaxgen.methods.classifier import Classifier

scratch = configs.load("classifier")
assert isinstance(scratch, Classifier)

config = dataclasses.replace(
    scratch,
    name="classifier_tuned",
    network="efficientnet",
    data=dataclasses.replace(scratch.data, size=64),
    train=Train(steps=500, batch=32, ema=0.98, sample_every=0, checkpoint_every=100),
    optimizer=Optimizer(learning_rate=3e-4, warmup=50, weight_decay=0.05),
)
