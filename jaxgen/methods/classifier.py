"""Supervised classification: image to class."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgen import optimizer
from jaxgen.config import Experiment
from jaxgen.errors import UserError
from jaxgen.models.augment import diffaug
from jaxgen.models.resnet import ResNet, ResNetConfig
from jaxgen.pixels import mirrored, to_unit
from jaxgen.state import Batch, Metrics, State, moving_average, stream


@dataclasses.dataclass(frozen=True)
class Classifier(Experiment):
    model: ResNetConfig = ResNetConfig()
    augment: tuple[str, ...] = ("color", "translation", "cutout")
    """Augmentations of training images, in order."""
    label_smoothing: float = 0.1
    """Share of the target spread evenly over all classes (Szegedy et al. 2016)."""

    def resolved(self, vocabulary: int, classes: int) -> "Classifier":
        return dataclasses.replace(self, model=dataclasses.replace(self.model, classes=classes))

    def check(self) -> None:
        super().check()
        if not 0.0 <= self.label_smoothing < 1.0:
            raise UserError(f"--label-smoothing is {self.label_smoothing}; give a share below 1")


def frozen(config: Classifier, filled: dict[str, Any]) -> dict[str, Any]:
    """Nothing: a classifier needs no other network."""
    del config, filled
    return {}


def frozen_shapes(config: Classifier) -> dict[str, Any]:
    """A tree of the shapes of `frozen`, for planning."""
    return frozen(config, {})


def init(config: Classifier, frozen: Any, key: PRNGKeyArray) -> State:
    """A fresh state; the one player is the classifier."""
    del frozen
    image = jnp.zeros((1, config.data.size, config.data.size, 3))
    params = {"classifier": ResNet(config.model).init(key, image)["params"]}
    adamw = optimizer.build(config.optimizer, config.train.steps)
    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        opt_state={"classifier": adamw.init(params["classifier"])},
    )


def train_step(
    config: Classifier, state: State, frozen: Any, batch: Batch
) -> tuple[State, Metrics]:
    """One AdamW step on the cross-entropy with smoothed labels; metrics: loss, accuracy."""
    del frozen
    image = to_unit(batch["image"])
    if config.data.flip:
        image = mirrored(stream(config.seed, state.step, "flip"), image)
    image = diffaug(stream(config.seed, state.step, "augment"), image, config.augment)
    target = optax.smooth_labels(
        jax.nn.one_hot(batch["label"], config.model.classes), config.label_smoothing
    )

    def loss_of(params: Any) -> tuple[Float[Array, ""], Float[Array, ""]]:
        scores = logits(config, params, image)
        right = jnp.mean(jnp.argmax(scores, -1) == batch["label"])
        return jnp.mean(optax.softmax_cross_entropy(scores, target)), right

    (loss, right), gradient = jax.value_and_grad(loss_of, has_aux=True)(state.params["classifier"])
    params, opt_state, norm = optimizer.apply(
        optimizer.build(config.optimizer, config.train.steps),
        gradient,
        state.opt_state["classifier"],
        state.params["classifier"],
    )
    new = {"classifier": params}
    return State(
        step=state.step + 1,
        params=new,
        ema=moving_average(state.ema, new, config.train.ema, state.step),
        opt_state={"classifier": opt_state},
    ), {"loss": loss, "accuracy": right, "gradient_norm": norm}


def logits(
    config: Classifier, params: Any, image: Float[Array, "b h w 3"]
) -> Float[Array, "b classes"]:
    """Unnormalised log-probabilities of the classes, from pixels in [-1, 1]."""
    return ResNet(config.model).apply({"params": params}, image).logits  # pyright: ignore[reportAttributeAccessIssue]


def weights(config: Classifier, state: State, frozen: Any) -> Any:
    """What classifying needs, averaged over training."""
    del config, frozen
    return state.ema["classifier"]


def predict(config: Classifier, weights: Any, image: Array) -> Float[Array, "b classes"]:
    """Probabilities of the classes for uint8 images [b, h, w, 3]."""
    return jax.nn.softmax(logits(config, weights, to_unit(image)))
