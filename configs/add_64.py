"""ADD on OpenMoji, 64 px, for one accelerator; its teacher is trained first.

Command:  python -m jaxgen.train --config=add_64
Hardware: meant for one GPU or one TPU host; not trained yet, so neither time nor result is known.
Plan:     python -m jaxgen.plan --config=add_64 --topology=v5e:2x4 --quick
          says that it fits: at most 2.27 of 15.75 GiB a chip. By the chips' peaks its
          program's step takes 17.5 ms, 20 ms if nothing hides what the links carry.
"""

from jaxgen import config as configs
from jaxgen.config import Drawing, Optimizer, Train
from jaxgen.methods.add import Add
from jaxgen.methods.diffusion import Diffusion
from jaxgen.models.judge import JudgeConfig

teacher = configs.load("diffusion_64")
assert isinstance(teacher, Diffusion)

config = Add(
    name="add_64",
    teacher="train",
    teacher_config="diffusion_64",
    data=teacher.data,
    model=teacher.model,
    shown=teacher.shown,
    guidance=teacher.guidance,
    judge=JudgeConfig(
        taps=(2, 4, 10, 15), resize=128, dtype="bfloat16", augment=("translation", "cutout")
    ),
    # Pairs, rates and weights as in add_paired.py or gentler, untuned here.
    drawn=Drawing(count=8192, steps=16, guidance=teacher.guidance),
    regression=60.0,
    distillation=300.0,
    teacher_range=(0.3, 0.9),
    frequency=(3, 1, 1, 1),
    train=Train(steps=10_000, batch=128, ema=0.999, sample_every=1000, checkpoint_every=1000),
    optimizer=Optimizer(learning_rate=3e-4, warmup=100, b1=0.5, b2=0.99),
    judge_optimizer=Optimizer(learning_rate=5e-4, warmup=0, b1=0.0, b2=0.99, clip=10.0),
)
