import dataclasses
import functools
import math
from typing import Any, cast

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from jaxgen.errors import UserError
from jaxgen.text.encoder import (
    CLIP_L,
    OPENCLIP_BIGG,
    OPENCLIP_H,
    TextConfig,
    TextEncoder,
    TextFeatures,
    clip_names,
)
from jaxgen.weights.stable_diffusion import params_from_torch

TINY = TextConfig(vocabulary=40, width=32, layers=2, heads=4, length=9, projection=24)
CAPTION = np.array([[2, 7, 9, 11, 3, 0, 0, 0, 0], [2, 5, 3, 0, 0, 0, 0, 0, 0]], np.int32)


# Tiny networks: the time goes into compiling.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def features(params: Any, caption: Any) -> TextFeatures:
    return cast(TextFeatures, TextEncoder(TINY).apply({"params": params}, caption))


encode = jit(features)


def shapes(config: TextConfig) -> Any:
    caption = jax.ShapeDtypeStruct((1, config.length), jnp.int32)
    return jax.eval_shape(TextEncoder(config).init, jax.random.key(0), caption)["params"]


@pytest.fixture(scope="module")
def params() -> Any:
    """Random everywhere: the zero token table would hide mistakes."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32), shapes(TINY))


@pytest.fixture(scope="module")
def fresh() -> Any:
    return jit(TextEncoder(TINY).init)(jax.random.key(0), CAPTION)["params"]


@pytest.mark.parametrize(
    ("config", "expected"),
    [(CLIP_L, 123_060_480), (OPENCLIP_H, 340_387_840), (OPENCLIP_BIGG, 694_659_840)],
    ids=["CLIP-L", "OpenCLIP-H", "OpenCLIP-bigG"],
)
def test_published_parameter_counts(config, expected):
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes(config))) == expected


@pytest.mark.parametrize("prefix", ["", "text_model."], ids=["transformers 5", "transformers 4"])
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_matches_transformers(activation, prefix):
    torch.manual_seed(0)
    theirs = CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=40,
            hidden_size=32,
            intermediate_size=128,
            projection_dim=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=9,
            hidden_act=activation,
            eos_token_id=3,
            bos_token_id=2,
            pad_token_id=0,
        )
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.2)
        expected = theirs(torch.from_numpy(CAPTION).long(), output_hidden_states=True)

    bare = {name.removeprefix("text_model."): x for name, x in theirs.state_dict().items()}
    state = {
        name if name.startswith("text_projection") else prefix + name: value.numpy()
        for name, value in bare.items()
    }
    state[f"{prefix}embeddings.position_ids"] = np.arange(9)[None]
    config = dataclasses.replace(TINY, activation=activation)
    before = dataclasses.replace(config, penultimate=True)
    params = params_from_torch(clip_names(state), shapes(config))

    @jit
    def both(params: Any) -> Any:
        return [TextEncoder(c).apply({"params": params}, CAPTION) for c in (config, before)]

    ours, penultimate = both(params)

    assert_close = functools.partial(np.testing.assert_allclose, atol=2e-5, rtol=1e-4)
    assert_close(ours.tokens, expected.last_hidden_state.numpy())
    assert_close(ours.pooled, expected.text_embeds.numpy())
    assert_close(penultimate.tokens, expected.hidden_states[-2].numpy())
    assert_close(penultimate.pooled, expected.text_embeds.numpy())


def test_shapes_and_mask(params):
    out = encode(params, CAPTION)
    chex.assert_shape(out.tokens, (2, 9, 32))
    chex.assert_shape(out.pooled, (2, 24))
    expected = [[True] * 5 + [False] * 4, [True] * 3 + [False] * 6]
    np.testing.assert_array_equal(out.mask, expected)


def test_an_unmasked_caption_is_seen_to_the_end_of_its_padding(params):
    config = dataclasses.replace(TINY, masked=False)
    out = jax.eval_shape(TextEncoder(config).apply, {"params": params}, CAPTION)
    assert cast(TextFeatures, out).mask is None
    assert TINY.masked


def test_bfloat16_is_close_and_what_comes_out_is_float32(params):
    config = dataclasses.replace(TINY, dtype="bfloat16")
    chex.assert_trees_all_equal_shapes_and_dtypes(shapes(config), shapes(TINY))
    out, whole = (
        jit(TextEncoder(config).apply)({"params": params}, CAPTION),
        encode(params, CAPTION),
    )
    for name in ("tokens", "pooled"):
        found, expected = getattr(out, name), getattr(whole, name)
        assert found.dtype == jnp.float32
        error = jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected)
        assert 1e-4 < error < 0.02  # bfloat16 has 8 bits


def test_a_token_does_not_see_later_ones(params):
    changed = CAPTION.copy()
    changed[0, 3] = 20
    before, after = encode(params, CAPTION).tokens, encode(params, changed).tokens
    np.testing.assert_array_equal(before[0, :3], after[0, :3])
    assert (jnp.abs(before[0, 3:] - after[0, 3:]).max(-1) > 1e-3).all()
    np.testing.assert_array_equal(before[1], after[1])


def test_pooled_is_the_output_at_the_first_end_token(params):
    repeated = CAPTION.copy()
    repeated[:, 5:] = 3  # CLIP pads with its end token.
    out = encode(params, repeated)
    kernel = params["text_projection"]["kernel"]
    expected = out.tokens[jnp.array([0, 1]), jnp.array([4, 2])] @ kernel
    np.testing.assert_allclose(out.pooled, expected, atol=1e-5)
    np.testing.assert_allclose(out.pooled, encode(params, CAPTION).pooled, atol=1e-6)


def test_gradient_reaches_the_words_of_the_caption_and_no_other(fresh):
    assert not fresh["embeddings_token_embedding"]["embedding"].any()
    target = np.random.default_rng(1).normal(size=(2, 24))

    @jit
    @jax.grad
    def gradient(params):
        return jnp.mean((features(params, CAPTION).pooled - target) ** 2)

    rows = np.abs(gradient(fresh)["embeddings_token_embedding"]["embedding"]).max(axis=1)
    # Padding comes after the end token: it says nothing.
    assert set(np.flatnonzero(rows).tolist()) == {2, 3, 5, 7, 9, 11}


def test_words_never_met_are_all_the_same(fresh):
    caption = np.array([[2, 20, 3, 0, 0, 0, 0, 0, 0], [2, 30, 3, 0, 0, 0, 0, 0, 0]], np.int32)
    pooled = encode(fresh, caption).pooled
    np.testing.assert_array_equal(pooled[0], pooled[1])


def test_shorter_captions_are_fine_and_longer_ones_are_refused(params):
    short, long = encode(params, CAPTION[:, :5]), encode(params, CAPTION)
    np.testing.assert_allclose(short.pooled, long.pooled, atol=1e-6)
    with pytest.raises(UserError, match="10 tokens, the text encoder has 9"):
        encode(params, np.zeros((1, 10), np.int32))


def test_impossible_shapes_are_refused():
    with pytest.raises(UserError, match="width 30"):
        TextConfig(width=30, heads=4)
    with pytest.raises(UserError, match="heads is 0"):
        TextConfig(heads=0)
    with pytest.raises(UserError, match="text length 2"):
        TextConfig(length=2)
    with pytest.raises(UserError, match="dtype must be one of float32, bfloat16, not 'float16'"):
        TextConfig(dtype="float16")
    with pytest.raises(UserError, match="vocabulary is 0"):
        TextEncoder(TextConfig()).init(jax.random.key(0), CAPTION)
