"""The expert judge: can a network, trained for nothing else, tell samples from real images?"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Shaped, UInt8

from jaxgen.errors import UserError
from jaxgen.metrics.bootstrap import NORMAL_95, Estimate, of_share
from jaxgen.models.augment import diffaug
from jaxgen.models.resnet import ResNet, ResNetConfig
from jaxgen.pixels import mirrored, to_unit

_JUDGE = ResNet(ResNetConfig(classes=2, widths=(32, 64), blocks=1, groups=8))
_SIDE = 8  # of what the judge convolves; finer pixels become channels, so that nothing is lost
_JUDGES, _STEPS, _BATCH = 3, 200, 32
LEAST = 16  # images of each kind; with fewer there is nothing to learn from


def expert_judge(
    real: UInt8[np.ndarray, "n h w 3"],
    fake: UInt8[np.ndarray, "m h w 3"],
    key: PRNGKeyArray,
    groups: tuple[Shaped[np.ndarray, "n"], Shaped[np.ndarray, "m"]] | None = None,
) -> Estimate:
    """The accuracy of a fresh classifier on images it was not trained on: ½ is fooled, 1 is not.

    Two-fold: each half is judged by a network trained on the other, so every image counts once.
    The mean of three such pairs, which draw their halves, weights and batches anew.
    Both kinds weigh the same; of the larger one, as many as of the smaller are drawn. Images with
    the same label in `groups` (a caption's real image and its samples) are in the same half; by
    default real image i and sample i are. The interval is `of_share`'s, which knows the groups,
    and wider by how much the three differ.
    A judge can only fail to see a difference: few images make a weak judge, so accuracies compare
    at equal counts. Raises `UserError` for fewer than 16 images of a kind, or another size.
    Source: the classifier two-sample test (Lopez-Paz & Oquab 2017).
    """
    if (count := min(len(real), len(fake))) < LEAST:
        raise UserError(f"the expert judge needs {LEAST} images of each kind, not {count}.")
    if real.shape[1:] != fake.shape[1:]:
        raise UserError(f"the expert judge compares {real.shape[1:]} with {fake.shape[1:]} pixels.")
    draws = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    chosen = [draws.permutation(len(kind))[:count] for kind in (real, fake)]
    labels = groups or (np.arange(len(real)), np.arange(len(fake)))
    image = np.concatenate([real[chosen[0]], fake[chosen[1]]])
    group = np.concatenate([labels[0][chosen[0]], labels[1][chosen[1]]])
    is_real = np.arange(2 * count) < count
    right = np.empty((_JUDGES, 2 * count))
    for number in range(_JUDGES):
        fold = _halves(group, draws)
        if any((fold & kind).sum() in (0, count) for kind in (is_real, ~is_real)):
            raise UserError("the expert judge needs images of both kinds in several groups.")
        for index, train in enumerate((fold, ~fold)):
            kinds = image[train & is_real], image[train & ~is_real]
            judge = _taught(jax.random.fold_in(key, 2 * number + index), *kinds, draws)
            right[number, ~train] = _takes_for_real(judge, image[~train]) == is_real[~train]
    value, low, high = of_share(right.mean(0), group)
    spread = NORMAL_95 * np.std(right.mean(1), ddof=1) / np.sqrt(_JUDGES) if _JUDGES > 1 else 0.0
    low, high = value - np.hypot(value - low, spread), value + np.hypot(high - value, spread)
    return Estimate(value, float(max(low, 0.0)), float(min(high, 1.0)))


def _halves(group: Any, draws: np.random.Generator) -> Bool[np.ndarray, "n"]:
    """Half of the groups, drawn at random: where their rows are."""
    names, place = np.unique(group, return_inverse=True)
    return (draws.permutation(len(names)) < len(names) / 2)[place]


def _taught(
    key: PRNGKeyArray,
    real: UInt8[np.ndarray, "n h w 3"],
    fake: UInt8[np.ndarray, "m h w 3"],
    draws: np.random.Generator,
) -> Any:
    """The parameters of a judge after training on batches of as many of each kind."""
    params, opt_state = _fresh(_STEPS, key, real[:1])
    # No scan: inside a loop XLA's CPU convolutions take 30 times as long to differentiate.
    for number in range(_STEPS):
        rows = [draws.integers(0, len(kind), _BATCH // 2) for kind in (real, fake)]
        batch = np.concatenate([real[rows[0]], fake[rows[1]]])
        step_key = jax.random.fold_in(key, number)
        params, opt_state = _step(_STEPS, params, opt_state, step_key, batch)
    return params


def _adamw(steps: int) -> optax.GradientTransformation:
    return optax.adamw(optax.cosine_decay_schedule(2e-3, steps), weight_decay=0.05)


# Unoptimised, for it runs once.
@partial(jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})
def _fresh(steps: int, key: PRNGKeyArray, image: UInt8[Array, "1 h w 3"]) -> tuple[Any, Any]:
    params = _JUDGE.init(key, _seen(to_unit(image)))
    return params, _adamw(steps).init(params)


@partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def _step(
    steps: int, params: Any, opt_state: Any, key: PRNGKeyArray, batch: UInt8[Array, "b h w 3"]
) -> tuple[Any, Any]:
    """One step of AdamW; the first half of the batch is real."""
    mirror, change = jax.random.split(key)
    image = mirrored(mirror, to_unit(batch))
    seen = _seen(diffaug(change, image, ("translation", "cutout")))
    target = jnp.arange(_BATCH) < _BATCH // 2

    def loss(params: Any) -> Float[Array, ""]:
        return optax.sigmoid_binary_cross_entropy(_logit(params, seen), target).mean()

    updates, opt_state = _adamw(steps).update(jax.grad(loss)(params), opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def _takes_for_real(params: Any, image: UInt8[np.ndarray, "n h w 3"]) -> Bool[np.ndarray, "n"]:
    whole = np.resize(image, (-(-len(image) // _BATCH) * _BATCH, *image.shape[1:]))
    verdicts = [_real(params, block) for block in np.split(whole, len(whole) // _BATCH)]
    return np.concatenate(verdicts)[: len(image)]


@jax.jit
def _real(params: Any, image: UInt8[Array, "b h w 3"]) -> Bool[Array, "b"]:
    return _logit(params, _seen(to_unit(image))) > 0.0


def _logit(params: Any, image: Float[Array, "b h w c"]) -> Float[Array, "b"]:
    fake, real = rearrange(_JUDGE.apply(params, image).logits, "b kind -> kind b")  # pyright: ignore[reportAttributeAccessIssue]
    return real - fake


def _seen(image: Float[Array, "b h w 3"]) -> Float[Array, "b h2 w2 c"]:
    """Pixels, and beside them their detail, in squares as channels: about `_SIDE` to a side.

    Detail is how far a pixel is from the mean around it, without sign, small differences raised.
    Noise and blur are little beside what a picture shows, and a network that trains for seconds
    does not find them in the pixels.
    """
    around = nn.avg_pool(image, (3, 3), padding="SAME", count_include_pad=False)
    detail = jnp.sqrt(jnp.abs(image - around) + 1e-4)
    side = math.gcd(*image.shape[1:3])
    p = max(p for p in range(1, max(side // _SIDE, 1) + 1) if side % p == 0)
    both = jnp.concatenate([image, detail], axis=-1)
    return rearrange(both, "b (h i) (w j) c -> b h w (i j c)", i=p, j=p)
