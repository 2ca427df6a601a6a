"""Adversarial diffusion distillation on OpenMoji, 32 px: a one-step student of the shipped teacher.

Command:  python -m jaxgen.train --config=add
"""

from jaxgen import config as configs
from jaxgen.config import Optimizer, Train
from jaxgen.methods.add import Add
from jaxgen.methods.diffusion import Diffusion
from jaxgen.models.judge import JudgeConfig

teacher = configs.load("diffusion")
assert isinstance(teacher, Diffusion)

config = Add(
    name="add",
    teacher="shipped",
    teacher_config="diffusion",
    data=teacher.data,
    model=teacher.model,
    shown=teacher.shown,
    judge=JudgeConfig(features="efficientnet-lite0", taps=(2, 4, 10), resize=64),
    train=Train(steps=500, batch=24, ema=0.99, sample_every=250, checkpoint_every=100),
    optimizer=Optimizer(learning_rate=3e-4, warmup=20, b1=0.0, b2=0.99),
    judge_optimizer=Optimizer(learning_rate=1e-3, warmup=0, b1=0.0, b2=0.99, clip=10.0),
)
