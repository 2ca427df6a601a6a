"""Every method's train step on eight devices, against the same step on one.

    python -m benchmarks.meshes

Tiny networks on eight forced CPU devices, for meshes of data = 8, fsdp = 8 and 4 x 2 (where arrays
of 64 numbers and more are split): how far loss terms, gradients (Adam's first moments after one
step) and updated parameters are from those of one device. What is told is the largest difference in
an array, as a share of that array's norm; left out are arrays whose gradient's norm is below a
ten-thousandth of that of all, which is rounding noise. Adam begins with second moments above what
most gradients make of them, so that its step is nearly proportional to the gradient. From zero it
would take of rounding noise the sign: an output's bias, in whose gradient real and generated images
cancel, would move the student's verdict by a twentieth.

Exit code 1 where one is above TOLERANCE, 1e-5, or no number; each mesh on which that is so is named
with the array or term that is the farthest above. Two arrays of LADD's may be off by 2e-5, and they
alone (CANCELLING): the biases of what its judge makes of text and of time, which are added and so
have one gradient, in which real and generated images nearly cancel. On one device it moves by 5e-6
where the frozen weights move by their last bit.
"""

import dataclasses
import functools
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import machine, reports
from jaxgen import config as configs
from jaxgen import methods
from jaxgen.config import Data, Drawing, Experiment, Mesh, Optimizer, Train
from jaxgen.diffusion.denoiser import Denoiser
from jaxgen.diffusion.schedule import Schedule
from jaxgen.errors import UserError, reported
from jaxgen.methods.add import Add
from jaxgen.methods.classifier import Classifier
from jaxgen.methods.diffusion import Diffusion
from jaxgen.methods.gan import Gan
from jaxgen.methods.ladd import Ladd
from jaxgen.methods.threshold_diffusion import ThresholdDiffusion
from jaxgen.methods.vae import Vae
from jaxgen.models.autoencoder import AutoencoderConfig
from jaxgen.models.dit import DiTConfig
from jaxgen.models.gan import GanConfig
from jaxgen.models.judge import JudgeConfig
from jaxgen.models.patch_discriminator import PatchDiscriminatorConfig
from jaxgen.models.resnet import ResNetConfig
from jaxgen.models.unet import UNetConfig
from jaxgen.runtime import mesh as meshes
from jaxgen.runtime import topologies
from jaxgen.state import State
from jaxgen.text.encoder import TextConfig
from jaxgen.weights.efficientnet import load_efficientnet_lite0

PROGRAM = "python -m benchmarks.meshes"
SIZE, BATCH, LENGTH, VOCABULARY, CLASSES = 16, 8, 6, 40, 3
MESHES = (Mesh(data=8), Mesh(data=1, fsdp=8), Mesh(data=4, fsdp=2))
NOISE, MOMENT = 1e-4, 1e-4  # see above
TOLERANCE = 1e-5  # relative, in float32
CANCELLING = {("ladd", f"judge/head_0/{one}/bias"): 2e-5 for one in ("text", "time")}  # see above
SPLIT_FROM = 64  # numbers; arrays so small are whole in a real run

TEXT = TextConfig(vocabulary=VOCABULARY, width=16, layers=1, heads=2, length=LENGTH)
DIT = DiTConfig(patch=4, width=16, depth=1, heads=2, context_width=16, added_width=16)
UNET = UNetConfig(
    patch=2,
    block_out=(16, 16),
    layers=1,
    attention=(False, True),
    transformer_depth=(1, 1),
    heads=(1, 1),
    context_width=16,
    added_width=16,
    groups=4,
)
_MODEL = Denoiser(network="dit", text=TEXT, dit=DIT, schedule=Schedule("flow"), prediction="x0")
_LATENT = dataclasses.replace(_MODEL, dit=dataclasses.replace(DIT, channels=4, patch=2))
_GATHERED = dataclasses.replace(DIT, remat="blocks", gather_once=True)
_CODEC = AutoencoderConfig(block_out=(8, 8), layers=1, groups=4, mid_attention=False)
_STEADY = Optimizer(learning_rate=1e-3, warmup=0, decay="constant")
_COMMON: dict[str, Any] = {
    "data": Data(size=SIZE, flip=True),
    "train": Train(steps=100, batch=BATCH),
    "optimizer": _STEADY,
}
_JUDGED = {"judge_optimizer": _STEADY}

CONFIGS: dict[str, Experiment] = {
    "classifier": Classifier(
        resnet=ResNetConfig(patch=2, widths=(8,), blocks=1, groups=4, classes=CLASSES),
        mixup=0.2,
        **_COMMON,
    ),
    "diffusion": Diffusion(model=_MODEL, **_COMMON),
    "unet": Diffusion(model=dataclasses.replace(_MODEL, network="unet", unet=UNET), **_COMMON),
    "latent_diffusion": Diffusion(model=_LATENT, codec="vae", autoencoder=_CODEC, **_COMMON),
    "threshold_diffusion": ThresholdDiffusion(model=_MODEL, **_COMMON),
    "gan": Gan(
        text=TEXT,
        model=GanConfig(noise=8, condition=16, generator=(8, 8), discriminator=(8, 8), patch=2),
        discriminator_optimizer=_STEADY,
        **_COMMON,
    ),
    "vae": Vae(
        autoencoder=_CODEC,
        taps=(0,),
        adversarial_from=0.0,
        discriminator=PatchDiscriminatorConfig(width=8, layers=1),
        discriminator_optimizer=_STEADY,
        **_COMMON,
    ),
    "add": Add(model=_MODEL, judge=JudgeConfig(taps=(0,), resize=32), **_JUDGED, **_COMMON),
    "add_paired": Add(
        model=_MODEL,
        judge=JudgeConfig(taps=(0,), resize=32, condition="both"),
        drawn=Drawing(count=BATCH),
        regression=1.0,
        **_JUDGED,
        **{**_COMMON, "data": Data(size=SIZE)},
    ),
    "add_latent": Add(
        model=_LATENT,
        codec="vae",
        autoencoder=_CODEC,
        judge=JudgeConfig(taps=(0,), resize=32),
        **_JUDGED,
        **_COMMON,
    ),
    "ladd": Ladd(model=_MODEL, **_JUDGED, **_COMMON),
}
CONFIGS["add_gathered"] = dataclasses.replace(
    CONFIGS["add_paired"], model=dataclasses.replace(_MODEL, dit=_GATHERED)
)


class Deviation(NamedTuple):
    """From a step on one device: that of every loss term, gradient and updated array, by name."""

    metrics: dict[str, float]
    gradients: dict[str, float]
    parameters: dict[str, float]

    @property
    def every(self) -> dict[str, float]:
        return {**self.metrics, **self.gradients, **self.parameters}

    def largest(self) -> dict[str, Any]:
        """The largest one of each kind, and the name of the largest of all."""
        kinds = {kind: max(apart.values(), default=0.0) for kind, apart in self._asdict().items()}
        return {**kinds, "where": max(self.every, key=lambda name: self.every[name])}


@dataclasses.dataclass(frozen=True)
class Options:
    only: str = ""
    """Some of the methods, with commas between, the others' rows stay; none: all."""

    def check(self) -> None:
        """Raises UserError for a method that is not there."""
        for name in self.names():
            if name not in CONFIGS:
                raise UserError(f"--only {name!r} is none of {', '.join(CONFIGS)}")

    def names(self) -> list[str]:
        """The methods to try."""
        return [name.strip() for name in self.only.split(",") if name.strip()] or list(CONFIGS)


def main() -> None:
    with reported():
        options = configs.parse(Options(), sys.argv[1:], PROGRAM)
        topologies.on_cpu()
        jax.config.update("jax_num_cpu_devices", 8)
        device = machine.hardware()
        path = machine.folder(device) / "meshes.json"
        rows = {(row["method"], row["mesh"]): row for row in read(path)} if options.only else {}
        above = []
        for name in options.names():
            for shape, found in zip(MESHES, deviations(name, MESHES), strict=True):
                row = {"method": name, "mesh": _place(shape), **found.largest()}
                rows[name, row["mesh"]] = row | {"commit": machine.commit()}
                print(f"{name:20} {row['mesh']}  metrics {row['metrics']:.1e}  gradients "
                      f"{row['gradients']:.1e}  parameters {row['parameters']:.1e}  {row['where']}",
                      flush=True)  # fmt: skip
                above += exceeding(name, shape, found)
        report = {
            "command": reports.command(PROGRAM, sys.argv[1:]),
            "hardware": device,
            "versions": machine.versions(),
            "rows": [rows[key] for key in claims() if key in rows],
        }
        reports.write(report, path)
        print(f"numbers: {path}")
        for line in above:
            print(line)
        if above:
            sys.exit(1)


def claims() -> list[tuple[str, str]]:
    """Every method on every mesh."""
    return [(name, _place(shape)) for name in CONFIGS for shape in MESHES]


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of results; none where there is no file."""
    return json.loads(path.read_text("utf-8"))["rows"] if path.is_file() else []


def exceeding(name: str, shape: Mesh, found: Deviation) -> list[str]:
    """What to say of a method on a mesh where an array or term is beyond its tolerance."""

    def limit(where: str) -> float:
        return CANCELLING.get((name, where.removeprefix("gradient of ")), TOLERANCE)

    beyond = {where: by for where, by in found.every.items() if not by <= limit(where)}
    if not beyond:
        return []
    worst = max(beyond, key=lambda where: beyond[where] / limit(where))
    told = f"{name} on {_place(shape)}, by {beyond[worst]:.1e} in {worst}"
    return [f"above {limit(worst):.0e}: {told}"]


def _place(shape: Mesh) -> str:
    return f"{shape.data} x {shape.fsdp}"


def deviations(name: str, shapes: tuple[Mesh, ...]) -> list[Deviation]:
    """Of one train step of a method on each mesh of eight devices, from that on one device."""
    config = CONFIGS[name]
    method = methods.of(config)
    frozen = _frozen(config)
    start = jax.jit(functools.partial(method.init, config))
    first = _begun(jax.device_get(start(frozen, jax.random.key(0))))
    expected = _stepped(config, Mesh(data=1), frozen, first)
    return [_deviation(expected, _stepped(config, shape, frozen, first)) for shape in shapes]


def _stepped(config: Experiment, shape: Mesh, frozen: Any, first: Any) -> tuple[Any, Any]:
    """State and metrics after a step from `first`, on one mesh."""
    method = methods.of(config)
    mesh = meshes.make(shape, BATCH)
    threshold, meshes.SHARD_FROM = meshes.SHARD_FROM, SPLIT_FROM
    try:
        held, placed = (meshes.over_parameters(mesh, tree) for tree in (frozen, first))
    finally:
        meshes.SHARD_FROM = threshold
    step = jax.jit(
        meshes.known(mesh, functools.partial(method.train_step, config)),  # as `loop.program` does
        out_shardings=(placed, meshes.replicated(mesh)),
    )
    state, metrics = step(
        meshes.put(first, placed), meshes.put(frozen, held), meshes.put_batch(mesh, _batch())
    )
    return jax.device_get(state), jax.device_get(metrics)


def _deviation(expected: tuple[Any, Any], found: tuple[Any, Any]) -> Deviation:
    (state, metrics), (other, told) = expected, found
    terms = {
        name: _number(abs(told[name] - value) / max(abs(value), 1e-3))
        for name, value in metrics.items()
    }
    slopes, others = (jax.tree.leaves(_moments(s.opt_state)) for s in (state, other))
    least = NOISE * np.sqrt(sum(np.sum(np.square(slope)) for slope in slopes))
    named = jax.tree_util.tree_leaves_with_path(state.params)
    gradients, parameters = {}, {}
    for (path, before), after, slope, its in zip(
        named, jax.tree.leaves(other.params), slopes, others, strict=True
    ):
        if not np.linalg.norm(slope) <= least:  # one that is not finite too
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            gradients[f"gradient of {name}"] = _apart(slope, its, slope)
            parameters[name] = _apart(before, after, before)
    return Deviation(terms, gradients, parameters)


def _begun(state: State) -> State:
    """With every second moment at MOMENT."""

    def put(path: Any, leaf: np.ndarray) -> np.ndarray:
        return np.full_like(leaf, MOMENT) if ".nu" in jax.tree_util.keystr(path) else leaf

    return dataclasses.replace(
        state, opt_state=jax.tree_util.tree_map_with_path(put, state.opt_state)
    )


def _moments(opt_state: Any) -> Any:
    """Adam's first moments, of every player: after one step, the gradients but for a factor."""
    found = jax.tree_util.tree_leaves_with_path(opt_state)
    return {
        jax.tree_util.keystr(path): leaf
        for path, leaf in found
        if ".mu" in jax.tree_util.keystr(path)
    }


def _apart(a: np.ndarray, b: np.ndarray, whole: np.ndarray) -> float:
    return _number(np.abs(a - b).max() / max(np.linalg.norm(whole), 1e-6))


def _number(share: Any) -> float:
    """Infinity for what is none, of which `max` would know nothing."""
    return float("inf") if np.isnan(share) else float(share)


def _frozen(config: Experiment) -> Any:
    """Networks without zeros, which would hide what gradients do, and the real eyes."""
    shapes = jax.eval_shape(functools.partial(methods.of(config).frozen_shapes, config))
    rng = np.random.default_rng(0)
    drawn = jax.tree.map(lambda s: rng.normal(0, 0.1, s.shape).astype(np.float32), shapes)
    if "eyes" in drawn:
        real = jax.tree.leaves(load_efficientnet_lite0())
        drawn["eyes"] = jax.tree.unflatten(jax.tree.structure(drawn["eyes"]), real)
    return drawn


def _batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    caption = np.zeros((BATCH, LENGTH), np.int32)
    caption[:, 0], caption[:, 1], caption[:, 2] = 2, np.arange(BATCH) + 4, 3
    codes = rng.normal(size=(BATCH, 2, SIZE // 2, SIZE // 2, 4)).astype(np.float32)
    return {
        "image": rng.integers(0, 256, (BATCH, SIZE, SIZE, 3), np.uint8),
        "caption": caption,
        "label": (np.arange(BATCH) % CLASSES).astype(np.int32),
        "codes": codes,
        "row": np.arange(BATCH, dtype=np.int32),
    }


if __name__ == "__main__":
    main()
