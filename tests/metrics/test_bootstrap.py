"""Intervals hold what they should, as often as they say, and know what belongs together."""

import numpy as np
import pytest

from jaxgen.metrics.bootstrap import of_mean, of_share, of_statistic

RNG = np.random.default_rng(0)


def covered(interval_of, truth: float, draws) -> float:
    intervals = [interval_of(draw) for draw in draws]
    return float(np.mean([e.low <= truth <= e.high for e in intervals]))


def test_the_interval_of_a_mean_holds_it_95_times_of_100():
    draws = RNG.exponential(size=(400, 80))
    assert 0.90 < covered(lambda x: of_mean(x, RNG, resamples=400), 1.0, draws) < 0.98


def test_the_interval_of_a_share_holds_it_95_times_of_100():
    for share in (0.02, 0.5):
        draws = RNG.random((1000, 100)) < share
        assert 0.92 < covered(of_share, share, draws) < 0.985


def test_wilsons_interval():
    assert of_share(np.zeros(100)) == pytest.approx((0.0, 0.0, 0.0370), abs=5e-5)
    assert of_share(np.arange(10) < 8) == pytest.approx((0.8, 0.4902, 0.9433), abs=5e-5)
    assert of_share(np.ones(5)).high == 1.0


def test_four_copies_of_a_row_say_no_more_than_one():
    x = RNG.exponential(size=60)
    four, labels = np.repeat(x, 4), np.repeat(np.arange(60), 4)
    once, grouped, fooled = of_mean(x, RNG), of_mean(four, RNG, labels), of_mean(four, RNG)
    assert grouped == pytest.approx(once, rel=0.05)
    assert fooled.high - fooled.low < 0.6 * (once.high - once.low)
    hit = x < 0.5
    assert of_share(np.repeat(hit, 4), labels) == pytest.approx(of_share(hit), abs=0.01)
    assert of_share(np.zeros(240), labels) == of_share(np.zeros(60))


def test_the_interval_of_grouped_samples_holds_the_mean():
    """Samples of one caption share its difficulty."""
    labels = RNG.permutation(np.repeat(np.arange(50), 4))

    def draw():
        return RNG.random(200) < RNG.beta(0.5, 0.5, 50)[labels]

    draws = [draw() for _ in range(400)]
    assert 0.91 < covered(lambda x: of_share(x, labels), 0.5, draws) < 0.985
    assert 0.90 < covered(lambda x: of_mean(x, RNG, labels, 400), 0.5, draws) < 0.985
    assert covered(of_share, 0.5, draws) < 0.85


def test_the_standard_error_of_a_statistic():
    """Of the difference of two means it is known; labels need not be sorted."""
    x, y = RNG.normal(size=400), 2 * RNG.normal(size=(300))

    def difference(a, b):
        return a.mean() - b.mean()

    found = of_statistic(difference, x, y, rng=RNG, resamples=1000)
    error = np.sqrt(x.var() / 400 + y.var() / 300)
    assert found.value == difference(x, y)
    assert found == pytest.approx(
        (found.value, found.value - 1.96 * error, found.value + 1.96 * error), abs=0.2 * error
    )
    order = RNG.permutation(1600)
    copies, labels = np.repeat(x, 4)[order], np.repeat(np.arange(400), 4)[order]
    grouped = of_statistic(difference, copies, y, rng=RNG, groups=[labels, None], resamples=1000)
    assert grouped == pytest.approx(found, abs=0.2 * error)


def test_the_interval_of_a_distance_holds_its_value():
    """Repeated rows make every resample's distance larger; the interval stays where it belongs."""

    def spread(x):
        return -np.log(np.linalg.det(np.cov(x, rowvar=False)))

    x = RNG.normal(size=(40, 10))
    found = of_statistic(spread, x, rng=RNG)
    again = [spread(x[RNG.integers(0, 40, 40)]) for _ in range(200)]
    assert np.percentile(again, 2.5) > found.value
    np.testing.assert_allclose(found.high - found.value, found.value - found.low)


def test_the_same_seed_gives_the_same_interval():
    x = RNG.normal(size=50)
    assert of_mean(x, np.random.default_rng(3)) == of_mean(x, np.random.default_rng(3))
