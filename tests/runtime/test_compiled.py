import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from jaxgen.runtime import compiled


@pytest.fixture
def cache(tmp_path):
    """JAX's cache, open to what compiles within a second; as it was, afterwards."""
    options = {
        "jax_compilation_cache_dir": str(tmp_path),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_what_was_compiled_before_is_told_from_what_is_new(cache) -> None:
    x = np.ones(3, np.float32)
    with compiled.cached() as told:
        assert not told()
        jax.jit(lambda x: x + 1)(x)
        assert not told()
    with compiled.cached() as told:
        jax.jit(lambda x: x + 1)(x)
        assert told()
        jax.jit(lambda x: x + 2)(x)
        assert not told()
