"""Precision and recall are torch-fidelity's; density and coverage those of their formulas."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import torch_fidelity

from jaxgen.errors import UserError
from jaxgen.metrics.manifold import manifold

RNG = np.random.default_rng(0)
REAL, FAKE = RNG.normal(size=(1100, 6)) + 5, 1.2 * RNG.normal(size=(90, 6)) + 5.4


def test_precision_and_recall_are_the_published_ones():
    for k in (1, 3, 5):
        found = torch_fidelity.metric_prc.prc_features_to_metric(
            torch.tensor(FAKE),
            torch.tensor(REAL),
            prc_neighborhood=k,
            prc_batch_size=200,
            save_cpu_ram=False,
            verbose=False,
        )
        ours = manifold(REAL, FAKE, k)
        np.testing.assert_allclose(ours.precision.mean(), found["precision"], rtol=1e-6)
        np.testing.assert_allclose(ours.recall.mean(), found["recall"], rtol=1e-6)
        assert 0.02 < ours.recall.mean() < 0.98 > ours.precision.mean() > 0.02


@pytest.mark.parametrize("k", [1, 5])
def test_density_and_coverage_are_their_formulas(k):
    """Naeem et al. 2020, section 3.2, one pair at a time."""
    real, fake = REAL[:60], FAKE[:40]
    density, coverage = np.zeros(len(fake)), np.zeros(len(real))
    for i, x in enumerate(real):
        others = sorted(np.linalg.norm(x - other) for other in np.delete(real, i, axis=0))
        for j, y in enumerate(fake):
            if np.linalg.norm(x - y) <= others[k - 1]:
                density[j] += 1 / k
                coverage[i] = 1
    ours = manifold(real, fake, k)
    np.testing.assert_allclose(ours.density, density)
    np.testing.assert_array_equal(ours.coverage, coverage)


def test_the_floor_of_real_against_real():
    """Density 1, and coverage 1 - Π (n-i)/(2n-i) for i in 1…k (Naeem et al. 2020)."""
    n, k = 400, 5
    rng = np.random.default_rng(1)
    found = [manifold(rng.normal(size=(n, 8)), rng.normal(size=(n, 8)), k) for _ in range(8)]
    expected = 1 - np.prod([(n - i) / (2 * n - i) for i in range(1, k + 1)])
    assert abs(np.mean([m.density.mean() for m in found]) - 1) < 0.05
    assert abs(np.mean([m.coverage.mean() for m in found]) - expected) < 0.02


def test_a_collapsed_set_is_a_point():
    """Balls without radius hold their own centre and nothing else."""
    ours = manifold(REAL[:50], np.tile(REAL[:1], (20, 1)), 3)
    assert ours.precision.all()
    np.testing.assert_array_equal(ours.recall, np.arange(50) == 0)


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), k=st.integers(1, 4), scale=st.floats(0.01, 100))
def test_measures_hold_for_any_unit_and_order(seed, k, scale):
    rng = np.random.default_rng(seed)
    real, fake = rng.normal(size=(20, 3)), rng.normal(size=(15, 3)) + 0.5
    shuffle = rng.permutation(15)
    ours, moved = manifold(real, fake, k), manifold(real * scale, fake[shuffle] * scale, k)
    np.testing.assert_array_equal(ours.precision, ours.density > 0)
    np.testing.assert_array_equal(ours.precision[shuffle], moved.precision)
    np.testing.assert_array_equal(ours.density[shuffle], moved.density)
    np.testing.assert_array_equal(ours.recall, moved.recall)
    np.testing.assert_array_equal(ours.coverage, moved.coverage)


def test_too_few_images_are_counted():
    with pytest.raises(UserError, match="k = 5 needs 6 images or more of each kind, not 4"):
        manifold(REAL, FAKE[:4], 5)
