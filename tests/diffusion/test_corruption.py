"""Threshold corruption: what is replaced, by what, and the way back."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgen.diffusion import corruption
from jaxgen.diffusion.sampler import Sampler
from jaxgen.diffusion.schedule import Schedule
from jaxgen.errors import UserError
from jaxgen.pixels import to_uint8, to_unit

FLOW = Schedule("flow")
SHIFTED = Schedule("flow", shift=16.0)
SHAPE = (2, 8, 8, 3)
BOTH = pytest.mark.parametrize("how", ["again", "keep"])


@pytest.fixture(scope="module")
def x0():
    return jax.random.uniform(jax.random.key(0), SHAPE, minval=-1, maxval=1)


@pytest.fixture(scope="module")
def large():
    """Noise enough for statistics: 200 000 pixels."""
    return corruption.draw(jax.random.key(1), (5, 200, 200, 3))


def test_the_level_is_the_share_of_timesteps_gone_and_1_at_the_last():
    t = jnp.arange(1000.0)
    p = np.asarray(jax.jit(corruption.level, static_argnums=0)(FLOW, t))
    np.testing.assert_allclose(p, (np.arange(1000) + 1) / 1000, rtol=1e-6)
    shifted = np.asarray(jax.jit(corruption.level, static_argnums=0)(SHIFTED, t))
    assert p[-1] == shifted[-1] == 1, "to the last bit: no pixel is left"
    assert np.all(shifted[:-1] > p[:-1])
    assert np.all(np.diff(shifted) > 0)
    odds = p[:-1] / (1 - p[:-1])
    np.testing.assert_allclose(shifted[:-1], 16 * odds / (16 * odds + 1), rtol=1e-5)


def test_pixels_below_the_level_are_replaced_whole_the_others_kept_exactly(x0):
    noise = corruption.draw(jax.random.key(2), SHAPE)
    p = np.array([0.3, 0.8], np.float32)
    x = np.asarray(corruption.corrupt(x0, noise, jnp.asarray(p)))
    for image in range(2):
        for row, column in np.ndindex(8, 8):
            where = image, row, column
            replaced = noise.threshold[where][0] < p[image]
            expected = noise.colour[where] if replaced else x0[where]
            np.testing.assert_array_equal(x[where], expected)


def test_at_level_1_nothing_of_the_image_is_left_and_at_0_all(x0):
    noise = corruption.draw(jax.random.key(3), SHAPE)
    np.testing.assert_array_equal(corruption.corrupt(x0, noise, jnp.ones(2)), noise.colour)
    np.testing.assert_array_equal(corruption.corrupt(x0, noise, jnp.zeros(2)), x0)


@settings(max_examples=50)
@given(a=st.floats(0, 1, width=32), b=st.floats(0, 1, width=32), seed=st.integers(0, 100))
def test_corruption_only_grows_with_the_level(a, b, seed):
    noise = corruption.draw(jax.random.key(seed), SHAPE)
    image = jnp.full(SHAPE, 2.0)  # no colour, so that every replaced pixel is seen
    less, more = (
        corruption.corrupt(image, noise, jnp.full(2, level)) != image for level in sorted((a, b))
    )
    assert not np.any(less & ~more)


def test_the_level_is_the_share_of_pixels_replaced_and_the_mean_is_that_of_flow(large):
    image = jnp.full(large.colour.shape, 0.6)
    for p in (0.1, 0.5, 0.9):
        x = corruption.corrupt(image, large, jnp.full(5, p))
        share = np.mean(np.asarray(large.threshold) < p)
        # Five standard errors of 200 000 pixels.
        assert share == pytest.approx(p, abs=5 * (p * (1 - p) / 200_000) ** 0.5)
        assert float(x.mean()) == pytest.approx((1 - p) * 0.6, abs=0.006)


def test_colours_are_those_of_files_each_as_likely_and_channels_are_independent(large):
    levels = np.asarray(to_uint8(large.colour))
    np.testing.assert_array_equal(to_unit(jnp.asarray(levels)), large.colour)
    for channel in range(3):
        counts = np.bincount(levels[..., channel].ravel(), minlength=256)
        chi_square = np.sum((counts - 781.25) ** 2 / 781.25)
        assert chi_square < 255 + 6 * 510**0.5
    columns = np.concatenate([levels, np.asarray(large.threshold)], -1).reshape(-1, 4)
    correlation = np.corrcoef(columns.T) - np.eye(4)
    assert np.abs(correlation).max() < 5 / 200_000**0.5


def walk(how, schedule, sampler, denoise, key):
    """Every (x_t, t) that the predictor sees, and the image."""
    seen = []

    def looking(x, t):
        seen.append((np.asarray(x), np.asarray(t)))
        return denoise(x, t)

    with jax.disable_jit():
        image = corruption.restore(sampler, schedule, how, looking, SHAPE, key)
    return seen, np.asarray(image)


def guess(x, t):
    """A predictor that is wrong, and otherwise at every step."""
    return 0.9 * jnp.tanh(x[:, ::-1] + t[:, None, None, None] / 1000)


@BOTH
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace", "turbo"])
def test_whoever_knows_the_image_gets_it(how, spacing, x0):
    for steps in (1, 5):
        sampler = Sampler("renoise", spacing, steps)
        _, image = walk(how, FLOW, sampler, lambda x, t: x0, jax.random.key(4))
        np.testing.assert_array_equal(image, x0)


@BOTH
def test_one_step_is_the_prediction_from_colours_alone_at_the_last_timestep(how):
    key = jax.random.key(5)
    ((x, t),), image = walk(how, SHIFTED, Sampler("renoise", steps=1), guess, key)
    np.testing.assert_array_equal(t, [999, 999])
    np.testing.assert_array_equal(x, corruption.draw(jax.random.fold_in(key, 0), SHAPE).colour)
    np.testing.assert_allclose(image, guess(x, t), atol=1e-6)


@BOTH
def test_each_prediction_is_corrupted_to_the_next_level_by_fresh_noise_or_the_first(how):
    key, sampler = jax.random.key(6), Sampler("renoise", steps=4)
    seen, image = walk(how, FLOW, sampler, guess, key)
    np.testing.assert_array_equal([t[0] for _, t in seen], [999, 749, 499, 249])
    draws = [corruption.draw(jax.random.fold_in(key, i), SHAPE) for i in range(4)]
    for i, p in enumerate((0.75, 0.5, 0.25)):
        noise = draws[i + 1 if how == "again" else 0]
        expected = np.where(noise.threshold < p, noise.colour, guess(*seen[i]))
        np.testing.assert_allclose(seen[i + 1][0], expected, atol=1e-6)
    np.testing.assert_allclose(image, guess(*seen[-1]), atol=1e-6)
    covered = np.asarray([noise.threshold < 0.5 for noise in draws])
    assert np.corrcoef(covered.reshape(4, -1))[0, 1:].max() < 0.5, "fresh means independent"


def test_keep_uncovers_pixels_for_good():
    seen, _ = walk("keep", SHIFTED, Sampler("renoise", steps=8), guess, jax.random.key(8))
    covered = [np.all(x == seen[0][0], axis=-1) for x, _ in seen]
    for before, after in itertools.pairwise(covered):
        assert not np.any(after & ~before)
    assert np.mean(covered[-1]) < 0.8


def test_predictions_out_of_range_are_cut_to_colours(x0):
    image = corruption.restore(
        Sampler("renoise", steps=3), FLOW, "again", lambda x, t: 5 * x0, SHAPE, jax.random.key(9)
    )
    np.testing.assert_array_equal(image, jnp.clip(5 * x0, -1, 1))


@BOTH
def test_an_image_does_not_depend_on_how_many_are_drawn_with_it(how):
    sampler, key = Sampler("renoise", steps=3), jax.random.key(10)
    four = corruption.restore(sampler, FLOW, how, guess, (4, *SHAPE[1:]), key)
    two = corruption.restore(sampler, FLOW, how, guess, SHAPE, key)
    np.testing.assert_array_equal(four[:2], two)


@pytest.mark.parametrize("kind", ["linear", "cosine", "edm"])
def test_schedules_without_shares_are_refused(kind):
    corruption.check(SHIFTED)
    with pytest.raises(UserError, match=f"schedule.kind is {kind}.* flow"):
        corruption.check(dataclasses.replace(FLOW, kind=kind))
