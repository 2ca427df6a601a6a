"""The DiT against `diffusers`' DiT and PixArt-α, and what it promises beside them."""

import dataclasses
import math
import re
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.embeddings import Timesteps, get_2d_sincos_pos_embed
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from einops import rearrange
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxgen.errors import UserError
from jaxgen.models.dit import DiT, DiTConfig, sincos_positions
from jaxgen.weights.stable_diffusion import params_from_torch, params_to_torch

TINY = DiTConfig(width=16, depth=2, heads=2, mlp=2, context_width=12, added_width=10)
BATCH, SIDES, LENGTH = 3, (6, 10), 5  # an odd and unequal number of patches a side
DIT_XL_2 = DiTConfig(channels=4, width=1152, depth=28, heads=16, context_width=768)


@pytest.fixture(scope="module")
def inputs():
    """Image, timestep, context, added, mask: no two samples alike."""
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape.shape).astype(np.float32) for shape in _inputs(TINY)]
    arrays[1] = np.array([3.0, 500.0, 987.0], np.float32)
    mask = np.array([[True] * 5, [True, True, False, True, False], [True] + [False] * 4])
    return *arrays, mask


@pytest.fixture(scope="module")
def fresh():
    return jax.jit(DiT(TINY).init)(jax.random.key(0), *_zeros(TINY))["params"]


@pytest.fixture(scope="module")
def perturbed(fresh):
    """Nothing is left at zero, which would make most tests vacuous."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: leaf + 0.2 * rng.normal(size=leaf.shape), fresh)


@pytest.fixture(scope="module")
def run():
    """(parameters, *inputs) -> image and the tokens of every block."""

    @jax.jit
    def both(params, *inputs):
        model, variables = DiT(TINY), {"params": params}
        image = model.apply(variables, *inputs)
        return image, model.apply(variables, *inputs, method=DiT.features)

    return both


def test_starts_at_zero_with_blocks_that_are_the_identity(run, fresh, inputs):
    image, features = run(fresh, *inputs)
    chex.assert_trees_all_equal(image, np.zeros_like(inputs[0]))
    patches = rearrange(inputs[0], "b (i p) (j q) c -> b (i j) (p q c)", p=2, q=2)
    kernel = np.asarray(fresh["pos_embed"]["proj"]["kernel"]).reshape(-1, TINY.width)
    tokens = patches @ kernel + np.asarray(sincos_positions(3, 5, TINY.width))
    np.testing.assert_allclose(features[0], tokens, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_equal(*features)


def test_agrees_with_the_dit_of_diffusers():
    config = dataclasses.replace(TINY, channels=4, mlp=4)
    model = DiTTransformer2DModel(
        num_attention_heads=config.heads,
        attention_head_dim=config.width // config.heads,
        in_channels=config.channels,
        num_layers=config.depth,
        sample_size=8,
        num_embeds_ada_norm=BATCH,
        norm_eps=1e-6,
    )
    state = _perturbed_state(model)
    rng = np.random.default_rng(0)
    embedder = "transformer_blocks.0.norm1.emb."
    ours = {name: tensor for name, tensor in state.items() if ".norm1.emb." not in name}
    ours |= _renamed(state, f"{embedder}timestep_embedder", "time_embedding")
    for of, to in (("proj_out_1", "norm_out.linear"), ("proj_out_2", "proj_out")):
        ours |= {f"{to}.{leaf}": ours.pop(f"{of}.{leaf}") for leaf in ("weight", "bias")}
    for name, shape in _torch_shapes(config).items():
        # Ours alone: captions. Cross-attention that puts out zero shows nothing of them.
        if ".attn2." in name:
            ours[name] = rng.normal(size=shape) * (".to_out." not in name)
        if name.startswith("add_embedding."):
            ours[name] = rng.normal(size=shape)

    # There, a table of classes in every block; here, what the pooled captions come to.
    added = rng.normal(size=(BATCH, config.added_width)).astype(np.float32)
    hidden = added @ ours["add_embedding.linear_1.weight"].T + ours["add_embedding.linear_1.bias"]
    hidden = hidden / (1 + np.exp(-hidden))
    classes = hidden @ ours["add_embedding.linear_2.weight"].T
    classes += ours["add_embedding.linear_2.bias"]
    state[f"{embedder}class_embedder.embedding_table.weight"][:BATCH] = classes
    for i in range(1, config.depth):
        state |= _renamed(state, embedder, f"transformer_blocks.{i}.norm1.emb.")
    model.load_state_dict({name: torch.tensor(tensor) for name, tensor in state.items()})
    for module in model.modules():
        if isinstance(module, Timesteps):  # the authors' own frequencies stop short of 1/10000
            module.downscale_freq_shift = 0

    x = rng.normal(size=(BATCH, 8, 8, config.channels)).astype(np.float32)
    context = rng.normal(size=(BATCH, LENGTH, config.context_width)).astype(np.float32)
    timestep = np.array([3, 500, 987])
    params = params_from_torch(ours, _shapes(config))
    actual = jax.jit(DiT(config).apply)({"params": params}, x, timestep, context, added)
    with torch.no_grad():
        expected = model(
            torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(timestep), torch.arange(BATCH)
        ).sample
    _assert_agree(actual, expected)


def test_agrees_with_the_cross_attention_of_pixart(inputs):
    # Sides of unequal length and a mask of the caption. PixArt-α modulates all its blocks by one
    # linear layer and a table each, and its end by the bare timestep: one timestep for all samples
    # makes that a bias here.
    config = dataclasses.replace(TINY, mlp=4, added_width=0)
    model = PixArtTransformer2DModel(
        num_attention_heads=config.heads,
        attention_head_dim=config.width // config.heads,
        in_channels=config.channels,
        out_channels=config.channels,
        num_layers=config.depth,
        cross_attention_dim=config.context_width,
        sample_size=8,
    )
    state = _perturbed_state(model)
    x, _, context, _, mask = inputs
    timestep = np.full(BATCH, 400.0, np.float32)
    with torch.no_grad():
        _, embedded = model.adaln_single(torch.tensor(timestep), hidden_dtype=torch.float32)
        grid = get_2d_sincos_pos_embed(config.width, 8, base_size=8).float()
        grid = grid.reshape(8, 8, -1)[: SIDES[0] // 2, : SIDES[1] // 2].flatten(0, 1)[None]
        model.pos_embed.register_buffer("pos_embed", grid, persistent=False)
        model.pos_embed.height, model.pos_embed.width = SIDES[0] // 2, SIDES[1] // 2
        expected = model(
            torch.tensor(x).permute(0, 3, 1, 2),
            torch.tensor(context),
            torch.tensor(timestep),
            encoder_attention_mask=torch.tensor(mask),
        ).sample

    ours = {
        name: tensor
        for name, tensor in state.items()
        if not name.startswith("adaln_single.") and not name.endswith("scale_shift_table")
    }
    ours |= _renamed(state, "adaln_single.emb.timestep_embedder", "time_embedding")
    for i in range(config.depth):
        block = f"transformer_blocks.{i}"
        table = state[f"{block}.scale_shift_table"].flatten()
        ours[f"{block}.norm1.linear.weight"] = state["adaln_single.linear.weight"]
        ours[f"{block}.norm1.linear.bias"] = state["adaln_single.linear.bias"] + table
    ours["norm_out.linear.weight"] = np.zeros((2 * config.width, config.width))
    ours["norm_out.linear.bias"] = (state["scale_shift_table"] + embedded[0].numpy()).flatten()
    params = params_from_torch(ours, _shapes(config))
    actual = jax.jit(DiT(config).apply)({"params": params}, x, timestep, context, None, mask)
    _assert_agree(actual, expected)


def test_positions_are_a_corner_of_the_square_grid_of_diffusers():
    # Its own grids of unequal sides are stretched to squares: pixels would not be square.
    grid = get_2d_sincos_pos_embed(24, 11, base_size=11).reshape(11, 11, 24)
    expected = grid[:4, :7].flatten(0, 1).numpy()
    np.testing.assert_allclose(sincos_positions(4, 7, 24), expected, rtol=0, atol=2e-6)


def test_masked_tokens_and_other_samples_do_not_matter(run, perturbed, inputs):
    x, timestep, context, added, mask = inputs
    image, _ = run(perturbed, *inputs)
    assert np.std(image) > 0.1

    masked = np.where(mask[..., None], context, 1e3)
    chex.assert_trees_all_close(run(perturbed, x, timestep, masked, added, mask)[0], image)
    seen = context.copy()
    seen[1, 3] += 1  # a token that sample 1 sees
    other, _ = run(perturbed, x, timestep, seen, added, mask)
    assert np.abs(other[1] - image[1]).max() > 1e-3
    chex.assert_trees_all_close(other[jnp.array([0, 2])], image[jnp.array([0, 2])])

    for which, array in enumerate(inputs[:4]):
        changed = list(inputs)
        changed[which] = array.copy()
        changed[which][0] += 1
        other, _ = run(perturbed, *changed)
        assert np.abs(other[0] - image[0]).max() > 1e-3
        chex.assert_trees_all_close(other[1:], image[1:])


def test_no_mask_is_a_mask_of_all(run, perturbed, inputs):
    *others, mask = inputs
    image, _ = run(perturbed, *others, np.ones_like(mask))
    chex.assert_trees_all_close(run(perturbed, *others)[0], image, rtol=1e-4, atol=1e-5)


def test_gradient_reaches_every_parameter(perturbed, inputs):
    config = dataclasses.replace(TINY, remat="blocks")

    def loss(params):
        image: Any = DiT(config).apply({"params": params}, *inputs)
        return jnp.mean(jnp.square(image))

    gradient = jax.jit(jax.grad(loss))(perturbed)
    # Keys' biases are the one exception: they shift all logits of a query alike.
    leaves: dict[str, Any] = flatten_dict(gradient, sep="/")
    for path, leaf in leaves.items():
        largest = float(jnp.abs(leaf).max())
        assert math.isfinite(largest)
        assert (largest > 1e-5) != path.endswith("to_k/bias"), (path, largest)


def test_features_are_the_tokens_of_every_block(run, perturbed, inputs):
    tokens = SIDES[0] * SIDES[1] // TINY.patch**2
    # The final layer without its condition: what it makes of tokens can be written down.
    shift, scale = np.random.default_rng(2).normal(size=(2, TINY.width))
    flat: dict[tuple[str, ...], Any] = flatten_dict(perturbed)
    flat["norm_out", "linear", "kernel"] = np.zeros((TINY.width, 2 * TINY.width))
    flat["norm_out", "linear", "bias"] = np.concatenate([shift, scale])
    image, features = run(unflatten_dict(flat), *inputs)
    assert len(features) == TINY.depth
    chex.assert_shape(features, (BATCH, tokens, TINY.width))
    assert np.abs(features[0] - features[1]).max() > 0.1

    last = np.asarray(features[-1], np.float64)
    last = (last - last.mean(-1, keepdims=True)) / np.sqrt(last.var(-1, keepdims=True) + 1e-6)
    expected = (last * (1 + scale) + shift) @ flat["proj_out", "kernel"]
    expected += flat["proj_out", "bias"]
    expected = rearrange(expected, "b (i j) (p q c) -> b (i p) (j q) c", i=3, j=5, p=2, q=2)
    np.testing.assert_allclose(image, expected, rtol=1e-4, atol=1e-4)


def test_bfloat16_keeps_parameters_and_result_in_float32():
    config = dataclasses.replace(TINY, dtype="bfloat16", remat="blocks")
    arrays = jax.eval_shape(DiT(config).init_with_output, jax.random.key(0), *_inputs(config))
    chex.assert_type(jax.tree.leaves(arrays), jnp.float32)
    chex.assert_trees_all_equal_shapes_and_dtypes(arrays[1]["params"], _shapes(TINY))
    features = jax.eval_shape(
        lambda *args: DiT(config).apply(*args, method=DiT.features), arrays[1], *_inputs(config)
    )
    chex.assert_type(features, jnp.bfloat16)


def test_published_size():
    # DiT-XL/2 as its authors count it: 1001 classes and a table of positions, which ours has not,
    # variances as well as means put out, and no captions.
    count = {name: math.prod(shape) for name, shape in _torch_shapes(DIT_XL_2).items()}
    own = sum(size for name, size in count.items() if ".attn2." not in name)
    width, variances = DIT_XL_2.width, count["proj_out.weight"] + count["proj_out.bias"]
    assert own + 1001 * width + 16**2 * width + variances == 675_129_632


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 18, "heads": 3}, "width 18 is not a multiple of 4, as its positions need"),
        ({"heads": 3}, "width 16 is not a multiple of heads 3"),
        ({"heads": 0}, "heads must be at least 1, not 0"),
        ({"depth": 0}, "depth must be at least 1, not 0"),
        ({"mlp": 0}, "mlp must be at least 1, not 0"),
        ({"added_width": -1}, "added_width must be 0 or more, not -1"),
        ({"dtype": "float16"}, "dtype must be one of float32, bfloat16, not 'float16'"),
    ],
)
def test_impossible_shapes_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(TINY, **change)


@pytest.mark.parametrize(
    ("which", "shape", "message"),
    [
        (0, (1, 7, 8, 3), "image 7x8 is not a multiple of patch 2"),
        (0, (1, 8, 8, 4), "image has 4 channels, the config 3"),
        (2, (1, 5, 11), "context has width 11, the config 12"),
        (3, None, "added has width 0, the config 10"),
        (3, (1, 9), "added has width 9, the config 10"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(which, shape, message):
    wrong: list[Any] = [*_inputs(TINY)]
    wrong[which] = None if shape is None else jax.ShapeDtypeStruct(shape, jnp.float32)
    with pytest.raises(UserError, match=message):
        jax.eval_shape(DiT(TINY).init, jax.random.key(0), *wrong)


def _perturbed_state(model: torch.nn.Module) -> dict[str, np.ndarray]:
    torch.manual_seed(0)
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


def _renamed(state, of: str, to: str) -> dict[str, np.ndarray]:
    return {
        re.sub(f"^{re.escape(of)}", to, name): tensor
        for name, tensor in state.items()
        if name.startswith(of)
    }


def _assert_agree(actual, torch_image: torch.Tensor) -> None:
    expected = torch_image.permute(0, 2, 3, 1).numpy()
    spread = float(np.std(expected))
    assert spread > 0.1
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4 * spread)


def _inputs(c: DiTConfig) -> list[jax.ShapeDtypeStruct]:
    shapes = [(BATCH, *SIDES, c.channels), (BATCH,), (BATCH, LENGTH, c.context_width)]
    shapes += [(BATCH, c.added_width)] if c.added_width else []
    return [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]


def _zeros(c: DiTConfig) -> list[jax.Array]:
    return [jnp.zeros(leaf.shape) for leaf in _inputs(c)]


def _shapes(c: DiTConfig):
    return jax.eval_shape(DiT(c).init, jax.random.key(0), *_inputs(c))["params"]


def _torch_shapes(c: DiTConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor's name and shape in PyTorch, without the memory for it."""
    zero = np.zeros(())
    empty = jax.tree.map(lambda leaf: np.broadcast_to(zero, leaf.shape), _shapes(c))
    return {name: tensor.shape for name, tensor in params_to_torch(empty).items()}
