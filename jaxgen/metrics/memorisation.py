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


def copies(
    samples: Shaped[np.ndarray, "m d"], train: Shaped[np.ndarray, "n d"]
) -> Float[np.ndarray, "m"]:
    """1 for a sample that stands out as one training image's: nearer to it than a third of its
    distance to the second nearest.

    A picture new to the training set is about as far from one as from the next, whatever the scale
    of the features; what it is for held-out real images says how many pass by chance. Blind where
    the training set has a picture twice. Source: Yoon et al. 2023 ("Diffusion Probabilistic Models
    Generalize when They Fail to Memorize", section 3), there in pixels.
    Raises `UserError` for fewer than two training images.
    """
    samples, train = checked("memorisation", 1, samples, train)
    if len(train) < 2:
        raise UserError("memorisation needs 2 training images or more.")
    found = np.empty(len(samples))
    for place, rows in blocks(samples):
        two = np.argpartition(squared_distances(rows, train), 1, axis=1)[:, :2]
        apart = np.linalg.norm(rows[:, None] - train[two], axis=2)  # to the last digit
        found[place] = apart.min(axis=1) < apart.max(axis=1) / 3.0
    return found
