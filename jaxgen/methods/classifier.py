"""Supervised classification: image to class, by a network that has seen nothing else or by one
that starts from what ImageNet has taught it.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgen import config as configs
from jaxgen import optimizer
from jaxgen.config import Experiment
from jaxgen.errors import UserError
from jaxgen.models import eyes
from jaxgen.models.augment import POLICIES, diffaug
from jaxgen.models.efficientnet import EfficientNetLite0
from jaxgen.models.resnet import Features, ResNet, ResNetConfig
from jaxgen.models.vit import VitClassifier, VitConfig
from jaxgen.pixels import mirrored, to_unit
from jaxgen.state import Batch, Metrics, State, own, stream


@dataclasses.dataclass(frozen=True)
class Classifier(Experiment):
    network: Literal["resnet", "vit", "efficientnet"] = "resnet"
    """Which network is trained: one of the two below, from random weights, or EfficientNet-Lite0
    from those that ImageNet gave it, with a new last layer."""
    resnet: ResNetConfig = ResNetConfig()
    vit: VitConfig = VitConfig()
    augment: tuple[str, ...] = ("affine", "jitter", "cutout")
    """Augmentations of training images, in order."""
    mixup: float = 0.0
    """Both parameters of the Beta distribution by which each image is mixed with another, and its
    label with the other's (Zhang et al. 2018); 0: none is."""
    label_smoothing: float = 0.1
    """Share of the target spread evenly over all classes (Szegedy et al. 2016)."""

    @property
    def classes(self) -> int:
        """How many; the networks' configs all say so."""
        return self.resnet.classes

    def roles(self) -> dict[str, str]:
        return {"features": eyes.EFFICIENTNET} if self.network == "efficientnet" else {}

    def resolved(self, vocabulary: int, classes: int) -> "Classifier":
        if classes < 2:
            raise UserError(
                f"{self.data.name} has pictures of one class; a classifier needs two or more, of a "
                "folder of pictures a sub-folder each"
            )
        resnet = dataclasses.replace(self.resnet, classes=classes)
        vit = dataclasses.replace(self.vit, classes=classes)
        return dataclasses.replace(self, resnet=resnet, vit=vit)

    def check(self) -> None:
        super().check()
        if not 0.0 <= self.label_smoothing < 1.0:
            raise UserError(f"--label-smoothing is {self.label_smoothing}; give a share below 1")
        if unknown := set(self.augment) - set(POLICIES):
            raise UserError(f"--augment {min(unknown)!r} is none of {', '.join(POLICIES)}")
        configs.check_not_negative({"mixup": self.mixup})
        r = self.resnet
        if min(r.patch, r.blocks, r.groups, self.vit.patch, *r.widths) < 1 or not r.widths:
            raise UserError("--resnet and --vit: patch, blocks, groups and widths are 1 or more")
        if any(width % r.groups for width in r.widths):
            raise UserError(f"--resnet.groups {r.groups} does not divide widths {r.widths}")
        cells = {"vit": self.vit.patch, "resnet": r.patch * 2 ** (len(r.widths) - 1)}
        factor = cells.get(self.network, 1)
        if self.data.size % factor:
            raise UserError(
                f"--data.size {self.data.size} is not a multiple of {factor}, which the "
                f"{self.network}'s patches and levels need"
            )


def frozen(config: Classifier, filled: dict[str, Any]) -> dict[str, Any]:
    """What the network starts from, if it does not start from random weights."""
    return {"start": filled["features"]["params"]} if config.roles() else {}


def frozen_shapes(config: Classifier) -> dict[str, Any]:
    """A tree of the shapes of `frozen`, for planning."""
    image = jnp.zeros((1, config.data.size, config.data.size, 3))
    fresh = eyes.NETWORKS[eyes.EFFICIENTNET].init
    return {"start": fresh(jax.random.key(0), image)["params"]} if config.roles() else {}


def init(config: Classifier, frozen: Any, key: PRNGKeyArray) -> State:
    """A fresh state; the one player is the classifier."""
    image = jnp.zeros((1, config.data.size, config.data.size, 3))
    fresh = network(config).init(key, image)["params"]
    params = {"classifier": {**fresh, **_without_last(own(frozen.get("start", {})))}}
    adamw = optimizer.build(config.optimizer, config.train)
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
    target = jax.nn.one_hot(batch["label"], config.classes)
    target = optax.smooth_labels(target, config.label_smoothing)
    if config.mixup:
        image, target = _mixed(config, stream(config.seed, state.step, "mixup"), image, target)

    def loss_of(params: Any) -> tuple[Float[Array, ""], Float[Array, ""]]:
        scores = logits(config, params, image)
        right = jnp.mean(jnp.argmax(scores, -1) == batch["label"])
        return jnp.mean(optax.softmax_cross_entropy(scores, target)), right

    (loss, right), gradient = jax.value_and_grad(loss_of, has_aux=True)(state.params["classifier"])
    params, opt_state, norm = optimizer.apply(
        optimizer.build(config.optimizer, config.train),
        gradient,
        state.opt_state["classifier"],
        state.params["classifier"],
    )
    new = {"classifier": params}
    return State(
        step=state.step + 1,
        params=new,
        ema=optimizer.averaged(config.train, state.ema, new, state.step),
        opt_state={"classifier": opt_state},
    ), {"loss": loss, "accuracy": right, "gradient_norm": norm}


def logits(
    config: Classifier, params: Any, image: Float[Array, "b h w 3"]
) -> Float[Array, "b classes"]:
    """Unnormalised log-probabilities of the classes, from pixels in [-1, 1]."""
    return _seen(config, params, image).logits


def network(config: Classifier) -> ResNet | VitClassifier | EfficientNetLite0:
    """The network that the config names; a transformer's positions are for the data's size."""
    if config.network == "efficientnet":
        return EfficientNetLite0(config.classes)
    if config.network == "resnet":
        return ResNet(config.resnet)
    size = config.vit.size or config.data.size
    return VitClassifier(dataclasses.replace(config.vit, size=size))


def weights(config: Classifier, state: State, frozen: Any) -> Any:
    """What classifying needs, averaged over training."""
    del config, frozen
    return state.ema["classifier"]


def features(
    config: Classifier, weights: Any, image: Float[Array, "b h w 3"]
) -> Float[Array, "b width"]:
    """The vector before the last layer, from pixels in [0, 255]: a space to compare images in."""
    return _seen(config, weights, image / 127.5 - 1.0).pooled


def predict(config: Classifier, weights: Any, image: Array) -> Float[Array, "b classes"]:
    """Probabilities of the classes for uint8 images [b, h, w, 3].

    Where training mirrored images, the mean over each and its mirror image.
    """
    x = to_unit(image)
    views = [x, x[:, :, ::-1]] if config.data.flip else [x]
    return jnp.mean(jnp.stack([jax.nn.softmax(logits(config, weights, v)) for v in views]), 0)


def _seen(config: Classifier, params: Any, image: Float[Array, "b h w 3"]) -> Features:
    method = "seen" if config.network == "efficientnet" else None
    return network(config).apply({"params": params}, image, method=method)  # pyright: ignore[reportReturnType]


def _without_last(params: dict[str, Any]) -> dict[str, Any]:
    """EfficientNet's weights but those of its last layer, which tells ImageNet's classes."""
    return {name: value for name, value in params.items() if name != "classifier"}


def _mixed(
    config: Classifier,
    key: PRNGKeyArray,
    image: Float[Array, "b h w 3"],
    target: Float[Array, "b classes"],
) -> tuple[Float[Array, "b h w 3"], Float[Array, "b classes"]]:
    """Each image and target with those of the image opposite it in the batch."""
    share = jax.random.beta(key, config.mixup, config.mixup, (len(image),))
    share = jnp.maximum(share, 1 - share)  # an image keeps its place: half of it or more is left

    def mix(x: Array) -> Array:
        own = jnp.reshape(share, (-1,) + (1,) * (x.ndim - 1))
        return own * x + (1 - own) * x[::-1]

    return mix(image), mix(target)
