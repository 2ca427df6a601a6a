"""Pixels go to networks and back unchanged."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.pixels import mirrored, to_uint8, to_unit


def test_every_byte_survives_the_round_trip() -> None:
    every = jnp.arange(256, dtype=jnp.uint8).reshape(1, 16, 16, 1)
    unit = to_unit(every)
    assert unit.min() == -1.0
    assert unit.max() == 1.0
    np.testing.assert_array_equal(to_uint8(unit), every)


def test_out_of_range_is_clipped() -> None:
    np.testing.assert_array_equal(to_uint8(jnp.array([[[[-7.0, 7.0]]]])), [[[[0, 255]]]])


def test_mirroring_turns_whole_images_and_about_half_of_them() -> None:
    image = jnp.arange(4.0).reshape(1, 1, 4, 1).repeat(400, 0)
    out = np.asarray(mirrored(jax.random.key(0), image))[:, 0, :, 0]
    turned = (out == [3, 2, 1, 0]).all(1)
    assert ((out == [0, 1, 2, 3]).all(1) ^ turned).all()
    assert 150 < turned.sum() < 250
