"""What a run trains and saves, and how its randomness is derived."""

import zlib
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

Metrics = dict[str, Float[Array, ""]]
Batch = dict[str, Array]


EMPTY = "empty"  # in `frozen`: what was computed once of the empty caption


class Once(NamedTuple):
    """What a method computes of each picture or caption but once, before training, for batches."""

    field: Literal["image", "caption"]
    """The field of a batch that it is computed from."""
    describes: str
    """Everything beside weights and pictures, or captions, on which the result depends."""
    weights: Any
    compute: Callable[[Any, Array], dict[str, Array]]
    """From the weights and a batch's field to arrays [b, ...], by their batch names."""
    spares: str = ""
    """The frozen network that no step needs any more."""
    empty: Any = None
    """Ids [1, length] of the empty caption, which steps need beside those of their batch."""


def spared(once: Once, frozen: Mapping[str, Any], empty: Any) -> dict[str, Any]:
    """What steps need of `frozen` where batches hold what `once` computes; `empty` is that of its
    empty caption."""
    kept = {name: tree for name, tree in frozen.items() if name != once.spares}
    return {**kept, EMPTY: empty}


class State(flax.struct.PyTreeNode):
    """All that is trained; nothing else is saved. Trees are keyed by player."""

    step: Int[Array, ""]
    params: dict[str, Any]
    ema: dict[str, Any]
    opt_state: dict[str, Any]


def stream(seed: int | Int[Array, ""], step: Int[Array, ""] | int, name: str) -> PRNGKeyArray:
    """The key for one named use of randomness at one step; derived, so never stored."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.random.fold_in(key, zlib.crc32(name.encode()) & 0x7FFFFFFF)


def own(weights: Any) -> Any:
    """A copy of frozen weights to train, in float32 whatever they are stored in."""
    return jax.tree.map(lambda leaf: jnp.copy(leaf).astype(jnp.float32), weights)


def moving_average(ema: Any, params: Any, decay: float, step: Int[Array, ""]) -> Any:
    """Exponential moving average; the decay warms up as (1 + step) / (10 + step)."""
    warmed = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return optax.tree.add_scale(optax.tree.scale(warmed, ema), 1.0 - warmed, params)
