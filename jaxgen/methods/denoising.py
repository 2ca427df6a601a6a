"""What diffusion and threshold corruption share: one player, the generator, and its one step."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgen import optimizer
from jaxgen.diffusion import denoiser
from jaxgen.errors import UserError
from jaxgen.methods.text_to_image import TextToImage
from jaxgen.state import EMPTY, Batch, Metrics, State


@dataclasses.dataclass(frozen=True)
class Denoising(TextToImage):
    drop_caption: float = 0.1
    """Share of captions replaced by the empty one, for classifier-free guidance."""

    def check(self) -> None:
        super().check()
        if not 0.0 <= self.drop_caption <= 1.0:
            raise UserError(f"--drop-caption is {self.drop_caption}; give a share from 0 to 1")


def dropped(config: Denoising, frozen: Any, batch: Batch, key: PRNGKeyArray) -> Batch:
    """The batch, each caption replaced by the empty one with probability `drop_caption`.

    So is what the batch may hold of its captions, by what `frozen` then holds of the empty one.
    """
    empty = {"caption": denoiser.empty_caption(config.model)[None], **frozen.get(EMPTY, {})}
    drop = jax.random.bernoulli(key, config.drop_caption, (len(batch["caption"]),))
    return batch | {
        name: jnp.where(drop.reshape(-1, *(1,) * (leaf.ndim - 1)), leaf, batch[name])
        for name, leaf in empty.items()
    }


def begun(config: Denoising, generator: Any) -> State:
    """The state at step 0, given what is trained."""
    params = {"generator": generator}
    adamw = optimizer.build(config.optimizer, config.train)
    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        opt_state={"generator": adamw.init(params["generator"])},
    )


def stepped(
    config: Denoising,
    state: State,
    loss: Callable[[Any], Float[Array, ""]],
    changed: Callable[[Any, Any], Any] = lambda before, after: after,
) -> tuple[State, Metrics]:
    """The state after one AdamW step on the loss of the generator; metrics: loss, gradient norm.

    `changed` has the last word on the parameters, given those before and after the step.
    """
    before = state.params["generator"]
    value, gradient = jax.value_and_grad(loss)(before)
    adamw = optimizer.build(config.optimizer, config.train)
    after, opt_state, norm = optimizer.apply(adamw, gradient, state.opt_state["generator"], before)
    new = {"generator": changed(before, after)}
    return State(
        step=state.step + 1,
        params=new,
        ema=optimizer.averaged(config.train, state.ema, new, state.step),
        opt_state={"generator": opt_state},
    ), {"loss": value, "gradient_norm": norm}
