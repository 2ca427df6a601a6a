"""A supervised classifier of OpenMoji's 95 subgroups, 32 px; its features also grade samples.

Command:  python -m jaxgen.train --config=classifier
Hardware: 2 CPU cores, 1.3 GB of memory.
Time:     28 minutes, beside other work (benchmarks/results/cpu-2/classifier_train.log).
Result:   held-out accuracy 49.7 % over 95 subgroups (165 pictures, 42.2 to 57.2), 66.7 % over the 8
          groups that they make up. A linear probe on ImageNet features tells groups better, 72.7 %:
          1474 drawings teach less than a million photos (benchmarks/linear_probe.py), and
          classifier_tuned, which starts from those, better still.
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
