"""EfficientNet-Lite0 (Tan & Le 2019, without squeeze-and-excite, with ReLU6), as it was trained.

Its batch normalisation is already folded into the convolutions (`jaxgen.weights.efficientnet`).
"""

import operator
from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from jaxgen.errors import UserError
from jaxgen.models.resnet import Features


class Block(NamedTuple):
    """An inverted residual block: 1x1 expansion, depthwise convolution, 1x1 projection."""

    expand: int
    channels: int
    kernel: int
    stride: int


# Tan & Le 2019, table 1: (expansion, channels, repeats, kernel, stride of the first repeat).
_STAGES = (
    (1, 16, 1, 3, 1),
    (6, 24, 2, 3, 2),
    (6, 40, 2, 5, 2),
    (6, 80, 3, 3, 2),
    (6, 112, 3, 5, 1),
    (6, 192, 4, 5, 2),
    (6, 320, 1, 3, 1),
)
BLOCKS = tuple(
    Block(expand, channels, kernel, stride if repeat == 0 else 1)
    for expand, channels, repeats, kernel, stride in _STAGES
    for repeat in range(repeats)
)


class EfficientNetLite0(nn.Module):
    """ImageNet's 1000 classes from pixels in [-1, 1]; any size, 224 px is what it was trained on.

    `apply(params, x)` gives logits; `apply(params, x, taps, method="features")` the maps inside;
    `apply(params, x, method="seen")` what a classifier says of images.
    """

    classes: int = 1000

    def setup(self) -> None:
        self.stem = nn.Conv(32, (3, 3), strides=2, padding="SAME")
        self.blocks = [InvertedResidual(block) for block in BLOCKS]
        self.head = nn.Dense(1280)
        self.classifier = nn.Dense(self.classes)

    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b classes"]:
        return self.seen(x).logits

    def seen(self, x: Float[Array, "b h w 3"]) -> Features:
        """Logits, the 1280 features that they are read from, and the output of every block."""
        maps = self.features(x, tuple(range(len(BLOCKS))))
        pooled = _relu6(self.head(maps[-1])).mean((1, 2))
        return Features(self.classifier(pooled), pooled, tuple(maps))

    def features(
        self, x: Float[Array, "b h w 3"], taps: tuple[int, ...]
    ) -> list[Float[Array, "b _ _ _"]]:
        """The outputs of the blocks named in `taps` (0 to 15), in that order.

        Blocks 2, 4, 10, 15 end the stages at 1/4, 1/8, 1/16, 1/32 of the side and have 24, 40,
        112, 320 channels (the taps of Sauer et al. 2021, Projected GANs). Nothing runs past the
        last tap. Raises `UserError` for a tap that does not exist.
        """
        if not taps or not set(taps) <= set(range(len(BLOCKS))):
            raise UserError(f"taps {taps} must be blocks of EfficientNet-Lite0: 0 to 15.")
        x = (x * 127.5 + 0.5) / 128.0  # (x255 - 127) / 128, the weights' own normalisation
        x = _relu6(self.stem(x))
        maps = []
        for block in self.blocks[: max(taps) + 1]:
            x = block(x)
            maps.append(x)
        return [maps[tap] for tap in taps]


class InvertedResidual(nn.Module):
    """One block; the sum with its input where shapes allow."""

    block: Block

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h_out w_out c_out"]:
        expand, channels, _, stride = self.block
        y = x
        if expand > 1:
            y = _relu6(nn.Dense(x.shape[-1] * expand, name="expand")(y))
        y = _relu6(Depthwise(self.block.kernel, stride, name="depthwise")(y))
        y = nn.Dense(channels, name="project")(y)
        return x + y if stride == 1 and x.shape[-1] == channels else y


class Depthwise(nn.Module):
    """A k x k convolution of each channel by itself, SAME padding, with bias."""

    size: int
    stride: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h_out w_out c"]:
        k, c = self.size, x.shape[-1]
        kernel = self.param("kernel", nn.initializers.normal(1 / k), (k, k, c))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        return jnp.add(depthwise(x, kernel, self.stride), bias)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k c"], stride: int
) -> Float[Array, "b h_out w_out c"]:
    """Depthwise convolution, SAME padding as TensorFlow pads: the odd pixel after, not before.

    XLA's CPU grouped convolution is 10 to 50 times slower than a sum of shifted slices, whose
    gradient needs a rule of its own to be a sum of shifted slices too; accelerators have kernels.
    """
    return lax.platform_dependent(
        x,
        kernel,
        cpu=partial(shifted, stride=stride),
        default=partial(grouped, stride=stride),
    )


def grouped(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k c"], stride: int
) -> Float[Array, "b h_out w_out c"]:
    """`depthwise` as XLA's convolution with as many groups as channels."""
    return lax.conv_general_dilated(
        x,
        rearrange(kernel, "i j c -> i j 1 c"),
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def shifted(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k c"], stride: int
) -> Float[Array, "b h_out w_out c"]:
    """`depthwise` as a sum of strided slices, each times one weight a channel."""
    rows, columns, kernel = _overlap(x, kernel, stride)
    return _correlate(_pad(x, rows.padding, columns.padding), kernel, stride)


def _forward(x, kernel, stride):
    return depthwise(x, kernel, stride), (x, kernel)


def _backward(stride, saved, g):
    x, kernel = saved

    def switch(cpu, index):
        def default(x, kernel, g):
            return jax.vjp(partial(grouped, stride=stride), x, kernel)[1](g)[index]

        return lax.platform_dependent(
            x, kernel, g, cpu=partial(cpu, stride=stride), default=default
        )

    # Two switches, so that the kernel's gradient is dropped where only the input's is wanted.
    return switch(_shifted_input_gradient, 0), switch(_shifted_kernel_gradient, 1)


depthwise.defvjp(_forward, _backward)


def _shifted_input_gradient(x, kernel, g, stride):
    """g spread out by the stride, correlated with the kernel turned round."""
    rows, columns, kernel = _overlap(x, kernel, stride)
    spread = _pad(g, rows.gradient_padding, columns.gradient_padding, stride - 1)
    return _correlate(spread, kernel[::-1, ::-1], 1)


def _shifted_kernel_gradient(x, kernel, g, stride):
    rows, columns, _ = _overlap(x, kernel, stride)
    x = _pad(x, rows.padding, columns.padding)
    gradient = [
        (_window(x, i, j, g.shape, stride) * g).sum((0, 1, 2))
        for i in range(rows.taps)
        for j in range(columns.taps)
    ]
    gradient = rearrange(gradient, "(i j) c -> i j c", i=rows.taps)
    return lax.dynamic_update_slice(
        jnp.zeros_like(kernel), gradient, (rows.first, columns.first, 0)
    )


class _Axis(NamedTuple):
    """How a kernel lies along one axis, less the taps that meet nothing but padding."""

    first: int
    taps: int
    padding: tuple[int, int]
    gradient_padding: tuple[int, int]


def _overlap(x, kernel, stride):
    """Both axes and the part of the kernel that meets the image (3 x 3 of 5 x 5 on 2 x 2 px)."""
    rows = _axis(x.shape[1], kernel.shape[0], stride)
    columns = _axis(x.shape[2], kernel.shape[1], stride)
    last_row, last_column = rows.first + rows.taps, columns.first + columns.taps
    return rows, columns, kernel[rows.first : last_row, columns.first : last_column]


def _axis(size: int, k: int, stride: int) -> _Axis:
    span = (-(-size // stride) - 1) * stride + 1  # from the first output to the last, in input px
    low = max(span + k - 1 - size, 0) // 2
    used = [d for d in range(k) if any(0 <= i + d - low < size for i in range(0, span, stride))]
    low, taps = low - used[0], len(used)
    high = span - 1 + taps - low - size
    return _Axis(used[0], taps, (low, high), (taps - 1 - low, taps - 1 - high))


def _pad(x, rows: tuple[int, int], columns: tuple[int, int], spread: int = 0):
    zero = jnp.zeros((), x.dtype)
    return lax.pad(x, zero, ((0, 0, 0), (*rows, spread), (*columns, spread), (0, 0, 0)))


def _correlate(x, kernel, stride: int):
    (b, h, w, c), (rows, columns, _) = x.shape, kernel.shape
    shape = (b, (h - rows) // stride + 1, (w - columns) // stride + 1, c)
    terms = (
        kernel[i, j] * _window(x, i, j, shape, stride) for i in range(rows) for j in range(columns)
    )
    return reduce(operator.add, terms)


def _window(x, i: int, j: int, shape: tuple[int, ...], stride: int):
    b, rows, columns, c = shape
    stop = (b, i + (rows - 1) * stride + 1, j + (columns - 1) * stride + 1, c)
    return lax.slice(x, (0, i, j, 0), stop, (1, stride, stride, 1))


def _relu6(x):
    return lax.clamp(jnp.zeros((), x.dtype), x, jnp.full((), 6.0, x.dtype))
