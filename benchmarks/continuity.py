"""What the V buys: are similar images close in code, and are midpoints of codes plausible images?

    python -m jaxgen.train --config=vae
    python -m jaxgen.train --config=vae --name=vae_plain --kl=0
    python -m benchmarks.continuity --run=runs/vae --plain=runs/vae_plain

For a variational autoencoder and a plain one, on held-out pictures: how far an image's code moves
when the image is shifted by a pixel or its colours are turned, as a share of the distance between
the codes of two images; on training pictures: the Fréchet distance from real images of what the
decoder makes of the midpoints between random pairs. Pixels themselves are measured alike, as what
no learning gives, and reconstructions, as the best that midpoints could be.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8

from benchmarks import machine, reports
from jaxgen import config as configs
from jaxgen import methods, quality, stages
from jaxgen.data.source import Source
from jaxgen.errors import UserError, reported
from jaxgen.metrics.bootstrap import Estimate, of_statistic
from jaxgen.metrics.frechet import frechet
from jaxgen.metrics.networks import FeatureNetwork
from jaxgen.pixels import to_uint8, to_unit
from jaxgen.runtime import mesh as meshes
from jaxgen.runtime import run
from jaxgen.stages import Loaded

PROGRAM = "python -m benchmarks.continuity"
BATCH, RESAMPLES = 64, 100
TURN = np.pi / 6  # of the colours, about grey
# Fields that weights do not depend on.
SAME_WEIGHTS = tuple(field for field in run.FREE if field != "train.steps")

Images = UInt8[np.ndarray, "n h w 3"]


@dataclasses.dataclass(frozen=True)
class Options:
    run: str = "runs/vae"
    """The folder of a vae run."""
    plain: str = "runs/vae_plain"
    """The folder of a vae run whose kl is 0, and which is like the other in all else."""
    features: str = "shipped:classifier"
    """The network in whose features images are compared: a classifier's run, or a known one."""
    most: int = 0
    """Pictures of each split, at most; 0: all."""

    def check(self) -> None:
        """Raises UserError where a field is impossible; the folders are read later."""
        if self.most < 0 or self.most == 1:
            raise UserError(f"--most is {self.most}; give 2 or more, or 0 for all")


def main() -> None:
    with reported():
        options = configs.parse(Options(), sys.argv[1:], PROGRAM)
        meshes.prepare(BATCH)
        runs = [_read(folder) for folder in (options.run, options.plain)]
        _refuse_unlike(*runs)
        network = quality.grader(options.features, None, runs, own_eyes=False)
        sources = quality.both_splits(runs[0].config, "")
        train, held_out = (_images(source, options.most) for source in sources)
        device = machine.hardware()
        found: dict[str, Any] = {
            "command": reports.command(PROGRAM, sys.argv[1:]),
            "commit": machine.commit(),
            "hardware": device,
            "versions": machine.versions(),
            "features": network.title,
            "images": {"training": len(train), "held-out": len(held_out)},
            "subjects": {},
        }
        measured = {"pixels": _of_pixels(), **{_title(loaded): _of(loaded) for loaded in runs}}
        real = network.features(train)
        for title, (encode, decode) in measured.items():
            values = {
                **distances(encode, held_out),
                **plausibility(encode, decode, train, real, network),
            }
            found["subjects"][title] = {name: value._asdict() for name, value in values.items()}
            print(f"{title} done", flush=True)
        path = machine.folder(device) / "continuity.json"
        reports.write(found, path)
        print(table(found))
        print(f"numbers: {path}")


Encode = Callable[[Images], Float[np.ndarray, "n h w c"]]
Decode = Callable[[Float[np.ndarray, "n h w c"]], Images]


def distances(encode: Encode, images: Images) -> dict[str, Estimate]:
    """How far codes move under small changes, over the mean distance of two images' codes.

    Distances are roots of mean squares over a code's dimensions. `pair` is the latter distance
    itself, in deviations of the codes. The intervals are over images.
    """
    rng = np.random.default_rng(0)
    codes = encode(images)
    order = rng.permutation(len(images))
    apart = _apart(codes[order], codes[np.roll(order, 1)])
    rows = {"shifted": shifted(images), "recoloured": recoloured(images)}
    found = {
        name: of_statistic(
            lambda near, far: near.mean() / far.mean(),
            _apart(codes, encode(changed)),
            apart,
            rng=rng,
        )
        for name, changed in rows.items()
    }
    scaled = apart / codes.std()
    return {**found, "pair": of_statistic(lambda far: far.mean(), scaled, rng=rng)}


def plausibility(
    encode: Encode,
    decode: Decode,
    images: Images,
    real: Float[np.ndarray, "n d"],
    network: FeatureNetwork,
) -> dict[str, Estimate]:
    """Fréchet distances from real images: of reconstructions, and of midpoints of random pairs."""
    rng = np.random.default_rng(1)
    codes = encode(images)
    order = rng.permutation(len(images))
    middle = (codes[order] + codes[np.roll(order, 1)]) / 2
    return {
        name: of_statistic(
            frechet, real, network.features(decode(some)), rng=rng, resamples=RESAMPLES
        )
        for name, some in (("reconstructions", codes), ("midpoints", middle))
    }


def shifted(images: Images) -> Images:
    """The images one pixel to the right; the column that comes in repeats the border."""
    return np.concatenate([images[:, :, :1], images[:, :, :-1]], axis=2)


def recoloured(images: Images) -> Images:
    """The images with their colours turned about grey; black, grey and white stay."""
    axis = np.full((3, 3), 1 / 3)
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    turn = np.cos(TURN) * np.eye(3) + np.sin(TURN) * cross + (1 - np.cos(TURN)) * axis
    return np.rint(np.clip(images @ turn.T, 0, 255)).astype(np.uint8)


def table(found: dict[str, Any]) -> str:
    """A row for each subject, a column for each measure."""
    names = list(next(iter(found["subjects"].values())))
    width = max(len(title) for title in found["subjects"])
    lines = [" " * width + "".join(f"  {name:>22}" for name in names)]
    for title, values in found["subjects"].items():
        cells = (
            f"{v['value']:.3f} ({v['low']:.3f} to {v['high']:.3f})"
            for v in (values[name] for name in names)
        )
        lines.append(f"{title:{width}}" + "".join(f"  {cell:>22}" for cell in cells))
    return "\n".join(lines)


def _of(loaded: Loaded) -> tuple[Encode, Decode]:
    """A run's coder and decoder, a batch at a time."""
    config, method = loaded.config, methods.of(loaded.config)
    mesh = meshes.dividing(BATCH)
    weights = jax.device_put(loaded.weights, meshes.replicated(mesh))

    def encode(weights: Any, images: jax.Array) -> jax.Array:
        return method.encode(config, weights, to_unit(images))

    def decode(weights: Any, codes: jax.Array) -> jax.Array:
        return to_uint8(method.decode(config, weights, codes))

    def whole(function: Any, rows: np.ndarray) -> np.ndarray:
        blocks = []
        for start in range(0, len(rows), BATCH):
            block = rows[start : start + BATCH]
            with stages.fitting(loaded):
                out = function(weights, meshes.put_padded(mesh, block, BATCH))
            blocks.append(np.asarray(out)[: len(block)])
        return np.concatenate(blocks)

    return tuple(functools.partial(whole, jax.jit(f)) for f in (encode, decode))  # pyright: ignore[reportReturnType]


def _of_pixels() -> tuple[Encode, Decode]:
    """Pixels as their own codes: their midpoints are cross-fades."""
    return (
        lambda images: images.astype(np.float32),
        lambda codes: np.rint(codes).astype(np.uint8),
    )


def _apart(a: Float[np.ndarray, "n ..."], b: Float[np.ndarray, "n ..."]) -> np.ndarray:
    return np.sqrt(np.mean((a - b) ** 2, axis=tuple(range(1, a.ndim))))


def _read(folder: str) -> Loaded:
    loaded = stages.read(stages.run_folder(folder))
    if not hasattr(methods.of(loaded.config), "reconstruct"):
        raise UserError(f"{folder} is a run of {methods.name(loaded.config)}, no autoencoder")
    return loaded


def _refuse_unlike(own: Loaded, plain: Loaded) -> None:
    """Raises UserError where more than the KL weight could explain how two vae runs differ."""
    unlike = configs.differences(own.config, plain.config)
    kl, its_kl = unlike.pop("kl", (0, 0))
    if its_kl or not kl:
        raise UserError(
            f"--plain {plain.folder} is to have --kl=0, and --run {own.folder} a KL weight above 0"
        )
    unlike["steps done"] = own.step, plain.step
    for field, (mine, its) in unlike.items():
        if mine != its and field != "name" and not field.startswith(SAME_WEIGHTS):
            raise UserError(
                f"{field} is {mine!r} in --run {own.folder} and {its!r} in --plain {plain.folder}; "
                "give two runs that differ in kl alone"
            )


def _title(loaded: Loaded) -> str:
    return f"{loaded.config.name}, KL weight {loaded.config.kl:g}"  # pyright: ignore[reportAttributeAccessIssue]


def _images(source: Source, most: int) -> Images:
    return np.stack([source.images[n] for n in range(min(len(source), most or len(source)))])


if __name__ == "__main__":
    main()
