"""The Fréchet distance between two Gaussians fitted to features (Heusel et al. 2017)."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from jaxgen.metrics.features import checked

_NAME = "the Fréchet distance"


class Gaussian(NamedTuple):
    """A normal distribution by its mean and a root R of its covariance, RᵀR.

    The root has no more rows than images: fewer images than dimensions cost no accuracy.
    """

    mean: Float[np.ndarray, "d"]
    root: Float[np.ndarray, "r d"]


def frechet(real: Shaped[np.ndarray, "n d"], fake: Shaped[np.ndarray, "m d"]) -> float:
    """The Fréchet distance of two sets of features: 0 or more, in squared units of the features.

    It falls as the sets grow, so numbers compare only at equal counts. Real statistics that serve
    many times are had once: `distance(gaussian(real), gaussian(fake))`.
    Raises `UserError` for fewer than 2 images. Source: Heusel et al. 2017 (TTUR), eq. 6.
    """
    real, fake = checked(_NAME, 2, real, fake)
    return distance(gaussian(real), gaussian(fake))


def gaussian(features: Shaped[np.ndarray, "n d"]) -> Gaussian:
    """The mean and the covariance (over n - 1) of features."""
    (features,) = checked(_NAME, 2, features)
    mean = features.mean(axis=0)
    root = (features - mean) / np.sqrt(len(features) - 1)
    if len(root) > root.shape[1]:
        root = np.asarray(np.linalg.qr(root, mode="r"))
    return Gaussian(mean, root)


def distance(a: Gaussian, b: Gaussian) -> float:
    """|μ_a - μ_b|² + tr(C_a + C_b - 2·(C_a·C_b)^½) (Dowson & Landau 1982).

    With C = RᵀR, the eigenvalues of C_a·C_b are the squared singular values of R_a·R_bᵀ. So the
    root's trace is their sum, and no square root of a singular matrix is ever taken.
    """
    spread = (a.root**2).sum() + (b.root**2).sum()
    shared = np.linalg.svd(a.root @ b.root.T, compute_uv=False).sum()
    return max(float(((a.mean - b.mean) ** 2).sum() + spread - 2.0 * shared), 0.0)
