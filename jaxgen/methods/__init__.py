"""Methods: each module is a config class (an `Experiment`) and pure functions over one State.

Required of each:

frozen(config, filled)                          -> networks that are not trained, from the roles'
frozen_shapes(config)                           -> their shapes; features=… where a run is seen by
init(config, frozen, key)                       -> State
train_step(config, state, frozen, batch)        -> (State, Metrics)
weights(config, state, frozen)                  -> what is used after training, and saved

Of one that draws (`sample`):

sample(config, weights, key, caption, sampler)  -> uint8 images; negative=, start= if it takes them
samplers(config)                                -> samplers by title, the default first
measured_steps(config)                          -> numbers of steps worth measuring
check_sampler(config, sampler)                  -> UserError where it cannot serve
seen_words(weights)                             -> ids of the words met in training
shown(config, state, frozen)                    -> rows of the grids: (title, weights, sampler)

Of one that codes (`reconstruct`):

encode(config, weights, image), decode(config, weights, codes)
reconstruct(config, weights, image)             -> uint8 images, through their codes and back
between(config, weights, a, b, count)           -> images on the line between two codes

Of one that tells classes (`predict`):

predict(config, weights, image)                 -> probabilities of the classes
features(config, weights, image)                -> vectors to compare images by

Optional:

once(config, frozen)                            -> list of `Once`, of pictures and of captions
merged(config, weights)                         -> weights with what is kept beside them merged in
numbered_noise(config, seed, numbers)           -> what `sample` takes for noise=, of a teacher

Where diffusers has such a pipeline, or the sizes or dtype may change after training, the config
has `pipeline`, `resized` and `computed_in` (`text_to_image.TextToImage`).
"""

import dataclasses
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Int32
from tokenizers import Tokenizer

from jaxgen.config import Experiment
from jaxgen.errors import UserError
from jaxgen.state import Batch, Metrics, State, stream
from jaxgen.text import tokenizer as words

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


def encode(
    config: Experiment, tokenizer: Tokenizer, captions: Sequence[str]
) -> Int32[np.ndarray, "n caption_ids"]:
    """Captions as a config's networks take them: rows of every tokenizer's ids in turn."""
    every = config.tokenizers(tokenizer)
    return np.concatenate(
        [words.encode(each, captions, config.caption_length) for each in every], axis=1
    )


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
