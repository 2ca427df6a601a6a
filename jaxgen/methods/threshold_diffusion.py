"""Text-conditioned restoration of pixels replaced by random colours (`diffusion.corruption`).

Everything but the corruption is as in `methods.diffusion`, so that the two processes can be
compared side by side: one network, the same captions, the clean image predicted.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxgen.diffusion import corruption, denoiser
from jaxgen.diffusion import sampler as sampling
from jaxgen.diffusion import schedule as schedules
from jaxgen.diffusion.corruption import Noise
from jaxgen.diffusion.denoiser import Denoiser
from jaxgen.diffusion.sampler import Sampler
from jaxgen.errors import UserError
from jaxgen.methods import text_to_image
from jaxgen.methods.denoising import Denoising, begun, dropped, stepped
from jaxgen.methods.diffusion import measured_steps
from jaxgen.methods.text_to_image import clean, seen_words
from jaxgen.pixels import to_uint8
from jaxgen.state import Batch, Metrics, State, stream
from jaxgen.weights.pipelines import Pipeline

__all__ = ["measured_steps", "seen_words"]  # shared functions of this method


@dataclasses.dataclass(frozen=True)
class ThresholdDiffusion(Denoising):
    model: Denoiser = Denoiser(prediction="x0")
    restore: corruption.Restore = "keep"
    """What corrupts each prediction to the next lower level: keep, the noise that sampling began
    with; again, fresh noise. In a small trial keep drew the better pictures."""

    @property
    def iterative(self) -> Sampler:
        """The many-step, guided sampler."""
        return dataclasses.replace(super().iterative, solver="renoise")

    def pipeline(self, weights: denoiser.Weights) -> Pipeline:
        """Raises UserError: there is none like it."""
        del weights
        raise UserError(
            f"{self.name} restores replaced pixels, which no pipeline of other libraries does; "
            "export it with --to=stablehlo"
        )

    def check(self) -> None:
        if self.codec:
            raise UserError(
                f"--codec is {self.codec}, but threshold corruption replaces pixels, which codes "
                "are not; leave it out"
            )
        corruption.check(self.model.schedule)
        if self.model.prediction != "x0":
            raise UserError(
                f"--model.prediction is {self.model.prediction}; from replaced pixels only the "
                "image itself can be predicted: give x0"
            )
        super().check()


def frozen(config: ThresholdDiffusion, filled: dict[str, Any]) -> dict[str, Any]:
    """Nothing: pixels need no other network."""
    del config, filled
    return {}


def frozen_shapes(config: ThresholdDiffusion) -> dict[str, Any]:
    """A tree of the shapes of `frozen`, for planning."""
    return frozen(config, {})


def init(config: ThresholdDiffusion, frozen: Any, key: PRNGKeyArray) -> State:
    """A fresh state; the one player is the generator, text encoder and network together."""
    del frozen
    return begun(config, denoiser.init(config.model, config.side, key))


def train_step(
    config: ThresholdDiffusion, state: State, frozen: Any, batch: Batch
) -> tuple[State, Metrics]:
    """One AdamW step on the restoration loss; metrics: loss, gradient norm."""
    _, x0 = clean(config, frozen, batch, stream(config.seed, state.step, "flip"))
    batch = dropped(config, frozen, batch, stream(config.seed, state.step, "drop"))
    key = stream(config.seed, state.step, "timestep")
    t = schedules.draw_timesteps(config.model.schedule, key, len(x0), continuous=True)
    noise = corruption.draw(stream(config.seed, state.step, "noise"), x0.shape)

    def loss_of(weights: denoiser.Weights) -> Float[Array, ""]:
        return loss(config, weights, x0, batch["caption"], t, noise)

    return stepped(config, state, loss_of)


def loss(
    config: ThresholdDiffusion,
    weights: denoiser.Weights,
    x0: Float[Array, "b h w c"],
    caption: Int[Array, "b length"],
    t: Float[Array, " b"],
    noise: Noise,
) -> Float[Array, ""]:
    """Mean squared error of the predicted image, over all pixels: nobody says which were kept."""
    model = config.model
    x_t = corruption.corrupt(x0, noise, corruption.level(model.schedule, t))
    text = denoiser.encode(model, weights["text"], caption)
    network = denoiser.gathered(model, weights["denoiser"])
    return jnp.mean((denoiser.predict_x0(model, network, x_t, t, text) - x0) ** 2)


def weights(config: ThresholdDiffusion, state: State, frozen: Any) -> denoiser.Weights:
    """What sampling needs, averaged over training."""
    del config, frozen
    return state.ema["generator"]


def sample(
    config: ThresholdDiffusion,
    weights: denoiser.Weights,
    key: PRNGKeyArray,
    caption: Int[Array, "b length"],
    sampler: Sampler,
) -> Array:
    """uint8 images [b, h, w, 3] from caption ids: one program from ids to pixels.

    Image i's noise depends on the key and i, not on the size of the batch or the devices.
    """
    model = config.model
    text = denoiser.encode(model, weights["text"], caption)
    empty = denoiser.encode(model, weights["text"], denoiser.empty_caption(model)[None])

    def denoise(x_t, t, text):
        return denoiser.predict_x0(model, weights["denoiser"], x_t, t, text)

    guided = sampling.guided(denoise, text, empty, sampler.guidance)
    shape = (caption.shape[0], config.side, config.side, model.backbone.channels)
    x0 = corruption.restore(sampler, model.schedule, config.restore, guided, shape, key)
    return to_uint8(x0)


def check_sampler(config: ThresholdDiffusion, sampler: Sampler) -> None:
    """Raises UserError for a sampler that is not made for replaced pixels."""
    if sampler.solver != "renoise":
        raise UserError(
            f"--solver {sampler.solver} has no meaning for threshold corruption, which has one "
            "solver, renoise; leave it out"
        )
    text_to_image.check_sampler(config, sampler)


def samplers(config: ThresholdDiffusion) -> dict[str, Sampler]:
    """The samplers worth a look, by title, the default first."""
    return {
        f"{config.sampler_steps} steps": config.iterative,
        "1 step": Sampler(solver="renoise", steps=1),
    }


def shown(
    config: ThresholdDiffusion, state: State, frozen: Any
) -> list[tuple[str, denoiser.Weights, Sampler]]:
    """What the sample grids show: title, weights, sampler."""
    average = weights(config, state, frozen)
    return [(title, average, sampler) for title, sampler in samplers(config).items()]
