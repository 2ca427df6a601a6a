"""Confusion matrices as pictures."""

import numpy as np
import pytest

from jaxgen.runtime import pictures


def matrix(classes: int) -> np.ndarray:
    return 8 * np.eye(classes, dtype=np.int64) + 2 * np.eye(classes, k=1, dtype=np.int64)


def share_of(picture, colour: tuple[int, int, int]) -> float:
    return float((np.asarray(picture) == colour).all(-1).mean())


@pytest.mark.parametrize("classes", [2, 12, 98, 120])
def test_it_stays_of_a_size_to_be_looked_at(classes: int) -> None:
    labels = [f"class number {n}" for n in range(classes)]
    picture = pictures.confusion(matrix(classes), labels)
    assert max(picture.size) < 1300
    picture = pictures.confusion(matrix(classes), [label * 20 for label in labels])
    assert max(picture.size) < 1600


@pytest.mark.parametrize("classes", [5, 50])
def test_right_is_blue_and_wrong_is_red(classes: int) -> None:
    labels = [str(n) for n in range(classes)]
    right = pictures.confusion(np.eye(classes, dtype=int), labels)
    assert share_of(right, pictures.RIGHT) > 0.5 / classes**2
    assert share_of(right, pictures.WRONG) == 0
    wrong = pictures.confusion(np.roll(np.eye(classes, dtype=int), 1, 1), labels)
    assert share_of(wrong, pictures.WRONG) > 0.5 / classes**2
    assert share_of(wrong, pictures.RIGHT) == 0


def test_rows_are_the_true_class() -> None:
    picture = np.asarray(pictures.confusion(np.array([[1, 3], [0, 4]]), ["a", "b"])).astype(int)
    red = np.argwhere(picture[..., 0] > picture[..., 2] + 20).mean(0)
    blue = np.argwhere(picture[..., 2] > picture[..., 0] + 80)
    assert red[0] < blue[:, 0].mean()  # the mistake is in the first row
    assert red[1] > blue[:, 1].min() + 10  # and in the second column


def test_classes_that_never_occur_take_no_room() -> None:
    counts = np.zeros((400, 400), np.int64)
    counts[7, 7], counts[7, 300] = 3, 1
    labels = [f"name {n}" for n in range(400)]
    few = pictures.confusion(np.array([[3, 1], [0, 0]]), ["name 7", "name 300"])
    np.testing.assert_array_equal(np.asarray(pictures.confusion(counts, labels)), np.asarray(few))
