"""Before anything imports jaxgen or JAX's backend: shapes in signatures are checked, eight devices.

Eight CPU devices, so that meshes can be tested on any machine.
"""

import jax
from jaxtyping import install_import_hook

jax.config.update("jax_num_cpu_devices", 8)
install_import_hook(
    ["jaxgen.pixels", "jaxgen.models", "jaxgen.diffusion", "jaxgen.methods", "jaxgen.text.encoder"],
    "beartype.beartype",
)

pytest_plugins = ("tiny",)
