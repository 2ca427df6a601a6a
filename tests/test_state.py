"""How randomness is derived."""

import jax
import numpy as np
import pytest

from jaxgen.state import stream


@pytest.mark.parametrize("seed", [0, 7, 2**31, 2**32 - 1])
def test_a_seed_given_to_a_program_is_the_seed_built_into_it(seed: int) -> None:
    """Or a run would go on otherwise than it began."""
    given = jax.jit(lambda seed: stream(seed, 3, "noise"))(np.uint32(seed))
    built_in = stream(seed, 3, "noise")
    assert np.array_equal(jax.random.key_data(given), jax.random.key_data(built_in))
