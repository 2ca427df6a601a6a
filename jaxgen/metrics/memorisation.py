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
    squares = [squared_distances(rows, train).min(axis=1) for _, rows in blocks(samples)]
    return np.sqrt(np.concatenate(squares))


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
    """1 for a sample nearer to a training image than all but `percentile` % of held-out images.

    The mean is about `percentile`/100 where nothing is memorised; a few copies among good samples,
    which the median does not see, lift it.
    """
    return (of_samples < np.percentile(of_held_out, percentile)).astype(np.float64)
