"""Methods: each file is a config class and a few pure functions over one State.

init(config, frozen, key)                       -> State
train_step(config, state, frozen, batch)        -> (State, Metrics)
weights(config, state, frozen)                  -> what sampling needs
sample(config, weights, key, caption, sampler)  -> uint8 images
"""

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from jaxgen.config import Experiment
from jaxgen.errors import UserError
from jaxgen.state import Batch, Metrics, State, stream

CONFIGS = {
    "add": "Add",
    "classifier": "Classifier",
    "diffusion": "Diffusion",
    "gan": "Gan",
    "ladd": "Ladd",
    "threshold_diffusion": "ThresholdDiffusion",
    "vae": "Vae",
}  # the config class of each method, which is a module of that name


def of(config: Experiment) -> ModuleType:
    """The module of the functions that belong to a config."""
    return importlib.import_module(type(config).__module__)


def seeded(config: Experiment, frozen: Any) -> dict[str, Any]:
    """The frozen networks and, beside them, the seed: what `programs` take for `frozen`."""
    return {**frozen, "seed": np.uint32(config.seed)}


def programs(
    config: Experiment,
) -> tuple[Callable[[Any], State], Callable[[State, Any, Batch], tuple[State, Metrics]]]:
    """init(frozen) and train_step(state, frozen, batch) of a config, as they are compiled.

    The seed comes with `frozen` (`seeded`) and is not built in: with another seed it is the same
    program, which is not compiled again.
    """
    method = of(config)

    def init(frozen: Any) -> State:
        return method.init(config, frozen, stream(frozen["seed"], 0, "init"))

    def train_step(state: State, frozen: Any, batch: Batch) -> tuple[State, Metrics]:
        given = dataclasses.replace(config, seed=frozen["seed"])
        return method.train_step(given, state, frozen, batch)

    return init, train_step


def name(config: Experiment) -> str:
    """The method's name, under which its config is saved."""
    return type(config).__module__.rpartition(".")[2]


def kind(name: str) -> type[Experiment]:
    """The config class of the method called `name`."""
    if name not in CONFIGS:
        raise UserError(f"unknown method {name!r}; known: {', '.join(CONFIGS)}")
    return getattr(importlib.import_module(f"jaxgen.methods.{name}"), CONFIGS[name])


def published(pipeline: Any, folder: Path) -> Experiment:
    """The config of a run that would have left the `weights.pipelines.Pipeline` in `folder`."""
    return importlib.import_module("jaxgen.methods.diffusion").published(pipeline, folder)
