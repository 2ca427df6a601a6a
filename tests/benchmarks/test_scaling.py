"""Weak scaling: what is made of the compiled programs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import plans, scaling


def row(
    chips: int, links: float, *, fsdp: int = 1, quick: bool = False, **other: Any
) -> dict[str, Any]:
    """A program of 20 ms of memory and 10 of arithmetic on a chip, and so many of links."""
    exchange = {"kind": "all-reduce", "devices": chips, "count": 1, "bytes": 1, "seconds": links}
    least = max(0.02, links)
    return {
        "config": "add_64",
        "kind": "v5e",
        "chips": chips,
        "mesh": {"data": chips // fsdp, "fsdp": fsdp},
        "batch": 32 * chips,
        "quick": quick,
        "usable": 2**30,
        "refusal": "",
        "memory": {"total": 2**29},
        "costs": {
            "exchanges": [exchange],
            "compute_seconds": 0.01,
            "hbm_seconds": 0.02,
            "link_seconds": links,
            "seconds": [least, 0.02 + links],
        },
    } | other


def test_efficiency_is_the_time_without_links_over_the_time_with_them() -> None:
    rows = [row(4, 0.0), row(16, 0.005), row(64, 0.04)]
    found = [scaling.efficiency(rows, each) for each in rows]
    np.testing.assert_allclose(found, [(1, 1), (0.8, 1), (1 / 3, 0.5)])  # pyright: ignore[reportArgumentType]
    assert scaling.efficiency(rows, row(4, 0, costs=None)) is None


def test_a_program_that_does_more_work_is_no_measure() -> None:
    rows = [row(4, 0.0), row(16, 0.0)]
    rows[0]["costs"] |= {"hbm_seconds": 0.08, "seconds": [0.08, 0.08]}
    assert [scaling.efficiency(rows, each) for each in rows] == [(0.25, 0.25), (1, 1)]


def test_a_program_is_measured_by_those_made_alike_on_whatever_mesh() -> None:
    hasty = row(4, 0.0, quick=True)
    hasty["costs"] |= {"hbm_seconds": 0.015, "seconds": [0.015, 0.015]}
    other = row(4, 0.0, fsdp=4)
    other["costs"] |= {"hbm_seconds": 0.01, "seconds": [0.01, 0.01]}
    rows = [hasty, other, row(16, 0.0), row(16, 0.04, quick=True)]
    assert scaling.usual(hasty)
    assert not scaling.usual(other)
    assert scaling.efficiency(rows, rows[2]) == (0.5, 0.5)
    assert scaling.efficiency(rows, rows[3]) == pytest.approx((0.25, 0.375))


def test_a_program_is_compiled_again_where_the_config_or_the_haste_changed() -> None:
    config = scaling._of("add_64", 16)
    assert config.train.batch == 16 * scaling.IMAGES["add_64"]
    there = {"fingerprint": plans.fingerprint(config), "quick": False}
    hasty = there | {"quick": True}
    assert scaling.wanted(None, config, quick=True)
    assert scaling.wanted(there | {"fingerprint": "another"}, config, quick=True)
    assert scaling.wanted(hasty, config, quick=False)
    assert not scaling.wanted(hasty, config, quick=True)
    assert not scaling.wanted(there, config, quick=True)
    assert scaling._of("add_sd21", 4).mesh.fsdp == 4
    assert scaling._of("add_sd21", 64).mesh.fsdp == 4
    assert scaling._of("add_sd21", 64, fsdp=16).mesh.data == 4


def test_the_table_names_the_costliest_collective_and_what_does_not_fit(tmp_path: Path) -> None:
    large = row(64, 0.0, memory={"total": 2**31})
    refused = row(256, 0.0, memory=None, costs=None, refusal="Used 17G of 15.75G hbm.")
    rows = [row(4, 0.0), row(16, 0.005, quick=True), large, refused]
    first, second, third, last = scaling.table(rows).splitlines()
    assert "as 4 x 1 " in first
    assert "quick" not in first
    assert "quick" in second
    assert "; all-reduce over 16: 5.0 ms  efficiency 80 to 100 %" in second
    assert "2.00 GiB DOES NOT FIT" in third
    assert last.endswith("does not fit: Used 17G of 15.75G hbm.")
    assert scaling.draw(rows, tmp_path / "plot.png").stat().st_size > 1000


def test_the_committed_programs_are_of_the_configs_as_they_are() -> None:
    rows = scaling.read()
    assert rows
    for each in rows:
        config = scaling._of(each["config"], each["chips"], each["mesh"]["fsdp"])
        again = f"{scaling.PROGRAM} --config {each['config']} --chips {each['chips']}"
        assert not scaling.wanted(each, config, quick=True), f"run: {again}"
        assert each["batch"] == config.train.batch
    assert scaling.RESULTS.with_suffix(".md").read_text("utf-8") == scaling.page(rows)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--chips", "8"], "--chips 8: give some of 4, 16, 64, 256"),
        (["--config", "dit"], "--config dit: give some of dit_64, add_64, add_sd21"),
        (["--chips", "16", "--fsdp", "5"], "--fsdp 5 does not divide all of --chips"),
    ],
)
def test_bad_arguments_are_one_line(arguments: list[str], words: str, refused: Any) -> None:
    assert words in refused(scaling.main, *arguments)
