"""How good a run's samples are: draws them, looks at them with a feature network, measures them.

Doors call this; it knows no method by name.
"""

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from jaxgen import methods, stages
from jaxgen.config import Experiment
from jaxgen.data.source import Source, digest
from jaxgen.data.sources import opened
from jaxgen.diffusion import sampler as sampling
from jaxgen.diffusion.sampler import Sampler
from jaxgen.errors import UserError
from jaxgen.metrics import bootstrap, kernel, memorisation, networks
from jaxgen.metrics.measures import LEAST, Estimate, Pictures, Real, likeness, measures
from jaxgen.metrics.networks import FeatureNetwork
from jaxgen.metrics.resize import bicubic
from jaxgen.models.eyes import EFFICIENTNET
from jaxgen.runtime import mesh as meshes
from jaxgen.stages import Loaded

TRAINING, HELD_OUT = "training", "held-out"
CLASSIFIER = "shipped:classifier"
BATCH = 64  # images that are drawn at once


@dataclasses.dataclass(frozen=True)
class Row:
    """What one sampler of one run makes of one set of captions."""

    run: str
    sampler: Sampler | None
    """None for an autoencoder, which gives back the pictures that the captions belong to."""
    captions: str
    """training or held-out."""
    count: int
    """Samples."""
    seconds: float
    """For an image, in batches of `batch`, without compiling, once warm."""
    batch: int
    found: dict[str, Estimate]

    @property
    def title(self) -> str:
        """Run and sampler, short."""
        if self.sampler is None:
            return f"{self.run}, reconstructed"
        guided = f", guidance {self.sampler.guidance:g}" if self.sampler.guidance != 1 else ""
        return f"{self.run}, {self.sampler.steps} step{'s' * (self.sampler.steps > 1)}{guided}"


@dataclasses.dataclass(frozen=True)
class Asked:
    """Captions to draw: ids, and for each the row of the real image that it belongs to."""

    ids: Int[np.ndarray, "m length"]
    own: Int[np.ndarray, "m"]


def grader(
    name: str, weights: Path | None, runs: Sequence[Loaded], own_eyes: bool
) -> FeatureNetwork:
    """The feature network called `name`: one of `networks.NETWORKS`, or a classifier's run folder.

    Without a name the shipped classifier; where that has judged, EfficientNet-Lite0.

    Raises `UserError` where there is no such network, and where one of the runs was trained by its
    verdict, unless `own_eyes`: then its title says so.
    """
    judges = [stages.judged_by(loaded.config) for loaded in runs]
    name = name or _usual(judges)
    if name in networks.NETWORKS:
        network, same = networks.open_network(name, weights), {name}
        if name in stages.FEATURES:  # what a run whose folder is gone may have seen by
            same.add(stages.GONE)
    else:
        if weights:
            raise UserError(f"--weights {weights} goes with {', '.join(networks.NETWORKS)}")
        network, same = _classifier(name), stages.known_by(name) | {stages.GONE}
    judged = [
        (loaded.folder, found & same)
        for loaded, found in zip(runs, judges, strict=True)
        if found & same
    ]
    if judged and not own_eyes:
        folder, shared = judged[0]
        if shared == {stages.GONE}:
            raise UserError(
                f"{folder} builds on {stages.GONE}, and perhaps on the verdict of {name}, which "
                "would flatter it; put that folder back where config.json names it, or go on with "
                "--own-eyes"
            )
        raise UserError(
            f"{folder} was trained by the verdict of {name}, which would flatter it; choose other "
            "--features, or go on with --own-eyes"
        )
    if judged:
        description = network.description
        marked = dataclasses.replace(description, weights=f"{description.weights} (own judge)")
        network = dataclasses.replace(network, description=marked)
    return network


def grader_of(runs: Sequence[Loaded]) -> str:
    """The name of the network that grades these runs by default. Nothing is put on a device."""
    return _usual([stages.judged_by(loaded.config) for loaded in runs])


def _usual(judges: Sequence[set[str]]) -> str:
    classifier = stages.known_by(CLASSIFIER)
    return EFFICIENTNET if any(found & classifier for found in judges) else CLASSIFIER


def title_of(name: str) -> str:
    """The title of the feature network called `name`. Nothing is put on a device.

    For who starts processes that want the accelerator: a TPU belongs to the first that uses it.
    """
    if name in networks.NETWORKS:
        return networks.NETWORKS[name].title
    return ", ".join(_titled(stages.read(stages.run_folder(name))))


def real_images(source: Source, held_out: Source, network: FeatureNetwork, cache: Path) -> Real:
    """Both splits with their features, which are kept in the folder `cache`.

    Raises `UserError`, saying how many there are, where a measure needs more, and where the splits
    share their pictures.
    """
    for split in (source, held_out):
        if len(split) < LEAST:
            raise UserError(
                f"{split.name} has {len(split)} pictures in its split {split.split!r}; the "
                f"measures need {LEAST} or more{_in_all(split)}"
            )
    images = [np.stack([s.images[n] for n in range(len(s))]) for s in (source, held_out)]
    seen_by = digest(network.title.encode(), network.digest.encode())
    features = [
        _kept(cache / f"{s.fingerprint}-{seen_by}.npy", network, i)
        for s, i in zip((source, held_out), images, strict=True)
    ]
    apart = memorisation.nearest(features[1], features[0])
    memorisation.median_ratio(apart, apart)  # refuses, before anything is drawn
    said = [tuple(texts) for s in (source, held_out) for texts in s.captions]
    numbers = {texts: number for number, texts in enumerate(dict.fromkeys(said))}
    return Real(
        Pictures(np.concatenate(images), np.concatenate(features)),
        len(source),
        np.asarray([numbers[texts] for texts in said]),
    )


def _in_all(split: Source) -> str:
    """How many pictures a folder needs, of which a tenth is held out by chance."""
    return f", so about {10 * LEAST} in all" if split.name.startswith("imagefolder:") else ""


def both_splits(config: Experiment, name: str) -> tuple[Source, Source]:
    """The training and the held-out pictures of the data called `name`, at the config's size.

    Those of the config's own data, which an empty name means, have its labels.
    """
    data = config.data
    if name not in ("", data.name):
        data = dataclasses.replace(data, name=name, label="")
    return opened(data, "train"), opened(data, "test")


def asked(loaded: Loaded, source: Source, first: int, most: int, seed: int) -> Asked:
    """One caption each of at most `most` pictures; `first` is the row of the source's first."""
    rng = np.random.default_rng((seed, first))
    chosen = np.sort(rng.permutation(len(source))[:most])
    texts = [source.captions[n][rng.integers(len(source.captions[n]))] for n in chosen]
    ids = methods.encode(loaded.config, loaded.tokenizer, texts)
    return Asked(ids, chosen + first)


def drawn(
    loaded: Loaded, sampler: Sampler, ids: Int[np.ndarray, "m length"], seed: int
) -> tuple[UInt8[np.ndarray, "m h w 3"], float]:
    """An image for each caption, and the seconds that one took."""
    sample = functools.partial(methods.of(loaded.config).sample, loaded.config)
    key = jax.random.key(seed)

    def draw(weights: Any, number: Int[Array, ""], block: Int[Array, "b length"]) -> Array:
        return sample(weights, jax.random.fold_in(key, number), block, sampler)

    return _in_blocks(loaded, draw, ids)


def reconstructed(
    loaded: Loaded, images: UInt8[np.ndarray, "m h w 3"]
) -> tuple[UInt8[np.ndarray, "m h w 3"], float]:
    """The images through an autoencoder's codes and back, and the seconds that one took."""
    reconstruct = functools.partial(methods.of(loaded.config).reconstruct, loaded.config)
    return _in_blocks(loaded, lambda weights, _, block: reconstruct(weights, block), images)


def _in_blocks(
    loaded: Loaded, program: Callable[[Any, Any, Any], Array], rows: Any
) -> tuple[UInt8[np.ndarray, "m h w 3"], float]:
    """The images that the program makes of weights, number and rows of each block."""
    batch = meshes.images_at_once(loaded.config.data.size)
    mesh = meshes.dividing(batch)
    weights = meshes.put(loaded.weights, meshes.replicated(mesh))
    blocks = [
        meshes.put_padded(mesh, rows[start : start + batch], batch)
        for start in range(0, len(rows), batch)
    ]
    with stages.fitting(loaded):
        compiled = (
            jax.jit(meshes.known(mesh, program)).lower(weights, np.int32(0), blocks[0]).compile()
        )
    np.asarray(compiled(weights, np.int32(0), blocks[0]))  # the first time is slower, and uncounted
    begun = time.monotonic()
    images = [np.asarray(compiled(weights, np.int32(n), block)) for n, block in enumerate(blocks)]
    seconds = (time.monotonic() - begun) / (len(blocks) * batch)
    return np.concatenate(images)[: len(rows)], seconds


def rows(
    loaded: Loaded,
    name: str,
    how: Sequence[Sampler | None],
    sources: tuple[Source, Source],
    real: Real,
    network: FeatureNetwork,
    most: int,
    seed: int,
) -> Iterator[list[Row]]:
    """For every sampler of one run, when it is measured, a row for each set of captions."""
    sets = {
        TRAINING: asked(loaded, sources[0], 0, most, seed),
        HELD_OUT: asked(loaded, sources[1], real.training, most, seed),
    }
    ids = np.concatenate([wanted.ids for wanted in sets.values()])
    own = np.concatenate([wanted.own for wanted in sets.values()])
    for sampler in how:
        if sampler is None:
            images, seconds = reconstructed(loaded, real.all.images[own])
        else:
            images, seconds = drawn(loaded, sampler, ids, seed)
        samples = Pictures(images, network.features(images))
        found, start = [], 0
        for captions, wanted in sets.items():
            these = slice(start, start := start + len(wanted.ids))
            part = Pictures(samples.images[these], samples.features[these])
            values = measures(part, wanted.own, real, jax.random.key(seed))
            if network.description.name.startswith("clip"):
                values["cmmd"] = _cmmd(real.train, part.features)
            batch = meshes.images_at_once(loaded.config.data.size)
            found.append(Row(name, sampler, captions, len(wanted.ids), seconds, batch, values))
        yield found


def floor(real: Real, most: int, seed: int) -> dict[str, Estimate]:
    """At most `most` held-out real images in place of samples: what perfect samples would have."""
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(len(real.held_out))[:most])
    held_out = real.held_out[chosen]
    memorised = bootstrap.of_share(memorisation.copies(held_out, real.train))
    return {**likeness(held_out, real.train, rng), "memorised": memorised}


def _cmmd(real: Float[np.ndarray, "n d"], fake: Float[np.ndarray, "m d"]) -> Estimate:
    value, error = kernel.cmmd(real, fake)
    return Estimate(value, value - bootstrap.NORMAL_95 * error, value + bootstrap.NORMAL_95 * error)


def samplers(
    loaded: Loaded, steps: Sequence[int], guidance: float | None
) -> list[Sampler] | list[None]:
    """The run's usual sampler at each number of steps; UserError where it cannot be.

    An autoencoder has none and reconstructs: [None].
    """
    config = loaded.config
    method: Any = methods.of(config)
    kind = f"{loaded.folder} is a run of {methods.name(config)}"
    if hasattr(method, "reconstruct"):
        if steps or guidance is not None:
            raise UserError(
                f"{kind}, which takes no sampling steps; leave --steps and --guidance out"
            )
        return [None]
    if not hasattr(method, "sample"):
        raise UserError(f"{kind}, which makes no samples to measure; evaluate it alone")
    usual = next(iter(method.samplers(config).values()))
    chosen = [dataclasses.replace(usual, steps=n) for n in steps or method.measured_steps(config)]
    if guidance is not None:
        chosen = [dataclasses.replace(sampler, guidance=guidance) for sampler in chosen]
    for sampler in chosen:
        method.check_sampler(config, sampler)
    return chosen


def as_json(row: Row, network: FeatureNetwork) -> dict[str, Any]:
    """The row as JSON values; every metric's name says by which network, from how many samples.

    KID has its standard error beside the interval that is made of it.
    """
    metrics: dict[str, dict[str, float]] = {n: e._asdict() for n, e in row.found.items()}
    metrics["kid"]["error"] = (row.found["kid"].high - row.found["kid"].value) / bootstrap.NORMAL_95
    which = f"({network.title}; {row.count} samples)"
    return {
        "run": row.run,
        "captions": row.captions,
        "sampler": dataclasses.asdict(row.sampler) if row.sampler else None,
        "network_calls": sampling.network_calls(row.sampler) if row.sampler else 1,
        "seconds_per_image": row.seconds,
        "batch": row.batch,
        "metrics": {f"{name} {which}": value for name, value in metrics.items()},
    }


def _classifier(name: str) -> FeatureNetwork:
    if ":" not in name and not Path(name).exists():  # shipped:NAME and gs://… have one
        known = ", ".join(networks.NETWORKS)
        raise UserError(
            f"--features {name} is no folder of a classifier, and none of {CLASSIFIER}, {known}"
        )
    loaded = stages.read(stages.run_folder(name))
    method: Any = methods.of(loaded.config)
    if not hasattr(method, "features"):
        known = ", ".join(networks.NETWORKS)
        raise UserError(
            f"--features {name} is a run of {methods.name(loaded.config)}, no classifier; give "
            f"the folder of one, or one of {known}"
        )
    size = loaded.config.data.size

    def see(weights: Any, images: jax.Array) -> Float[jax.Array, "b dims"]:
        pixels = images if images.shape[1] == size else bicubic(images, size)
        return method.features(loaded.config, weights, pixels)

    pixels = jax.ShapeDtypeStruct((1, size, size, 3), np.uint8)
    with stages.fitting(loaded):
        shape = jax.eval_shape(see, loaded.weights, pixels)
    which, resize = _titled(loaded)
    description = networks.Description(
        name=name,
        weights=which,
        resize=resize,
        dims=shape.shape[-1],
        batch=BATCH,
        source="",
        load=lambda _: loaded.weights,
        see=see,
        learnt=loaded.config.data.name,
    )
    return FeatureNetwork(description, jax.device_put(loaded.weights))


def _titled(loaded: Loaded) -> tuple[str, str]:
    """Which weights of a classifier, and its resize."""
    config = loaded.config
    which = f"{config.name} of {config.data.name}, {loaded.step} steps"
    return which, f"bicubic {config.data.size}"


def _kept(path: Path, network: FeatureNetwork, images: np.ndarray) -> np.ndarray:
    """The features, from the file if it is there and whole, else into it."""
    try:
        found = np.load(path, allow_pickle=False)
        if found.shape == (len(images), network.description.dims):
            return found
    except (OSError, ValueError, EOFError):
        pass
    found = network.features(images)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with partial.open("wb") as file:
            np.save(file, found)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return found
