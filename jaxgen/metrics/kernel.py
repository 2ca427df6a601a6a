"""Maximum mean discrepancy, the distance of two samples by a kernel (Gretton et al. 2012)."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from jaxgen.metrics.features import blocks, checked, squared_distances

Kernel = Callable[[Float[np.ndarray, "n d"], Float[np.ndarray, "m d"]], Float[np.ndarray, "n m"]]


class Discrepancy(NamedTuple):
    """MMD² without bias, so it may fall below 0, and its standard error."""

    value: float
    standard_error: float


def kid(real: Shaped[np.ndarray, "n d"], fake: Shaped[np.ndarray, "m d"]) -> Discrepancy:
    """Kernel distance (KID): MMD² with the kernel (x·y/d + 1)³.

    Over all images at once: the mean over random subsets, as published, estimates the same number
    with more noise. Raises `UserError` for fewer than 3 images.
    Source: Bińkowski et al. 2018, section 4.
    """
    x, y = checked("the kernel distance", 3, real, fake)
    return mmd(_cubic, x, y)


def cmmd(real: Shaped[np.ndarray, "n d"], fake: Shaped[np.ndarray, "m d"]) -> Discrepancy:
    """CMMD: 1000·MMD² of CLIP embeddings of unit length with the kernel exp(-|x - y|²/(2·10²)).

    The embeddings are brought to unit length here. Raises `UserError` for fewer than 3 images.
    Source: Jayasumana et al. 2024, section 4.
    """
    x, y = checked("CMMD", 3, real, fake)
    x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y))
    value, error = mmd(_gaussian, x, y)
    return Discrepancy(1000.0 * value, 1000.0 * error)


def mmd(kernel: Kernel, x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> Discrepancy:
    """MMD² of two samples, and its standard error by the jackknife over both.

    Leaving out an x takes its row from the sums, so all n + m values with one image left out come
    from the rows' sums. Source: Gretton et al. 2012, eq. 3; Arvesen 1969 (two samples).
    """
    xx, yy = _others(kernel, x), _others(kernel, y)
    xy, yx = _row_sums(kernel, x, y), _row_sums(kernel, y, x)

    def value(sum_xx, sum_yy, sum_xy, n, m):
        return sum_xx / (n * (n - 1)) + sum_yy / (m * (m - 1)) - 2.0 * sum_xy / (n * m)

    n, m, sums = len(x), len(y), (xx.sum(), yy.sum(), xy.sum())
    without_x = value(sums[0] - 2.0 * xx, sums[1], sums[2] - xy, n - 1, m)
    without_y = value(sums[0], sums[1] - 2.0 * yy, sums[2] - yx, n, m - 1)
    variance = (n - 1) * without_x.var() + (m - 1) * without_y.var()
    return Discrepancy(float(value(*sums, n, m)), float(np.sqrt(variance)))


def _others(kernel, x):
    """Each row's sum of the kernel over the others of its own sample."""
    return np.concatenate(
        [
            (values := kernel(rows, x)).sum(axis=1) - np.diagonal(values, place.start)
            for place, rows in blocks(x)
        ]
    )


def _row_sums(kernel, x, y):
    return np.concatenate([kernel(rows, y).sum(axis=1) for _, rows in blocks(x)])


def _cubic(x, y):
    return (x @ y.T / x.shape[1] + 1.0) ** 3


def _gaussian(x, y):
    return np.exp(-squared_distances(x, y) / (2.0 * 10.0**2))
