"""Before anything imports JAX: eight CPU devices, so that meshes can be tested on any machine."""

import jax

jax.config.update("jax_num_cpu_devices", 8)

pytest_plugins = ("tiny",)
