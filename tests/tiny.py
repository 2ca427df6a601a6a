"""The smallest networks that have every part, a batch for them, and what they drew."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from benchmarks.meshes import BATCH, DIT, LENGTH, SIZE, TEXT, UNET, VOCABULARY
from jaxgen.config import Data, Optimizer, Train
from jaxgen.diffusion import denoiser
from jaxgen.diffusion.denoiser import Denoiser
from jaxgen.methods.add import Add
from jaxgen.methods.diffusion import Diffusion
from jaxgen.models.efficientnet import EfficientNetLite0
from jaxgen.models.eyes import Eyes
from jaxgen.models.judge import JudgeConfig
from jaxgen.runtime import pictures
from jaxgen.state import State
from jaxgen.weights.efficientnet import load_efficientnet_lite0

__all__ = ["BATCH", "LENGTH", "SIZE", "VOCABULARY"]
MODEL = Denoiser(text=TEXT, unet=UNET)
# A transformer of one block compiles in a third of the time of the smallest UNet.
DIT_MODEL = dataclasses.replace(MODEL, network="dit", dit=DIT)


@pytest.fixture(scope="session")
def diffusion_config() -> Diffusion:
    return Diffusion(
        name="tiny",
        data=Data(size=SIZE),
        model=DIT_MODEL,
        train=Train(steps=100, batch=BATCH),
        optimizer=Optimizer(learning_rate=1e-3, warmup=0, decay="constant"),
    )


@pytest.fixture(scope="session")
def add_config(diffusion_config: Diffusion) -> Add:
    return Add(
        name="tiny-add",
        data=diffusion_config.data,
        model=DIT_MODEL,
        judge=JudgeConfig(taps=(0, 1), resize=32, augment=("color", "translation", "cutout")),
        train=diffusion_config.train,
        optimizer=diffusion_config.optimizer,
        judge_optimizer=dataclasses.replace(diffusion_config.optimizer, learning_rate=3e-3),
    )


@pytest.fixture(scope="session")
def batch() -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (BATCH, 1, 1, 3))
    noise = rng.integers(-20, 21, (BATCH, SIZE, SIZE, 3))
    caption = np.zeros((BATCH, LENGTH), np.int32)
    caption[:, 0], caption[:, 1], caption[:, 2] = 2, np.arange(BATCH) + 4, 3
    return {
        "image": jnp.asarray(np.clip(colours + noise, 0, 255), jnp.uint8),
        "caption": jnp.asarray(caption),
        "label": jnp.zeros((BATCH,), jnp.int32),
    }


def random_like(make: Callable[[], Any], seed: int = 0) -> Any:
    """Weights of the shapes that `make` would give, without compiling it; none of them is zero."""
    rng = np.random.default_rng(seed)

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        wide = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 400
        about = 1.0 if jax.tree_util.keystr(path).endswith("['scale']") else 0.0
        return jnp.asarray(about + rng.normal(size=leaf.shape) / np.sqrt(wide), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(make))


def state_like(make: Callable[[], State], **players: Any) -> State:
    """A state as `make` would give at step 0, but of random weights, or those of `players`."""
    state = random_like(make)
    params = {**state.params, **players}
    return State(
        step=jnp.zeros_like(state.step),
        params=params,
        ema={name: params.get(name, average) for name, average in state.ema.items()},
        opt_state=jax.tree.map(jnp.zeros_like, state.opt_state),
    )


def drawn_on(sheet: Path, count: int, across: int, columns: int = 1) -> np.ndarray:
    """uint8 [count, columns, h, w, 3]: the images alone of a sheet that `sample` wrote.

    They are of side SIZE, and `across` captions stand beside each other.
    """
    side, scale = 128, 128 // SIZE
    margin, text = pictures.MARGIN, pictures.TEXT
    width, height = columns * (side + margin) + 2 * margin, side + text + 2 * margin
    found = np.empty((count, columns, SIZE, SIZE, 3), np.uint8)
    with Image.open(sheet) as picture:
        page = np.asarray(picture)
    for n, column in np.ndindex(count, columns):
        x = n % across * width + margin + column * (side + margin)
        y = 2 * (text + 2) + n // across * height
        cell = page[y : y + side, x : x + side]
        found[n, column] = cell[::scale, ::scale]
        enlarged = found[n, column].repeat(scale, 0).repeat(scale, 1)
        np.testing.assert_array_equal(cell, enlarged, "something beside an image")
    return found


def assert_followed(optimizer: Optimizer, opt_state: Any, gradient: Any) -> None:
    """A first step was given this gradient, sign and all, at every array of the tree.

    Adam's first moment is then (1 - b1) times the gradient, clipped.
    """
    moment = optax.tree.get(opt_state, "mu")
    chex.assert_trees_all_equal_shapes(moment, gradient)
    norm = np.linalg.norm([np.linalg.norm(leaf) for leaf in jax.tree.leaves(gradient)])
    assert norm > 1e-4, "or nothing is compared"
    share = (1 - optimizer.b1) * min(1.0, optimizer.clip / norm)

    def compare(path: Any, got: Any, whole: Any) -> None:
        expected = share * np.asarray(whole, np.float64)
        far = np.linalg.norm(np.asarray(got, np.float64) - expected)
        near = 2e-3 * np.linalg.norm(expected) + 1e-5 * share * norm
        assert far <= near, f"{jax.tree_util.keystr(path)}: {far} > {near}"

    jax.tree_util.tree_map_with_path(compare, moment, gradient)


@pytest.fixture(scope="session")
def frozen() -> dict[str, Any]:
    """Teacher and eyes; nothing is left at zero, which would make tests of gradients vacuous."""
    weights = random_like(lambda: denoiser.init(DIT_MODEL, SIZE, jax.random.key(0)))
    return {
        "teacher": weights["denoiser"],
        "text": weights["text"],
        "eyes": Eyes(EfficientNetLite0(), load_efficientnet_lite0()["params"]),
    }
