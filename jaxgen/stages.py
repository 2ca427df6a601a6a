"""From a config to everything that its training needs: which stages, in what order, with what.

A role (`teacher`, `features`, …) is filled by a network that comes with jaxgen, a folder of
weights, or a run that is trained first. Doors call this; it knows no method by name.
"""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from flax.errors import ScopeParamNotFoundError, ScopeParamShapeError
from tokenizers import Tokenizer

import jaxgen
from jaxgen import config as configs
from jaxgen import methods, storage
from jaxgen.config import Experiment
from jaxgen.data.source import digest
from jaxgen.errors import UserError
from jaxgen.runtime import run
from jaxgen.runtime.checkpoints import Checkpoints
from jaxgen.text import tokenizer as words
from jaxgen.weights import files
from jaxgen.weights.efficientnet import load_efficientnet_lite0

SHIPPED, TRAIN = "shipped", "train"
_PRETRAINED = Path(jaxgen.__file__).parent / "pretrained"
FEATURES: dict[str, Callable[[], Any]] = {"efficientnet-lite0": load_efficientnet_lite0}


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A folder of weights, read: its config, tokenizer, weights, their step, and class names."""

    config: Experiment
    tokenizer: Tokenizer
    weights: Any
    step: int
    folder: Path
    labels: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Stage:
    """One run of the plan: what it is for, its config, and the folders its roles come from."""

    role: str
    config: Experiment
    sources: dict[str, Path | str]

    @property
    def finished(self) -> bool:
        """Whether the run has already been trained to its last step."""
        return run.finished_steps(self.config.folder) >= self.config.train.steps


def plan(config: Experiment, role: str = "") -> list[Stage]:
    """The stages in the order in which they run, the config's own last.

    Raises UserError where a role names nothing that exists or what does not fit, and where a folder
    holds a run of another config.
    """
    before: list[Stage] = []
    sources: dict[str, Path | str] = {}
    for name, value in config.roles().items():
        if name == "features" and value in FEATURES:
            sources[name] = value
        elif value == TRAIN or value in configs.known():
            first = (
                configs.load(value)
                if value != TRAIN
                else dataclasses.replace(
                    config.stage(name),
                    name=f"{config.name}_{name}",  # two sets of pictures, two teachers
                )
            )
            data = dataclasses.replace(first.data, root=config.data.root)
            first = dataclasses.replace(first, workdir=config.workdir, mesh=config.mesh, data=data)
            first.check()
            config.accept(name, first, f"config {first.name}")
            before += plan(first, name)
            sources[name] = first.folder
        elif value == SHIPPED or (storage.folder(value) / run.CONFIG).is_file():
            folder = shipped(config.stage(name).name) if value == SHIPPED else storage.folder(value)
            config.accept(name, _config(folder), str(folder))
            sources[name] = folder
        else:
            raise UserError(
                f"--{name.replace('_', '-')} {value!r} is no folder of weights or finished run, no "
                f"config ({', '.join(configs.known())}), and none of {SHIPPED}, {TRAIN}"
            )
    run.refuse_other(config, methods.name(config))
    return [*before, Stage(role, config, sources)]


def shipped(name: str) -> Path:
    """The folder of the weights called `name` that come with jaxgen."""
    known = sorted(folder.name for folder in _PRETRAINED.iterdir() if folder.is_dir())
    if name not in known:
        raise UserError(
            f"no weights called {name!r} come with jaxgen, only {', '.join(known)}; "
            f"train your own (for a role such as the teacher: --teacher={TRAIN})"
        )
    return _PRETRAINED / name


def run_folder(argument: str) -> Path:
    """The folder that --run names: that of a run, or shipped:NAME for weights of jaxgen's own."""
    kind, _, name = argument.partition(":")
    return shipped(name) if kind == SHIPPED else storage.folder(argument)


def comes_with_jaxgen(folder: Path) -> bool:
    """Whether the folder is one of jaxgen's own, where nothing may be written."""
    return folder.resolve().parent == _PRETRAINED.resolve()


def compiled_beside(folder: Path) -> Path:
    """Where programs compiled for a run are kept: beside its folder, but never among jaxgen's.

    Nor in a bucket, which who only draws from a run may not write to.
    """
    elsewhere = comes_with_jaxgen(folder) or storage.is_remote(folder)
    return (Path(Experiment.workdir) if elsewhere else folder.parent) / ".compiled"


@contextlib.contextmanager
def fitting(loaded: Loaded) -> Iterator[None]:
    """For the first use of its weights: UserError where they are of another network."""
    try:
        yield
    except (KeyError, ScopeParamShapeError, ScopeParamNotFoundError) as error:
        raise UserError(
            f"the weights in {loaded.folder} do not fit the config.json beside them; copy both "
            "from one run"
        ) from error


def read(folder: Path) -> Loaded:
    """A finished run or other folder of weights; UserError where something misses or is damaged."""
    _, _, tokenizer = run.description(folder)
    if not (folder / run.WEIGHTS).is_file():
        raise UserError(f"{folder} has no {run.WEIGHTS}: its training has not finished")
    weights, metadata = files.load(folder / run.WEIGHTS)
    step, labels = int(metadata.get("step", 0)), run.labels(folder)
    return Loaded(_config(folder), Tokenizer.from_str(tokenizer), weights, step, folder, labels)


def read_unfinished(folder: Path, say: Callable[[str], None]) -> Loaded:
    """A run, finished or at its newest good checkpoint; UserError where it has none."""
    if (folder / run.WEIGHTS).is_file():
        return read(folder)
    config, (_, _, tokenizer) = _config(folder), run.description(folder)
    method = methods.of(config)
    frozen = method.frozen(config, fill(plan(config)[-1]))
    shapes = jax.eval_shape(functools.partial(method.init, config), frozen, jax.random.key(0))
    if not (folder / "checkpoints").is_dir():
        raise UserError(f"{folder} has neither weights nor a checkpoint: nothing was trained yet")
    checkpoints = Checkpoints(folder / "checkpoints", 1, read_only=True)
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where), shapes)
    found = checkpoints.restore(target, say, mend=False)
    if found is None:
        raise UserError(f"{folder} has neither weights nor a checkpoint: nothing was trained yet")
    state, _ = found
    step, labels = int(state.step), run.labels(folder)
    say(f"{folder} is unfinished: using its checkpoint of step {step}")
    weights = method.weights(config, state, frozen)
    return Loaded(config, Tokenizer.from_str(tokenizer), weights, step, folder, labels)


def parameters(stage: Stage) -> dict[str, int]:
    """How many parameters each network of a stage has, by player, the frozen ones marked.

    The vocabulary, which the data may extend by some words, is that of the tokenizer without data.
    """
    config: Any = stage.config.resolved(words.build().get_vocab_size(), 2)
    method = methods.of(config)
    frozen = jax.eval_shape(functools.partial(method.frozen_shapes, config))
    state = jax.eval_shape(functools.partial(method.init, config), frozen, jax.random.key(0))
    counts = {name: _count(tree) for name, tree in state.params.items()}
    return counts | {f"{name} (frozen)": _count(tree) for name, tree in frozen.items()}


def _count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _config(folder: Path) -> Experiment:
    method, values, _ = run.description(folder)
    kind = methods.kind(method)
    return configs.from_json(kind, json.dumps(values), str(folder / run.CONFIG))


def fingerprint(filled: dict[str, Any], data: str) -> str:
    """`data`, the fingerprint of the pictures, changed by any change of the weights built on."""
    parts = [
        role.encode() + (found.folder / run.WEIGHTS).read_bytes()
        for role, found in sorted(filled.items())
        if isinstance(found, Loaded)
    ]
    return digest(data.encode(), *parts) if parts else data


def judged_by(config: Experiment) -> set[str]:
    """What judged the run while it was trained, or anything that it builds on: names, folders."""
    eyes: set[str] = set()
    for role, value in config.roles().items():
        if role == "features":
            eyes.add(value)
        elif (storage.folder(value) / run.CONFIG).is_file():
            eyes |= judged_by(_config(storage.folder(value)))
        elif value in configs.known():
            eyes |= judged_by(configs.load(value))
    return eyes


def fill(stage: Stage) -> dict[str, Any]:
    """The network of every role: Loaded, or the weights of a feature network."""
    filled: dict[str, Any] = {}
    for role, source in stage.sources.items():
        if isinstance(source, str):
            filled[role] = FEATURES[source]()
        else:
            filled[role] = read(source)
    return filled
