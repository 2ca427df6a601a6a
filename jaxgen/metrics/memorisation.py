"""Memorisation: are samples nearer to the training images than new real images are?

The reference is what held-out real images do, so neither the data's own near duplicates nor a
feature network's scale counts as copying (Meehan et al. 2020, "data-copying").
"""

import numpy as np
from jaxtyping import Float, Shaped

from jaxgen.errors import UserError
from jaxgen.metrics.features import blocks, checked, squared_distances


def nearest(
    samples: Shaped[np.ndarray, "m d"], train: Shaped[np.ndarray, "n d"]
) -> Float[np.ndarray, "m"]:
    """The Euclidean distance of each sample to its nearest training image."""
    samples, train = checked("memorisation", 1, samples, train)
    found = np.empty(len(samples))
    for place, rows in blocks(samples):
        near = train[squared_distances(rows, train).argmin(axis=1)]
        found[place] = np.linalg.norm(rows - near, axis=1)  # to the last digit: a copy is at 0
    return found


def median_ratio(of_samples: Float[np.ndarray, "m"], of_held_out: Float[np.ndarray, "n"]) -> float:
    """The median of the samples' `nearest` over that of held-out real images.

    About 1 for new pictures of the same kind, towards 0 for copies, above 1 for samples unlike any
    picture. Raises `UserError` if half of the held-out images are training images.
    """
    if (usual := np.median(of_held_out)) == 0.0:
        raise UserError("half of the held-out images are in the training set too; split it anew.")
    return float(np.median(of_samples) / usual)


def nearer(
    of_samples: Float[np.ndarray, "m"], of_held_out: Float[np.ndarray, "n"], percentile: float
) -> Float[np.ndarray, "m"]:
    """1 for a sample as near to a training image as the nearest `percentile` % of held-out images.

    Where nothing is memorised the mean is `by_chance`; a few copies among good samples, which the
    median does not see, lift it.
    """
    rank = _rank(len(of_held_out), percentile)
    return (of_samples <= np.partition(of_held_out, rank - 1)[rank - 1]).astype(np.float64)


def by_chance(held_out: int, percentile: float) -> float:
    """The mean of `nearer` for new pictures of the same kind as so many held-out ones.

    A new picture is equally likely to have any rank among them: with few it cannot be `percentile`.
    """
    return _rank(held_out, percentile) / (held_out + 1)


def _rank(held_out: int, percentile: float) -> int:
    return max(1, int(percentile / 100 * (held_out + 1)))
