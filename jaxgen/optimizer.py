"""The optimiser that a config describes."""

from typing import Any

import optax
from jaxtyping import Array, Float

from jaxgen.config import Optimizer


def build(config: Optimizer, steps: int) -> optax.GradientTransformation:
    """AdamW after clipping by global norm; the learning rate warms up, then decays over `steps`."""
    warmup = min(config.warmup, steps // 2)
    ramp = optax.linear_schedule(0.0, config.learning_rate, warmup)
    match config.decay:
        case "cosine":
            rest = optax.cosine_decay_schedule(config.learning_rate, steps - warmup, alpha=0.01)
        case "constant":
            rest = optax.constant_schedule(config.learning_rate)
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(
            optax.join_schedules([ramp, rest], [warmup]),
            b1=config.b1,
            b2=config.b2,
            weight_decay=config.weight_decay,
        ),
    )


def apply(
    transformation: optax.GradientTransformation, gradient: Any, opt_state: Any, params: Any
) -> tuple[Any, Any, Float[Array, ""]]:
    """New parameters, new optimiser state, and the global norm of the gradient."""
    updates, opt_state = transformation.update(gradient, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, optax.tree.norm(gradient)
