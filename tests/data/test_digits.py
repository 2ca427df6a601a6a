"""scikit-learn's digits as a source."""

import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from jaxgen.data import source
from jaxgen.data.sources import open_source
from jaxgen.errors import UserError


@pytest.fixture(scope="module")
def splits():
    return {split: open_source("digits", split, 8, "nowhere") for split in ("train", "test")}


def test_a_fixed_tenth_is_held_out(splits):
    assert {split: len(digits) for split, digits in splits.items()} == {"train": 1604, "test": 193}
    assert not set(splits["train"].ids) & set(splits["test"].ids)


def test_pictures_are_dark_ink_on_white_under_their_own_label(splits):
    ink, labels = load_digits(return_X_y=True)
    for digits in splits.values():
        for n in range(0, len(digits), 50):
            number = int(digits.ids[n])
            expected = 255 - 255 / 16 * ink[number].reshape(8, 8)
            assert digits[n].image.dtype == np.uint8
            for channel in range(3):
                np.testing.assert_allclose(digits[n].image[..., channel], expected, atol=0.5)
            assert digits.labels[digits[n].label] == str(labels[number])


def test_captions_in_both_languages(splits):
    train = splits["train"]
    three = train.captions[train.label_ids.tolist().index(3)]
    assert three[:2] == ("the digit three", "le chiffre trois")


def test_enlarged_pictures_are_smooth_and_square(splits):
    large = open_source("digits", "test", 32, "nowhere")
    assert isinstance(large.images, np.ndarray)
    assert large.images.shape == (193, 32, 32, 3)
    small = large.images.reshape(193, 8, 4, 8, 4, 3).mean((2, 4))
    assert np.abs(small - np.asarray(splits["test"].images)).mean() < 12
    assert large.fingerprint != splits["test"].fingerprint


def test_too_many_pixels_for_memory_are_resized_on_access(splits, monkeypatch):
    monkeypatch.setattr(source, "IN_MEMORY_BYTES", 100)
    lazy = open_source("digits", "test", 8, "nowhere")
    assert not isinstance(lazy.images, np.ndarray)
    np.testing.assert_array_equal(lazy[5].image, splits["test"][5].image)
    assert lazy.fingerprint == splits["test"].fingerprint


def test_what_is_missing_is_said(monkeypatch):
    with pytest.raises(UserError, match=r"digits has no split 'tset'; did you mean test\?"):
        open_source("digits", "tset", 8, "nowhere")
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match="pip install scikit-learn"):
        open_source("digits", "train", 8, "nowhere")
