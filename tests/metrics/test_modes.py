"""Modes covered: exact counts, and what chance alone would hit."""

import itertools

import numpy as np
import pytest

from jaxgen.errors import UserError
from jaxgen.metrics.modes import expected, modes_covered

TRAIN = np.random.default_rng(0).normal(size=(1100, 8)).astype(np.float32)


def near(indices) -> np.ndarray:
    """Samples whose nearest training images are these."""
    noise = np.random.default_rng(1).normal(size=(len(indices), 8))
    return TRAIN[indices] + 1e-3 * noise


def test_expected_is_the_mean_over_all_draws():
    for draws, modes in ((1, 4), (3, 4), (5, 3), (4, 1)):
        every = itertools.product(range(modes), repeat=draws)
        mean = np.mean([len(set(drawn)) for drawn in every])
        np.testing.assert_allclose(expected(draws, modes), mean, rtol=1e-12)


def test_a_collapse_to_one_picture_hits_one():
    found = modes_covered(near([7] * 60), TRAIN)
    assert found.hit == 1
    np.testing.assert_allclose(found.share, 1 / expected(60, 1100), rtol=1e-12)
    assert found.share < 0.02


def test_distinct_nearest_are_counted_across_blocks():
    indices = [0, 3, 3, 1024, 1099, 0, 5]
    found = modes_covered(near(indices), TRAIN)
    assert found.hit == 5
    np.testing.assert_allclose(found.share, 5 / expected(7, 1100), rtol=1e-12)
    many = near(np.arange(1100).repeat(2))  # more than one block of samples
    assert modes_covered(many, TRAIN).hit == 1100


def test_even_draws_score_one():
    rng = np.random.default_rng(2)
    shares = [modes_covered(near(rng.integers(0, 1100, 500)), TRAIN).share for _ in range(20)]
    assert abs(np.mean(shares) - 1) < 0.02


def test_equal_training_images_count_once():
    twice = np.concatenate([TRAIN[:10], TRAIN[:10]])
    assert modes_covered(TRAIN[:10], twice).hit == 10


def test_without_samples_it_says_so():
    with pytest.raises(UserError, match="modes covered"):
        modes_covered(TRAIN[:0], TRAIN)
