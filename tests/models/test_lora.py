"""LoRA: nothing at first, W + (alpha / rank)·A·B then, where the targets say and nowhere else."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from tiny import MODEL, SIZE

from jaxgen.diffusion import denoiser
from jaxgen.errors import UserError
from jaxgen.models import lora
from jaxgen.models.lora import WORDS, Lora

BLOCK = "denoiser/mid_block/attentions_0/transformer_blocks_0"


@pytest.fixture(scope="module")
def shapes():
    return jax.eval_shape(functools.partial(denoiser.init, MODEL, SIZE), jax.random.key(0))


@pytest.fixture(scope="module")
def base():
    """A small tree with one of everything that a network has."""
    rng = np.random.default_rng(0)

    def noise(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    out = {"kernel": noise(8, 6), "bias": noise(6)}
    return {
        "text": {"embeddings_token_embedding": {"embedding": noise(7, 4)}},
        "denoiser": {
            "attn1": {"to_q": {"kernel": noise(6, 8)}, "to_out_0": out},
            "conv": {"kernel": noise(3, 3, 6, 6), "bias": noise(6)},
            "proj_in": {"kernel": noise(1, 1, 6, 5)},
            "norm": {"scale": noise(6)},
        },
    }


def test_new_adapters_change_nothing_at_all(base) -> None:
    config = Lora(rank=3, targets=("*",))
    adapters = lora.init(config, base, jax.random.key(0))
    chex.assert_trees_all_equal(lora.merged(config, base, adapters), base)


def test_the_change_is_alpha_over_rank_times_a_b_in_the_targets_alone(base) -> None:
    config = Lora(rank=3, targets=("attn1", "proj_in"), alpha=6.0)
    adapters = lora.init(config, base, jax.random.key(0))
    rng = np.random.default_rng(1)
    adapters = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), adapters)
    before, after = flatten_dict(base), flatten_dict(lora.merged(config, base, adapters))
    own = flatten_dict(adapters)
    adapted = {path[:-1] for path in own}
    assert {"/".join(path) for path in adapted} == {
        "denoiser/attn1/to_q/kernel",
        "denoiser/attn1/to_out_0/kernel",
        "denoiser/proj_in/kernel",
        "text/embeddings_token_embedding/embedding",
    }
    assert before.keys() == after.keys()
    for path in before.keys() - adapted:
        assert after[path] is before[path]
    for path in adapted - {WORDS}:
        a, b = (np.asarray(own[*path, part], np.float64) for part in "ab")
        wanted = np.asarray(before[path], np.float64) + 2.0 * (a @ b)  # 1x1 kernels broadcast
        np.testing.assert_allclose(after[path], wanted, atol=1e-5)
    np.testing.assert_allclose(after[WORDS], before[WORDS] + own[*WORDS, "delta"])


def test_words_are_left_alone_where_they_are_not_to_be_trained(base) -> None:
    config = Lora(rank=2, targets=("attn1",), train_words=False)
    adapters = lora.init(config, base, jax.random.key(0))
    assert adapters.keys() == {"denoiser"}


def test_a_starts_with_standard_deviation_1_over_rank() -> None:
    base = {"denoiser": {"attn1": {"to_q": {"kernel": jnp.zeros((1000, 8))}}}}
    config = Lora(rank=4, targets=("to_q",), train_words=False)
    adapters = lora.init(config, base, jax.random.key(0))
    a = adapters["denoiser"]["attn1"]["to_q"]["kernel"]["a"]
    assert a.shape == (1000, 4)
    assert np.std(a) == pytest.approx(1 / 4, rel=0.05)
    assert abs(np.mean(a)) < 0.02


@pytest.mark.parametrize(
    ("target", "some", "count"),
    [
        ("attn1", f"{BLOCK}/attn1/to_q/kernel", 16),  # 4 matrices, at 1 + 1 + 2 places
        ("to_q", f"{BLOCK}/attn2/to_q/kernel", 8),
        ("to_[kv]", f"{BLOCK}/attn2/to_v/kernel", 16),
        ("attn2/to_v", f"{BLOCK}/attn2/to_v/kernel", 4),
        ("denoiser/mid_block/*/attn1", f"{BLOCK}/attn1/to_k/kernel", 4),
        (f"{BLOCK}/attn1/to_q/kernel", f"{BLOCK}/attn1/to_q/kernel", 1),
        ("self_attn", "text/encoder_layers_0/self_attn/q_proj/kernel", 4),
        ("ff_net_2", f"{BLOCK}/ff_net_2/kernel", 4),
    ],
)
def test_targets_are_globs_for_names_in_a_row(shapes, target: str, some: str, count: int) -> None:
    found = lora.matrices(Lora(rank=1, targets=(target,)), shapes)
    assert tuple(some.split("/")) in found
    assert len(found) == count
    assert all(flatten_dict(shapes)[path].shape[-2:] == sides for path, sides in found.items())


def test_several_targets_add_up(shapes) -> None:
    one, other, both = (
        lora.matrices(Lora(rank=1, targets=targets), shapes)
        for targets in (("attn1",), ("self_attn",), ("attn1", "self_attn"))
    )
    assert both == one | other
    assert len(both) == len(one) + len(other)


def test_a_target_that_matches_nothing_is_refused_with_some_that_would(shapes) -> None:
    config = Lora(rank=2, targets=("attn1", "conv_in"))  # a 3x3 convolution is no matrix
    with pytest.raises(UserError, match=r"--lora.targets 'conv_in' matches no .*\battn1, attn2\b"):
        lora.matrices(config, shapes)


def test_a_rank_above_a_matrix_side_is_refused_with_the_matrix(shapes) -> None:
    lora.matrices(Lora(rank=16), shapes)
    with pytest.raises(UserError, match=r"--lora.rank is 17, but .*/kernel is 16 x 16: give 16 or"):
        lora.matrices(Lora(rank=17), shapes)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (Lora(rank=-1), "--lora.rank is -1; give 1 or more"),
        (Lora(rank=1, alpha=0.0), "--lora.alpha is 0.0"),
        (Lora(rank=1, alpha=float("nan")), "--lora.alpha is nan"),
        (Lora(rank=1, targets=()), "--lora.targets names nothing"),
    ],
)
def test_impossible_numbers_are_refused(config: Lora, words: str) -> None:
    with pytest.raises(UserError, match=words):
        config.check()
