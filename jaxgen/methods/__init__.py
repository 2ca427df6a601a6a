"""Methods: each file is a config class and a few pure functions over one State.

init(config, frozen, key)                       -> State
train_step(config, state, frozen, batch)        -> (State, Metrics)
weights(config, state, frozen)                  -> what sampling needs
sample(config, weights, key, caption, sampler)  -> uint8 images
"""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxgen.config import Experiment
from jaxgen.errors import UserError

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
