"""The text-conditioned denoiser: what it takes for the empty caption, and what it attends to."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import DIT_MODEL, SIZE

from jaxgen.diffusion import denoiser
from jaxgen.diffusion.denoiser import Denoiser
from jaxgen.text import tokenizer as words
from jaxgen.text.encoder import CLIP_L, OPENCLIP_BIGG, OPENCLIP_H


def test_the_empty_caption_is_the_tokenizers():
    ids = words.encode(words.build(french=5, english=0), [""], 16)[0]
    np.testing.assert_array_equal(denoiser.empty_caption(Denoiser()), ids)


@pytest.mark.parametrize(
    ("config", "padding"), [(CLIP_L, 49407), (OPENCLIP_H, 0), (OPENCLIP_BIGG, 0)]
)
def test_the_empty_caption_of_stable_diffusion(config, padding):
    expected = [49406, 49407] + [padding] * 75
    assert denoiser.empty_caption(Denoiser(text=config)).tolist() == expected


@pytest.mark.parametrize("masked", [True, False])
def test_only_an_unmasked_caption_is_seen_behind_its_end(masked):
    text = dataclasses.replace(DIT_MODEL.text, masked=masked)
    config = dataclasses.replace(DIT_MODEL, text=text)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(functools.partial(denoiser.init, config, SIZE), jax.random.key(0))
    weights = jax.tree.map(lambda s: rng.normal(0, 0.2, s.shape).astype(np.float32), shapes)
    caption = jnp.array([[2, 7, 3, 0, 0, 0], [2, 7, 3, 9, 9, 9]])
    x, t = jnp.ones((2, SIZE, SIZE, 3)), jnp.full((2,), 500.0)

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def images(weights):
        text = denoiser.encode(config, weights["text"], caption)
        return denoiser.predict_x0(config, weights["denoiser"], x, t, text)

    difference = jnp.abs(jnp.subtract(*images(weights))).max()
    assert (difference < 1e-5) if masked else (difference > 1e-3)


def test_zeros_stand_for_the_empty_caption_where_they_are_asked_for():
    """In training with dropped captions as in guidance, and for no other caption."""
    config = dataclasses.replace(DIT_MODEL, zero_empty=True)
    shapes = jax.eval_shape(functools.partial(denoiser.init, config, SIZE), jax.random.key(0))
    text = jax.tree.map(lambda s: jnp.full(s.shape, 0.1), shapes["text"])
    captions = jnp.stack([denoiser.empty_caption(config), jnp.array([2, 7, 3, 0, 0, 0])])
    found = jax.jit(lambda text: denoiser.encode(config, text, captions))(text)
    away = jax.jit(lambda text: denoiser.unconditional(config, text))(text)
    for both, none in ((found.tokens, away.tokens), (found.pooled, away.pooled)):
        assert not both[0].any()
        assert not none.any()
        assert both[1].any()
