"""A classifier beside a linear probe: the same pictures, the same classes, paired."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import linear_probe
from jaxgen import stages


@pytest.mark.parametrize(
    ("run", "file"),
    [
        ("shipped:classifier", "linear_probe.json"),  # which the README cites
        ("/somewhere/runs/classifier_64/", "linear_probe_classifier_64.json"),
    ],
)
def test_a_probe_beside_another_run_leaves_the_cited_numbers(run: str, file: str) -> None:
    assert linear_probe.file(run) == file


def test_a_group_is_as_likely_as_its_subgroups_together() -> None:
    names = {"label": ("a", "b"), "sublabel": ("a0", "b0", "a1", "b1")}
    ids = {
        ("sublabel", "train"): [0, 1, 3],
        ("label", "train"): [0, 1, 1],
        ("sublabel", "test"): [2],  # a subgroup without a training picture
        ("label", "test"): [0],
    }
    splits = {
        key: SimpleNamespace(label_ids=np.array(own), labels=names[key[0]])
        for key, own in ids.items()
    }
    told = np.array([[0.3, 0.4, 0.3, 0.0], [0.3, 0.3, 0.1, 0.3], [0.1, 0.1, 0.8, 0.0]])
    np.testing.assert_array_equal(linear_probe._groups(told, splits), [0, 1, 0])


@pytest.mark.parametrize(
    ("ahead", "behind", "p"),
    [(0, 0, 1.0), (3, 3, 1.0), (6, 1, 2 * (1 + 7) / 2**7), (0, 5, 2 / 2**5)],
)
def test_two_that_saw_the_same_pictures_are_compared_on_those_that_part_them(
    ahead: int, behind: int, p: float
) -> None:
    one = np.array([True] * ahead + [False] * behind + [True] * 4 + [False])
    other = np.array([False] * ahead + [True] * behind + [True] * 4 + [False])
    found = linear_probe._compared(one, other)
    assert (found["classifier alone"], found["probe alone"]) == (ahead, behind)
    assert found["p"] == pytest.approx(p)


def test_a_classifier_of_other_classes_is_refused(
    refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its numbers would be of classes in another order."""
    loaded = stages.read(stages.shipped("classifier"))
    other = SimpleNamespace(labels=loaded.labels[::-1], images=[], label_ids=[])
    monkeypatch.setattr(linear_probe, "open_source", lambda *_, **__: other)
    monkeypatch.setattr(linear_probe.meshes, "prepare", lambda *_: None)
    line = refused(linear_probe.main)
    assert "--run shipped:classifier tells other classes" in line
