"""Learning really happens: a handful of images is reproduced from its captions."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest

from jaxgen.config import Optimizer, Train
from jaxgen.diffusion import schedule as schedules
from jaxgen.diffusion.sampler import Sampler
from jaxgen.methods import diffusion
from jaxgen.methods.diffusion import Diffusion


@pytest.mark.parametrize(("prediction", "width"), [("x0", 16), ("flow", 64)])
def test_a_handful_of_images_is_reproduced(
    prediction: Any, width: int, diffusion_config: Diffusion, batch
) -> None:
    config = dataclasses.replace(
        diffusion_config,
        model=dataclasses.replace(
            diffusion_config.model,
            schedule=schedules.Schedule(kind="flow"),
            prediction=prediction,
            # A velocity has the noise in it, which a token must have room for.
            dit=dataclasses.replace(diffusion_config.model.dit, width=width),
        ),
        train=Train(steps=500, batch=16, ema=0.99),
        optimizer=Optimizer(learning_rate=4e-3, warmup=50),
    )
    many = {name: np.tile(v, (2,) + (1,) * (v.ndim - 1)) for name, v in batch.items()}
    state = jax.jit(functools.partial(diffusion.init, config))({}, jax.random.key(0))
    step = jax.jit(functools.partial(diffusion.train_step, config), donate_argnums=0)
    for _ in range(config.train.steps):
        state, metrics = step(state, {}, many)
    assert np.isfinite(metrics["loss"])
    sampler = Sampler(steps=25, guidance=1.0)
    weights = diffusion.weights(config, state, {})
    drawn = diffusion.sample(config, weights, jax.random.key(1), batch["caption"], sampler)
    wanted = np.asarray(batch["image"], np.float32)
    error = np.sqrt(np.mean((np.asarray(drawn, np.float32) - wanted) ** 2))
    mixed = np.sqrt(np.mean((np.asarray(drawn, np.float32) - np.roll(wanted, 1, 0)) ** 2))
    assert error < 25, "of 255; the images' own noise is 12"
    assert error < 0.4 * mixed, "each caption draws its own image"
