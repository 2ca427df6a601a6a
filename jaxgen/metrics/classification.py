"""How often a classifier is right, and what it takes for what."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxgen.metrics.bootstrap import Estimate, of_share


class Mistake(NamedTuple):
    """So many `pictures` of the class `true` were taken for the class `predicted`."""

    pictures: int
    true: int
    predicted: int


def confusion(
    true: Int[np.ndarray, "n"], predicted: Int[np.ndarray, "n"], classes: int
) -> Int[np.ndarray, "classes classes"]:
    """How many pictures of each class (row) were taken for each class (column)."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (true, predicted), 1)
    return counts


def accuracy(counts: Int[np.ndarray, "c c"]) -> Estimate:
    """The share of pictures on the diagonal of a confusion matrix, with Wilson's interval."""
    right = int(np.trace(counts))
    return of_share(np.repeat([1.0, 0.0], [right, int(counts.sum()) - right]))


def recall(counts: Int[np.ndarray, "c c"]) -> Float[np.ndarray, "c"]:
    """For each class the share of its pictures that are told rightly; nan where it has none."""
    pictures = counts.sum(1)
    return np.where(pictures > 0, np.diag(counts) / np.maximum(pictures, 1), np.nan)


def mistakes(counts: Int[np.ndarray, "c c"]) -> list[Mistake]:
    """What was taken for what, the most frequent first; equals in the order of the classes."""
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[: np.count_nonzero(wrong)]
    pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
    return [Mistake(int(wrong[t, p]), int(t), int(p)) for t, p in pairs]
