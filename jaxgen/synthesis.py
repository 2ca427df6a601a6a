"""A training set of a trained network's own samples: what to draw, with what, and where it is kept.

Doors call this; it knows no method by name.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int, UInt8

from jaxgen import config as configs
from jaxgen import methods, stages
from jaxgen.config import Drawing, Experiment
from jaxgen.data import drawn as sets
from jaxgen.data.source import Source, digest
from jaxgen.diffusion.sampler import Sampler
from jaxgen.runtime import mesh as meshes
from jaxgen.stages import Loaded
from jaxgen.state import stream

FORMAT = 2  # to be raised where the code changes what is drawn


def drawn(
    config: Experiment,
    drawing: Drawing,
    loaded: Loaded,
    source: Source,
    progress: Callable[[int, int], None],
) -> Source:
    """The source with `drawing.count` samples of the loaded network in place of its pictures.

    Every picture of the source lends one of its captions, drawn by the config's seed, and its
    label; then every picture once more, and so on. The samples are kept under the config's data
    root, in a folder named by everything that they depend on, so that none can be stale; those of
    an interrupted drawing are not drawn again. `progress(done, total)` is called meanwhile.

    Raises `UserError` where the sampler or the weights do not fit, and where the folder cannot be
    written.
    """
    method = methods.of(loaded.config)
    sampler = Sampler(steps=drawing.steps, guidance=drawing.guidance)
    method.check_sampler(loaded.config, sampler)
    rows, captions = _asked(source, drawing.count, config.seed)
    ids = methods.encode(loaded.config, loaded.tokenizer, captions)
    key = _key(loaded, sampler, captions, ids, config.seed)
    draw = _drawer(loaded, sampler, ids, config.seed)
    folder = Path(config.data.root) / "drawn" / key
    with stages.fitting(loaded):
        images = sets.pictures(folder, captions, source.size, draw, progress)
    return dataclasses.replace(
        source,
        images=images,
        captions=tuple((caption,) for caption in captions),
        label_ids=source.label_ids[rows],
        ids=tuple(f"{number:08d}" for number in range(drawing.count)),
        content=key,
        notes=(),
    )


def _asked(source: Source, count: int, seed: int) -> tuple[Int[np.ndarray, " count"], list[str]]:
    """The row of the source to which each sample answers, and the caption that asks for it."""
    rng = np.random.default_rng((seed, 2))
    rounds = [rng.permutation(len(source)) for _ in range(-(-count // len(source)))]
    rows = np.concatenate(rounds)[:count]
    return rows, [source.captions[row][rng.integers(len(source.captions[row]))] for row in rows]


def _key(
    loaded: Loaded,
    sampler: Sampler,
    captions: list[str],
    ids: Int[np.ndarray, "count length"],
    seed: int,
) -> str:
    """A digest of everything that the samples depend on, but not of the run's name or folder."""
    config = loaded.config
    general = {field.name for field in dataclasses.fields(Experiment)}
    # Fields at their defaults are left out, or each new one in the code would mean a new set.
    own = {
        field: value
        for field, (_, value) in configs.differences(type(config)(), config).items()
        if field.partition(".")[0] not in {*general, "codec"}  # whose weights are among the weights
    }
    how = (methods.name(config), config.data.size, sorted(own.items()))
    told = (FORMAT, how, sampler, captions, seed)
    leaves = jax.tree_util.tree_leaves_with_path(loaded.weights)
    weights = [
        f"{jax.tree_util.keystr(path)} {digest(np.ascontiguousarray(leaf).tobytes())}".encode()
        for path, leaf in leaves
    ]
    return digest(repr(told).encode(), np.ascontiguousarray(ids).tobytes(), *weights)


def _drawer(
    loaded: Loaded, sampler: Sampler, ids: Int[np.ndarray, "count length"], seed: int
) -> Callable[[range], UInt8[np.ndarray, "n size size 3"]]:
    """Draws the samples of some numbers: the same ones, whichever were drawn before.

    Each host draws all of them, on its own devices: they are few.
    """
    method = methods.of(loaded.config)
    batch = meshes.images_at_once(loaded.config.data.size)
    mesh = meshes.dividing(batch)
    weights = meshes.put(loaded.weights, meshes.replicated(mesh))

    def sample(weights: Any, numbers: Array, caption: Array) -> Array:
        noise = method.numbered_noise(loaded.config, seed, numbers)
        key = stream(seed, numbers[0], "drawing")
        return method.sample(loaded.config, weights, key, caption, sampler, noise=noise)

    program = jax.jit(meshes.known(mesh, sample))

    def draw(numbers: range) -> UInt8[np.ndarray, "n size size 3"]:
        images = []
        for start in range(numbers.start, numbers.stop, batch):
            block = ids[start : min(start + batch, numbers.stop)]
            caption = meshes.put_padded(mesh, block, batch)
            which = meshes.put_padded(mesh, np.arange(start, start + len(block)), batch)
            drawn = program(weights, which, caption)
            images.append(np.asarray(drawn)[: len(block)])
        return np.concatenate(images)

    return draw
