"""ADD in latents: student and teacher on codes, judge and distance in pixels through the decoder.

Command:  python -m jaxgen.train --config=add_latent
Hardware: 2 CPU cores. Trains the codec (vae) and the teacher (latent_diffusion) first.
Then:     python -m jaxgen.export --run=runs/add_latent --to=diffusers --out=FOLDER
Memory:   compiled for one CPU device at batch 24 the step needs 465 MiB of temporaries and 68.0
          GFLOP; --autoencoder.remat=blocks, by which add_sd21 looks through its decoder at 512 px,
          makes that 441 and 72.4.
Plan:     python -m jaxgen.plan --config=add_latent --topology=v5e:2x2 --quick
          says that it fits: at most 0.56 of 15.75 GiB a chip. By the chips' peaks its
          program's step takes 3.97 ms, 4.71 ms if nothing hides what the links carry; to draw its
          grids, 12 images at once, takes at most 0.17 GiB.
Time:     30 minutes beside other work, without the two (cpu-2/add_latent_train.log).
Result:   to the eye one step draws most of what its teacher's 50 do; Fréchet distance 10.5,
          theirs 7.8, its teacher's one step 15.6 guided and 23.9 unguided (docs/methods.md).
"""

import dataclasses

from jaxgen import config as configs
from jaxgen.config import Drawing
from jaxgen.methods.add import Add
from jaxgen.methods.diffusion import Diffusion

pixels, teacher = configs.load("add"), configs.load("latent_diffusion")
assert isinstance(pixels, Add)
assert isinstance(teacher, Diffusion)

config = dataclasses.replace(
    pixels,
    name="add_latent",
    teacher="latent_diffusion",
    teacher_config="latent_diffusion",
    data=teacher.data,
    codec=teacher.codec,
    autoencoder=teacher.autoencoder,
    model=teacher.model,
    guidance=teacher.guidance,
    # Without pairs the first step stays the blur it starts as (docs/methods.md).
    # At more guidance than its 50 steps are shown with: the one trial made.
    drawn=Drawing(count=2000, steps=8, guidance=3.0),
    regression=60.0,
    distillation=300.0,
    train=dataclasses.replace(pixels.train, steps=334, ema=0.995),
    optimizer=dataclasses.replace(pixels.optimizer, learning_rate=3e-4, b1=0.5),
    # Noisier than the range of add.py, which on this schedule would be (.39, .8): of two trainings
    # the better (docs/methods.md).
    teacher_range=(0.5, 0.95),
    shown=teacher.shown,
)
