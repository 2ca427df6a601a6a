"""The denoiser that a benchmark measures: a finished run, or a named shape with random weights."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding
from jaxtyping import Int32

from jaxgen import config as configs
from jaxgen import stages
from jaxgen.diffusion import denoiser
from jaxgen.diffusion.denoiser import Denoiser, Weights
from jaxgen.diffusion.schedule import Schedule
from jaxgen.errors import UserError
from jaxgen.models.unet import SD21_UNET
from jaxgen.text.encoder import OPENCLIP_H, TextConfig
from jaxgen.text.tokenizer import SPECIAL

VOCABULARY = 70_000  # about that of the tokenizer; a run knows its own
GUIDANCE = 3.0


@dataclasses.dataclass(frozen=True)
class Subject:
    """A denoiser with its weights, named."""

    name: str
    model: Denoiser
    size: int
    """Side of the images, or latents, that the UNet sees."""
    guidance: float
    """That of iterative sampling."""
    weights: Weights

    @property
    def output(self) -> str:
        """What comes out as uint8: sd21 has no decoder yet."""
        return "pixels" if self.model.backbone.channels == 3 else "latents, no decoder"


class Flops(NamedTuple):
    """Arithmetic for one image."""

    text: float
    """Encoding its caption."""
    network: float
    """One call of the network that denoises."""


def named(shape: str) -> Subject:
    """One of `SHAPES`, with random weights."""
    model, size = SHAPES[shape]()
    return Subject(shape, model, size, GUIDANCE, random_weights(model, size))


def of_run(folder: Path) -> Subject:
    """The model of a finished run; UserError where there is none."""
    loaded = stages.read(folder)
    config: Any = loaded.config
    model = getattr(config, "model", None)
    if not isinstance(model, Denoiser):
        raise UserError(f"--run {folder} holds no text-to-image model: it draws nothing")
    if config.codec or "lora" in loaded.weights:
        raise UserError(
            f"--run {folder} draws through a codec or adapters, which are not timed yet"
        )
    name = folder.resolve().name
    return Subject(name, model, config.data.size, config.guidance, loaded.weights)


def random_weights(model: Denoiser, size: int) -> Weights:
    """Weights that are small noise, norms and zero-initialised layers included: nothing compiles.

    Times do not depend on values, as long as these are finite.
    """
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(functools.partial(denoiser.init, model, size), jax.random.key(0))

    def noise(array: jax.ShapeDtypeStruct) -> np.ndarray:
        values = rng.standard_normal(array.shape, np.float32)
        values *= 0.02
        return values

    return jax.tree.map(noise, shapes)


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
    model = subject.model
    text_weights, unet_weights = subject.weights["text"], subject.weights["denoiser"]
    caption = jnp.zeros((1, model.text.length), jnp.int32)
    image = jnp.zeros((1, subject.size, subject.size, model.backbone.channels))
    encode = functools.partial(denoiser.encode, model)
    predict = functools.partial(denoiser.predict_x0, model)
    text = jax.eval_shape(encode, text_weights, caption)
    return Flops(
        text=flops_of(encode, text_weights, caption),
        network=flops_of(predict, unet_weights, image, jnp.zeros(1), text),
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
    return cost["flops"]


def _tiny() -> tuple[Denoiser, int]:
    config: Any = configs.load("diffusion").resolved(vocabulary=VOCABULARY, classes=1)
    return config.model, config.data.size


def _64px() -> tuple[Denoiser, int]:
    config: Any = configs.load("diffusion_64").resolved(vocabulary=VOCABULARY, classes=1)
    return config.model, config.data.size


def _sd21() -> tuple[Denoiser, int]:
    schedule = Schedule(kind="scaled_linear", zero_terminal_snr=True)
    model = Denoiser(text=OPENCLIP_H, unet=SD21_UNET, schedule=schedule, prediction="v")
    return model, 64  # of latents: 512 px


SHAPES: dict[str, Callable[[], tuple[Denoiser, int]]] = {
    "tiny": _tiny,
    "64px": _64px,
    "sd21": _sd21,
}
