"""From a config to everything that its training needs: which stages, in what order, with what.

A role (`teacher`, `features`, …) is filled by a network that comes with jaxgen, a folder of
weights, or a run that is trained first. Doors call this; it knows no method by name.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.errors import ScopeParamNotFoundError, ScopeParamShapeError
from tokenizers import Tokenizer

import jaxgen
from jaxgen import config as configs
from jaxgen import methods, storage
from jaxgen.config import Experiment
from jaxgen.data.source import digest
from jaxgen.errors import UserError
from jaxgen.models import eyes
from jaxgen.runtime import mesh as meshes
from jaxgen.runtime import run
from jaxgen.runtime.checkpoints import Checkpoints
from jaxgen.text import tokenizer as words
from jaxgen.weights import files, hub, pipelines
from jaxgen.weights.efficientnet import load_efficientnet_lite0
from jaxgen.weights.vit import load_dinov2_vits14

SHIPPED, TRAIN = "shipped", "train"
_PRETRAINED = Path(jaxgen.__file__).parent / "pretrained"
FEATURES: dict[str, Callable[[], Any]] = {eyes.EFFICIENTNET: load_efficientnet_lite0}
FROM_FILE: dict[str, Callable[[str], Any]] = {eyes.DINOV2: load_dinov2_vits14}
GONE = "a run whose folder is gone"


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
        if name == "features":
            sources[name] = _features(config, value)
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
            _refuse_other_pictures(config, name, first.data)
            before += plan(first, name)
            sources[name] = first.folder
        else:
            folder = shipped(config.stage(name).name) if value == SHIPPED else hub.located(value)
            if not _holds_weights(folder):
                others = "; train it first, or name another"
                if config.trains_first(name):
                    known = ", ".join(configs.known())
                    others = f", no config ({known}), and none of {SHIPPED}, {TRAIN}"
                raise UserError(
                    f"--{name.replace('_', '-')} {value!r} is no folder of weights or finished "
                    f"run{others}{hub.hint(folder)}"
                )
            config.accept(name, _config(folder), str(folder))
            sources[name] = folder
    run.refuse_other(config, methods.name(config))
    return [*before, Stage(role, config, sources)]


def _refuse_other_pictures(config: Experiment, role: str, data: configs.Data) -> None:
    """UserError where what is to be trained first would learn other pictures or captions."""
    option, own = f"--{role.replace('_', '-')}", config.data
    for field in ("name", "caption", "label"):
        its, mine = getattr(data, field), getattr(own, field)
        if its != mine:
            raise UserError(
                f"{option} {config.roles()[role]!r} is a config that learns from --data.{field} "
                f"{its!r}, and this run from {mine!r}; give {option}={TRAIN} to train it on these "
                "first, or the folder of a finished run"
            )


def _features(config: Experiment, value: str) -> Path | str:
    """Where the feature network called `value` comes from; a file of weights is read at once."""
    if value in FROM_FILE:
        FROM_FILE[value](config.weights_file("features"))
    if value in (*FEATURES, *FROM_FILE):
        return value
    folder = run_folder(value)
    config.accept("features", _config(folder), str(folder))
    return folder


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
    """The folder that --run names: that of a run or of published weights, shipped:NAME for weights
    of jaxgen's own, or hf:OWNER/NAME for published ones at Hugging Face."""
    kind, _, name = argument.partition(":")
    return shipped(name) if kind == SHIPPED else hub.located(argument)


def comes_with_jaxgen(folder: Path) -> bool:
    """Whether the folder is one of jaxgen's own, where nothing may be written."""
    return folder.resolve().parent == _PRETRAINED.resolve()


def is_given(folder: Path) -> bool:
    """Whether nothing may be written to the folder: it is jaxgen's own, or published weights."""
    return comes_with_jaxgen(folder) or pipelines.is_pipeline(folder)


def compiled_beside(folder: Path) -> Path:
    """Where programs compiled for a run are kept: beside its folder, but never among jaxgen's.

    Nor beside published weights or in a bucket, where who only draws may not write.
    """
    elsewhere = is_given(folder) or storage.is_remote(folder)
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
    if pipelines.is_pipeline(folder):
        pipeline, tokenizer, weights = pipelines.load(folder)
        return Loaded(methods.published(pipeline, folder), tokenizer, weights, 0, folder, ())
    _, _, tokenizer = run.description(folder)
    if not (folder / run.WEIGHTS).is_file():
        raise UserError(f"{folder} has no {run.WEIGHTS}: its training has not finished")
    weights, metadata = files.load(folder / run.WEIGHTS)
    step, labels = int(metadata.get("step", 0)), run.labels(folder)
    return Loaded(_config(folder), Tokenizer.from_str(tokenizer), weights, step, folder, labels)


def read_unfinished(folder: Path, say: Callable[[str], None]) -> Loaded:
    """A run, finished or at its newest good checkpoint; UserError where it has none."""
    if (folder / run.WEIGHTS).is_file() or pipelines.is_pipeline(folder):
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
    frozen, state = _shapes(stage.config)
    counts = {name: _count(tree) for name, tree in state.params.items()}
    return counts | {f"{name} (frozen)": _count(tree) for name, tree in frozen.items()}


def check_rules(config: Experiment, mesh: jax.sharding.Mesh, every: bool = True) -> None:
    """Raises UserError for a rule of --mesh.rules that an array of a run cannot follow.

    With `every` also for one that is for no array: what is trained before a run is given the same
    rules, and follows those that are for it. What is as long as the data have words or classes is
    judged when they are known.
    """
    if not config.mesh.rules:
        return
    trees = _shapes(config)
    if every:
        meshes.check_rules(config.mesh.rules, *trees)
    try:
        for tree in trees:
            meshes.over_parameters(mesh, tree, config.mesh.rules)
    except UserError:  # may be for such a length: to trace the networks again takes seconds
        for tree, other in zip(trees, _shapes(config, more=1), strict=True):
            known = jax.tree.map(lambda a, b: a if a.shape == b.shape else None, tree, other)
            meshes.over_parameters(mesh, known, config.mesh.rules)


def _shapes(config: Experiment, more: int = 0) -> tuple[Any, Any]:
    """Trees of the shapes of what a run freezes, and of its state, by a vocabulary without data.

    Or by so many words and classes more.
    """
    config = config.resolved(words.build().get_vocab_size() + more, 2 + more)
    frozen = frozen_shapes(config)
    init = functools.partial(methods.of(config).init, config)
    return frozen, jax.eval_shape(init, frozen, jax.random.key(0))


def frozen_shapes(config: Experiment) -> Any:
    """A tree of the shapes of what the config's method freezes; a run that it sees by is read."""
    value = config.roles().get("features", eyes.EFFICIENTNET)
    named = value in (*FEATURES, *FROM_FILE)
    found = {} if named else {"features": read(run_folder(value))}
    return jax.eval_shape(functools.partial(methods.of(config).frozen_shapes, config, **found))


def _count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _holds_weights(folder: Path) -> bool:
    return (folder / run.CONFIG).is_file() or pipelines.is_pipeline(folder)


def _config(folder: Path) -> Experiment:
    if pipelines.is_pipeline(folder):
        return methods.published(pipelines.describe(folder)[0], folder)
    method, values, _ = run.description(folder)
    kind = methods.kind(method)
    return configs.from_json(kind, json.dumps(values), str(folder / run.CONFIG))


def fingerprint(config: Experiment, filled: dict[str, Any], data: str) -> str:
    """`data`, the fingerprint of the pictures, changed by any change of the weights built on.

    Those that come with jaxgen's own packages are not among them.
    """
    parts = []
    for role, found in sorted(filled.items()):
        if isinstance(found, Loaded):
            parts.append(role.encode() + _content(found.folder))
        elif config.weights_file(role):  # its values: not its place, nor whose names it uses
            leaves = [np.ascontiguousarray(leaf).tobytes() for leaf in jax.tree.leaves(found)]
            parts.append(role.encode() + b"".join(leaves))
    return digest(data.encode(), *parts) if parts else data


def _content(folder: Path) -> bytes:
    """What changes with the weights in a folder: their bytes, or a digest of many files' bytes."""
    if not pipelines.is_pipeline(folder):
        return (folder / run.WEIGHTS).read_bytes()
    found = hashlib.sha256()
    for file in pipelines.files_of(folder):
        with file.open("rb") as content:
            found.update(hashlib.file_digest(content, "sha256").digest())
    return found.digest()


def judged_by(config: Experiment) -> set[str]:
    """What judged the run in training, or anything that it builds on, as `known_by`.

    A classifier has no judge; of one, the network that it was tuned from.

    Among it `GONE` where a run is built on, or was judged by one, whose folder is not there any
    more: it may have been, or have been judged by, anything.
    """
    judges: set[str] = set()
    for role, value in config.roles().items():
        judges |= (known_by(value) or {GONE}) if role == "features" else _judged(config, role)
    return judges


def _judged(config: Experiment, role: str) -> set[str]:
    """`judged_by` of what fills a role of the config; published weights were judged elsewhere."""
    value = config.roles()[role]
    if value in configs.known():
        return judged_by(configs.load(value))
    if value == TRAIN:
        return judged_by(config.stage(role))
    if value.startswith(hub.PREFIX):
        return set()
    folder = shipped(config.stage(role).name) if value == SHIPPED else storage.folder(value)
    if pipelines.is_pipeline(folder):
        return set()
    return judged_by(_config(folder)) if (folder / run.CONFIG).is_file() else {GONE}


def known_by(value: str) -> set[str]:
    """What any two mentions of a feature network share: its name or, of a run, folder or weights.

    A run that started from a feature network sees as that one does, and shares its name too.
    Nothing where the run's folder is gone.
    """
    if value in (*FEATURES, *FROM_FILE):
        return {value}
    folder = run_folder(value)
    if not (folder / run.CONFIG).is_file():
        return set()
    weights = folder / run.WEIGHTS
    copies = {digest(weights.read_bytes())} if weights.is_file() else set[str]()
    return {str(folder.resolve()), *copies, *judged_by(_config(folder))}


def fill(stage: Stage) -> dict[str, Any]:
    """The network of every role: Loaded, or the weights of a feature network."""
    filled: dict[str, Any] = {}
    for role, source in stage.sources.items():
        if isinstance(source, str):
            filled[role] = (
                FEATURES[source]()
                if source in FEATURES
                else FROM_FILE[source](stage.config.weights_file(role))
            )
        else:
            found = read(source)
            filled[role] = dataclasses.replace(found, config=stage.config.fitted(found.config))
    return filled
