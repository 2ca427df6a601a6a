"""The autoencoder against `diffusers.AutoencoderKL`, and the discriminator of patches."""

import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from einops import rearrange

from jaxgen.errors import UserError
from jaxgen.models.autoencoder import SD_AUTOENCODER, Autoencoder, AutoencoderConfig, Posterior
from jaxgen.models.patch_discriminator import PatchDiscriminator, PatchDiscriminatorConfig
from jaxgen.weights.stable_diffusion import params_from_torch, params_to_torch

TINY = AutoencoderConfig(block_out=(8, 16), layers=1, groups=4)
BARE = dataclasses.replace(
    TINY, latent_channels=3, block_out=(8, 8, 16), layers=2, mid_attention=False, quant_conv=False
)


@pytest.mark.parametrize(
    ("config", "sides"), [(TINY, (8, 12)), (BARE, (8, 8))], ids=["sd", "three-levels-bare"]
)
def test_agrees_with_diffusers(config: AutoencoderConfig, sides: tuple[int, int]) -> None:
    model = _diffusers(config)
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    params = params_from_torch(state, _shapes(config))
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, *sides, 3)).astype(np.float32)
    cells = [side // config.factor for side in sides]
    latent = rng.normal(size=(2, *cells, config.latent_channels)).astype(np.float32)

    @jax.jit
    def run(image, latent):
        network = Autoencoder(config)
        posterior = network.apply({"params": params}, image, method="encode")
        return posterior, network.apply({"params": params}, latent, method="decode")

    with jax.default_matmul_precision("highest"):
        posterior, decoded = run(image, latent)
    with torch.no_grad():
        expected = model.encode(_nchw(image)).latent_dist  # pyright: ignore
        expected_image = model.decode(_nchw(latent)).sample  # pyright: ignore
    for ours, theirs in (
        (posterior.mean, expected.mean),
        (posterior.log_variance, expected.logvar),
        (decoded, expected_image),
    ):
        theirs = rearrange(theirs.numpy(), "b c h w -> b h w c")
        assert np.std(theirs) > 0.05
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max(), rtol=0)
    np.testing.assert_allclose(posterior.kl(), expected.kl().numpy(), rtol=1e-4)

    back = params_to_torch(params)
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        np.testing.assert_array_equal(back[name], tensor, err_msg=name)


def test_published_size() -> None:
    leaves = jax.tree.leaves(_shapes(SD_AUTOENCODER))
    assert sum(math.prod(leaf.shape) for leaf in leaves) == 83_653_863
    assert SD_AUTOENCODER.factor == 8


def test_patch_is_space_to_depth_and_counts_in_the_factor() -> None:
    folded = dataclasses.replace(BARE, channels=12)
    whole = dataclasses.replace(BARE, patch=2)
    assert (folded.factor, whole.factor) == (4, 8)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: 0.3 * rng.normal(size=leaf.shape), _shapes(whole))
    x = rng.normal(size=(1, 8, 16, 3))

    def run(config, x):
        return jax.jit(Autoencoder(config).apply)({"params": params}, x)

    expected = run(folded, rearrange(x, "b (h p) (w q) c -> b h w (p q c)", p=2, q=2))
    expected = rearrange(expected, "b h w (p q c) -> b (h p) (w q) c", p=2, q=2)
    chex.assert_shape(expected, (1, 8, 16, 3))
    chex.assert_trees_all_close(run(whole, x), expected, rtol=1e-5)


def test_bfloat16_and_remat_change_neither_parameters_nor_types() -> None:
    config = dataclasses.replace(TINY, dtype="bfloat16", remat="blocks")
    chex.assert_trees_all_equal_shapes_and_dtypes(_shapes(TINY), _shapes(config))
    image = jnp.zeros((1, 8, 8, 3))
    out = jax.eval_shape(Autoencoder(config).init_with_output, jax.random.key(0), image)[0]
    chex.assert_type(out, jnp.float32)


def test_a_posterior_is_the_gaussian_that_it_says() -> None:
    mean, log_variance = jnp.full((1, 200, 200, 1), 3.0), jnp.full((1, 200, 200, 1), -2.0)
    drawn = Posterior(mean, log_variance).sample(jax.random.key(0))
    np.testing.assert_allclose(drawn.mean(), 3, atol=0.01)
    np.testing.assert_allclose(drawn.std(), np.exp(-1), atol=0.01)


def test_log_variances_are_clipped() -> None:
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), _shapes(TINY))
    params["quant_conv"]["bias"] = jnp.asarray([1.0, -50, 50, 0, 1.0, -50, 50, 0])
    encode = jax.jit(lambda x: Autoencoder(TINY).apply({"params": params}, x, method="encode"))
    found = encode(jnp.ones((1, 2, 2, 3)))
    np.testing.assert_array_equal(found.mean[0, 0, 0], [1, -50, 50, 0])
    np.testing.assert_array_equal(found.log_variance[0, 0, 0], [1, -30, 20, 0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_out": (8, 18)}, "block_out 18 is not a multiple of groups 4"),
        ({"block_out": ()}, "width of one level or more"),
        ({"dtype": "float16"}, "dtype must be one of float32, bfloat16"),
        ({"patch": 0}, "patch must be at least 1"),
    ],
)
def test_impossible_shapes_are_refused(change, message) -> None:
    with pytest.raises(UserError, match=message):
        dataclasses.replace(TINY, **change)


@pytest.mark.parametrize(
    ("method", "shape", "message"),
    [
        ("encode", (1, 8, 7, 3), "image 8x7 is not a multiple of 2"),
        ("encode", (1, 8, 8, 4), "image has 4 channels, the config 3"),
        ("decode", (1, 4, 4, 3), "latent has 3 channels, the config 4"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(method, shape, message) -> None:
    with pytest.raises(UserError, match=message):
        jax.eval_shape(
            lambda x: Autoencoder(TINY).init(jax.random.key(0), x, method=method), jnp.zeros(shape)
        )


@pytest.mark.parametrize("layers", [1, 2])
def test_a_logit_sees_its_patch_and_no_batch(layers: int) -> None:
    config = PatchDiscriminatorConfig(width=8, layers=layers)
    network, side = PatchDiscriminator(config), 16 * layers
    image = jax.random.normal(jax.random.key(0), (3, side, side, 3))
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(network.init, jax.random.key(1), image)
    params = jax.tree.map(lambda leaf: 0.3 * rng.normal(size=leaf.shape), shapes)
    apply = jax.jit(lambda x: network.apply(params, x))
    logits = apply(image)
    chex.assert_shape(logits, (3, side // 2**layers - 2, side // 2**layers - 2))
    np.testing.assert_allclose(apply(image[1:2])[0], logits[1], atol=1e-4)
    smallest = jnp.zeros((1, config.smallest, config.smallest, 3))
    chex.assert_shape(jax.eval_shape(apply, smallest), (1, 1, 1))


def _diffusers(c: AutoencoderConfig) -> AutoencoderKL:
    torch.manual_seed(0)
    levels = len(c.block_out)
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * levels,  # pyright: ignore[reportArgumentType]
        block_out_channels=c.block_out,  # pyright: ignore[reportArgumentType]
        layers_per_block=c.layers,
        latent_channels=c.latent_channels,
        norm_num_groups=c.groups,
        use_quant_conv=c.quant_conv,
        use_post_quant_conv=c.quant_conv,
        mid_block_add_attention=c.mid_attention,
    )
    # PyTorch starts norms at 1 and 0: swapped or forgotten ones would not show.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def _nchw(x: np.ndarray) -> torch.Tensor:
    return torch.tensor(rearrange(x, "b h w c -> b c h w"))


def _shapes(c: AutoencoderConfig):
    image = jnp.zeros((1, 8 * c.factor, 8 * c.factor, c.channels))
    return jax.eval_shape(Autoencoder(c).init, jax.random.key(0), image)["params"]
