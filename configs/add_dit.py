"""ADD with a transformer (DiT) for student and teacher, OpenMoji, 32 px; trains the teacher first.

Command:  python -m jaxgen.train --config=add_dit
Hardware: 2 CPU cores.
Result:   not trained yet.
"""

import dataclasses

from jaxgen import config as configs
from jaxgen.methods.add import Add
from jaxgen.methods.diffusion import Diffusion

like, teacher = configs.load("add"), configs.load("dit")
assert isinstance(like, Add)
assert isinstance(teacher, Diffusion)

config = dataclasses.replace(
    like, name="add_dit", teacher="dit", teacher_config="dit", model=teacher.model
)
