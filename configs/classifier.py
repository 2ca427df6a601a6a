"""A supervised classifier of OpenMoji's 95 subgroups, 32 px; its features also grade samples.

Command:  python -m jaxgen.train --config=classifier
Hardware: 2 CPU cores.
Plan:     python -m jaxgen.plan --config=classifier --topology=v5e:2x2 --quick
          says that it fits: at most 0.08 of 15.75 GiB a chip. By the chips' peaks its
          program's step takes 0.22 ms, 0.324 ms if nothing hides what the links carry.
Time:     28 minutes, beside other work (benchmarks/results/cpu-2/classifier_train.log).
Result:   held-out accuracy 49.1 % over 95 subgroups (165 pictures, 41.6 to 56.7; the same log). The
          shipped weights, in float16, have 49.7 % (42.2 to 57.2), and 66.7 % over the 8 groups that
          these make up (benchmarks/linear_probe.py). A linear probe on ImageNet features tells
          72.7 % of the groups, no sure difference in 165 pictures (McNemar's exact p = 0.13);
          classifier_tuned, which starts from those features' weights, 77.0 %.
"""

from jaxgen.config import Data, Optimizer, Train
from jaxgen.methods.classifier import Classifier
from jaxgen.models.resnet import ResNetConfig

config = Classifier(
    name="classifier",
    data=Data(name="openmoji", label="sublabel", size=32, flip=True),
    resnet=ResNetConfig(patch=2, widths=(48, 96, 192), blocks=2, groups=8),
    mixup=0.2,
    train=Train(steps=3000, batch=64, ema=0.995, sample_every=0, checkpoint_every=500),
    optimizer=Optimizer(learning_rate=2e-3, warmup=50, weight_decay=0.05),
)
