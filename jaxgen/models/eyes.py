"""The frozen networks by which the judge of ADD sees: maps of tokens, and one vector an image.

Sauer et al. 2023 (StyleGAN-T, arXiv 2301.09515) judge what comes out of a vision transformer at
several depths. Every network here is a Linen module whose fields say all of it but its parameters.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import flax.struct
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgen.errors import UserError
from jaxgen.models.augment import resize_area
from jaxgen.models.efficientnet import BLOCKS, EfficientNetLite0
from jaxgen.models.resnet import ResNet
from jaxgen.models.vit import DINOV2_VIT_S, IMAGENET, ViT, VitClassifier

Tokens = Float[Array, "b n c"]
Network: TypeAlias = EfficientNetLite0 | ViT | ResNet | VitClassifier
EFFICIENTNET, DINOV2 = "efficientnet-lite0", "dinov2-vits14"
NETWORKS: dict[str, Network] = {EFFICIENTNET: EfficientNetLite0(), DINOV2: ViT(DINOV2_VIT_S)}


class Eyes(flax.struct.PyTreeNode):
    """A feature network and its parameters, which alone are arrays."""

    network: Network = flax.struct.field(pytree_node=False)
    params: Any


def fresh(network: Network, side: int, key: PRNGKeyArray) -> Eyes:
    """Eyes that have learnt nothing, for images of `side` pixels: for shapes and tests."""
    return Eyes(network, network.init(key, jnp.zeros((1, side, side, 3)))["params"])


def usual_taps(network: Network) -> tuple[int, ...]:
    """The blocks that are judged where nothing else is said.

    Of a vision transformer StyleGAN-T's: the last of each quarter, and the tokens before the first;
    of a residual network the last of each level.
    """
    if isinstance(network, EfficientNetLite0):
        return (2, 4, 10)
    if isinstance(network, ResNet):
        each = network.config.blocks
        return tuple(_blocks(network)[each - 1 :: each])
    depth = network.config.depth
    return (-1, *sorted({max(0, depth * quarter // 4 - 1) for quarter in (1, 2, 3, 4)}))


def distance(
    a: Sequence[Float[Array, "b *n c"]], b: Sequence[Float[Array, "b *n c"]]
) -> Float[Array, " b"]:
    """Squared distance of feature vectors of length 1, 0 to 4; mean over positions, then over taps.

    Zhang et al. 2018 (LPIPS), eq. 1, without the weights learnt from people's judgements.
    """

    def unit(x: Array) -> Array:
        return x * jax.lax.rsqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-8)

    def apart(x: Array, y: Array) -> Float[Array, " b"]:
        squared = jnp.sum((unit(x) - unit(y)) ** 2, axis=-1)
        return jnp.mean(squared, axis=tuple(range(1, squared.ndim)))

    return jnp.mean(jnp.stack([apart(x, y) for x, y in zip(a, b, strict=True)]), axis=0)


def check(name: str, network: Network, taps: tuple[int, ...], side: int) -> None:
    """Raises UserError where the network, called `name`, has no such blocks or sees no such side.

    No taps at all are the usual ones.
    """
    blocks = _blocks(network)
    if unknown := set(taps) - set(blocks):
        raise UserError(
            f"--judge.taps has {min(unknown)}; {name} has blocks 0 to {blocks[-1]}"
            + (" (-1: before the first)" if -1 in blocks else "")
        )
    cell = _cell(network)
    if side % cell:
        raise UserError(
            f"--judge.resize is {side}, no multiple of {cell}, which {name} needs; give "
            f"{side - side % cell or cell}"
        )


def look(
    eyes: Eyes, image: Float[Array, "b h w 3"], taps: tuple[int, ...], side: int, dtype: str
) -> tuple[list[Tokens], Float[Array, "b d"]]:
    """What the eyes see of images in [-1, 1], brought to `side` pixels: tokens a tap, and a vector.

    A transformer's tokens are those of the patches, the class token added to each; tap -1 is before
    the first block, without taps they are `usual_taps`. The vector is what the network itself makes
    of the whole image: the normalised class token, or the mean that a classifier reads; of
    EfficientNet the mean of the last tap's tokens. It is standardised, so that neither it nor the
    caption's vector drowns the other in the heads. `dtype` is what the network computes in;
    what comes out has the images' own.
    """
    network, params = eyes.network, eyes.params
    taps = taps or usual_taps(network)
    x = resize_area(image, side)
    if isinstance(network, ViT):
        mean, deviation = (jnp.asarray(values, x.dtype) for values in IMAGENET)
        x = ((x + 1.0) / 2.0 - mean) / deviation
    if dtype != "float32":
        x, params = jax.tree.map(lambda array: array.astype(dtype), (x, params))
    pooled = None
    if isinstance(network, EfficientNetLite0):
        maps: Any = network.apply({"params": params}, x, taps, method="features")
        tokens = [rearrange(m, "b h w c -> b (h w) c") for m in maps]
    else:
        seen: Any = network.apply({"params": params}, x)
        pooled = seen.pooled
        if isinstance(network, ResNet):
            tokens = [rearrange(seen.blocks[tap], "b h w c -> b (h w) c") for tap in taps]
        else:
            rows = [seen.blocks[tap + 1] for tap in taps]
            tokens = [row[:, 1:] + row[:, :1] for row in rows]
    tokens = [array.astype(image.dtype) for array in tokens]
    whole = tokens[-1].mean(1) if pooled is None else pooled.astype(image.dtype)
    return tokens, jax.nn.standardize(whole)


def _blocks(network: Network) -> range:
    if isinstance(network, EfficientNetLite0):
        return range(len(BLOCKS))
    if isinstance(network, ResNet):
        return range(len(network.config.widths) * network.config.blocks)
    return range(-1, network.config.depth)


def _cell(network: Network) -> int:
    """What the sides of its images must be multiples of, in pixels."""
    if isinstance(network, EfficientNetLite0):
        return 1
    if isinstance(network, ResNet):
        return network.config.patch * 2 ** (len(network.config.widths) - 1)
    return network.config.patch
