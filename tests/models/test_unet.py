"""The UNet against `diffusers.UNet2DConditionModel`, and its weights in and out."""

import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from einops import rearrange

from jaxgen.errors import UserError
from jaxgen.models.unet import (
    SD15_UNET,
    SD21_UNET,
    SDXL_UNET,
    ResnetBlock,
    SpatialTransformer,
    UNet,
    UNetConfig,
)
from jaxgen.weights.stable_diffusion import params_from_torch, params_to_torch

TINY = UNetConfig(
    channels=4,
    block_out=(16, 32),
    layers=1,
    attention=(True, False),
    transformer_depth=(1, 1),
    heads=(2, 2),
    context_width=12,
    linear_projection=False,
    groups=8,
)
ONE_LEVEL = dataclasses.replace(
    TINY, block_out=(8,), attention=(True,), transformer_depth=(1,), heads=(2,)
)
SD15_LIKE = TINY
SD21_LIKE = dataclasses.replace(TINY, layers=2, heads=(2, 4), linear_projection=True)
SDXL_LIKE = dataclasses.replace(
    TINY,
    block_out=(16, 24),
    attention=(False, True),
    transformer_depth=(1, 2),
    heads=(2, 3),
    linear_projection=True,
    added_width=20,
)
SDXL_IDS, SDXL_ID_WIDTH, SDXL_POOLED = 2, 6, 8  # 2 x 6 + 8 = added_width
QUICK_COMPILE = {"xla_backend_optimization_level": 0}


@pytest.mark.parametrize(
    ("config", "sides", "mask"),
    [
        (SD15_LIKE, (8, 12), [[True] * 5, [True, True, False, True, False]]),
        (SD21_LIKE, (7, 9), None),
        (SDXL_LIKE, (8, 8), None),
    ],
    ids=["sd15-mask", "sd21-odd-sides", "sdxl"],
)
def test_agrees_with_diffusers(config, sides, mask):
    model = _diffusers_unet(config)
    state = _state(model)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *sides, config.channels)).astype(np.float32)
    timestep = np.array([3.0, 987.0], np.float32)
    context = rng.normal(size=(2, 5, config.context_width)).astype(np.float32)

    added, conditions = None, None
    if config.added_width:
        ids = rng.uniform(0, 1000, size=(2, SDXL_IDS)).astype(np.float32)
        pooled = rng.normal(size=(2, SDXL_POOLED)).astype(np.float32)
        conditions = {"time_ids": torch.tensor(ids), "text_embeds": torch.tensor(pooled)}
        with torch.no_grad():
            sinusoids = model.add_time_proj(torch.tensor(ids).flatten()).reshape(2, -1).numpy()
        added = np.concatenate([pooled, sinusoids], axis=-1)

    params = params_from_torch(state, _shapes(config))
    apply = jax.jit(UNet(config).apply, compiler_options=QUICK_COMPILE)
    mask = None if mask is None else np.array(mask)
    actual = apply({"params": params}, x, timestep, context, added, mask)
    with torch.no_grad():
        expected = model(
            torch.tensor(x).permute(0, 3, 1, 2),
            torch.tensor(timestep),
            torch.tensor(context),
            added_cond_kwargs=conditions,
            encoder_attention_mask=None if mask is None else torch.tensor(mask),
        ).sample
    expected = expected.permute(0, 2, 3, 1).numpy()
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_weights_survive_the_round_trip():
    state = _state(_diffusers_unet(SDXL_LIKE))
    back = params_to_torch(params_from_torch(state, _shapes(SDXL_LIKE)))
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        np.testing.assert_array_equal(back[name], tensor, err_msg=name)


def test_weights_that_do_not_fit_are_named():
    target = {"conv_in": {"kernel": jnp.zeros((3, 3, 4, 8)), "bias": jnp.zeros(8)}}
    fitting = {"conv_in.weight": np.zeros((8, 4, 3, 3)), "conv_in.bias": np.zeros(8)}
    chex.assert_trees_all_equal_shapes(params_from_torch(fitting, target), target)
    with pytest.raises(UserError, match=r"missing, first conv_in.bias \(8,\)"):
        params_from_torch({"conv_in.weight": fitting["conv_in.weight"]}, target)
    with pytest.raises(UserError, match=r"left over, first conv_out.bias \(3,\)"):
        params_from_torch(fitting | {"conv_out.bias": np.zeros(3)}, target)
    named = r"conv_in.weight is \(8, .*, the network's is \(8, 4, 3, 3\)"
    for wrong in (np.zeros((8, 3, 3, 3)), np.zeros((8, 4))):
        with pytest.raises(UserError, match=named):
            params_from_torch(fitting | {"conv_in.weight": wrong}, target)


@pytest.mark.parametrize(
    ("config", "parameters"),
    [(SD15_UNET, 859_520_964), (SD21_UNET, 865_910_724), (SDXL_UNET, 2_567_463_684)],
    ids=["sd15", "sd21", "sdxl"],
)
def test_published_sizes(config, parameters):
    leaves = jax.tree.leaves(_shapes(config))
    assert sum(math.prod(leaf.shape) for leaf in leaves) == parameters


def test_patch_is_space_to_depth():
    folded = dataclasses.replace(ONE_LEVEL, channels=12)
    whole = dataclasses.replace(ONE_LEVEL, channels=3, patch=2)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: 0.1 * rng.normal(size=leaf.shape), _shapes(whole))
    x, timestep, context = (rng.normal(size=leaf.shape) for leaf in _inputs(whole, (8, 12)))

    def run(config, x):
        apply = jax.jit(UNet(config).apply, compiler_options=QUICK_COMPILE)
        return apply({"params": params}, x, timestep, context)

    expected = run(folded, rearrange(x, "b (h p) (w q) c -> b h w (p q c)", p=2, q=2))
    expected = rearrange(expected, "b h w (p q c) -> b (h p) (w q) c", p=2, q=2)
    chex.assert_shape(expected, (2, 8, 12, 3))
    chex.assert_trees_all_close(run(whole, x), expected)


def test_bfloat16_keeps_parameters_and_result_in_float32():
    config = dataclasses.replace(ONE_LEVEL, dtype="bfloat16", remat="blocks")
    arrays = jax.eval_shape(
        UNet(config).init_with_output, jax.random.key(0), *_inputs(config, (8, 8))
    )
    chex.assert_type(jax.tree.leaves(arrays), jnp.float32)


def test_blocks_start_as_the_identity():
    x = jnp.linspace(-1, 1, 2 * 4 * 4 * 8).reshape(2, 4, 4, 8)
    float32 = jnp.dtype("float32")
    for block, conditions in (
        (ResnetBlock(8, 2, float32), (jnp.ones((2, 3)),)),
        (SpatialTransformer(2, 1, 2, False, float32), (jnp.ones((2, 5, 3)), None)),
    ):
        init = jax.jit(block.init_with_output, compiler_options=QUICK_COMPILE)
        chex.assert_trees_all_equal(init(jax.random.key(0), x, *conditions)[0], x)


def test_remat_changes_no_parameter_name():
    remat = dataclasses.replace(TINY, remat="blocks")
    chex.assert_trees_all_equal_shapes_and_dtypes(_shapes(TINY), _shapes(remat))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_out": (16, 20)}, "block_out 20 is not a multiple of groups 8"),
        ({"heads": (2, 3)}, "block_out 32 is not a multiple of heads 3"),
        ({"heads": (2,)}, "heads .* one entry for each of the 2 levels"),
        ({"dtype": "float16"}, "dtype must be one of float32, bfloat16"),
        ({"patch": 0}, "patch must be at least 1"),
    ],
)
def test_impossible_shapes_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(TINY, **change)


@pytest.mark.parametrize(
    ("sides", "change", "message"),
    [
        ((7, 8), {"patch": 2}, "image 7x8 is not a multiple of patch 2"),
        ((8, 8), {"added_width": 20}, "added has width 0, the config 20"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(sides, change, message):
    config = dataclasses.replace(TINY, **change)
    x, timestep, context, *_ = _inputs(config, sides)
    with pytest.raises(UserError, match=message):
        jax.eval_shape(UNet(config).init, jax.random.key(0), x, timestep, context)


def _diffusers_unet(c: UNetConfig) -> UNet2DConditionModel:
    torch.manual_seed(0)
    added = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": SDXL_ID_WIDTH,
        "projection_class_embeddings_input_dim": c.added_width,
    }
    model = UNet2DConditionModel(
        in_channels=c.channels,
        out_channels=c.channels,
        block_out_channels=c.block_out,
        layers_per_block=c.layers,
        down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in c.attention),
        up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in c.attention[::-1]),
        transformer_layers_per_block=c.transformer_depth,  # pyright: ignore[reportArgumentType]
        attention_head_dim=c.heads,  # pyright: ignore[reportArgumentType]
        cross_attention_dim=c.context_width,
        use_linear_projection=c.linear_projection,
        norm_num_groups=c.groups,
        **(added if c.added_width else {}),
    )
    # PyTorch starts norms at 1 and 0: swapped or forgotten ones would not show.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def _state(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def _inputs(c: UNetConfig, sides: tuple[int, int]):
    shapes = [(2, *sides, c.channels), (2,), (2, 5, c.context_width), (2, c.added_width)]
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return arrays if c.added_width else arrays[:3]


def _shapes(c: UNetConfig):
    return jax.eval_shape(UNet(c).init, jax.random.key(0), *_inputs(c, (16, 16)))["params"]
