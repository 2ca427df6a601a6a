"""Attention: the numbers are those of the formula, whichever kernel computes them."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jax.experimental.pallas.ops.tpu import splash_attention

from jaxgen.config import Mesh
from jaxgen.models import attention
from jaxgen.models.attention import attend
from jaxgen.runtime import hlo, topologies
from jaxgen.runtime import mesh as meshes

LONG = (8, attention.TPU_FROM, 1, 8)  # the smallest on either side that a TPU's kernel takes


def drawn(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def expected(query, key, value, mask=None, cotangent=None):
    """The formula in float64, and its derivatives along a cotangent."""
    q, k, v = (np.float64(x) for x in (query, key, value))
    logits = np.einsum("bnhd,bmhd->bhnm", q, k) / np.sqrt(q.shape[-1])
    logits = logits if mask is None else np.where(mask, logits, -np.inf)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    y = np.einsum("bhnm,bmhd->bnhd", p, v)
    if cotangent is None:
        return y
    g = np.float64(cotangent)
    dp = np.einsum("bnhd,bmhd->bhnm", g, v)
    ds = p * (dp - (dp * p).sum(-1, keepdims=True)) / np.sqrt(q.shape[-1])
    return y, (
        np.einsum("bhnm,bmhd->bnhd", ds, k),
        np.einsum("bhnm,bnhd->bmhd", ds, q),
        np.einsum("bhnm,bnhd->bmhd", p, g),
    )


def known(function, mesh=None):
    return meshes.known(mesh or meshes.make(Mesh(), 1, jax.devices()[:1]), function)


def lowered(platform, *arguments, function=attend, **keywords):
    """The program for a platform, as text."""
    program = jax.jit(known(functools.partial(function, **keywords)))
    return program.trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


def shaped(*shape, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize("causal", [False, True])
def test_each_query_sees_what_it_may(causal):
    q, k, v = drawn((2, 5, 3, 8), (2, 7, 3, 8), (2, 7, 3, 8))
    mask = np.random.default_rng(1).random((2, 1, 5, 7)) < 0.6
    mask[..., 0] = True
    seen = mask & np.tri(5, 7, dtype=bool) if causal else mask
    found = attend(q, k, v, mask, causal)
    np.testing.assert_allclose(found, expected(q, k, v, seen), atol=1e-5)


def test_the_softmax_is_in_float32():
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in drawn((1, 4, 1, 8), *[(1, 300, 1, 8)] * 2))
    # 300 equal weights: in bfloat16 their sum would stop growing at 256.
    found = attend(0 * q, k, v)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found, expected(0 * q, k, v), atol=1e-3)


def test_the_kernel_of_tpus_is_exact_forwards_and_backwards(monkeypatch):
    interpreted = functools.partial(splash_attention.make_splash_mha, interpret=True)
    monkeypatch.setattr(splash_attention, "make_splash_mha", interpreted)
    # 520 tokens and 700 keys are two blocks each, the second of them part padding.
    *arguments, cotangent = drawn((2, 520, 1, 40), *[(2, 700, 1, 40)] * 2, (2, 520, 1, 40))

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def run(*arguments):
        y, backward = jax.vjp(attention._splash, *arguments)
        return y, backward(cotangent)

    found, gradients = run(*arguments)
    y, slopes = expected(*arguments, cotangent=cotangent)
    np.testing.assert_allclose(found, y, atol=1e-5)
    for mine, its in zip(gradients, slopes, strict=True):
        np.testing.assert_allclose(mine, its, atol=1e-5)


def test_a_program_has_the_kernel_of_the_platform_it_is_lowered_for():
    long, short, half = shaped(*LONG), shaped(8, 256, 1, 8), shaped(8, 512, 1, 8, dtype="float16")
    mask = shaped(8, 1, 1, 512, dtype="bool")
    kernel = "tpu_custom_call"
    assert kernel in lowered("tpu", long, long, long)
    assert kernel not in lowered("cpu", long, long, long)
    for others in ((short,) * 3, (long, short, short), (half,) * 3, (long, long, long, mask)):
        assert kernel not in lowered("tpu", *others)
    assert kernel not in lowered("tpu", long, long, long, causal=True)
    bare = jax.jit(lambda q: attend(q, q, q)).trace(long)  # for nobody knows how many devices
    assert kernel not in bare.lower(lowering_platforms=("tpu",)).as_text()


def test_cuda_programs_have_cudnn_where_it_is_and_takes_the_shape(monkeypatch):
    half, odd = shaped(2, 256, 1, 64), shaped(2, 256, 1, 63)
    assert "cudnn" not in lowered("cuda", half, half, half)
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    assert "__cudnn$fmhaSoftmax" in lowered("cuda", half, half, half)
    assert "cudnn" not in lowered("cpu", half, half, half)
    whole, few = shaped(2, 256, 1, 64, dtype="float32"), shaped(2, 77, 1, 64)
    for other in (odd, whole, few):
        assert "cudnn" not in lowered("cuda", other, other, other)

    def slope(q, k, v):
        return jax.grad(lambda *a: jnp.sum(attend(*a).astype(jnp.float32)))(q, k, v)

    assert "__cudnn$fmhaSoftmaxBackward" in lowered("cuda", half, half, half, function=slope)


def test_where_another_platform_has_a_kernel_gradients_and_vmap_are_the_same():
    *arguments, cotangent = drawn(*[LONG] * 4)

    @jax.jit
    def run(*arguments):
        y, backward = jax.vjp(known(jax.vmap(lambda *a: attend(*(x[None] for x in a))[0])),
                              *arguments)  # fmt: skip
        return y, backward(cotangent)

    found, gradients = run(*arguments)
    y, slopes = expected(*arguments, cotangent=cotangent)
    np.testing.assert_allclose(found, y, atol=1e-5)
    for mine, its in zip(gradients, slopes, strict=True):
        np.testing.assert_allclose(mine, its, atol=1e-5)


def test_programs_for_several_platforms_and_of_any_batch_are_exported():
    (batch,) = export.symbolic_shape("b")
    argument = shaped(batch, *LONG[1:], dtype="float32")
    program = export.export(jax.jit(attend), platforms=("cpu", "tpu", "cuda"))(*[argument] * 3)
    q, k, v = drawn(*[LONG] * 3)
    found = export.deserialize(program.serialize()).call(q, k, v)
    np.testing.assert_allclose(found, expected(q, k, v), atol=1e-5)

    one = export.export(jax.jit(known(attend)), platforms=("tpu",))(*[shaped(*LONG)] * 3)
    assert "tpu_custom_call" in one.mlir_module()  # a kind of call that JAX keeps loadable
    assert one.nr_devices == 1
    export.export(jax.jit(known(attend)), platforms=("cpu", "tpu"))(*[argument] * 3)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason=topologies.INSTALL)
def test_on_a_slice_each_chip_attends_for_its_share_and_nothing_is_gathered():
    devices = topologies.devices(topologies.parse("v5e:2x2"))
    mesh = meshes.make(Mesh(data=2, fsdp=2), 8, devices)
    where = meshes.over_batch(mesh)
    argument = jax.ShapeDtypeStruct(LONG, jnp.bfloat16, sharding=where)

    def slopes(*arguments):
        return jax.grad(lambda *a: jnp.sum(attend(*a).astype(jnp.float32)), (0, 1, 2))(*arguments)

    program = jax.jit(known(slopes, mesh)).lower(*[argument] * 3).compile()
    read = hlo.parse(program.as_text())
    assert hlo.exchanged(read) == []
    # Two products forwards, three to the queries, four to keys and values.
    assert hlo.flops(read) == 9 * 2 * 2 * 512 * 512 * 8
