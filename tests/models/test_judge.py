"""The judge's heads against NumPy, PyTorch and finite differences."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from torch.nn import functional as F  # noqa: N812

from jaxgen.models import judge as judges
from jaxgen.models.judge import (
    BatchNormLocal,
    Judge,
    JudgeConfig,
    circular_conv,
    generator_loss,
    hinge_fake,
    hinge_real,
    spectral_norm,
)

B, DT, DI = 16, 5, 7
FAST_COMPILE = {"xla_backend_optimization_level": 0}
SHAPES = ((6, 8), (4, 12))  # tokens, channels of each feature
JUDGE = Judge(JudgeConfig(width=8))
apply = jax.jit(JUDGE.apply)


@pytest.fixture(scope="module", autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def inputs():
    """Features, c_text, c_img."""
    rng = np.random.default_rng(0)
    features = [rng.normal(size=(B, *shape)) for shape in SHAPES]
    return features, rng.normal(size=(B, DT)), rng.normal(size=(B, DI))


@pytest.fixture(scope="module")
def params(inputs):
    """Every parameter random, kernels dominated by one direction so that σ is exact."""
    return drawn(JUDGE, inputs)


def drawn(network, inputs):
    shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        value = rng.normal(size=leaf.shape)
        if leaf.ndim == 3:
            k, c, d = leaf.shape
            value += 3 * np.outer(rng.normal(size=k * c), rng.normal(size=d)).reshape(k, c, d)
        return value

    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="module")
def logits(params, inputs):
    return apply(params, *inputs)


def test_heads_are_those_of_stylegan_t(params, inputs, logits):
    features, *conditions = (jax.tree.map(torch.tensor, x) for x in inputs)
    for k, found in enumerate(logits):
        p = jax.tree.map(torch.tensor, params["params"][f"head_{k}"])
        np.testing.assert_allclose(found, reference(p, features[k], *conditions), atol=1e-9)


def reference(p, x, c_text, c_img):
    """StyleGAN-T's head in PyTorch's layout, channels before tokens."""

    def conv(p, x):
        kernel = p["kernel"].permute(2, 1, 0)
        kernel = kernel / torch.linalg.matrix_norm(kernel.flatten(1), 2)
        x = F.pad(x, (kernel.shape[-1] // 2,) * 2, mode="circular")
        return F.conv1d(x, kernel, p.get("bias"))

    def norm(p, x):
        groups = x.unflatten(0, (-1, 8))
        variance, mean = torch.var_mean(groups, (1, 3), unbiased=False, keepdim=True)
        x = ((groups - mean) / (variance + 1e-5).sqrt()).flatten(0, 1)
        return F.leaky_relu(x * p["scale"][:, None] + p["bias"][:, None], 0.2)

    x = norm(p["norm_1"], conv(p["conv_1"], x.mT))
    x = (x + norm(p["norm_2"], conv(p["conv_2"], x))) / 2**0.5
    mapped = sum(
        c @ p[name]["kernel"] + p[name]["bias"] for name, c in (("text", c_text), ("image", c_img))
    )
    return (conv(p["out"], x) * mapped[..., None]).sum(1) / mapped.shape[1] ** 0.5


@pytest.fixture(scope="module")
def penalty(params, inputs):
    """R1 and its gradient to the heads' parameters."""
    features, *conditions = inputs

    def r1(params):
        return judges.r1(lambda f: JUDGE.apply(params, f, *conditions), features)  # pyright: ignore

    return jax.jit(jax.value_and_grad(r1), compiler_options=FAST_COMPILE)(params)


def test_r1_is_the_finite_difference_at_the_features(params, inputs, penalty):
    features, *conditions = inputs
    delta, expected = 1e-5, 0.0

    def total():
        return sum(float(d.sum()) for d in apply(params, features, *conditions))

    for feature in features:
        for index in np.ndindex(feature.shape):
            kept = feature[index]
            feature[index] = kept + delta
            above = total()
            feature[index] = kept - delta
            expected += ((above - total()) / (2 * delta)) ** 2 / B
            feature[index] = kept
    np.testing.assert_allclose(penalty[0], expected, rtol=1e-6)


def test_r1_has_a_gradient_to_every_kernel(penalty):
    for path, gradient in jax.tree_util.tree_leaves_with_path(penalty[1]):
        assert np.all(np.isfinite(gradient))
        if "kernel" in jax.tree_util.keystr(path):
            assert np.abs(gradient).max() > 0, path


def test_images_meet_only_in_their_group_of_eight(params, inputs, logits):
    swapped = np.r_[8:16, 0:8]
    inside = np.r_[7, 1:7, 0, 8:16]
    across = np.r_[8, 1:8, 0, 9:16]

    def permuted(order):
        return apply(params, *jax.tree.map(lambda x: x[order], inputs))

    for order in (swapped, inside):
        for found, before in zip(permuted(order), logits, strict=True):
            np.testing.assert_allclose(found, before[order], atol=1e-9)
    for found, before in zip(permuted(across), logits, strict=True):
        assert np.abs(found - before[across]).max() > 1e-3


def test_any_mesh_gives_the_same_logits(params, inputs, logits):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put(inputs, NamedSharding(mesh, P("data")))
    for a, b in zip(apply(params, *sharded), logits, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9)


@pytest.mark.parametrize(
    ("condition", "matters"),
    [("none", ()), ("text", ("text",)), ("image", ("image",)), ("both", ("text", "image"))],
)
def test_only_the_conditions_asked_for_matter(inputs, condition, matters):
    network = Judge(dataclasses.replace(JUDGE.config, condition=condition))
    ([features, _], c_text, c_img) = inputs

    params = drawn(network, ([features], c_text, c_img))
    (before,) = network.apply(params, [features], c_text, c_img)
    (text,) = network.apply(params, [features], -c_text, c_img)
    (image,) = network.apply(params, [features], c_text, -c_img)
    moved = {"text": np.abs(text - before).max(), "image": np.abs(image - before).max()}
    assert {name for name, change in moved.items() if change > 1e-3} == set(matters)
    for name, given in (("text", (None, c_img)), ("image", (c_text, None))):
        if name in matters:
            with pytest.raises(ValueError, match=f"condition {name} is None"):
                network.init(jax.random.key(0), [features], *given)


@pytest.mark.parametrize("shape", [(112, 112), (9 * 24, 24), (9 * 112, 112), (24, 64), (40, 1)])
def test_spectral_norm_is_the_largest_singular_value(shape):
    estimate = jax.jit(spectral_norm, compiler_options=FAST_COMPILE)
    for seed in range(3):
        matrix = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
        np.testing.assert_allclose(estimate(matrix), np.linalg.norm(matrix, 2), rtol=0.02)


@pytest.mark.parametrize("shape", [(12, 5), (5, 12)])
def test_spectral_norm_has_the_gradient_of_the_singular_value(shape):
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=shape) + 4 * np.outer(rng.normal(size=12), rng.normal(size=5)).reshape(
        shape
    )
    u, _, v = np.linalg.svd(matrix)
    gradient = jax.jit(jax.grad(spectral_norm))(matrix)
    np.testing.assert_allclose(gradient, np.outer(u[:, 0], v[0]), atol=1e-6)


@pytest.mark.parametrize("n", [16, 4, 1])
def test_convolution_runs_round_the_ring(n):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, n, 3)), rng.normal(size=(9, 3, 5))
    expected = sum(np.roll(x, 4 - i, axis=1) @ kernel[i] for i in range(9))
    found = circular_conv(jnp.asarray(x), jnp.asarray(kernel))
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize(("b", "group"), [(16, 8), (8, 8), (12, 6), (7, 7), (11, 1), (1, 1)])
def test_batch_norm_local_normalises_groups(b, group):
    x = np.random.default_rng(0).normal(3, 2, (b, 5, 4))
    expected = np.empty_like(x)
    for start in range(0, b, group):
        part = x[start : start + group]
        centred = part - part.mean((0, 1))
        expected[start : start + group] = centred / np.sqrt(part.var((0, 1)) + 1e-5)
    scale, bias = np.arange(1.0, 5.0), np.arange(4.0)
    found = BatchNormLocal().apply({"params": {"scale": scale, "bias": bias}}, jnp.asarray(x))
    np.testing.assert_allclose(found, expected * scale + bias, atol=1e-9)


def test_losses_have_the_signs_and_margins_of_the_hinge():
    logits = [jnp.array([[3.0, -1.0]]), jnp.array([[0.5, 0.0]])]
    assert hinge_real(logits) == (0 + 2) / 2 + (0.5 + 1) / 2
    assert hinge_fake(logits) == (4 + 0) / 2 + (1.5 + 1) / 2
    assert generator_loss(logits) == -(3 - 1) / 2 - 0.5 / 2
