"""The expert judge is fooled by real images, and by nothing that can be told from them."""

import jax
import numpy as np
import pytest
from scipy import ndimage

from jaxgen.errors import UserError
from jaxgen.metrics import expert
from jaxgen.metrics.expert import _halves, expert_judge


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Fewer steps than in earnest: the tests' XLA does not optimise."""
    monkeypatch.setattr(expert, "_STEPS", 60)
    monkeypatch.setattr(expert, "_JUDGES", 1)


def test_real_images_fool_it(halves):
    real, other, _ = halves
    found = expert_judge(real, other, jax.random.key(0))
    # Of 400 verdicts by chance, four standard deviations; what rounding does to the training of one
    # judge, which its interval knows nothing of, differs between machines.
    assert abs(found.value - 0.5) < 0.1
    assert 0.06 < found.high - found.low < 0.12


def _blurred(images, groups):
    return ndimage.gaussian_filter(images.astype(np.float64), (0, 1.5, 1.5, 0)).astype(np.uint8)


def _noisy(images, groups):
    noise = np.random.default_rng(1).normal(0.0, 40.0, images.shape)
    return np.clip(images + noise, 0, 255).astype(np.uint8)


def _of_one_group(images, groups):
    names, counts = np.unique(groups, return_counts=True)
    return np.resize(images[groups == names[counts.argmax()]], images.shape)


def _few(images, groups):
    return np.resize(images[:20], images.shape)


@pytest.mark.parametrize(
    ("spoilt", "least"), [(_blurred, 0.85), (_noisy, 0.85), (_of_one_group, 0.55), (_few, 0.55)]
)
def test_spoilt_images_do_not_fool_it(halves, spoilt, least):
    real, other, groups = halves
    found = expert_judge(real, spoilt(other, groups), jax.random.key(0))
    assert found.low > least, found


def test_copies_of_what_it_is_shown_are_a_coin_toss(halves, monkeypatch):
    """A pair is judged by the same network, which must be wrong about one of the two."""
    monkeypatch.setattr(expert, "_STEPS", 5)
    real, _, _ = halves
    found = expert_judge(real[:40], real[:40], jax.random.key(1))
    assert found.value == 0.5


def test_the_interval_knows_how_much_judges_differ(monkeypatch):
    """Black is real. Three judges of whom one has it the wrong way round, and three who agree."""
    monkeypatch.setattr(expert, "_JUDGES", 3)
    monkeypatch.setattr(expert, "_taught", lambda *_: None)
    black, white = (np.full((40, 8, 8, 3), value, np.uint8) for value in (0, 255))

    def judged(wrong):
        calls = iter(range(6))  # two halves each
        told = lambda _, image: (image[:, 0, 0, 0] == 0) != (next(calls) // 2 in wrong)  # noqa: E731
        monkeypatch.setattr(expert, "_takes_for_real", told)
        return expert_judge(black, white, jax.random.key(0))

    agreed, differed = judged(()), judged((1,))
    assert agreed.value == 1
    assert agreed.low > 0.9
    assert differed.value == pytest.approx(2 / 3)
    assert differed.low < 0.1


def test_a_group_is_never_on_both_sides():
    group = np.random.default_rng(0).integers(0, 51, 500)
    fold = _halves(group, np.random.default_rng(1))
    assert not set(group[fold]) & set(group[~fold])
    assert abs(len(set(group[fold])) - 25.5) == 0.5


@pytest.mark.parametrize(
    ("fake", "groups", "fault"),
    [
        (np.zeros((15, 32, 32, 3), np.uint8), None, "16 images of each kind, not 15"),
        (np.zeros((20, 16, 16, 3), np.uint8), None, r"\(32, 32, 3\) with \(16, 16, 3\)"),
        (np.zeros((20, 32, 32, 3), np.uint8), (np.zeros(20), np.zeros(20)), "several groups"),
    ],
)
def test_what_cannot_be_judged_is_refused(fake, groups, fault):
    with pytest.raises(UserError, match=fault):
        expert_judge(np.zeros((20, 32, 32, 3), np.uint8), fake, jax.random.key(0), groups)
