"""A text-conditioned denoiser: caption ids and a noisy image in, the clean image as predicted out.

Its weights are two trees, {"text": ..., "denoiser": ...}: all that sampling needs. A second text
encoder's lie in the first's, under "second".
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxgen.diffusion import prediction as predictions
from jaxgen.diffusion import sampler as samplers
from jaxgen.diffusion.sampler import Sampler
from jaxgen.diffusion.schedule import Schedule
from jaxgen.errors import UserError
from jaxgen.models import remat
from jaxgen.models.dit import DiT, DiTConfig
from jaxgen.models.unet import UNet, UNetConfig, timestep_embedding
from jaxgen.text.encoder import TextConfig, TextEncoder, TextFeatures

Weights = dict[str, Any]
SECOND = "second"  # key of the second text encoder's weights, in the first's


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """Networks, schedule and prediction of one diffusion model."""

    text: TextConfig = TextConfig()
    text_2: TextConfig | None = None
    """A second text encoder, as Stable Diffusion XL has: its token vectors stand beside the
    first's, and its pooled vector in that one's place."""
    time_ids: tuple[int, ...] = ()
    """What the network is told beside the caption, as sinusoids after the pooled vector (Podell et
    al. 2023, section 2.2): height and width before resizing, top and left of the crop, height and
    width wanted, in pixels."""
    zero_empty: bool = False
    """Whether the features of the empty caption are zeros, and not what the encoder makes of it."""
    network: Literal["unet", "dit"] = "unet"
    """Which of the two networks below denoises."""
    unet: UNetConfig = UNetConfig()
    dit: DiTConfig = DiTConfig()
    schedule: Schedule = Schedule()
    prediction: predictions.Prediction = "flow"
    """What the network's output means."""

    @property
    def backbone(self) -> UNetConfig | DiTConfig:
        """The config of the network that denoises."""
        return self.dit if self.network == "dit" else self.unet

    def check(self, size: int) -> None:
        """Raises UserError where the parts do not fit each other or images of side `size`."""
        predictions.check(self.schedule, self.prediction)
        option, backbone = f"--model.{self.network}", self.backbone
        if size % backbone.patch:
            raise UserError(
                f"images or codes of side {size} are not a multiple of {option}.patch "
                f"{backbone.patch}; change --data.size, or --size in sampling"
            )
        if self.context_width != backbone.context_width:
            raise UserError(
                f"--model.text.width {self.context_width} and {option}.context-width "
                f"{backbone.context_width} differ; make them equal"
            )
        told = backbone.added_width - self.pooled_width
        if self.time_ids and (told <= 0 or told % (2 * len(self.time_ids))):
            raise UserError(
                f"{option}.added-width is {backbone.added_width}: beside the {self.pooled_width} "
                f"of a pooled caption it needs an even width for each of the {len(self.time_ids)} "
                "--model.time-ids"
            )
        if not self.time_ids and backbone.added_width not in (0, self.pooled_width):
            raise UserError(
                f"{option}.added-width is {backbone.added_width}; give 0, or {self.pooled_width}, "
                "the width of a pooled caption"
            )

    @property
    def context_width(self) -> int:
        """Width of a caption's token vectors, those of both encoders side by side."""
        return self.text.width + (self.text_2.width if self.text_2 else 0)

    @property
    def pooled_width(self) -> int:
        """Width of a pooled caption."""
        last = self.text_2 or self.text
        return last.projection or last.width


def init(config: Denoiser, size: int, key: PRNGKeyArray) -> Weights:
    """Fresh float32 weights for images of side `size`."""
    text_key, denoiser_key = jax.random.split(key)
    backbone = config.backbone
    caption = jnp.zeros((1, config.text.length), jnp.int32)
    image = jnp.zeros((1, size, size, backbone.channels))
    context = jnp.zeros((1, config.text.length, config.context_width))
    time = jnp.zeros((1,))
    added = jnp.zeros((1, backbone.added_width)) if backbone.added_width else None
    network = _network(config)
    text: Weights = {**TextEncoder(config.text).init(text_key, caption)["params"]}
    if config.text_2:
        second_key = jax.random.fold_in(text_key, 2)
        text[SECOND] = TextEncoder(config.text_2).init(second_key, caption)["params"]
    return {
        "text": text,
        "denoiser": network.init(denoiser_key, image, time, context, added)["params"],
    }


def caption_ids(config: Denoiser) -> int:
    """How many ids a caption has: those of the second encoder's tokenizer follow the first's."""
    return (2 if config.text_2 else 1) * config.text.length


def empty_caption(config: Denoiser) -> Int[Array, " ids"]:
    """Token ids of the caption without words, the unconditional one of guidance."""
    found = []
    for text in filter(None, (config.text, config.text_2)):
        padding = jnp.full((config.text.length,), text.padding_token, jnp.int32)
        found.append(padding.at[0].set(text.start_token).at[1].set(text.end_token))
    return jnp.concatenate(found)


def encode(config: Denoiser, text: Weights, caption: Int[Array, "b ids"]) -> TextFeatures:
    """Caption ids as features, with the weights of the text encoder, or of both.

    Two encoders have a half of the ids each: where one pads with "!", as Stable Diffusion XL's
    second, this mark is another token to its tokenizer.
    """
    first, *others = jnp.split(caption, 2, axis=1) if config.text_2 else (caption,)
    found: Any = TextEncoder(config.text).apply({"params": text}, first)
    if config.text_2:
        second: Any = TextEncoder(config.text_2).apply({"params": text[SECOND]}, *others)
        found = second._replace(tokens=jnp.concatenate([found.tokens, second.tokens], axis=-1))
    if config.zero_empty:
        says = jnp.any(caption != empty_caption(config), axis=1, keepdims=True)
        found = found._replace(tokens=found.tokens * says[..., None], pooled=found.pooled * says)
    return found


def unconditional(config: Denoiser, text: Weights) -> TextFeatures:
    """The features [1, …] of the empty caption, from which guidance leads away."""
    return encode(config, text, empty_caption(config)[None])


def output(
    config: Denoiser,
    params: Weights,
    x_t: Float[Array, "b h w c"],
    t: Float[Array, " b"],
    text: TextFeatures,
) -> Float[Array, "b h w c"]:
    """The network's raw output at timestep `t`, in the config's prediction."""
    alpha, sigma = config.schedule.at(t)
    x_in = predictions.network_input(config.prediction, x_t, alpha, sigma)
    return _network(config).apply({"params": params}, x_in, t, *_conditions(config, text))  # pyright: ignore[reportReturnType]


def gathered(config: Denoiser, params: Weights) -> Weights:
    """The network's weights, for several passes of a train step, as its `gather_once` asks."""
    backbone = config.backbone
    return remat.gathered(params, backbone.dtype) if backbone.gather_once else params


def predict_x0(
    config: Denoiser,
    params: Weights,
    x_t: Float[Array, "b h w c"],
    t: Float[Array, " b"],
    text: TextFeatures,
) -> Float[Array, "b h w c"]:
    """The clean image as the denoiser sees it from x_t at timestep `t`."""
    alpha, sigma = config.schedule.at(t)
    return predictions.to_x0(
        config.prediction, x_t, output(config, params, x_t, t, text), alpha, sigma
    )


def features(
    config: Denoiser,
    params: Weights,
    x_t: Float[Array, "b h w c"],
    t: Float[Array, " b"],
    text: TextFeatures,
) -> list[Float[Array, "b n c"]]:
    """What the network sees in x_t at timestep `t`: a map of tokens, float32, of each of its parts.

    Of a UNet the last block of every level down, the middle, and every level up; of a DiT every
    block: `feature_maps` of them.
    """
    alpha, sigma = config.schedule.at(t)
    x_in = predictions.network_input(config.prediction, x_t, alpha, sigma)
    maps: Any = _network(config).apply(
        {"params": params}, x_in, t, *_conditions(config, text), method="features"
    )
    return [tokens.astype(jnp.float32) for tokens in maps]


def feature_maps(config: Denoiser) -> int:
    """How many maps `features` gives."""
    return config.dit.depth if config.network == "dit" else 2 * len(config.unet.block_out) + 1


def sample(
    config: Denoiser,
    size: int,
    weights: Weights,
    key: PRNGKeyArray,
    caption: Int[Array, "b ids"],
    how: Sampler,
    negative: Int[Array, "b ids"] | None = None,
    start: Float[Array, "b h w c"] | None = None,
    noise: Float[Array, "b h w c"] | None = None,
) -> Float[Array, "b h w c"]:
    """Images, or codes, of side `size` from caption ids.

    Image i's noise depends on the key and i, not on the size of the batch or the devices. Guidance
    leads away from the `negative` caption; from no caption where it is None. `start` holds the
    images, or codes, that a sampler of a strength below 1 starts from; `noise`, unit Gaussian,
    takes the place of what the key gives first.
    """
    b = caption.shape[0]
    text = encode(config, weights["text"], caption)
    if negative is None:
        away = unconditional(config, weights["text"])
    else:
        away = encode(config, weights["text"], negative)
    noise_key, sampler_key = jax.random.split(key)
    if noise is None:
        noise = jax.random.normal(noise_key, (b, size, size, config.backbone.channels))

    def denoise(x_t, t, text):
        return predict_x0(config, weights["denoiser"], x_t, t, text)

    guided = samplers.guided(denoise, text, away, how.guidance)
    return samplers.sample(how, config.schedule, guided, noise, sampler_key, start)


def _network(config: Denoiser) -> UNet | DiT:
    return DiT(config.dit) if config.network == "dit" else UNet(config.unet)


def _conditions(config: Denoiser, text: TextFeatures) -> tuple[Array, Array | None, Array | None]:
    if not config.backbone.added_width:
        return text.tokens, None, text.mask
    pooled, ids = text.pooled, jnp.asarray(config.time_ids, jnp.float32)
    if len(ids):
        width = (config.backbone.added_width - pooled.shape[-1]) // len(ids)
        told = rearrange(timestep_embedding(ids, width), "n c -> (n c)")
        pooled = jnp.concatenate([pooled, repeat(told, "c -> b c", b=pooled.shape[0])], axis=-1)
    return text.tokens, pooled, text.mask
