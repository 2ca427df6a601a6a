"""Fidelity and diversity apart: precision, recall, density and coverage.

Around each image lies the ball that just reaches its k-th nearest neighbour of the same set; the
union of the balls stands for the manifold of the set.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from jaxgen.metrics.features import blocks, checked, squared_distances


class Manifold(NamedTuple):
    """One value an image; each measure is the mean of its values."""

    precision: Float[np.ndarray, "m"]
    """1 for a sample inside the ball of a real image."""
    recall: Float[np.ndarray, "n"]
    """1 for a real image inside the ball of a sample."""
    density: Float[np.ndarray, "m"]
    """How many real images' balls a sample is inside of, over k: 1 on average for real images."""
    coverage: Float[np.ndarray, "n"]
    """1 for a real image with a sample inside its ball."""


def manifold(real: Shaped[np.ndarray, "n d"], fake: Shaped[np.ndarray, "m d"], k: int) -> Manifold:
    """The four measures of samples against real images, in Euclidean distance; balls are closed.

    Usual are k = 3 for precision and recall, k = 5 for density and coverage. Raises `UserError`
    for k or fewer images. Source: Kynkäänniemi et al. 2019, eq. 1 and 2; Naeem et al. 2020,
    section 3.2.
    """
    real, fake = checked(f"precision and recall with k = {k}", k + 1, real, fake)
    real_radius, fake_radius = _squared_radii(real, k), _squared_radii(fake, k)
    balls_around_fake = np.zeros(len(fake))
    recall, coverage = np.zeros(len(real)), np.zeros(len(real))
    for place, rows in blocks(real):
        squares = squared_distances(rows, fake)
        in_real_ball = squares <= real_radius[place, None]
        balls_around_fake += in_real_ball.sum(axis=0)
        coverage[place] = in_real_ball.any(axis=1)
        recall[place] = (squares <= fake_radius).any(axis=1)
    precision = (balls_around_fake > 0).astype(np.float64)
    return Manifold(precision, recall, balls_around_fake / k, coverage)


def _squared_radii(x: Float[np.ndarray, "n d"], k: int) -> Float[np.ndarray, "n"]:
    radii = np.empty(len(x))
    for place, rows in blocks(x):
        squares = squared_distances(rows, x)
        np.fill_diagonal(squares[:, place.start :], np.inf)  # nobody is its own neighbour
        radii[place] = np.partition(squares, k - 1, axis=1)[:, k - 1]
    return radii
