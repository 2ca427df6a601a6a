"""How sure a number is: 95 % intervals that know which samples belong together.

`groups` labels the rows: samples of one caption are not independent, so whole groups are drawn.
Without it every row is a group of its own.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

NORMAL_95 = 1.959964  # 95 % of a normal distribution lie within this many standard deviations

Groups = Shaped[np.ndarray, "n"] | None


class Estimate(NamedTuple):
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float


def of_mean(
    values: Shaped[np.ndarray, "n"],
    rng: np.random.Generator,
    groups: Groups = None,
    resamples: int = 2000,
) -> Estimate:
    """The mean of one value an image, with the percentile interval (Efron 1979)."""
    totals, counts = _by_group(values, groups)
    drawn = rng.multinomial(len(totals), np.full(len(totals), 1 / len(totals)), resamples)
    means = (drawn @ totals) / (drawn @ counts)
    low, high = np.percentile(means, [2.5, 97.5])
    return Estimate(float(np.mean(values)), float(low), float(high))


def of_share(
    values: Shaped[np.ndarray, "n"], groups: Groups = None, at_most: float = np.inf
) -> Estimate:
    """The share of ones among zeros and ones, with Wilson's score interval (1927).

    Unlike a bootstrap, it is honest at the ends: none of 100 is 0 to 3.7 %. With groups, n is the
    number of independent images that would give the share's variance between groups (Kish 1965).
    `at_most` bounds n where something else was drawn, and fewer, on which all values depend.
    """
    totals, counts = _by_group(values, groups)
    share, n = totals.sum() / counts.sum(), float(counts.sum())
    if groups is not None:
        g = len(totals)
        variance = g / max(g - 1, 1) * ((totals - share * counts) ** 2).sum() / n**2
        n = min(n, share * (1.0 - share) / variance) if variance > 0.0 else float(g)
    n = min(n, at_most)
    centre = (share + NORMAL_95**2 / (2.0 * n)) / (1.0 + NORMAL_95**2 / n)
    half = (
        NORMAL_95
        / (1.0 + NORMAL_95**2 / n)
        * np.sqrt(share * (1.0 - share) / n + NORMAL_95**2 / (4.0 * n**2))
    )
    # At the ends half is the centre but for rounding.
    low, high = min(centre - half, share), max(centre + half, share)
    return Estimate(float(share), float(max(low, 0.0)), float(min(high, 1.0)))


def of_statistic(
    function: Callable[..., float],
    *arrays: Shaped[np.ndarray, "_ ..."],
    rng: np.random.Generator,
    groups: Sequence[Groups] | None = None,
    resamples: int = 200,
) -> Estimate:
    """`function(*arrays)` ± 1.96 standard errors, those of it on rows drawn anew from each array.

    Not the percentile interval: rows drawn twice make a set look narrower than it is, so a distance
    of sets is larger on every resample, and the interval would lie above the value. The spread is
    right all the same (Efron & Tibshirani 1993, ch. 6). `groups` has one entry an array.
    """
    draws = [
        _drawing(len(array), labels)
        for array, labels in zip(arrays, groups or [None] * len(arrays), strict=True)
    ]
    again = [
        function(*(array[draw(rng)] for array, draw in zip(arrays, draws, strict=True)))
        for _ in range(resamples)
    ]
    value, error = float(function(*arrays)), float(np.std(again, ddof=1))
    return Estimate(value, value - NORMAL_95 * error, value + NORMAL_95 * error)


def _by_group(values: Any, groups: Groups) -> tuple[Float[np.ndarray, "g"], Float[np.ndarray, "g"]]:
    """Sums of values and numbers of rows, by group."""
    values = np.asarray(values, np.float64)
    if groups is None:
        return values, np.ones_like(values)
    _, place = np.unique(groups, return_inverse=True)
    return np.bincount(place, values), np.bincount(place).astype(np.float64)


def _drawing(rows: int, groups: Groups) -> Callable[[np.random.Generator], np.ndarray]:
    """A draw, with replacement, of as many groups as there are: the numbers of their rows."""
    if groups is None:
        return lambda rng: rng.integers(0, rows, rows)
    _, place = np.unique(groups, return_inverse=True)
    members = np.split(np.argsort(place, kind="stable"), np.cumsum(np.bincount(place))[:-1])
    return lambda rng: np.concatenate(
        [members[i] for i in rng.integers(0, len(members), len(members))]
    )
