"""A supervised classifier of OpenMoji's groups, 32 px: later the grader of sample quality.

Command:  python -m jaxgen.train --config=classifier
Hardware: meant for 2 CPU cores; not measured yet, so neither time nor accuracy is known.
"""

from jaxgen.config import Data, Optimizer, Train
from jaxgen.methods.classifier import Classifier
from jaxgen.models.resnet import ResNetConfig

config = Classifier(
    name="classifier",
    data=Data(name="openmoji", size=32),
    model=ResNetConfig(widths=(32, 64, 128), blocks=2, groups=8),
    train=Train(steps=800, batch=64, ema=0.99, sample_every=0, checkpoint_every=200),
    optimizer=Optimizer(learning_rate=2e-3, warmup=50, weight_decay=0.05),
)
