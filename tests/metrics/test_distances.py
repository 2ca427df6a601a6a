"""The Fréchet and the kernel distances are those of torch-fidelity, clean-fid and closed forms."""

import warnings

import numpy as np
import pytest
import torch
from reference import cleanfid, torch_fidelity

from jaxgen.errors import UserError
from jaxgen.metrics.frechet import distance, frechet, gaussian
from jaxgen.metrics.kernel import cmmd, kid, mmd


def drawn(n: int, d: int, seed: int, shift: float = 0.0):
    """Correlated, skewed and far from 0, as pooled features are; float32."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(d, d)) / np.sqrt(d)
    return (np.maximum(rng.normal(size=(n, d)) @ mixing + 0.3 + shift, 0.0)).astype(np.float32)


REAL, FAKE = drawn(300, 24, 0), drawn(260, 24, 1, shift=0.2)


def torch_fidelitys_frechet(real, fake):
    statistics = [
        torch_fidelity.metric_fid.fid_features_to_statistics(torch.tensor(x, dtype=torch.float64))
        for x in (real, fake)
    ]
    metric = torch_fidelity.metric_fid.fid_statistics_to_metric(*statistics, verbose=False)
    return metric[torch_fidelity.KEY_METRIC_FID]


def clean_fids_frechet(real, fake):
    real, fake = real.astype(np.float64), fake.astype(np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of SciPy, about sqrtm's disp
        return cleanfid.fid.frechet_distance(
            real.mean(0), np.cov(real, rowvar=False), fake.mean(0), np.cov(fake, rowvar=False)
        )


@pytest.mark.parametrize("published", [torch_fidelitys_frechet, clean_fids_frechet])
def test_frechet_is_the_published_one(published):
    np.testing.assert_allclose(frechet(REAL, FAKE), published(REAL, FAKE), rtol=1e-6)


def test_frechet_of_known_gaussians():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 3))
    x = (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    y = x * [2.0, 1.0, 0.5] + [0.0, 3.0, 4.0]  # (2-1)² + (.5-1)² + 3² + 4²
    np.testing.assert_allclose(frechet(x, y), 26.25, rtol=1e-12)


@pytest.mark.parametrize("d", [40, 400])
def test_fewer_images_than_dimensions_cost_no_accuracy(d):
    """Turned into more dimensions than images, and moved, a set stays as far from another."""
    small, other = drawn(30, 5, 0), drawn(25, 5, 1, shift=0.5)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(d, 5)))[0].T
    expected = frechet(small, other)
    np.testing.assert_allclose(frechet(small @ turn + 7.0, other @ turn + 7.0), expected, rtol=1e-9)


def test_frechet_to_itself_is_0_and_it_is_symmetric():
    few = REAL[:10]
    assert frechet(few, few) < 1e-12
    assert frechet(REAL, REAL[::-1]) < 1e-12
    np.testing.assert_allclose(frechet(REAL, FAKE), frechet(FAKE, REAL), rtol=1e-12)


def test_statistics_can_be_kept():
    kept = gaussian(REAL)
    assert kept.root.shape == (24, 24)
    np.testing.assert_allclose(kept.root.T @ kept.root, np.cov(REAL, rowvar=False), atol=1e-7)
    assert distance(kept, gaussian(FAKE)) == frechet(REAL, FAKE)


def torch_fidelitys_kid(real, fake):
    return torch_fidelity.metric_kid.kid_features_to_metric(
        torch.tensor(fake, dtype=torch.float64),
        torch.tensor(real, dtype=torch.float64),
        kid_subsets=1,
        kid_subset_size=len(real),
        verbose=False,
    )["kernel_inception_distance_mean"]


def clean_fids_kid(real, fake):
    real, fake = real.astype(np.float64), fake.astype(np.float64)
    return cleanfid.fid.kernel_distance(real, fake, num_subsets=1, max_subset_size=len(real))


@pytest.mark.parametrize("published", [torch_fidelitys_kid, clean_fids_kid])
def test_kid_is_the_published_one(published):
    real = REAL[: len(FAKE)]  # both take subsets of one size
    np.testing.assert_allclose(kid(real, FAKE).value, published(real, FAKE), rtol=1e-6)


def test_published_subsets_estimate_the_same_kid():
    found = torch_fidelity.metric_kid.kid_features_to_metric(
        torch.tensor(FAKE), torch.tensor(REAL), kid_subsets=400, kid_subset_size=100, verbose=False
    )
    error = found["kernel_inception_distance_std"] / np.sqrt(400)
    assert abs(kid(REAL, FAKE).value - found["kernel_inception_distance_mean"]) < 4 * error


def test_kid_takes_any_two_counts_and_blocks():
    """1 100 rows are two blocks; every pair counts once."""
    real, fake = drawn(1100, 6, 2).astype(np.float64), drawn(40, 6, 3).astype(np.float64)

    def mean(x, y, same=False):
        values = (x @ y.T / 6 + 1) ** 3
        return values[~np.eye(len(x), dtype=bool)].mean() if same else values.mean()

    expected = mean(real, real, True) + mean(fake, fake, True) - 2 * mean(real, fake)
    np.testing.assert_allclose(kid(real, fake).value, expected, rtol=1e-9)


def test_kids_error_is_the_jackknife():
    x, y = REAL[:12].astype(np.float64), FAKE[:9].astype(np.float64)
    variance = 0.0
    for which in (0, 1):
        sets = [x, y]
        without = []
        for i in range(len(sets[which])):
            left = list(sets)
            left[which] = np.delete(sets[which], i, axis=0)
            without.append(kid(*left).value)
        variance += (len(without) - 1) * np.var(without)
    np.testing.assert_allclose(kid(x, y).standard_error, np.sqrt(variance), rtol=1e-9)


def test_kid_has_no_bias_and_its_error_is_its_spread():
    """Two sets of one kind, many times: 0 on average; of two kinds: the error is right."""
    same = [kid(drawn(40, 8, 2 * s), drawn(30, 8, 2 * s + 1)).value for s in range(300)]
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(len(same))
    apart = [kid(drawn(40, 8, 2 * s), drawn(30, 8, 2 * s + 1, shift=0.5)) for s in range(300)]
    values, errors = np.array(apart).T
    assert 0.85 < errors.mean() / values.std() < 1.2


def test_cmmd_is_its_formula():
    x, y = (v / np.linalg.norm(v, axis=1)[:, None] for v in (REAL[:30], FAKE[:20]))

    def kernel(a, b):
        return np.exp(-((a - b) ** 2).sum() / 200)

    def mean(a, b, same):
        pairs = [(i, j) for i in range(len(a)) for j in range(len(b)) if not (same and i == j)]
        return np.mean([kernel(a[i].astype(np.float64), b[j]) for i, j in pairs])

    expected = 1000 * (mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False))
    np.testing.assert_allclose(cmmd(REAL[:30], FAKE[:20] * 5).value, expected, rtol=1e-4)


def test_mmd_of_a_linear_kernel_is_the_distance_of_the_means():
    x, y = REAL.astype(np.float64), FAKE.astype(np.float64)
    biased = ((x.mean(0) - y.mean(0)) ** 2).sum()
    unbiased = biased - x.var(0, ddof=1).sum() / len(x) - y.var(0, ddof=1).sum() / len(y)
    np.testing.assert_allclose(mmd(lambda a, b: a @ b.T, x, y).value, unbiased, rtol=1e-9)


@pytest.mark.parametrize("measure", [frechet, kid, cmmd])
def test_what_cannot_be_measured_is_refused(measure):
    with pytest.raises(UserError, match="images or more of each kind, not 1"):
        measure(REAL, FAKE[:1])
    with pytest.raises(UserError, match="features of one network"):
        measure(REAL, FAKE[:, :-1])
    with pytest.raises(UserError, match="not finite"):
        measure(REAL, np.where(FAKE[0] == FAKE, np.nan, FAKE))
