"""Sets of features, one row an image, as every measure takes them."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Shaped

from jaxgen.errors import UserError

_ROWS = 1024  # of a block: 80 MB of float64 beside 10 000 columns


def checked(
    measure: str, least: int, *sets: Shaped[np.ndarray, "_ d"]
) -> list[Float[np.ndarray, "_ d"]]:
    """The sets in float64.

    Raises `UserError`, naming the measure, for fewer than `least` images in a set, for sets of
    different widths and for features that are not finite.
    """
    if (fewest := min(map(len, sets))) < least:
        raise UserError(f"{measure} needs {least} images or more of each kind, not {fewest}.")
    if len(widths := {features.shape[1] for features in sets}) > 1:
        raise UserError(f"{measure} compares features of one network, not of widths {widths}.")
    sets64 = [np.asarray(features, np.float64) for features in sets]
    if not all(np.isfinite(features).all() for features in sets64):
        raise UserError(f"{measure} was given features that are not finite; look at the samples.")
    return sets64


def blocks(features: Float[np.ndarray, "n d"]) -> Iterator[tuple[slice, np.ndarray]]:
    """Rows in blocks that keep a matrix of pairs small, each with its place."""
    for start in range(0, len(features), _ROWS):
        rows = slice(start, start + _ROWS)
        yield rows, features[rows]


def squared_distances(
    x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]
) -> Float[np.ndarray, "n m"]:
    """|x - y|² of every pair, from |x|² + |y|² - 2 x·y; not below 0."""
    centre = y.mean(axis=0)  # what is common to all would be paid for in digits
    x, y = x - centre, y - centre
    squares = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1)
    return np.maximum(squares - 2.0 * x @ y.T, 0.0)
