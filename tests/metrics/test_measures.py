"""The measures together: which images each of them compares with which."""

import jax
import numpy as np
import pytest

from jaxgen.metrics import expert
from jaxgen.metrics.bootstrap import Estimate
from jaxgen.metrics.measures import NAMES, Pictures, Real, likeness, measures

RNG = np.random.default_rng(0)
TRAIN, HELD_OUT, WIDTH = 300, 60, 12


def pictures(features: np.ndarray) -> Pictures:
    return Pictures(np.zeros((len(features), 8, 8, 3), np.uint8), features)


REAL = Real(
    pictures(RNG.normal(size=(TRAIN + HELD_OUT, WIDTH)) + 3.0), TRAIN, np.arange(TRAIN + HELD_OUT)
)
TRAINED, UNSEEN = np.arange(TRAIN), TRAIN + np.arange(HELD_OUT)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch):
    """The values by name, without the expert judge, who would look at the pixels."""
    monkeypatch.setattr(expert, "expert_judge", lambda *_, **__: Estimate(0.5, 0.4, 0.6))

    def measured(samples: np.ndarray, own: np.ndarray) -> dict[str, float]:
        found = measures(pictures(samples), own, REAL, jax.random.key(0))
        assert tuple(found) == NAMES
        for name, (value, low, high) in found.items():
            assert low <= value <= high, name
        return {name: estimate.value for name, estimate in found.items()}

    return measured


def test_copies_of_training_images(measured) -> None:
    found = measured(REAL.train, TRAINED)
    assert found["retrieval@1"] == 1
    assert found["memorised"] == 1
    assert found["nearest_ratio"] == 0
    assert found["frechet"] == pytest.approx(0, abs=1e-6)
    assert found["precision"] == found["recall"] == found["coverage"] == 1


def test_held_out_images_are_new(measured) -> None:
    found = measured(REAL.held_out, UNSEEN)
    assert found["retrieval@1"] == 1, "the gallery has both splits, training first"
    assert measured(REAL.held_out, TRAINED[:HELD_OUT])["retrieval@10"] < 0.2
    assert found["nearest_ratio"] == 1
    assert found["memorised"] == 0


def test_a_few_images_again_and_again_lose_diversity_alone(measured) -> None:
    found = measured(np.resize(REAL.train[:20], REAL.train.shape), TRAINED)
    assert found["precision"] == 1
    assert found["recall"] < 0.4 > found["coverage"]
    assert found["retrieval@1"] == pytest.approx(20 / TRAIN)
    assert found["retrieval@5"] < found["retrieval@10"] < 0.2


def test_spread_without_likeness_loses_precision_alone(measured) -> None:
    mean = REAL.train.mean(0)
    found = measured(mean + 2.0 * (REAL.train - mean), TRAINED)
    assert found["precision"] < 0.5
    assert found["recall"] > 0.9


@pytest.mark.parametrize("name", ["recall", "coverage"])
def test_intervals_of_what_all_real_images_are_asked_hold(name: str) -> None:
    """Few samples decide the recall of all real images, so those are not independent."""
    rng = np.random.default_rng(1)
    estimates = [
        likeness(rng.normal(size=(35, WIDTH)) + 3.0, REAL.train, rng)[name] for _ in range(40)
    ]
    mean = np.mean([e.value for e in estimates])
    assert np.mean([e.low <= mean <= e.high for e in estimates]) >= 0.9
