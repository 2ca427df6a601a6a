"""Before anything imports JAX: eight CPU devices, so that meshes can be tested on any machine.

And XLA's CPU code is left unoptimised, in the processes that tests start too: compiling is most of
what the tests do. A test that trains for long asks for optimised code itself.
"""

import os
import sys
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    # A quarter of the time, for the same numbers; later ones leave no choice.
    + (" --xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else ""),
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # or a TPU is looked for wherever libtpu is installed
# For processes that tests start: the modules beside this file, and this copy of jaxgen. And what
# they compile is kept for the next one in their folder also where it takes but a moment.
os.environ["PYTHONPATH"] = os.pathsep.join(
    (*map(str, Path(__file__).parents[:2]), *filter(None, [os.environ.get("PYTHONPATH")]))
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# PyTorch's threads wait for each other by spinning, which costs its small networks five times the
# time where others want the cores too.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc
from collections.abc import Callable

import hypothesis
import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
# Tracing makes more objects than it leaves: to look for those that can go takes a tenth of it.
gc.set_threshold(100_000, 20, 20)

# No test has a time limit: the machine may be busy.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

pytest_plugins = ("tiny",)

# Its wheel does not load beside a CPU-only PyTorch, and transformers would fail with it. Hidden, it
# is a package that is not installed (see `reference`).
sys.modules["torchvision"] = None  # pyright: ignore[reportArgumentType]


# In this order, the others after them: what is long and comes last keeps one core waiting.
LONGEST = (
    "test_doors_methods.py",
    "test_hosts.py",
    "test_doors_published.py",
    "test_doors.py",
    "test_pipelines.py",
    "test_evaluate.py",
    "test_storage.py",
    "test_gan.py",
    "test_mesh.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest first."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """The one line on stderr of a door that ends by exit code 2, given its main and arguments."""

    def refused(main: Callable[[], None], *arguments: str, code: int = 2) -> str:
        monkeypatch.setattr(sys, "argv", ["door", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == code
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return refused
