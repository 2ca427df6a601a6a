"""Times of collectives over links that are counted by hand, and what a slice's sides link."""

import itertools

import pytest

from jaxgen.errors import UserError
from jaxgen.runtime import costs, topologies
from jaxgen.runtime.hlo import Collective

LINK = 50e9  # bytes/s of a v5e chip's link, one way


def all_of(name: str) -> list[tuple[int, ...]]:
    return list(itertools.product(*(range(side) for side in topologies.parse(name).sides)))


@pytest.mark.parametrize(
    ("name", "kind", "links", "rounds", "hops"),
    [
        ("v5e:2x2", "all-gather", 2, 1, 2),
        ("v5e:2x2", "all-reduce", 2, 2, 2),
        ("v5e:4x4", "reduce-scatter", 2, 1, 6),
        # The whole pod is a torus: all four links of a chip carry data.
        ("v5e:16x16", "all-reduce", 4, 2, 16),
        ("v5e:8x16", "all-reduce", 3, 2, 15),
    ],
)
def test_a_collective_takes_its_bytes_over_the_links_of_a_chip(
    name: str, kind: str, links: int, rounds: int, hops: int
) -> None:
    where = all_of(name)
    size, n = 10**9, len(where)
    found = costs.exchange_seconds(
        Collective(kind, size, 1, tuple(range(n))), topologies.parse(name), where
    )
    assert found == pytest.approx(rounds * ((n - 1) / n * size / (links * LINK) + hops * 1e-6))


def test_rings_that_pass_through_each_other_share_the_links() -> None:
    place = topologies.parse("v5e:4x4")
    one = Collective("all-gather", 10**9, 1, (0, 1))
    beside = costs.exchange_seconds(one, place, [(0, 0), (1, 0)])
    apart = costs.exchange_seconds(one, place, [(0, 0), (2, 0)])
    assert apart - 2e-6 == pytest.approx(2 * (beside - 1e-6))


def test_the_all_reduce_of_a_pod_is_as_fast_as_published() -> None:
    """51.2 TB/s: what all chips together send, each over its four links."""
    place, where = topologies.parse("v5e:16x16"), all_of("v5e:16x16")
    size = 2**40
    seconds = costs.exchange_seconds(
        Collective("all-reduce", size, 1, tuple(range(256))), place, where
    )
    sent = 2 * 255 / 256 * size * 256
    assert sent / seconds == pytest.approx(51.2e12, rel=1e-4)


def test_an_unknown_topology_is_one_line_with_those_that_are_known() -> None:
    with pytest.raises(UserError, match=r"unknown topology 'v5e:3x3'; known.* 2x2 2x4 4x4"):
        topologies.parse("v5e:3x3")


def test_without_the_compiler_the_command_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topologies, "_installed", lambda: False)
    with pytest.raises(UserError, match=r'pip install "jaxgen\[tpu\]"'):
        topologies.devices(topologies.parse("v5e:2x2"))
