"""The vision transformer computes what CLIP's image encoder and DINOv2 compute."""

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
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
)

from jaxgen.errors import UserError
from jaxgen.models.vit import (
    CLIP_VIT_L_336,
    DINOV2_VIT_L,
    DINOV2_VIT_S,
    ViT,
    VitClassifier,
    VitConfig,
    VitFeatures,
    resampled,
)
from jaxgen.weights.vit import clip_params, dinov2_params

SMALL: Any = {"patch": 4, "width": 32, "depth": 2, "heads": 4}
CLIP = dataclasses.replace(CLIP_VIT_L_336, **SMALL, size=16, projection=24)
DINOV2 = dataclasses.replace(DINOV2_VIT_L, **SMALL, size=16, offset=0.0)
IMAGES = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)

# Tiny networks: the time goes into compiling.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
assert_close = functools.partial(np.testing.assert_allclose, atol=2e-5, rtol=1e-4)


def perturbed(model: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    return model.eval()


def state_of(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def encode(config: VitConfig, params: Any, images: np.ndarray) -> VitFeatures:
    return cast(VitFeatures, jit(ViT(config).apply)({"params": params}, images))


def nchw(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def clip() -> torch.nn.Module:
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=128,
        projection_dim=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=16,
        patch_size=4,
    )
    return perturbed(CLIPVisionModelWithProjection(config))


@pytest.fixture(scope="module")
def dinov2() -> torch.nn.Module:
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=4
    )
    return perturbed(Dinov2Model(config))


def test_matches_clip_found_in_the_whole_models_file(clip: torch.nn.Module) -> None:
    state = state_of(clip) | {
        "text_model.final_layer_norm.weight": np.ones(3, np.float32),
        "logit_scale": np.ones((), np.float32),
        "vision_model.embeddings.position_ids": np.arange(17)[None],
    }
    ours = encode(CLIP, clip_params(state, CLIP), IMAGES)
    with torch.no_grad():
        theirs = clip(nchw(IMAGES))
        tokens = cast(Any, clip).vision_model.post_layernorm(theirs.last_hidden_state)
    assert_close(ours.pooled, theirs.image_embeds)
    assert_close(ours.tokens, tokens)


PUBLISHED = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
}


@pytest.mark.parametrize(
    ("names", "sides"),
    [(PUBLISHED, (16, 16)), ({}, (12, 24))],
    ids=["published names, own grid", "names of transformers 5, another grid"],
)
def test_matches_dinov2(
    dinov2: torch.nn.Module, names: dict[str, str], sides: tuple[int, int]
) -> None:
    state = state_of(dinov2)
    assert "embeddings.mask_token" in state
    for new, old in names.items():
        state = {name.replace(new, old): tensor for name, tensor in state.items()}
    images = np.random.default_rng(1).normal(size=(2, *sides, 3)).astype(np.float32)
    with torch.no_grad():
        theirs = dinov2(nchw(images))
    ours = encode(DINOV2, dinov2_params(state, DINOV2), images)
    assert_close(ours.tokens, theirs.last_hidden_state)
    assert_close(ours.pooled, theirs.pooler_output)


@pytest.mark.parametrize(("old", "new"), [(37, 16), (4, 9), (5, 5)])
def test_positions_step_as_dinov2s_authors_do(old: int, new: int) -> None:
    positions = np.random.default_rng(2).normal(size=(1 + old * old, 3)).astype(np.float32)
    ours = resampled(jnp.asarray(positions), (old, old), (new, new), 0.1)
    patches = torch.from_numpy(positions[1:]).reshape(1, old, old, 3).permute(0, 3, 1, 2)
    factor = (new + 0.1) / old
    theirs = torch.nn.functional.interpolate(patches, scale_factor=(factor, factor), mode="bicubic")
    if old == new:  # they, too, leave a table alone that fits
        theirs = patches
    np.testing.assert_array_equal(ours[0], positions[0])
    assert_close(ours[1:], theirs.permute(0, 2, 3, 1).reshape(-1, 3))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (CLIP_VIT_L_336, 304_293_888),
        (DINOV2_VIT_L, 304_367_616),
        (DINOV2_VIT_S, 22_056_192),
    ],
    ids=["CLIP ViT-L/14-336", "DINOv2 ViT-L/14", "DINOv2 ViT-S/14"],
)
def test_published_parameter_counts(config: VitConfig, expected: int) -> None:
    image = jax.ShapeDtypeStruct((1, config.size, config.size, 3), jnp.float32)
    shapes = jax.eval_shape(ViT(config).init, jax.random.key(0), image)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == expected


def test_weights_of_another_model_are_refused(
    clip: torch.nn.Module, dinov2: torch.nn.Module
) -> None:
    with pytest.raises(UserError, match=r"do not fit this network: .* missing"):
        clip_params(state_of(dinov2), CLIP)
    with pytest.raises(UserError, match=r"do not fit this network: .* missing"):
        dinov2_params(state_of(clip), DINOV2)
    deeper = dataclasses.replace(DINOV2, size=20)
    with pytest.raises(UserError, match=r"positions is \(17, 32\)"):
        dinov2_params(state_of(dinov2), deeper)


def test_a_classifier_sees_where_things_are_and_learns() -> None:
    network = VitClassifier(VitConfig(classes=3, **SMALL))
    variables = jit(network.init)(jax.random.key(0), IMAGES)

    @jit
    def step(variables: Any) -> tuple[Any, Any, Any]:
        def loss(variables: Any) -> Any:
            out: Any = network.apply(variables, IMAGES)
            chosen = jax.nn.log_softmax(out.logits)[jnp.arange(2), jnp.array([0, 2])]
            return -chosen.mean(), out

        (_, out), gradient = jax.value_and_grad(loss, has_aux=True)(variables)
        swapped: Any = network.apply(variables, jnp.flip(jnp.asarray(IMAGES), 1))
        return out, swapped.pooled, gradient

    out, swapped, gradient = step(variables)
    chex.assert_shape(out.logits, (2, 3))
    chex.assert_shape(out.pooled, (2, 32))
    assert np.abs(out.pooled - swapped).max() > 1e-2
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


def test_impossible_shapes_are_refused() -> None:
    with pytest.raises(UserError, match="width 30 is no multiple of its 4 heads"):
        VitConfig(width=30, heads=4)
    with pytest.raises(UserError, match="depth is 0"):
        VitConfig(depth=0)
    with pytest.raises(UserError, match="size 30 is no multiple of the patch of 4"):
        VitConfig(size=30)
    with pytest.raises(UserError, match="18 x 16 px"):
        ViT(VitConfig(**SMALL)).init(jax.random.key(0), jnp.zeros((1, 16, 18, 3)))
