"""Retrieval finds the own image; memorisation finds copies."""

import numpy as np
import pytest

from jaxgen.errors import UserError
from jaxgen.metrics.memorisation import copies, median_ratio, nearest
from jaxgen.metrics.retrieval import by_chance, hits, ranks

RNG = np.random.default_rng(0)
GALLERY = RNG.normal(size=(200, 16)) + 3.0
TARGET = RNG.integers(0, 200, 1500)
EACH = np.arange(200)  # every image has a caption of its own


def test_a_rank_is_the_number_of_nearer_images():
    samples = GALLERY[TARGET] + RNG.normal(size=(1500, 16))
    found = ranks(samples, GALLERY, TARGET, EACH)
    mean = GALLERY.mean(0)
    for i in (0, 1, 1023, 1024, 1499):  # both blocks
        a, b = samples[i] - mean, GALLERY - mean
        cosine = b @ a / np.linalg.norm(a) / np.linalg.norm(b, axis=1)
        assert found[i] == (cosine > cosine[TARGET[i]]).sum()
    assert 0.1 < hits(found, 1).mean() < hits(found, 5).mean() < hits(found, 10).mean() < 1


def test_contrast_and_the_common_part_do_not_matter():
    weak = GALLERY.mean(0) + 0.01 * (GALLERY[TARGET] - GALLERY.mean(0))
    assert not ranks(weak, GALLERY, TARGET, EACH).any()
    assert not ranks(weak + 50.0, GALLERY + 50.0, TARGET, EACH).any()


def test_unrelated_samples_are_at_chance():
    found = ranks(RNG.normal(size=(1500, 16)) + 3.0, GALLERY, TARGET, EACH)
    for at in (1, 5, 10):
        chance = at / 200
        error = np.sqrt(chance * (1 - chance) / 1500)
        assert abs(hits(found, at).mean() - chance) < 4 * error


def test_ties_count_against_the_sample():
    assert (ranks(np.tile(GALLERY.mean(0), (3, 1)), GALLERY, np.arange(3), EACH) == 199).all()
    doubled = np.concatenate([GALLERY, GALLERY])
    assert (ranks(GALLERY, doubled, np.arange(200), np.arange(400)) == 1).all()


def test_any_image_of_the_caption_is_as_right_as_another():
    captions = EACH // 2
    samples = GALLERY[TARGET] + 1.5 * RNG.normal(size=(1500, 16))
    alone = ranks(samples, GALLERY, TARGET, EACH)
    found = ranks(samples, GALLERY, TARGET, captions)
    assert (found <= alone).all()
    assert (ranks(GALLERY[EACH ^ 1], GALLERY, EACH, captions) == 0).all()  # the other of the two
    other = ranks(samples, GALLERY, TARGET ^ 1, EACH)
    np.testing.assert_array_equal(found == 0, np.minimum(alone, other) == 0)


@pytest.mark.parametrize("at", [1, 10])
@pytest.mark.parametrize("captions", [EACH, EACH // 7, np.minimum(EACH, 20)])
def test_chance_is_what_unrelated_samples_have(captions, at):
    target = RNG.integers(0, 200, 20000)
    found = hits(
        ranks(RNG.normal(size=(20000, 16)), RNG.normal(size=(200, 16)), target, captions), at
    )
    assert abs(found.mean() - by_chance(captions, target, at)) < 0.02
    assert by_chance(EACH, target, at) == pytest.approx(at / 200)


def test_nearest_is_the_smallest_distance():
    samples = RNG.normal(size=(1100, 16)) + 3.0
    found = nearest(samples, GALLERY)
    for i in (0, 1050):
        expected = min(np.linalg.norm(samples[i] - x) for x in GALLERY)
        np.testing.assert_allclose(found[i], expected, rtol=1e-9)


def test_copies_are_found_and_new_pictures_are_not():
    def new(n):
        return RNG.normal(size=(n, 16)) + 3.0

    held_out, fresh = new(400), new(2000)
    exact = GALLERY + 0.01 * RNG.normal(size=GALLERY.shape)
    few = np.concatenate([fresh[:450], exact[:50]])
    reference = nearest(held_out, GALLERY)
    assert median_ratio(nearest(exact, GALLERY), reference) < 0.1
    assert abs(median_ratio(nearest(fresh, GALLERY), reference) - 1) < 0.05
    assert abs(median_ratio(nearest(few, GALLERY), reference) - 1) < 0.1  # blind to a few
    assert copies(exact, GALLERY).all()
    assert not copies(fresh, GALLERY).any()
    assert copies(few, GALLERY).sum() == 50


def test_a_copy_is_three_times_nearer_than_to_any_other():
    train = np.array([[0.0, 0.0], [4.0, 0.0], [9.0, 9.0]])
    np.testing.assert_array_equal(copies(np.array([[0.99, 0.0], [1.01, 0.0]]), train), [1, 0])
    assert copies(train, train).all()
    assert not copies(train[:1], np.concatenate([train, train])).any(), "twice in training"


def test_a_held_out_set_that_was_trained_on_is_refused():
    with pytest.raises(UserError, match="split it anew"):
        median_ratio(np.ones(3), np.array([0.0, 0.0, 1.0]))
