"""A classifier of OpenMoji's subgroups that starts from what ImageNet has taught it, 64 px.

Command:  python -m jaxgen.train --config=classifier_tuned
Hardware: 2 CPU cores.
Time:     18 minutes on one of them, beside other work
          (benchmarks/results/cpu-2/classifier_tuned_train.log).
Result:   61.8 % of the 165 held-out pictures over 95 subgroups (54.2 to 68.9), 77.0 % over the 8
          groups that they make up (70.0 to 82.7), where a linear probe on the same features tells
          68.5 % (McNemar's exact p = 0.009), or 72.7 % of pictures of 32 px
          (benchmarks/linear_probe.py).

It sees much as EfficientNet does, so it is no grader of what EfficientNet has judged.
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
    train=Train(steps=1500, batch=32, ema=0.99, sample_every=0, checkpoint_every=100),
    optimizer=Optimizer(learning_rate=3e-4, warmup=50, weight_decay=0.05),
)
