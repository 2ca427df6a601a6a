"""Both networks of the GAN: how they start, what they resample, what they refuse."""

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from tiny import random_like

from jaxgen.errors import UserError
from jaxgen.models.gan import Discriminator, GanConfig, Generator, downsampled, upsampled

CONFIG = GanConfig(noise=8, condition=8, generator=(8, 16), discriminator=(8, 16), patch=2)
B, SIZE, WIDTH = 256, 16, 12


def drawn(key: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(key), shape)


Z, POOLED, IMAGE = drawn(0, B, 8), drawn(1, B, WIDTH), drawn(2, B, SIZE, SIZE, 3)


@functools.cache
def started(config: GanConfig) -> tuple[jax.Array, jax.Array]:
    """Images and logits at the start."""

    @jax.jit
    def run():
        image, _ = Generator(config, SIZE).init_with_output(jax.random.key(3), Z, POOLED)
        logit, _ = Discriminator(config).init_with_output(jax.random.key(4), IMAGE, POOLED)
        return image, logit

    return run()


def test_outputs_start_at_about_unit_scale():
    image, logit = started(CONFIG)
    chex.assert_shape(image, (B, SIZE, SIZE, 3))
    chex.assert_shape(logit, (B,))
    assert 0.4 < image.std() < 2.5
    assert 0.1 < logit.std() < 3
    assert not np.allclose(image[0], image[1]), "each latent has an image of its own"


def test_blocks_start_as_the_identity():
    """Fixup: however deep the networks, their outputs at the start are those of the skips."""
    deeper = started(dataclasses.replace(CONFIG, blocks=3))
    for one, three in zip(started(CONFIG), deeper, strict=True):
        np.testing.assert_allclose(one, three, rtol=1e-5, atol=1e-5)


def test_several_captions_are_judged_as_one_by_one():
    network: Any = Discriminator(CONFIG)
    params = network.init(jax.random.key(5), IMAGE[:4], POOLED[:4])
    several = jnp.stack([POOLED[:4], POOLED[4:8], POOLED[8:12]], 1)
    logits = network.apply(params, IMAGE[:4], several)
    chex.assert_shape(logits, (4, 3))
    for k in range(3):
        one = network.apply(params, IMAGE[:4], several[:, k])
        np.testing.assert_allclose(logits[:, k], one, rtol=1e-4, atol=1e-5)


def test_resampling_is_bilinear_as_in_pytorch():
    x = IMAGE[:2, :8, :6]
    for_torch = torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)
    theirs = torch.nn.functional.interpolate(
        for_torch, scale_factor=2, mode="bilinear", align_corners=False
    )
    np.testing.assert_allclose(upsampled(x), theirs.permute(0, 2, 3, 1), atol=1e-6)
    theirs = torch.nn.functional.interpolate(
        for_torch, scale_factor=0.5, mode="bilinear", antialias=True
    )
    np.testing.assert_allclose(downsampled(x), theirs.permute(0, 2, 3, 1), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"noise": 0}, "noise is 0"),
        ({"generator": ()}, "generator"),
        ({"discriminator": (8, -1)}, "discriminator"),
    ],
)
def test_impossible_shapes_are_refused(change, told):
    with pytest.raises(UserError, match=told):
        dataclasses.replace(CONFIG, **change)


def test_sizes_that_do_not_fit_name_the_option():
    CONFIG.check(16)
    with pytest.raises(UserError, match=r"--data.size 18 is not a multiple of 4.*generator"):
        CONFIG.check(18)
    deep = dataclasses.replace(CONFIG, discriminator=(8, 8, 8, 8))
    with pytest.raises(UserError, match=r"multiple of 16.*4 levels of the discriminator"):
        deep.check(24)


def test_every_block_of_the_generator_is_told_what_to_draw():
    network: Any = Generator(CONFIG, SIZE)
    params = random_like(lambda: network.init(jax.random.key(3), Z[:1], POOLED[:1]))["params"]
    blocks = [name for name in params if name.startswith("block")]
    assert len(blocks) == 2
    image = network.apply({"params": params}, Z[:2], POOLED[:2])
    for name in blocks:
        deaf = dict(params)
        deaf[name] = {
            **params[name],
            "latent": jax.tree.map(jnp.zeros_like, params[name]["latent"]),
        }
        assert not np.allclose(image, network.apply({"params": deaf}, Z[:2], POOLED[:2])), name
