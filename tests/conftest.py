"""Before anything imports JAX: eight CPU devices, so that meshes can be tested on any machine."""

import sys

import jax

jax.config.update("jax_num_cpu_devices", 8)

pytest_plugins = ("tiny",)

# Its wheel does not load beside a CPU-only PyTorch, and transformers would fail with it. Hidden, it
# is a package that is not installed (see `reference`).
sys.modules["torchvision"] = None  # pyright: ignore[reportArgumentType]
