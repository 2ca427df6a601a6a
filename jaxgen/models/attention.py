"""Attention: the same numbers everywhere, by the fastest exact kernel of each platform."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

TPU_FROM = 512  # tokens on either side
GPU_FROM = 128**2  # logits a head
_BLOCKS = (1024, 512, 384, 256)  # tokens; the first is the fastest, where it does not pad more
_WIDEST = 512  # channels of a head that the blocks of the TPU kernel have room for


class Attention(nn.Module):
    """Multi-head attention from `x` to `context`, projected in and out."""

    heads: int
    dtype: jnp.dtype
    bias: bool = False
    """Whether queries, keys and values are projected with biases, as the output always is."""
    zero: bool = False
    """Whether the output's projection starts at zero."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n c"],
        context: Float[Array, "b m d"],
        mask: Bool[Array, "b m"] | None,
    ) -> Float[Array, "b n c"]:
        def projected(name, inputs):
            dense = nn.Dense(x.shape[-1], use_bias=self.bias, dtype=self.dtype, name=name)
            return rearrange(dense(inputs), "b n (h d) -> b n h d", h=self.heads)

        y = attend(
            projected("to_q", x),
            projected("to_k", context),
            projected("to_v", context),
            None if mask is None else rearrange(mask, "b m -> b 1 1 m"),
        )
        return nn.Dense(
            x.shape[-1],
            dtype=self.dtype,
            kernel_init=nn.initializers.zeros if self.zero else nn.linear.default_kernel_init,
            name="to_out_0",
        )(rearrange(y, "b n h d -> b n (h d)"))


def attend(
    query: Float[Array, "b n h d"],
    key: Float[Array, "b m h d"],
    value: Float[Array, "b m h d"],
    mask: Bool[Array, "#b #h #n #m"] | None = None,
    causal: bool = False,
) -> Float[Array, "b n h d"]:
    """softmax(q kᵀ/√d) v of each head (Vaswani et al. 2017, eq. 1); the softmax is in float32.

    A query sees the keys where `mask` is True, and if `causal` none that come after it.

    Which kernel computes it is decided when the program is lowered, for the platform that it is
    lowered for. XLA's own does everything but this, in programs that `jaxgen.runtime.mesh.known`
    has told their devices, without mask or order, where no size is left open:

    - TPU: splash attention, in Pallas, from 512 queries and as many keys. XLA writes the n x m
      logits to HBM; the kernel (flash attention, Dao et al. 2022, arXiv 2205.14135) keeps them on
      the chip. Each device computes its share of the batch, which has to divide over them, so that
      nothing is gathered.
    - CUDA: cuDNN's flash attention from 128² logits a head, where it is installed and takes type
      (bfloat16, float16) and head size. Not yet run on a GPU: the threshold is a guess. Its
      gradients are summed in no fixed order.

    The threshold is from what the TPU compiler says of v5e, in bfloat16 (`python -m
    benchmarks.attention`), of XLA's and then of splash: MiB of temporaries, and the least ms that
    HBM and products take at their peaks.

        b, n, h, d           forwards                     and gradients
        8, 4096, 5, 64       2560 -> 81, 6.7 -> 0.9       3840 -> 281, 25 -> 3.9
        8, 1024, 10, 64      320 -> 2, 0.87 -> 0.13       480 -> 81, 3.2 -> 0.5
        64, 512, 8, 64       512 -> 193, 1.5 -> 0.5       768 -> 513, 5.3 -> 2.1
        32, 256, 6, 64       0 -> 1, 0.03 -> 0.08         0 -> 13, 0.08 -> 0.17
        the first, m = 77    0 -> 1, 0.05 -> 0.05         0 -> 200, 0.08 -> 0.64

    With 256 tokens, or a caption for keys, XLA keeps the logits on the chip, and needs neither
    transposes nor padding.

    Gradients are exact. Where a kernel may be chosen, on whichever platform, there are neither
    forward-mode nor second derivatives; none of jaxgen's penalties goes through attention: that of
    GANs goes through convolutions alone, that of judges begins behind the features. A program of
    several platforms at once (`jax.export`) can have no kernel but XLA's: JAX lowers each for all
    of them.
    """
    xla = functools.partial(jax.nn.dot_product_attention, is_causal=causal)
    if mask is not None or causal or not _placed(query):
        return xla(query, key, value, mask=mask)
    kernels = {}
    if _splash_pays(query, key):
        kernels["tpu"] = _splash_everywhere
    if _cudnn_pays(query, key, value):
        kernels["cuda"] = _cudnn
    if not kernels:
        return xla(query, key, value)
    return jax.lax.platform_dependent(query, key, value, default=xla, **kernels)


_cudnn = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")


def _placed(query: Array) -> bool:
    """Whether it is known for which devices the program is, and no size is left open."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and all(isinstance(size, int) for size in query.shape)


def _cudnn_pays(query: Array, key: Array, value: Array) -> bool:
    if query.shape[1] * key.shape[1] < GPU_FROM:
        return False
    try:  # it alone knows which types and heads its version has on this machine's GPUs
        jax.eval_shape(_cudnn, query, key, value)
    except (RuntimeError, ValueError):
        return False
    return True


def _splash_pays(query: Array, key: Array) -> bool:
    b, n, _, d = query.shape
    mesh = jax.sharding.get_abstract_mesh()
    return (
        min(n, key.shape[1]) >= TPU_FROM
        and d <= _WIDEST
        and query.dtype in (jnp.float32, jnp.bfloat16)
        and b % math.prod(mesh.shape[axis] for axis in _free(mesh)) == 0
    )


def _free(mesh: jax.sharding.AbstractMesh) -> tuple[str, ...]:
    """The axes over which arrays are still whole."""
    return tuple(axis for axis in mesh.axis_names if axis not in mesh.manual_axes)


def _splash_everywhere(query: Array, key: Array, value: Array) -> Array:
    """Each device's share of the batch on that device."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = _free(mesh)
    if mesh.size == 1 or not axes:
        return _splash(query, key, value)
    share = PartitionSpec(axes)
    return jax.shard_map(
        _splash, in_specs=share, out_specs=share, axis_names=set(axes), check_vma=False
    )(query, key, value)


def _splash(query: Array, key: Array, value: Array) -> Array:
    # Here, as the import takes half a second.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    b, n, h, d = query.shape
    m = key.shape[1]
    bn, bm = (_block(length, d) for length in (n, m))
    # The kernel does not scale. Where √d is no power of 2, this rounds a bfloat16 query once more.
    scaled = (query.astype(jnp.float32) * d**-0.5).astype(query.dtype)
    q, k, v = (
        rearrange(_padded(x, block), "b n h d -> (b h) n d")
        for x, block in ((scaled, bn), (key, bm), (value, bm))
    )
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([splash.FullMask((q.shape[1], k.shape[1]))] * (b * h)),
        block_sizes=splash.BlockSizes(
            block_q=bn,
            block_kv=bm,
            block_q_dkv=bn,
            block_kv_dkv=bm,
            block_q_dq=bn,
            block_kv_dq=bm,
        ),
        head_shards=1,
        q_seq_shards=1,
    )
    segments = None
    if k.shape[1] > m:  # nobody sees the padding
        segments = splash.SegmentIds(
            jnp.zeros(q.shape[1], jnp.int32), (jnp.arange(k.shape[1]) >= m).astype(jnp.int32)
        )
    y: Array = kernel(q, k, v, segments)  # pyright: ignore
    return rearrange(y[:, :n], "(b h) n d -> b n h d", b=b)


def _block(length: int, d: int) -> int:
    """The block of the least padding, the largest of several."""
    fitting = [block for block in _BLOCKS if d <= 256 or block <= 512]
    return min(fitting, key=lambda block: -length % block)


def _padded(x: Array, block: int) -> Array:
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % block), (0, 0), (0, 0)))
