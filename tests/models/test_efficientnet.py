"""EfficientNet-Lite0 sees what its published weights saw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from skimage import data, transform
from sklearn.datasets import load_sample_images
from torch.nn import functional as F  # noqa: N812

from jaxgen.errors import UserError
from jaxgen.models import efficientnet
from jaxgen.models.efficientnet import BLOCKS, EfficientNetLite0, depthwise, grouped
from jaxgen.weights.efficientnet import load_efficientnet_lite0, weights_path

TAPS = (2, 4, 10, 15)
CLASSES = {"cat": 285, "espresso": 967, "daisy": 985}


@pytest.fixture(scope="module")
def variables():
    return load_efficientnet_lite0()


@pytest.fixture(scope="module")
def images():
    """Three photos and one image of noise."""
    photos = [data.chelsea(), data.coffee(), load_sample_images().images[1]]
    noise = np.random.default_rng(0).uniform(-1, 1, (224, 224, 3))
    return np.stack([*(square(p) for p in photos), noise]).astype(np.float32)


@pytest.fixture(scope="module")
def seen(variables, images):
    def see(variables, x):
        network = EfficientNetLite0()
        return network.apply(variables, x), network.apply(variables, x, TAPS, method="features")

    return jax.jit(see)(variables, images)


def square(photo):
    h, w, _ = photo.shape
    side = min(h, w)
    top, left = (h - side) // 2, (w - side) // 2
    photo = photo[top : top + side, left : left + side]
    return transform.resize(photo, (224, 224), anti_aliasing=True) * 2 - 1


def test_known_photos_have_their_class(seen):
    logits, _ = seen
    assert list(np.argmax(logits[:3], axis=-1)) == list(CLASSES.values())


def test_logits_and_features_are_those_of_the_published_network(seen, images):
    logits, maps = seen
    expected_logits, expected_maps = reference(torch.from_numpy(images).permute(0, 3, 1, 2))
    np.testing.assert_allclose(logits, expected_logits, atol=1e-3)
    for tap, found in zip(TAPS, maps, strict=True):
        expected = expected_maps[tap].permute(0, 2, 3, 1)
        np.testing.assert_allclose(found, expected, atol=1e-3)


@torch.no_grad()
def reference(x):
    """The network in PyTorch, batch normalisation unfolded, from the checkpoint as published."""
    tensors = torch.load(weights_path(), weights_only=True)

    def conv(x, name, stride=1, groups=1):
        kernel = tensors[f"{name}.weight"]
        k = kernel.shape[-1]
        over = [max((-(-n // stride) - 1) * stride + k - n, 0) for n in (x.shape[3], x.shape[2])]
        x = F.pad(x, [part for n in over for part in (n // 2, n - n // 2)])
        return F.conv2d(x, kernel, stride=stride, groups=groups)

    def norm(x, name):
        of = [tensors[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *of, eps=1e-3)

    pixels = (x + 1) * 127.5
    x = F.relu6(norm(conv((pixels - 127) / 128, "_conv_stem", 2), "_bn0"))
    maps = []
    for i, block in enumerate(BLOCKS):
        at, y = f"_blocks.{i}.", x
        if block.expand > 1:
            y = F.relu6(norm(conv(y, at + "_expand_conv"), at + "_bn0"))
        y = conv(y, at + "_depthwise_conv", block.stride, y.shape[1])
        y = norm(conv(F.relu6(norm(y, at + "_bn1")), at + "_project_conv"), at + "_bn2")
        x = x + y if x.shape == y.shape else y
        maps.append(x)
    x = F.relu6(norm(conv(x, "_conv_head"), "_bn1")).mean((2, 3))
    return F.linear(x, tensors["_fc.weight"], tensors["_fc.bias"]), maps


def test_loaded_variables_are_the_networks_own(variables):
    network = EfficientNetLite0()
    own = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    shapes = jax.tree.map(lambda a: (a.shape, str(a.dtype)), own)
    assert jax.tree.map(lambda a: (a.shape, str(a.dtype)), variables) == shapes


def test_nothing_runs_past_the_last_tap(variables):
    needed = {k: v for k, v in variables["params"].items() if k in ("stem", "blocks_0", "blocks_1")}
    features = jax.eval_shape(
        lambda v, x: EfficientNetLite0().apply(v, x, (1, 0), method="features"),
        {"params": needed},
        jnp.zeros((2, 32, 48, 3)),
    )
    assert [f.shape for f in features] == [(2, 8, 12, 24), (2, 16, 24, 16)]


@pytest.mark.parametrize("taps", [(), (16,), (-1, 2)])
def test_unknown_taps_are_named(variables, taps):
    with pytest.raises(UserError, match="0 to 15"):
        EfficientNetLite0().apply(variables, jnp.zeros((1, 32, 32, 3)), taps, method="features")


# (height, width, kernel, stride): even and odd sides, sides smaller than the kernel.
SHAPES = [(8, 7, 3, 1), (7, 4, 5, 2), (2, 2, 5, 1), (1, 3, 3, 2)]


@pytest.mark.parametrize(("h", "w", "k", "stride"), SHAPES)
def test_cpu_and_accelerator_depthwise_agree_with_gradients(h, w, k, stride):
    def both_gradients(convolve, x, kernel):
        y, transpose = jax.vjp(lambda *a: convolve(*a, stride), x, kernel)
        return y, transpose(jnp.cos(jnp.arange(y.size)).reshape(y.shape).astype(y.dtype))

    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0))
        x = jax.random.normal(keys[0], (2, h, w, 3))
        kernel = jax.random.normal(keys[1], (k, k, 3))
        found, expected = jax.jit(
            lambda *a: (both_gradients(depthwise, *a), both_gradients(grouped, *a)),
            compiler_options={"xla_backend_optimization_level": 0},
        )(x, kernel)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


@pytest.mark.parametrize(("platform", "convolutions"), [("cpu", 0), ("cuda", 3), ("tpu", 3)])
def test_each_platform_gets_its_own_depthwise(platform, convolutions):
    def gradients(x, kernel):
        return jax.vjp(lambda *a: depthwise(*a, 2), x, kernel)[1](jnp.ones((1, 4, 4, 3)))

    shapes = jnp.zeros((1, 8, 8, 3)), jnp.zeros((5, 5, 3))
    forward = jax.jit(lambda *a: (depthwise(*a, 2), *gradients(*a)))
    text = forward.trace(*shapes).lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.convolution") == convolutions


def test_relu6_is_flat_outside():
    gradient = jax.grad(lambda x: efficientnet._relu6(x).sum())(jnp.array([-1.0, 3.0, 7.0]))
    np.testing.assert_array_equal(gradient, [0, 1, 0])
