"""Each measure moves, and the right way, when real images are spoilt in a known manner."""

import numpy as np
import pytest
from einops import rearrange, reduce
from scipy import ndimage

from jaxgen import quality
from jaxgen.metrics.bootstrap import of_share
from jaxgen.metrics.frechet import frechet
from jaxgen.metrics.kernel import cmmd, kid
from jaxgen.metrics.manifold import manifold
from jaxgen.metrics.memorisation import copies, median_ratio, nearest
from jaxgen.metrics.modes import modes_covered
from jaxgen.metrics.retrieval import hits, ranks


def by_colours(images):
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


def by_grader(images):
    """What the shipped classifier sees, which grades by default."""
    network = quality.grader(quality.CLASSIFIER, None, [], own_eyes=False)
    return network.features(images.astype(np.uint8))


@pytest.fixture(scope="module", params=[by_colours, by_grader])
def features(request):
    return request.param


@pytest.fixture(scope="module")
def measured(halves, features):
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
            "cmmd": cmmd(x, y)[0],
            "modes": modes_covered(y, x).share,
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
    assert measured[spoilt]["cmmd"] > 1.5 * abs(measured["real"]["cmmd"])


@pytest.mark.parametrize("spoilt", ["noise", "blur"])
def test_spoilt_images_lose_fidelity(measured, features, spoilt):
    """In the grader's features real images miss them; precision and density are blind to both."""
    reacting = {by_colours: ("precision", "density", "coverage"), by_grader: ("recall", "coverage")}
    for measure in reacting[features]:
        assert measured[spoilt][measure] < 0.9 * measured["real"][measure], measure


@pytest.mark.parametrize("spoilt", ["mode drop", "duplication"])
def test_missing_images_lose_diversity_and_no_fidelity(measured, spoilt):
    for measure in ("recall", "coverage", "modes"):
        assert measured[spoilt][measure] < 0.8 * measured["real"][measure], measure
    assert measured[spoilt]["precision"] > 0.9 * measured["real"]["precision"]


def test_retrieval_falls_from_1_to_chance(halves, features):
    real, _, _ = halves
    gallery, own = features(real), np.arange(len(real))

    def found(images, at=5):
        return of_share(hits(ranks(features(images), gallery, own, own), at))

    assert found(real, 1).value > 0.98  # one picture is there twice
    shares = [found(noisy(real, strength)).value for strength in (0, 60, 400)]
    assert shares == sorted(shares, reverse=True)
    assert shares[2] < 0.9
    assert found(blurred(real)).high < found(real).low
    dropped = np.resize(real[:20], real.shape)  # twenty pictures, whatever the caption
    assert found(dropped).high < 0.5
    unrelated = found(real[np.random.default_rng(0).permutation(len(real))])
    assert unrelated.low < 5 / len(real) < unrelated.high


def test_memorisation_is_seen_and_is_not_where_there_is_none(halves, features):
    train, held_out, _ = halves
    known, new = features(train), features(held_out)
    reference = nearest(new[:100], known)
    assert 0.8 < median_ratio(nearest(new[100:], known), reference) < 1.25
    by_chance = copies(new, known).mean()
    assert by_chance < 0.1
    shares = [copies(features(noisy(train, strength)), known).mean() for strength in (2, 10, 400)]
    assert shares[0] > 0.95
    assert shares[1] > 0.25
    assert shares[2] < 0.1
    assert median_ratio(nearest(features(noisy(train, 2.0)), known), reference) < 0.3
    assert copies(features(np.resize(train[:20], train.shape)), known).all()
    assert copies(features(np.resize(held_out[:20], train.shape)), known).mean() < 0.2
    for spoilt in (noisy(held_out, 60.0), blurred(held_out)):
        assert median_ratio(nearest(features(spoilt), known), reference) > 1.1
