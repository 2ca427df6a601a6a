"""Caption retrieval: does the sample look like the very image whose caption it was made from?"""

import numpy as np
from jaxtyping import Float, Int, Shaped

from jaxgen.metrics.features import blocks, checked

_TIE = 1e-12  # cosines nearer than this are equal


def ranks(
    samples: Shaped[np.ndarray, "m d"],
    gallery: Shaped[np.ndarray, "n d"],
    target: Int[np.ndarray, "m"],
) -> Int[np.ndarray, "m"]:
    """How many images of the gallery are as near to sample i as its own image, `target[i]`.

    0 is the best, n - 1 the worst; a tie counts against the sample, so that samples which are all
    alike, or that say nothing, do not pass. Near is the cosine of features from which the
    gallery's mean was taken: a network's pooled features share a large common part, which would
    leave all cosines close to 1 and one image near to everything. The cosine rather than the
    distance, because samples are weaker in contrast than real images, and so in length.
    Source: the Recall@k protocol of image and caption retrieval (Karpathy & Fei-Fei 2015).
    """
    samples, gallery = checked("caption retrieval", 1, samples, gallery)
    mean = gallery.mean(axis=0)
    samples, gallery = _directions(samples - mean), _directions(gallery - mean)
    found = np.empty(len(samples), np.int64)
    for place, rows in blocks(samples):
        cosine = rows @ gallery.T
        own = np.take_along_axis(cosine, target[place, None], axis=1)
        found[place] = (cosine >= own - _TIE).sum(axis=1) - 1
    return found


def hits(ranks: Int[np.ndarray, "m"], at: int) -> Float[np.ndarray, "m"]:
    """1 where the own image is among the `at` nearest; by chance the mean is `at`/n."""
    return (ranks < at).astype(np.float64)


def _directions(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(length > 0.0, length, 1.0)
