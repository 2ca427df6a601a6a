"""Caption retrieval: does the sample look like an image that has the caption it was made from?"""

import math

import numpy as np
from jaxtyping import Float, Int, Shaped

from jaxgen.metrics.features import blocks, checked

_TIE = 1e-12  # cosines nearer than this are equal


def ranks(
    samples: Shaped[np.ndarray, "m d"],
    gallery: Shaped[np.ndarray, "n d"],
    target: Int[np.ndarray, "m"],
    captions: Int[np.ndarray, "n"],
) -> Int[np.ndarray, "m"]:
    """How many images of other captions are as near to sample i as the nearest of its caption.

    That is the caption of `target[i]`; images of which the same is said have the same number in
    `captions`. 0 is the best; a tie counts against the sample, so that samples which are all
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
        right = captions == captions[target[place], None]
        nearest = np.where(right, cosine, -np.inf).max(axis=1, keepdims=True)
        found[place] = ((cosine >= nearest - _TIE) & ~right).sum(axis=1)
    return found


def hits(ranks: Int[np.ndarray, "m"], at: int) -> Float[np.ndarray, "m"]:
    """1 where an image of its caption is among the `at` nearest; see `by_chance`."""
    return (ranks < at).astype(np.float64)


def by_chance(captions: Int[np.ndarray, "n"], target: Int[np.ndarray, "m"], at: int) -> float:
    """The mean of `hits` if the `at` nearest were any; `at`/n where every image has its own."""
    n = len(captions)
    missed = []
    for number, asked in zip(*np.unique(captions[target], return_counts=True), strict=True):
        others = int((captions != number).sum())
        missed.append(asked * math.prod(max(others - i, 0) / (n - i) for i in range(min(at, n))))
    return 1.0 - sum(missed) / len(target)


def _directions(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(length > 0.0, length, 1.0)
