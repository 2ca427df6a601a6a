"""What every method that trains a text-conditioned denoiser shares: its config's base, the codec
that may stand between pixels and what is diffused, sampling."""

import dataclasses
import functools
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8
from tokenizers import Tokenizer

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
from jaxgen.state import EMPTY, Batch, Once, stream
from jaxgen.text import tokenizer as words
from jaxgen.text.encoder import TextConfig, TextFeatures
from jaxgen.weights.pipelines import Pipeline

Images = Float[Array, "b h w c"]
CODES = "codes"
TEXT = "text_"  # before the names of TextFeatures, in a batch that holds them
PUBLISHED = "published"  # in the place of the data of weights that came without any
Shape = TypeVar("Shape", AutoencoderConfig, DiTConfig, TextConfig, UNetConfig)
THEIRS = "the teacher's"  # of a codec: whatever the teacher has
HOW = ("dtype", "remat", "gather_once")  # fields of a network that its weights do not depend on


@dataclasses.dataclass(frozen=True)
class TextToImage(Experiment):
    model: Denoiser = Denoiser()
    codec: str = ""
    """What turns pixels into the codes that are diffused: train (train it first), the name of a
    config of the same pictures to train, or the folder of a vae run or of published weights; empty:
    pixels themselves are diffused. Beside a teacher or weights to start from it is theirs, and may
    name no other."""
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    """The shape of that codec; of no use without one."""
    guidance: float = 3.0
    """Guidance of iterative sampling."""
    sampler_steps: int = 50
    """Steps of iterative sampling."""
    text_once: bool = False
    """Encode every caption once, before training, and keep that on disk: the frozen text encoders
    then take no time in a step and no memory of the devices."""

    @property
    def trains_text(self) -> bool:
        """Whether the text encoder is trained."""
        return True

    @property
    def caption_length(self) -> int:
        return self.model.text.length

    @property
    def caption_ids(self) -> int:
        return denoiser.caption_ids(self.model)

    def tokenizers(self, tokenizer: Tokenizer) -> tuple[Tokenizer, ...]:
        second = self.model.text_2
        if not second:
            return (tokenizer,)
        return tokenizer, words.padded(tokenizer, second.padding_token)

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
        # That of published weights may have room for more words than their tokenizer has.
        vocabulary = max(self.model.text.vocabulary, vocabulary)
        text = dataclasses.replace(self.model.text, vocabulary=vocabulary)
        return dataclasses.replace(self, model=dataclasses.replace(self.model, text=text))

    @property
    def distilled(self) -> bool:
        """Whether it is for few steps without guidance."""
        return self.sampler_steps == 1

    def pipeline(self, weights: denoiser.Weights) -> Pipeline:
        """What the run is to other libraries; UserError where there is no codec."""
        if not self.codec:
            raise UserError(
                f"{self.name} diffuses pixels, and Stable Diffusion codes: export a run with a "
                "--codec, or --to=stablehlo"
            )
        scale = float(weights["codec"]["scale"])
        return Pipeline(self.model, self.autoencoder, scale, self.data.size, self.distilled)

    def resized(self, size: int) -> "TextToImage":
        """The same networks for images of another size; UserError where they cannot make it."""
        told = (size, size, 0, 0, size, size) if self.model.time_ids else ()
        model = dataclasses.replace(self.model, time_ids=told)
        data = dataclasses.replace(self.data, size=size)
        changed = dataclasses.replace(self, data=data, model=model)
        changed.check_size()
        return changed

    def fitted(self, other: Any) -> Any:
        """`other`; published weights, which are for images of any size, at this run's."""
        if getattr(other.data, "name", "") != PUBLISHED:
            return other
        return other.resized(self.data.size).computed_in(self.model.backbone.dtype)

    def computed_in(self, dtype: str) -> "TextToImage":
        """The same networks with activations of another type; not the codec, as that of Stable
        Diffusion XL needs float32."""

        def of(network: Shape) -> Shape:
            return dataclasses.replace(network, dtype=dtype)

        model = self.model
        model = dataclasses.replace(
            model,
            text=of(model.text),
            text_2=of(model.text_2) if model.text_2 else None,
            unet=of(model.unet),
            dit=of(model.dit),
        )
        return dataclasses.replace(self, model=model)

    def roles(self) -> dict[str, str]:
        return {"codec": self.codec} if self.codec else {}

    def stage(self, role: str) -> Experiment:
        """The config of the codec: vae_64 for one of its shape, vae for all others."""
        wide: Any = configs.load("vae_64")
        is_wide = weighed(self.autoencoder) == weighed(wide.autoencoder)
        config: Any = wide if is_wide else configs.load("vae")
        own = {name: getattr(self, name) for name in ("autoencoder", "seed", "mesh")}
        data = dataclasses.replace(self.data, flip=config.data.flip)
        return dataclasses.replace(config, data=data, **own)

    def accept(self, role: str, other: Any, where: str) -> None:
        if role != "codec":
            return
        if not isinstance(other, Vae) and other.data.name != PUBLISHED:
            raise UserError(
                f"--codec {where} is no autoencoder but a run of {methods.name(other)}; train a vae"
            )
        unlike = {}
        if isinstance(other, Vae):  # that of published weights is for any size
            unlike["data.size"] = (self.data.size, other.data.size)
        for field in dataclasses.fields(AutoencoderConfig):
            if field.name in HOW:
                continue
            mine, its = (getattr(c.autoencoder, field.name) for c in (self, other))
            unlike[f"autoencoder.{field.name}"] = mine, its
        for name, (mine, its) in unlike.items():
            if mine != its:
                raise UserError(
                    f"this run's {name} is {mine}, that of the codec {where} is {its}; give both "
                    "the same, or another --codec"
                )

    def accept_codec(self, role: str, other: Any, where: str) -> None:
        """Raises UserError where `codec` names another than goes with the weights of `role`."""
        given = getattr(self, role)
        trains = ("train", *configs.known())  # how to come by a codec, not which one it is
        asked = self.codec not in ("", THEIRS, given, other.codec)
        if asked and (self.codec not in trains or given in trains):
            option = role.replace("_", "-")
            raise UserError(
                f"--codec is {self.codec!r}, that of --{option} {where} is {other.codec!r}; give "
                f"--codec={other.codec!r}, or a --{option} that was trained on {self.codec!r}"
            )

    def check_size(self) -> None:
        """Raises UserError where the networks cannot make images of the data's size."""
        if self.codec and self.data.size % self.autoencoder.factor:
            raise UserError(
                f"images of side {self.data.size} are not a multiple of {self.autoencoder.factor}, "
                "the side of a code's cell; change --data.size, or --size in sampling"
            )
        self.model.check(self.side)

    def check(self) -> None:
        super().check()
        channels = self.model.backbone.channels
        if self.codec:
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
        self.check_size()
        samplers.check(self.iterative, self.model.schedule, "--sampler-steps")
        if self.text_once and self.trains_text:
            raise UserError(
                "--text-once is for a run that leaves its text encoder as it is (add, ladd, and "
                "diffusion by --lora.rank with --lora.no-train-words); this one trains it"
            )


def weighed(network: Shape) -> Shape:
    """The shape of a network without how it computes, which its weights do not depend on."""
    how = {f.name: f.default for f in dataclasses.fields(network) if f.name in HOW}
    return dataclasses.replace(network, **how)


def frozen_codec(config: TextToImage, filled: dict[str, Any]) -> dict[str, Any]:
    """The codec's weights, where the config has one: a vae run's, or those beside a denoiser's."""
    if not config.codec:
        return {}
    found = filled["codec"].weights
    return {"codec": found.get("codec", found)}


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
        return pixels, encoded(config, frozen, pixels)
    codes = batch[CODES]
    return pixels, mirrored(key, codes[:, 0], codes[:, 1]) if config.data.flip else codes[:, 0]


def encoded(config: TextToImage, frozen: dict[str, Any], image: Images) -> Images:
    """What is diffused in the place of images in [-1, 1]."""
    return codecs.encode(config.autoencoder, frozen["codec"], image) if config.codec else image


def decoded(config: TextToImage, frozen: dict[str, Any], x0: Images) -> Images:
    """Images in about [-1, 1] from what is diffused; `frozen` holds the codec, if there is one."""
    return codecs.decode(config.autoencoder, frozen["codec"], x0) if config.codec else x0


def said(config: TextToImage, frozen: dict[str, Any], batch: Batch) -> TextFeatures:
    """What the text encoder makes of a batch's captions, which the batch may hold."""
    held = _features(batch)
    return held or denoiser.encode(config.model, frozen["text"], batch["caption"])


def unsaid(config: TextToImage, frozen: dict[str, Any]) -> TextFeatures:
    """What it makes of the empty caption, [1, …]: from there guidance leads away."""
    held = _features(frozen.get(EMPTY, {}))
    return held or denoiser.unconditional(config.model, frozen["text"])


def once(config: TextToImage, frozen: dict[str, Any]) -> list[Once]:
    """The codes of pictures, where there is a codec, and on request what captions say."""
    codes = [_codes_once(config, frozen["codec"])] if config.codec else []
    return codes + ([_text_once(config, frozen["text"])] if config.text_once else [])


def _codes_once(config: TextToImage, codec: Any) -> Once:
    """The codes of each picture, then its mirror image's."""

    def codes(weights: Any, image: UInt8[Array, "b h w 3"]) -> dict[str, Array]:
        views = [to_unit(image)]
        if config.data.flip:
            views.append(views[0][:, :, ::-1])
        encode = functools.partial(codecs.encode, config.autoencoder, weights)
        return {CODES: jnp.stack([encode(view) for view in views], axis=1)}

    return Once("image", f"{CODES} {config.autoencoder} {config.data.flip}", codec, codes)


def _text_once(config: TextToImage, text: Any) -> Once:
    """The features of each caption."""
    model = config.model

    def features(weights: Any, caption: Int[Array, "b length"]) -> dict[str, Array]:
        found = denoiser.encode(model, weights, caption)._asdict()
        return {f"{TEXT}{name}": leaf for name, leaf in found.items() if leaf is not None}

    describes = f"{TEXT} {model.text} {model.text_2} {model.zero_empty}"
    empty = np.asarray(denoiser.empty_caption(model))[None]
    return Once("caption", describes, text, features, spares="text", empty=empty)


def _features(held: Batch) -> TextFeatures | None:
    """The features that a batch holds, if it does."""
    found = [held.get(f"{TEXT}{name}") for name in TextFeatures._fields]
    return None if found[0] is None else TextFeatures(*found)  # pyright: ignore[reportArgumentType]


def sample(
    config: TextToImage,
    weights: denoiser.Weights,
    key: PRNGKeyArray,
    caption: Int[Array, "b length"],
    sampler: Sampler,
    negative: Int[Array, "b length"] | None = None,
    start: UInt8[Array, "b h w 3"] | None = None,
    noise: Images | None = None,
) -> Array:
    """uint8 images [b, h, w, 3] from caption ids: one program from ids to pixels.

    Guidance leads away from the `negative` captions; a sampler of a strength below 1 starts from
    the images `start`; `noise`, unit Gaussian, [b, side, side, channels], takes the place
    of what the key gives first.
    """
    first = None if start is None else encoded(config, weights, to_unit(start))
    x0 = denoiser.sample(
        config.model, config.side, weights, key, caption, sampler, negative, first, noise
    )
    return to_uint8(decoded(config, weights, x0))


def numbered_noise(
    config: TextToImage, seed: int, numbers: Int[Array, " b"]
) -> Float[Array, "b side side c"]:
    """The unit Gaussian noise from which the samples of these numbers of a drawn set start."""
    shape = (config.side, config.side, config.model.backbone.channels)
    return jax.vmap(lambda n: jax.random.normal(stream(seed, n, "drawn"), shape))(numbers)


def check_sampler(config: TextToImage, sampler: Sampler) -> None:
    """Raises UserError for a sampler that the config's schedule cannot serve."""
    samplers.check(sampler, config.model.schedule)


def seen_words(weights: denoiser.Weights) -> frozenset[int]:
    """Ids of the words met in training: the others' rows of the token table are still zero."""
    table = np.asarray(weights["text"]["embeddings_token_embedding"]["embedding"])
    return frozenset(np.flatnonzero(table.any(axis=1)).tolist())
