"""Modes covered: how many of the training images are somebody's nearest.

A generator that draws a few pictures again and again hits few of them, whatever each looks like.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped

from jaxgen.metrics.features import blocks, checked, squared_distances


class Modes(NamedTuple):
    """Training images that are the nearest one of at least one sample."""

    hit: int
    """How many."""
    share: float
    """`hit` over the most possible, which is the number of samples or of training images: 1 where
    a sample of each caption is its own picture, near 0 after a collapse."""


def modes_covered(samples: Shaped[np.ndarray, "m d"], train: Shaped[np.ndarray, "n d"]) -> Modes:
    """Distinct training images nearest to the samples, in Euclidean distance between features.

    Of training images with equal features only the first is ever the nearest. Raises `UserError`
    without samples or training images, for features of different widths and for such as are not
    finite. The count is that of stacked MNIST (Metz et al. 2017), with the nearest training
    image in the place of a classifier's verdict.
    """
    samples, train = checked("modes covered", 1, samples, train)
    hit = np.zeros(len(train), bool)
    for _, rows in blocks(samples):
        hit[squared_distances(rows, train).argmin(axis=1)] = True
    return Modes(int(hit.sum()), float(hit.sum() / min(len(samples), len(train))))
