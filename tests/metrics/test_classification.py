"""Right and wrong, counted."""

import numpy as np
from scipy import stats
from sklearn import metrics

from jaxgen.metrics import classification


def test_the_matrix_accuracy_and_recall_are_scikit_learns():
    rng = np.random.default_rng(0)
    true, predicted = rng.integers(0, 5, (2, 300))
    counts = classification.confusion(true, predicted, 6)  # nothing is of the sixth class
    np.testing.assert_array_equal(
        counts, metrics.confusion_matrix(true, predicted, labels=range(6))
    )
    np.testing.assert_allclose(
        classification.accuracy(counts).value, metrics.accuracy_score(true, predicted)
    )
    recall = classification.recall(counts)
    np.testing.assert_allclose(recall[:5], metrics.recall_score(true, predicted, average=None))
    assert np.isnan(recall[5])


def test_the_interval_is_wilsons():
    estimate = classification.accuracy(np.array([[90, 30], [26, 6]]))
    expected = stats.binomtest(96, 152).proportion_ci(method="wilson")
    np.testing.assert_allclose(estimate, (96 / 152, expected.low, expected.high), rtol=1e-6)
    perfect = classification.accuracy(np.diag([3, 2]))
    assert perfect.value == perfect.high == 1.0
    assert 0.5 < perfect.low < 0.6  # five of five prove little


def test_mistakes_most_frequent_first():
    counts = np.array([[9, 0, 2], [5, 1, 0], [0, 2, 0]])
    assert classification.mistakes(counts) == [(5, 1, 0), (2, 0, 2), (2, 2, 1)]
    assert classification.mistakes(np.eye(3, dtype=int)) == []
