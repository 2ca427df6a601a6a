"""Each measure moves, and the right way, when real images are spoilt in a known manner."""

import numpy as np
import pytest
from einops import rearrange, reduce
from scipy import ndimage

from jaxgen.metrics.bootstrap import of_share
from jaxgen.metrics.frechet import frechet
from jaxgen.metrics.kernel import kid
from jaxgen.metrics.manifold import manifold
from jaxgen.metrics.memorisation import median_ratio, nearer, nearest
from jaxgen.metrics.retrieval import hits, ranks


def features(images):
    """Colour and contrast in a grid of 4 x 4: enough to tell one emoji from another."""
    x = images / 255.0
    detail = np.abs(np.diff(x, axis=1))[:, :, 1:] + np.abs(np.diff(x, axis=2))[:, 1:]
    detail = np.pad(detail, ((0, 0), (1, 0), (1, 0), (0, 0)))
    both = np.concatenate([x, 3.0 * detail], axis=-1)
    cells = reduce(both, "n (i h) (j w) c -> n i j c", "mean", i=4, j=4)
    return rearrange(cells, "n i j c -> n (i j c)")


def noisy(images, strength=80.0):
    noise = np.random.default_rng(1).normal(0.0, strength, images.shape)
    return np.clip(images + noise, 0, 255).astype(np.uint8)


def blurred(images):
    return ndimage.gaussian_filter(images.astype(np.float64), (0, 2.5, 2.5, 0))


@pytest.fixture(scope="module")
def measured(halves):
    """For real images and each way to spoil them: distances and the means of the rest."""
    real, other, groups = halves
    names, counts = np.unique(groups, return_counts=True)
    kinds = {
        "real": other,
        "noise": noisy(other),
        "blur": blurred(other),
        "mode drop": np.resize(other[groups == names[counts.argmax()]], other.shape),
        "duplication": np.resize(other[:20], other.shape),
    }
    found = {}
    for name, fake in kinds.items():
        x, y = features(real), features(fake)
        distance = kid(x, y)
        found[name] = {
            "frechet": frechet(x, y),
            "kid": distance.value,
            "kid error": distance.standard_error,
            **{k: v.mean() for k, v in manifold(x, y, 3)._asdict().items()},
        }
    return found


def test_real_images_are_the_floor(measured):
    floor = measured["real"]
    assert abs(floor["kid"]) < 3 * floor["kid error"]
    assert floor["precision"] > 0.7 < floor["recall"]
    assert abs(floor["density"] - 1) < 0.3
    assert abs(floor["coverage"] - (1 - 0.5**3)) < 0.08


@pytest.mark.parametrize("spoilt", ["noise", "blur", "mode drop", "duplication"])
def test_distances_grow(measured, spoilt):
    assert measured[spoilt]["frechet"] > 1.5 * measured["real"]["frechet"]
    assert measured[spoilt]["kid"] > 3 * measured["real"]["kid error"]


@pytest.mark.parametrize("spoilt", ["noise", "blur"])
def test_spoilt_images_lose_fidelity(measured, spoilt):
    for measure in ("precision", "density", "coverage"):
        assert measured[spoilt][measure] < 0.9 * measured["real"][measure], measure


@pytest.mark.parametrize("spoilt", ["mode drop", "duplication"])
def test_missing_images_lose_diversity_and_no_fidelity(measured, spoilt):
    for measure in ("recall", "coverage"):
        assert measured[spoilt][measure] < 0.8 * measured["real"][measure], measure
    assert measured[spoilt]["precision"] > 0.9 * measured["real"]["precision"]


def test_retrieval_falls_from_1_to_chance(halves):
    real, _, _ = halves
    gallery, own = features(real), np.arange(len(real))

    def found(images, at=5):
        return of_share(hits(ranks(features(images), gallery, own), at))

    assert found(real, 1).value > 0.98  # one picture is there twice
    shares = [found(noisy(real, strength)).value for strength in (0, 60, 400)]
    assert shares == sorted(shares, reverse=True)
    assert shares[2] < 0.9
    assert found(blurred(real)).high < found(real).low
    dropped = np.resize(real[:20], real.shape)  # twenty pictures, whatever the caption
    assert found(dropped).high < 0.5
    unrelated = found(real[np.random.default_rng(0).permutation(len(real))])
    assert unrelated.low < 5 / len(real) < unrelated.high


def test_memorisation_is_seen_and_is_not_where_there_is_none(halves):
    train, held_out, _ = halves
    real, copies = features(held_out), features(noisy(train, 2.0))
    reference = nearest(real[:100], features(train))
    fresh, copied = nearest(real[100:], features(train)), nearest(copies, features(train))
    assert 0.8 < median_ratio(fresh, reference) < 1.25
    assert median_ratio(copied, reference) < 0.3
    assert nearer(fresh, reference, 5).mean() < 0.15
    assert nearer(copied, reference, 5).mean() > 0.9
    for spoilt in (noisy(held_out, 60.0), blurred(held_out)):
        assert median_ratio(nearest(features(spoilt), features(train)), reference) > 1.1
    few = nearest(features(np.resize(train[:20], train.shape)), features(train))
    assert nearer(few, reference, 5).all()  # the same twenty of those it was trained on
