"""What every method that trains a text-conditioned denoiser shares: its config's base, the codec
that may stand between pixels and what is diffused, sampling."""

import dataclasses
import functools
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from jaxgen import config as configs
from jaxgen import methods
from jaxgen.config import Experiment
from jaxgen.diffusion import codec as codecs
from jaxgen.diffusion import denoiser
from jaxgen.diffusion import sampler as samplers
from jaxgen.diffusion.denoiser import Denoiser
from jaxgen.diffusion.sampler import Sampler
from jaxgen.errors import UserError
from jaxgen.methods.vae import Vae
from jaxgen.models.autoencoder import AutoencoderConfig
from jaxgen.models.dit import DiTConfig
from jaxgen.models.unet import UNetConfig
from jaxgen.pixels import mirrored, to_uint8, to_unit
from jaxgen.state import Batch, Once
from jaxgen.text.encoder import TextConfig

Images = Float[Array, "b h w c"]
CODES = "codes"
Shape = TypeVar("Shape", AutoencoderConfig, DiTConfig, TextConfig, UNetConfig)
HOW = ("dtype", "remat")  # fields of a network that its weights do not depend on


@dataclasses.dataclass(frozen=True)
class TextToImage(Experiment):
    model: Denoiser = Denoiser()
    codec: str = ""
    """What turns pixels into the codes that are diffused: train (train it first), the name of a
    config to train, or the folder of a vae run; empty: pixels themselves are diffused. A student
    has its teacher's."""
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    """The shape of that codec; of no use without one."""
    guidance: float = 3.0
    """Guidance of iterative sampling."""
    sampler_steps: int = 50
    """Steps of iterative sampling."""

    @property
    def caption_length(self) -> int:
        return self.model.text.length

    @property
    def side(self) -> int:
        """The side of what is diffused: of the images, or of their codes."""
        return self.data.size // self.autoencoder.factor if self.codec else self.data.size

    @property
    def codes(self) -> AutoencoderConfig | None:
        """The shape of the codec without how it computes; None where pixels are diffused."""
        return weighed(self.autoencoder) if self.codec else None

    @property
    def iterative(self) -> Sampler:
        """The many-step, guided sampler."""
        return Sampler(steps=self.sampler_steps, guidance=self.guidance)

    def resolved(self, vocabulary: int, classes: int) -> "TextToImage":
        text = dataclasses.replace(self.model.text, vocabulary=vocabulary)
        return dataclasses.replace(self, model=dataclasses.replace(self.model, text=text))

    def roles(self) -> dict[str, str]:
        return {"codec": self.codec} if self.codec else {}

    def stage(self, role: str) -> Experiment:
        config: Any = configs.load("vae")
        own = {name: getattr(self, name) for name in ("data", "autoencoder", "seed", "mesh")}
        return dataclasses.replace(config, **own)

    def accept(self, role: str, other: Any, where: str) -> None:
        if role != "codec":
            return
        if not isinstance(other, Vae):
            raise UserError(
                f"--codec {where} is no autoencoder but a run of {methods.name(other)}; train a vae"
            )
        unlike = {"data.size": (self.data.size, other.data.size)}
        for field in dataclasses.fields(AutoencoderConfig):
            if field.name in HOW:
                continue
            mine, its = (getattr(c.autoencoder, field.name) for c in (self, other))
            unlike[f"autoencoder.{field.name}"] = mine, its
        for name, (mine, its) in unlike.items():
            if mine != its:
                raise UserError(f"this run's {name} is {mine}, that of the codec {where} is {its}")

    def check(self) -> None:
        super().check()
        channels = self.model.backbone.channels
        if self.codec:
            if self.data.size % self.autoencoder.factor:
                raise UserError(
                    f"--data.size {self.data.size} is not a multiple of "
                    f"{self.autoencoder.factor}, the side of a code's cell"
                )
            if channels != self.autoencoder.latent_channels:
                raise UserError(
                    f"--model.{self.model.network}.channels is {channels}; the codec's codes have "
                    f"{self.autoencoder.latent_channels}"
                )
        elif channels != 3:
            raise UserError(
                f"--model.{self.model.network}.channels is {channels}; images have 3 (or give the "
                "--codec whose codes these are)"
            )
        self.model.check(self.side)
        samplers.check(self.iterative, self.model.schedule)


def weighed(network: Shape) -> Shape:
    """The shape of a network without how it computes, which its weights do not depend on."""
    how = {f.name: f.default for f in dataclasses.fields(network) if f.name in HOW}
    return dataclasses.replace(network, **how)


def frozen_codec(config: TextToImage, filled: dict[str, Any]) -> dict[str, Any]:
    """The codec's weights, where the config has one."""
    return {"codec": filled["codec"].weights} if config.codec else {}


def codec_shapes(config: TextToImage) -> dict[str, Any]:
    """A tree of the shapes of `frozen_codec`, for planning."""
    return {"codec": codecs.init(config.autoencoder, jax.random.key(0))} if config.codec else {}


def clean(
    config: TextToImage, frozen: dict[str, Any], batch: Batch, key: PRNGKeyArray
) -> tuple[Images, Images]:
    """(images in [-1, 1], x0) of a batch, some mirrored if the data may be.

    x0 is what is diffused: the images themselves, or their codes, which the batch may hold.
    """
    image = to_unit(batch["image"])
    pixels = mirrored(key, image) if config.data.flip else image
    if not config.codec:
        return pixels, pixels
    if CODES not in batch:
        return pixels, codecs.encode(config.autoencoder, frozen["codec"], pixels)
    codes = batch[CODES]
    return pixels, mirrored(key, codes[:, 0], codes[:, 1]) if config.data.flip else codes[:, 0]


def decoded(config: TextToImage, frozen: dict[str, Any], x0: Images) -> Images:
    """Images in about [-1, 1] from what is diffused; `frozen` holds the codec, if there is one."""
    return codecs.decode(config.autoencoder, frozen["codec"], x0) if config.codec else x0


def once(config: TextToImage, frozen: dict[str, Any]) -> Once | None:
    """The codes, which need computing but once a picture: theirs, then their mirror images'."""
    if not config.codec:
        return None

    def codes(weights: Any, image: UInt8[Array, "b h w 3"]) -> dict[str, Array]:
        views = [to_unit(image)]
        if config.data.flip:
            views.append(views[0][:, :, ::-1])
        encode = functools.partial(codecs.encode, config.autoencoder, weights)
        return {CODES: jnp.stack([encode(view) for view in views], axis=1)}

    return Once(f"{CODES} {config.autoencoder} {config.data.flip}", frozen["codec"], codes)


def sample(
    config: TextToImage,
    weights: denoiser.Weights,
    key: PRNGKeyArray,
    caption: Int[Array, "b length"],
    sampler: Sampler,
) -> Array:
    """uint8 images [b, h, w, 3] from caption ids: one program from ids to pixels."""
    x0 = denoiser.sample(config.model, config.side, weights, key, caption, sampler)
    return to_uint8(decoded(config, weights, x0))


def check_sampler(config: TextToImage, sampler: Sampler) -> None:
    """Raises UserError for a sampler that the config's schedule cannot serve."""
    samplers.check(sampler, config.model.schedule)


def seen_words(weights: denoiser.Weights) -> frozenset[int]:
    """Ids of the words met in training: the others' rows of the token table are still zero."""
    table = np.asarray(weights["text"]["embeddings_token_embedding"]["embedding"])
    return frozenset(np.flatnonzero(table.any(axis=1)).tolist())
