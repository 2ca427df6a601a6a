"""Pictures through an autoencoder and back: how near they come, and what lies between two codes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8

from jaxgen.data.source import Source
from jaxgen.errors import UserError
from jaxgen.metrics.bootstrap import of_mean
from jaxgen.runtime import mesh as meshes
from jaxgen.runtime import pictures

PAIRS, STRIPS = 24, 8  # pictures shown beside their reconstructions, lines between two pictures
LINE = 7  # pictures on a line, both ends among them
SCALED = 64  # pixels to which smaller pictures are enlarged

Reconstruct = Callable[[Any, jax.Array], jax.Array]
"""From weights and uint8 images [b, h, w, 3] to their reconstructions."""
Between = Callable[[Any, jax.Array, jax.Array, int], jax.Array]
"""From weights, uint8 images `a` and `b` and a count to the images [b, count, h, w, 3] between."""


def grade(
    reconstruct: Reconstruct,
    between: Between,
    weights: Any,
    source: Source,
    batch: int,
    mesh: jax.sharding.Mesh,
    folder: Path,
) -> str:
    """Takes a source's pictures through their codes and says in three lines how near they come.

    Writes samples/reconstructions.png and samples/interpolations.png, of pictures and pairs that
    are the same each time, into the run's folder. Raises `UserError` for fewer than two pictures.
    """
    if len(source) < 2:
        raise UserError(
            f"{source.name} has {len(source)} picture(s) to reconstruct; give 2 or more"
        )
    weights = jax.device_put(weights, meshes.replicated(mesh))
    images = np.stack([source.images[n] for n in range(len(source))])
    program = jax.jit(meshes.known(mesh, reconstruct), out_shardings=meshes.replicated(mesh))
    blocks = [
        program(weights, meshes.put_padded(mesh, images[start : start + batch], batch))
        for start in range(0, len(images), batch)
    ]
    back = np.concatenate([np.asarray(block) for block in blocks])[: len(images)]
    rng = np.random.default_rng(0)
    value, low, high = of_mean(psnr(images, back), rng)

    chosen = rng.permutation(len(images))
    shown = chosen[:PAIRS]
    names = [texts[0] for texts in source.captions]
    pairs = pictures.grid(
        [("original", images[shown]), ("reconstruction", back[shown])],
        [names[n] for n in shown],
        max(1, SCALED // source.size),
    )
    a, b = np.resize(chosen, (2, min(STRIPS, len(images) // 2)))
    line = jax.jit(between, static_argnums=3)(weights, images[a], images[b], LINE)
    strips = pictures.grid(
        [(f"{100 * n / (LINE - 1):.0f} %", np.asarray(line)[:, n]) for n in range(LINE)],
        [f"{names[n]} to {names[m]}" for n, m in zip(a, b, strict=True)],
        max(1, SCALED // source.size),
        blocks=1,
    )
    samples = folder / "samples"
    paths = samples / "reconstructions.png", samples / "interpolations.png"
    pictures.save(pairs, paths[0])
    pictures.save(strips, paths[1])
    return (
        f"PSNR {value:.2f} dB ({low:.2f} to {high:.2f}), {len(images)} {_told(source.split)}\n"
        f"reconstructions: {paths[0]}\n"
        f"between two codes: {paths[1]}"
    )


def psnr(
    image: UInt8[np.ndarray, "n h w 3"], other: UInt8[np.ndarray, "n h w 3"]
) -> Float[np.ndarray, "n"]:
    """Peak signal-to-noise ratio of each pair of pictures, in dB, over pixels and channels.

    At most 58.9 dB, which is what rounding to whole numbers alone leaves: of equal pictures no more
    is known.
    """
    error = np.mean((image.astype(np.float64) - other) ** 2, axis=(1, 2, 3))
    return 10.0 * np.log10(255.0**2 / np.maximum(error, 1 / 12))


def _told(split: str) -> str:
    return "held-out pictures" if split == "test" else "training pictures"
