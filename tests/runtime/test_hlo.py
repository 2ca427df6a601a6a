"""Programs compiled by libtpu 0.0.42 for v5e:2x2, read again: what they do is known by hand.

The meshes are data 2 x fsdp 2, x is split over both and w over fsdp:
- matmul: x @ w, bf16, x [4096, 1024], w [1024, 2048] whole everywhere;
- gradient: of sum((x @ w)²) with respect to w, float32, the same shapes;
- loop: seven times x = tanh(x @ w), bf16, w [1024, 1024];
- attention: jax.nn.dot_product_attention of bf16 [16, 256, 8, 64].
"""

from pathlib import Path

import pytest

from jaxgen.runtime import hlo
from jaxgen.runtime.hlo import Collective

PROGRAMS = Path(__file__).parent / "programs"
MIB = 2**20


def program(name: str) -> hlo.Program:
    return hlo.parse((PROGRAMS / f"{name}.txt").read_text())


@pytest.mark.parametrize(
    ("name", "flops"),
    [
        ("matmul", 2 * 1024 * 1024 * 2048),
        ("gradient", 2 * (2 * 1024 * 1024 * 2048)),  # forwards, and backwards to w
        ("loop", 7 * (2 * 1024 * 1024 * 1024)),
        ("attention", 2 * (2 * 4 * 8 * 256 * 256 * 64)),  # queries with keys, then with values
    ],
)
def test_flops_are_those_of_one_device_with_loops_multiplied_out(name: str, flops: int) -> None:
    assert hlo.flops(program(name)) == flops
    assert not program(name).guessed


def test_bytes_are_those_that_cross_the_main_memory() -> None:
    x, w, y = 2 * MIB, 4 * MIB, 4 * MIB
    assert hlo.hbm_bytes(program("matmul")) == x + w + y


@pytest.mark.parametrize(
    ("name", "collectives"),
    [
        ("matmul", []),
        (
            "gradient",
            [
                Collective("all-gather", 4 * MIB, 1, (0, 1)),  # w in bf16, over fsdp
                Collective("all-reduce", 4 * MIB, 1, (0, 2)),  # its share's gradient, over data
                Collective("reduce-scatter", 8 * MIB, 1, (0, 1)),  # its gradient, over fsdp
            ],
        ),
        ("loop", [Collective("all-gather", 2 * MIB, 7, (0, 1))]),
    ],
)
def test_collectives_have_their_kind_bytes_turns_and_devices(
    name: str, collectives: list[Collective]
) -> None:
    assert sorted(hlo.exchanged(program(name)), key=lambda c: c.kind) == collectives


@pytest.mark.parametrize(
    ("written", "group"),
    [
        ("replica_groups={{0,4},{1,5}}", (0, 4)),
        ("replica_groups=[2,4]<=[8]", (0, 1, 2, 3)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", (0, 1, 2, 3)),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", (0, 4)),
        ("source_target_pairs={{0,3},{3,0}}", (0, 3)),
    ],
)
def test_devices_that_exchange_are_read_in_every_notation(
    written: str, group: tuple[int, ...]
) -> None:
    text = (
        "ENTRY %main (p: f32[8]) -> f32[8] {\n"
        "  %p = f32[8]{0:T(128)} parameter(0)\n"
        f"  ROOT %r = f32[8]{{0:T(128)}} all-reduce(%p), channel_id=1, {written}, to_apply=%add\n"
        "}\n"
    )
    assert hlo.exchanged(hlo.parse(text)) == [Collective("all-reduce", 32, 1, group)]


def test_start_and_end_of_a_collective_are_one() -> None:
    text = (
        "ENTRY %main (p: f32[8]) -> f32[16] {\n"
        "  %p = f32[8]{0:T(128)} parameter(0)\n"
        "  %s = (f32[8]{0:T(128)}, f32[16]{0:T(128)}) all-gather-start(%p), channel_id=1, "
        "replica_groups={{0,1}}, dimensions={0}\n"
        "  ROOT %d = f32[16]{0:T(128)} all-gather-done(%s)\n"
        "}\n"
    )
    assert hlo.exchanged(hlo.parse(text)) == [Collective("all-gather", 64, 1, (0, 1))]


def test_the_fusions_of_one_asynchronous_collective_are_one() -> None:
    """As a TPU's programs have them: two gathers, each begun, gone on with beside work, ended."""
    names = ("fused_computation.1", "async_collective_fusion.2", "fused_computation.3")

    def fusion(name: str, chain: int) -> str:
        return (
            f"%{name} (p: f32[8]) -> f32[16] {{\n"
            "  %p = f32[8]{0:T(128)} parameter(0)\n"
            f"  ROOT %g = f32[16]{{0:T(128)}} all-gather(%p), channel_id={chain}, "
            "replica_groups={{0,1}}, dimensions={0}, "
            f'frontend_attributes={{chain_id="{chain}"}}\n}}\n\n'
        )

    def call(name: str) -> str:
        return f"  %{name}.r = f32[16]{{0:T(128)}} fusion(%p), kind=kCustom, calls=%{name}\n"

    both = [(f"{name}{chain}", chain) for chain in (7, 8) for name in names]
    text = (
        "".join(fusion(*one) for one in both)
        + "ENTRY %main (p: f32[8]) -> f32[8] {\n  %p = f32[8]{0:T(128)} parameter(0)\n"
        + "".join(call(name) for name, _ in both)
        + "  ROOT %r = f32[8]{0:T(128)} copy(%p)\n}\n"
    )
    assert hlo.exchanged(hlo.parse(text)) == [Collective("all-gather", 64, 1, (0, 1))] * 2


def test_a_loop_of_unknown_length_is_told() -> None:
    text = (PROGRAMS / "loop.txt").read_text().replace("constant(7)", "parameter(1)")
    found = hlo.parse(text)
    assert found.guessed == 1
    assert hlo.flops(found) == 2 * 1024**3
