"""XLA's attention and the kernel that `jaxgen.models.attention` takes on TPUs, by the TPU compiler.

    python -m benchmarks.attention                       (v5e, minutes)
    python -m benchmarks.attention --topology v6e:1x1

Nothing is run. Both are compiled for one chip, forwards and with the gradients of queries, keys and
values: the memory that they need beside their arguments, the bytes that cross HBM (of the kernel's
operands and results once each, though blocks of keys are read again for each block of queries), and
the least time by the chip's peaks (`jaxgen.runtime.costs`). Results are results/tpu-attention.json.
"""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from benchmarks import reports
from jaxgen import config as configs
from jaxgen.errors import UserError, reported
from jaxgen.models import attention
from jaxgen.runtime import costs, topologies

PROGRAM = "python -m benchmarks.attention"
RESULTS = Path(__file__).parent / "results" / "tpu-attention.json"
SHAPES = {
    "SD 2.1, 4096 tokens": (8, 4096, 4096, 5, 64),
    "SD 2.1, 1024 tokens": (8, 1024, 1024, 10, 64),
    "SD 2.1, 256 tokens": (8, 256, 256, 20, 64),
    "SD 2.1, caption": (8, 4096, 77, 5, 64),
    "SD's codec": (8, 4096, 4096, 1, 512),
    "SD 1.5, 4096 tokens": (8, 4096, 4096, 8, 40),
    "ViT-S/14, 518 px": (16, 1370, 1370, 6, 64),
    "512 tokens": (64, 512, 512, 8, 64),
    "DiT, 256 tokens": (32, 256, 256, 6, 64),
}
"""Batch, queries, keys, heads, channels of a head."""


@dataclasses.dataclass(frozen=True)
class Options:
    topology: str = "v5e:1x1"
    """The chip to compile for."""

    def check(self) -> None:
        """Raises UserError for more than one chip."""
        if topologies.parse(self.topology).sides != (1, 1):
            raise UserError(f"--topology {self.topology}: give one chip, such as v5e:1x1")


def main() -> None:
    with reported():
        options = configs.parse(Options(), sys.argv[1:], PROGRAM)
        topologies.on_cpu()
        place = topologies.parse(options.topology)
        rows = []
        for name, shape in SHAPES.items():
            for gradients in (False, True):
                for kernel, function in (("XLA", jax.nn.dot_product_attention), ("splash", splash)):
                    found = measured(function, shape, gradients, place)
                    row = {"name": name, "shape": shape, "kernel": kernel, "gradients": gradients}
                    rows.append(row | found)
                    print(line(rows[-1]), flush=True)
        report = {"benchmark": "attention", "command": PROGRAM, "topology": place.name}
        reports.write(report | {"rows": rows}, RESULTS)
        print(f"numbers: {RESULTS}")


def splash(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """The kernel, at lengths for which `attend` does not take it too."""
    return attention._splash(query, key, value)


def measured(
    function: Callable[..., jax.Array],
    shape: tuple[int, int, int, int, int],
    gradients: bool,
    place: topologies.Slice,
) -> dict[str, Any]:
    """MiB of temporaries, MB over HBM, GFLOPs, least milliseconds; in bfloat16."""
    b, n, m, h, d = shape
    (device,) = topologies.devices(place)
    where = SingleDeviceSharding(device)
    query, key = (
        jax.ShapeDtypeStruct((b, length, h, d), jnp.bfloat16, sharding=where) for length in (n, m)
    )

    def run(query, key, value):
        if not gradients:
            return function(query, key, value)
        y, backward = jax.vjp(function, query, key, value)
        return y, backward(query)

    made = jax.jit(run).lower(query, key, key).compile()
    cost = costs.costs(made.as_text() or "", place, [(0, 0)])
    return {
        "temporary_mib": costs.memory(made, {}).temporaries / 2**20,
        "hbm_mb": cost.hbm_bytes / 1e6,
        "gflops": cost.flops / 1e9,
        "least_ms": 1e3 * cost.local_seconds,
    }


def line(row: dict[str, Any]) -> str:
    """One measurement in one line."""
    b, n, m, h, d = row["shape"]
    return (
        f"{row['name']:20} [{b}, {n} x {m}, {h} x {d}] {'gradients' if row['gradients'] else '':9} "
        f"{row['kernel']:7} {row['temporary_mib']:7.0f} MiB {row['hbm_mb']:7.0f} MB of HBM "
        f"{row['gflops']:6.0f} GFLOPs {row['least_ms']:6.2f} ms"
    )


if __name__ == "__main__":
    main()
