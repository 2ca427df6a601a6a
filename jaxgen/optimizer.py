"""The optimiser that a config describes."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxgen.config import Optimizer, Train
from jaxgen.state import moving_average


def build(config: Optimizer, train: Train, begins: int = 0) -> optax.GradientTransformation:
    """AdamW after clipping by global norm; the learning rate warms up, then decays to the end.

    The gradients of `train.accumulate` steps are averaged for one update, and warm-up and decay
    count updates. `begins` is the step from which on this optimiser is used.
    """
    steps = max(1, (train.steps - begins) // train.accumulate)
    warmup = min(config.warmup, steps // 2)
    ramp = optax.linear_schedule(0.0, config.learning_rate, warmup)
    match config.decay:
        case "cosine":
            rest = optax.cosine_decay_schedule(config.learning_rate, steps - warmup, alpha=0.01)
        case "constant":
            rest = optax.constant_schedule(config.learning_rate)
    adamw = optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(
            optax.join_schedules([ramp, rest], [warmup]),
            b1=config.b1,
            b2=config.b2,
            weight_decay=config.weight_decay,
        ),
    )
    if train.accumulate == 1:
        return adamw
    return optax.MultiSteps(adamw, train.accumulate).gradient_transformation()


def apply(
    transformation: optax.GradientTransformation, gradient: Any, opt_state: Any, params: Any
) -> tuple[Any, Any, Float[Array, ""]]:
    """New parameters, new optimiser state, and the global norm of the gradient."""
    updates, opt_state = transformation.update(gradient, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, optax.tree.norm(gradient)


def averaged(train: Train, ema: Any, params: Any, step: Int[Array, ""]) -> Any:
    """The moving average of weights that are `params` after a step; `step` are done before it.

    It moves with them: where gradients are gathered, at every `train.accumulate`th step, and its
    warm-up counts updates.
    """
    if train.accumulate == 1:
        return moving_average(ema, params, train.ema, step)
    moved = moving_average(ema, params, train.ema, step // train.accumulate)
    updated = (step + 1) % train.accumulate == 0
    return jax.tree.map(lambda new, old: jnp.where(updated, new, old), moved, ema)
