"""Modes covered: exact counts."""

import numpy as np
import pytest

from jaxgen.errors import UserError
from jaxgen.metrics.modes import modes_covered

TRAIN = np.random.default_rng(0).normal(size=(1100, 8)).astype(np.float32)


def near(indices) -> np.ndarray:
    """Samples whose nearest training images are these."""
    noise = np.random.default_rng(1).normal(size=(len(indices), 8))
    return TRAIN[indices] + 1e-3 * noise


def test_a_collapse_to_one_picture_hits_one():
    found = modes_covered(near([7] * 60), TRAIN)
    assert found.hit == 1
    np.testing.assert_allclose(found.share, 1 / 60, rtol=1e-12)
    assert found.share < 0.02


def test_distinct_nearest_are_counted_across_blocks():
    indices = [0, 3, 3, 1024, 1099, 0, 5]
    found = modes_covered(near(indices), TRAIN)
    assert found.hit == 5
    np.testing.assert_allclose(found.share, 5 / 7, rtol=1e-12)
    many = near(np.arange(1100).repeat(2))  # more than one block of samples
    assert modes_covered(many, TRAIN).hit == 1100


def test_one_of_each_scores_one():
    assert modes_covered(near(range(1100)), TRAIN).share == 1
    assert modes_covered(near(range(30)), TRAIN).share == 1, "so few cannot hit more"


def test_equal_training_images_count_once():
    twice = np.concatenate([TRAIN[:10], TRAIN[:10]])
    assert modes_covered(TRAIN[:10], twice).hit == 10


def test_without_samples_it_says_so():
    with pytest.raises(UserError, match="modes covered"):
        modes_covered(TRAIN[:0], TRAIN)
