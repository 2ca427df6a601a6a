"""Before anything imports JAX: eight CPU devices, so that meshes can be tested on any machine.

And XLA's CPU code is left unoptimised, in the processes that tests start too: compiling is most of
what the tests do. A test that trains for long asks for optimised code itself.
"""

import os
import sys

os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # or a TPU is looked for wherever libtpu is installed
# PyTorch's threads wait for each other by spinning, which costs its small networks five times the
# time where others want the cores too.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)

pytest_plugins = ("tiny",)

# Its wheel does not load beside a CPU-only PyTorch, and transformers would fail with it. Hidden, it
# is a package that is not installed (see `reference`).
sys.modules["torchvision"] = None  # pyright: ignore[reportArgumentType]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """The one line on stderr of a door, given its main and arguments, that ends by exit code 2."""

    def refused(main: Callable[[], None], *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["door", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return refused
