"""A text-conditioned denoiser: caption ids and a noisy image in, the clean image as predicted out.

Its weights are two trees, {"text": ..., "unet": ...}: all that sampling needs.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from jaxgen.diffusion import prediction as predictions
from jaxgen.diffusion import sampler as samplers
from jaxgen.diffusion.sampler import Sampler
from jaxgen.diffusion.schedule import Schedule
from jaxgen.errors import UserError
from jaxgen.models.unet import UNet, UNetConfig
from jaxgen.pixels import to_uint8
from jaxgen.text.encoder import TextConfig, TextEncoder, TextFeatures
from jaxgen.text.tokenizer import END, PADDING, START

Weights = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """Networks, schedule and prediction of one diffusion model."""

    text: TextConfig = TextConfig()
    unet: UNetConfig = UNetConfig()
    schedule: Schedule = Schedule()
    prediction: predictions.Prediction = "flow"
    """What the network's output means."""

    def check(self, size: int) -> None:
        """Raises UserError where the parts do not fit each other or images of side `size`."""
        predictions.check(self.schedule, self.prediction)
        factor = self.unet.patch * 2 ** (len(self.unet.block_out) - 1)
        if size % factor:
            raise UserError(
                f"--data.size {size} is not a multiple of {factor}, which "
                f"--model.unet.patch {self.unet.patch} and {len(self.unet.block_out)} levels need"
            )
        if self.text.width != self.unet.context_width:
            raise UserError(
                f"--model.text.width {self.text.width} and --model.unet.context-width "
                f"{self.unet.context_width} differ; make them equal"
            )
        pooled = self.text.projection or self.text.width
        if self.unet.added_width not in (0, pooled):
            raise UserError(
                f"--model.unet.added-width is {self.unet.added_width}; give 0, or {pooled}, the "
                "width of a pooled caption"
            )


def init(config: Denoiser, size: int, key: PRNGKeyArray) -> Weights:
    """Fresh float32 weights for images of side `size`."""
    text_key, unet_key = jax.random.split(key)
    caption = jnp.zeros((1, config.text.length), jnp.int32)
    image = jnp.zeros((1, size, size, config.unet.channels))
    context = jnp.zeros((1, config.text.length, config.text.width))
    time = jnp.zeros((1,))
    added = jnp.zeros((1, config.unet.added_width)) if config.unet.added_width else None
    return {
        "text": TextEncoder(config.text).init(text_key, caption)["params"],
        "unet": UNet(config.unet).init(unet_key, image, time, context, added)["params"],
    }


def empty_caption(config: TextConfig) -> Int[Array, " length"]:
    """Token ids of the caption without words, the unconditional one of guidance."""
    return jnp.full((config.length,), PADDING, jnp.int32).at[0].set(START).at[1].set(END)


def encode(config: Denoiser, text: Weights, caption: Int[Array, "b length"]) -> TextFeatures:
    """Caption ids as features, with the weights of the text encoder."""
    return TextEncoder(config.text).apply({"params": text}, caption)  # pyright: ignore[reportReturnType]


def output(
    config: Denoiser,
    unet: Weights,
    x_t: Float[Array, "b h w c"],
    t: Float[Array, " b"],
    text: TextFeatures,
) -> Float[Array, "b h w c"]:
    """The UNet's raw output at timestep `t`, in the config's prediction."""
    alpha, sigma = config.schedule.at(t)
    x_in = predictions.network_input(config.prediction, x_t, alpha, sigma)
    added = text.pooled if config.unet.added_width else None
    return UNet(config.unet).apply({"params": unet}, x_in, t, text.tokens, added, text.mask)  # pyright: ignore[reportReturnType]


def predict_x0(
    config: Denoiser,
    unet: Weights,
    x_t: Float[Array, "b h w c"],
    t: Float[Array, " b"],
    text: TextFeatures,
) -> Float[Array, "b h w c"]:
    """The clean image as the denoiser sees it from x_t at timestep `t`."""
    alpha, sigma = config.schedule.at(t)
    return predictions.to_x0(
        config.prediction, x_t, output(config, unet, x_t, t, text), alpha, sigma
    )


def sample(
    config: Denoiser,
    size: int,
    weights: Weights,
    key: PRNGKeyArray,
    caption: Int[Array, "b length"],
    how: Sampler,
) -> UInt8[Array, "b h w c"]:
    """Images from caption ids: text, denoising and pixels in one program.

    Image i's noise depends on the key and i, not on the size of the batch or the devices.
    """
    b = len(caption)
    text = encode(config, weights["text"], caption)
    empty = encode(config, weights["text"], empty_caption(config.text)[None])
    noise_key, sampler_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, (b, size, size, config.unet.channels))

    def denoise(x_t, t, text):
        return predict_x0(config, weights["unet"], x_t, t, text)

    guided = samplers.guided(denoise, text, empty, how.guidance)
    return to_uint8(samplers.sample(how, config.schedule, guided, noise, sampler_key))
