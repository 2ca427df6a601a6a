"""What a latency benchmark measures: a finished run, or a config's shapes with random weights."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding
from jaxtyping import Int32

from benchmarks import machine
from jaxgen import config as configs
from jaxgen import stages
from jaxgen.diffusion import denoiser
from jaxgen.diffusion.denoiser import Denoiser, Weights
from jaxgen.errors import UserError
from jaxgen.methods.text_to_image import TextToImage, codec_shapes, decoded
from jaxgen.text import tokenizer as words
from jaxgen.text.encoder import TextConfig
from jaxgen.text.tokenizer import SPECIAL

NOISE = 2**20  # numbers drawn, of which random weights are repetitions


@dataclasses.dataclass(frozen=True)
class Subject:
    """A text-to-image model with its weights, named. Teacher and student have the same shapes."""

    name: str
    config: TextToImage
    weights: Weights
    """On the host."""

    @property
    def model(self) -> Denoiser:
        return self.config.model

    def computed_in(self, dtype: str) -> "Subject":
        """The same with activations of another type; float32 is for the codec too."""
        config = self.config.computed_in(dtype)
        if dtype == "float32":
            codec = dataclasses.replace(config.autoencoder, dtype=dtype)
            config = dataclasses.replace(config, autoencoder=codec)
        return dataclasses.replace(self, config=config)


class Flops(NamedTuple):
    """Arithmetic for one image."""

    text: float
    """Encoding its caption."""
    network: float
    """One call of the network that denoises."""
    decode: float
    """From what is diffused to uint8 pixels."""


def titled(kind: str, name: str) -> str:
    """What a run's or config's results are called, without a look at its weights."""
    return configs.load(name).name if kind == "config" else stages.run_folder(name).resolve().name


def of_config(name: str) -> Subject:
    """A config's shapes with random weights; UserError where it draws nothing from captions."""
    config: Any = configs.load(name)
    _check(config, f"--config {name}")
    vocabulary = config.model.text.vocabulary or words.build().get_vocab_size()
    config = config.resolved(vocabulary, 2)
    return Subject(config.name, config, random_weights(config))


def of_run(argument: str) -> Subject:
    """The model of a finished run; UserError where there is none."""
    folder = stages.run_folder(argument)
    loaded = stages.read(folder)
    _check(loaded.config, f"--run {argument}")
    if "lora" in loaded.weights:
        raise UserError(f"--run {argument} draws through adapters, which are not timed yet")
    return Subject(folder.resolve().name, loaded.config, loaded.weights)  # pyright: ignore[reportArgumentType]


def random_weights(config: TextToImage) -> Weights:
    """`noisy` weights of all that sampling needs; UserError where they do not fit into memory."""

    def shapes(key: Any) -> Any:
        return {**denoiser.init(config.model, config.side, key), **codec_shapes(config)}

    wanted = jax.eval_shape(shapes, jax.random.key(0))
    need = 4 * sum(leaf.size for leaf in jax.tree.leaves(wanted))
    if 2 * need > machine.memory_left():
        raise UserError(
            f"{config.name} has {need / 2**30:.1f} GiB of weights, here and again on the device: "
            "more memory than there is; measure a smaller config"
        )
    return noisy(wanted)


def noisy(shapes: Any) -> Any:
    """Arrays of small noise, zero-initialised ones included, and ones for scales and variances.

    Nothing compiles. Times do not depend on values, as long as these are finite.
    """
    noise = 0.02 * np.random.default_rng(0).standard_normal(NOISE, np.float32)

    def filled(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = jax.tree_util.keystr(path[-1:], simple=True)
        if name in ("scale", "var"):
            return np.ones(leaf.shape, leaf.dtype)
        return np.resize(noise, leaf.shape).astype(leaf.dtype, copy=False)

    return jax.tree_util.tree_map_with_path(filled, shapes)


def captions(config: TextConfig, batch: int) -> Int32[np.ndarray, "b length"]:
    """Token ids of captions that fill their length, drawn at random."""
    rng = np.random.default_rng(0)
    ids = rng.integers(len(SPECIAL), config.vocabulary, (batch, config.length))
    ids[:, -1] = config.end_token
    return ids.astype(np.int32)


def counted(subject: Subject) -> Flops:
    """FLOPs by `cost_analysis` of what is lowered for CPU, before any compiler's choices.

    That is what the model asks for, the same on every device; after compilation the count would be
    one device's share, and on GPU and TPU it cannot be had before.
    """
    config, model, weights = subject.config, subject.model, subject.weights
    caption = jnp.zeros((1, model.text.length), jnp.int32)
    image = jnp.zeros((1, config.side, config.side, model.backbone.channels))
    encode = functools.partial(denoiser.encode, model)
    predict = functools.partial(denoiser.predict_x0, model)
    text = jax.eval_shape(encode, weights["text"], caption)
    return Flops(
        text=flops_of(encode, weights["text"], caption),
        network=flops_of(predict, weights["denoiser"], image, jnp.zeros(1), text),
        decode=flops_of(functools.partial(decoded, config), weights, image),
    )


def flops_of(function: Callable[..., Any], *arguments: Any) -> float:
    """FLOPs of a call, loops within it counted as one turn; UserError where JAX has no CPU."""
    try:
        cpu = SingleDeviceSharding(jax.devices("cpu")[0])
    except RuntimeError:
        raise UserError(
            "FLOPs are counted for CPU, which JAX_PLATFORMS leaves out: add ,cpu to it"
        ) from None
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=cpu), arguments)
    cost: Any = jax.jit(function).lower(*shapes).cost_analysis()
    return (cost or {}).get("flops", 0.0)


def _check(config: Any, said: str) -> None:
    if not isinstance(config, TextToImage):
        raise UserError(f"{said} is no text-to-image model: there is no sampler to time")
