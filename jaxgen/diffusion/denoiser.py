"""A text-conditioned denoiser: caption ids and a noisy image in, the clean image as predicted out.

Its weights are two trees, {"text": ..., "denoiser": ...}: all that sampling needs.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxgen.diffusion import prediction as predictions
from jaxgen.diffusion import sampler as samplers
from jaxgen.diffusion.sampler import Sampler
from jaxgen.diffusion.schedule import Schedule
from jaxgen.errors import UserError
from jaxgen.models.dit import DiT, DiTConfig
from jaxgen.models.unet import UNet, UNetConfig
from jaxgen.text.encoder import TextConfig, TextEncoder, TextFeatures

Weights = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """Networks, schedule and prediction of one diffusion model."""

    text: TextConfig = TextConfig()
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
        levels = 1 if self.network == "dit" else len(self.unet.block_out)
        factor = backbone.patch * 2 ** (levels - 1)
        if size % factor:
            raise UserError(
                f"images or codes of side {size} are not a multiple of {factor}, which "
                f"{option}.patch {backbone.patch} and {levels} level(s) need; change --data.size"
            )
        if self.text.width != backbone.context_width:
            raise UserError(
                f"--model.text.width {self.text.width} and {option}.context-width "
                f"{backbone.context_width} differ; make them equal"
            )
        pooled = self.text.projection or self.text.width
        if backbone.added_width not in (0, pooled):
            raise UserError(
                f"{option}.added-width is {backbone.added_width}; give 0, or {pooled}, the "
                "width of a pooled caption"
            )


def init(config: Denoiser, size: int, key: PRNGKeyArray) -> Weights:
    """Fresh float32 weights for images of side `size`."""
    text_key, denoiser_key = jax.random.split(key)
    backbone = config.backbone
    caption = jnp.zeros((1, config.text.length), jnp.int32)
    image = jnp.zeros((1, size, size, backbone.channels))
    context = jnp.zeros((1, config.text.length, config.text.width))
    time = jnp.zeros((1,))
    added = jnp.zeros((1, backbone.added_width)) if backbone.added_width else None
    network = _network(config)
    return {
        "text": TextEncoder(config.text).init(text_key, caption)["params"],
        "denoiser": network.init(denoiser_key, image, time, context, added)["params"],
    }


def empty_caption(config: TextConfig) -> Int[Array, " length"]:
    """Token ids of the caption without words, the unconditional one of guidance."""
    padding = jnp.full((config.length,), config.padding_token, jnp.int32)
    return padding.at[0].set(config.start_token).at[1].set(config.end_token)


def encode(config: Denoiser, text: Weights, caption: Int[Array, "b length"]) -> TextFeatures:
    """Caption ids as features, with the weights of the text encoder."""
    return TextEncoder(config.text).apply({"params": text}, caption)  # pyright: ignore[reportReturnType]


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
    caption: Int[Array, "b length"],
    how: Sampler,
) -> Float[Array, "b h w c"]:
    """Images, or codes, of side `size` from caption ids.

    Image i's noise depends on the key and i, not on the size of the batch or the devices.
    """
    b = len(caption)
    text = encode(config, weights["text"], caption)
    empty = encode(config, weights["text"], empty_caption(config.text)[None])
    noise_key, sampler_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, (b, size, size, config.backbone.channels))

    def denoise(x_t, t, text):
        return predict_x0(config, weights["denoiser"], x_t, t, text)

    guided = samplers.guided(denoise, text, empty, how.guidance)
    return samplers.sample(how, config.schedule, guided, noise, sampler_key)


def _network(config: Denoiser) -> UNet | DiT:
    return DiT(config.dit) if config.network == "dit" else UNet(config.unet)


def _conditions(config: Denoiser, text: TextFeatures) -> tuple[Array, Array | None, Array | None]:
    return text.tokens, text.pooled if config.backbone.added_width else None, text.mask
