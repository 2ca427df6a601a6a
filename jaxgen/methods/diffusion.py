"""Text-conditioned diffusion: loss, step, sample (Ho et al. 2020; Ho & Salimans 2022)."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxgen import optimizer
from jaxgen.diffusion import denoiser, prediction
from jaxgen.diffusion import schedule as schedules
from jaxgen.diffusion.sampler import Sampler
from jaxgen.errors import UserError
from jaxgen.methods.text_to_image import TextToImage, check_sampler, sample, seen_words
from jaxgen.pixels import mirrored, to_unit
from jaxgen.state import Batch, Metrics, State, moving_average, stream

__all__ = ["check_sampler", "sample", "seen_words"]  # shared functions of this method


@dataclasses.dataclass(frozen=True)
class Diffusion(TextToImage):
    drop_caption: float = 0.1
    """Share of captions replaced by the empty one, for classifier-free guidance."""
    timesteps: Literal["schedule", "logit_normal"] = "schedule"
    """How training timesteps are drawn: as the schedule's paper does (uniformly; log-normally for
    edm), or logit-normally, which favours the middle (Esser et al. 2024, eq. 19)."""
    weight: prediction.Weight = "uniform"
    """Weight of the loss over timesteps, for an error measured in the network's own output."""

    def check(self) -> None:
        super().check()
        if not 0.0 <= self.drop_caption <= 1.0:
            raise UserError(f"--drop-caption is {self.drop_caption}; give a share from 0 to 1")


def frozen(config: Diffusion, filled: dict[str, Any]) -> dict[str, Any]:
    """Nothing: diffusion in pixels needs no other network."""
    del config, filled
    return {}


def frozen_shapes(config: Diffusion) -> dict[str, Any]:
    """A tree of the shapes of `frozen`, for planning."""
    return frozen(config, {})


def init(config: Diffusion, frozen: Any, key: PRNGKeyArray) -> State:
    """A fresh state; the one player is the generator, text encoder and UNet together."""
    del frozen
    params = {"generator": denoiser.init(config.model, config.data.size, key)}
    adamw = optimizer.build(config.optimizer, config.train.steps)
    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        opt_state={"generator": adamw.init(params["generator"])},
    )


def train_step(config: Diffusion, state: State, frozen: Any, batch: Batch) -> tuple[State, Metrics]:
    """One AdamW step on the denoising loss; metrics: loss, gradient norm."""
    del frozen
    x0 = to_unit(batch["image"])
    if config.data.flip:
        x0 = mirrored(stream(config.seed, state.step, "flip"), x0)
    caption = dropped(config, stream(config.seed, state.step, "drop"), batch["caption"])
    t = drawn_timesteps(config, stream(config.seed, state.step, "timestep"), len(x0))
    eps = jax.random.normal(stream(config.seed, state.step, "noise"), x0.shape)

    def loss_of(weights: denoiser.Weights) -> Float[Array, ""]:
        return loss(config, weights, x0, caption, t, eps)

    value, gradient = jax.value_and_grad(loss_of)(state.params["generator"])
    adamw = optimizer.build(config.optimizer, config.train.steps)
    params, opt_state, norm = optimizer.apply(
        adamw, gradient, state.opt_state["generator"], state.params["generator"]
    )
    new = {"generator": params}
    return State(
        step=state.step + 1,
        params=new,
        ema=moving_average(state.ema, new, config.train.ema, state.step),
        opt_state={"generator": opt_state},
    ), {"loss": value, "gradient_norm": norm}


def loss(
    config: Diffusion,
    weights: denoiser.Weights,
    x0: Float[Array, "b h w c"],
    caption: Int[Array, "b length"],
    t: Float[Array, " b"],
    eps: Float[Array, "b h w c"],
) -> Float[Array, ""]:
    """Mean weighted squared error of the network's output at timesteps `t` with noise `eps`."""
    model = config.model
    alpha, sigma = model.schedule.at(t)
    x_t = schedules.add_noise(model.schedule, x0, eps, t)
    output = denoiser.output(
        model, weights["denoiser"], x_t, t, denoiser.encode(model, weights["text"], caption)
    )
    error = output - prediction.target(model.prediction, x0, eps, alpha, sigma)
    weight = prediction.weight(config.weight, model.prediction, alpha, sigma)
    return jnp.mean(weight * jnp.mean(error**2, axis=(1, 2, 3)))


def dropped(
    config: Diffusion, key: PRNGKeyArray, caption: Int[Array, "b length"]
) -> Int[Array, "b length"]:
    """The captions, each replaced by the empty one with probability `drop_caption`."""
    drop = jax.random.bernoulli(key, config.drop_caption, (len(caption), 1))
    return jnp.where(drop, denoiser.empty_caption(config.model.text), caption)


def drawn_timesteps(config: Diffusion, key: PRNGKeyArray, count: int) -> Float[Array, " count"]:
    """Continuous training timesteps in [0, T - 1]."""
    schedule = config.model.schedule
    if config.timesteps == "schedule":
        return schedules.draw_timesteps(schedule, key, count, continuous=True)
    return (schedule.timesteps - 1) * jax.nn.sigmoid(jax.random.normal(key, (count,)))


def weights(config: Diffusion, state: State, frozen: Any) -> denoiser.Weights:
    """What sampling needs, averaged over training."""
    del config, frozen
    return state.ema["generator"]


def samplers(config: Diffusion) -> dict[str, Sampler]:
    """The samplers worth a look, by title, the default first."""
    return {f"{config.sampler_steps} steps": config.iterative, "1 step": Sampler(steps=1)}


def measured_steps(config: Diffusion) -> tuple[int, ...]:
    """Numbers of steps at which the samples are worth measuring."""
    return (config.sampler_steps, *(n for n in (8, 4, 2, 1) if n < config.sampler_steps))


def shown(
    config: Diffusion, state: State, frozen: Any
) -> list[tuple[str, denoiser.Weights, Sampler]]:
    """What the sample grids show: title, weights, sampler."""
    average = weights(config, state, frozen)
    return [(title, average, sampler) for title, sampler in samplers(config).items()]
