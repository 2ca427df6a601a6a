"""The trainer's sample grids: the same pictures on any mesh, and no device draws them all."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import methods, train
from jaxgen.config import Mesh, Train
from jaxgen.diffusion.sampler import Sampler
from jaxgen.methods.diffusion import Diffusion
from jaxgen.runtime import mesh as meshes
from jaxgen.text import tokenizer as words

CAPTIONS = [f"picture {name}" for name in "abcdefghijkl"]


class Drawing:
    """A method whose images tell of the caption and the noise, and that notes what it is given."""

    def __init__(self) -> None:
        self.given: list[tuple[int, ...]] = []

    def sample(self, config: Any, weights: Any, key: Any, ids: Any, sampler: Any) -> jax.Array:
        self.given.append(ids.shape)
        noise = jax.random.randint(key, (len(ids), 2, 2, 2), 0, 256)
        said = jnp.broadcast_to(ids.sum(1)[:, None, None, None], (len(ids), 2, 2, 1))
        return jnp.concatenate([noise, said], axis=-1).astype(jnp.uint8)

    def shown(self, config: Any, state: Any, frozen: Any) -> list[tuple[str, Any, Sampler]]:
        return [("drawn", frozen, Sampler(steps=1))]


class Pictures:
    captions = tuple((text,) for text in CAPTIONS)

    def __len__(self) -> int:
        return len(CAPTIONS)


def drawn(
    config: Diffusion, mesh: Mesh, batch: int, folder: Path
) -> tuple[np.ndarray, Drawing, train._Show]:
    method: Any = Drawing()
    source: Any = Pictures()
    config = dataclasses.replace(config, train=Train(batch=batch), shown=tuple(CAPTIONS))
    tokenizer, place = words.build(CAPTIONS), meshes.make(mesh, batch)
    show = train._Show(config, method, place, dict, source, tokenizer, folder)
    ((title, images, seconds),) = show._drawn(SimpleNamespace(), timed=True)  # pyright: ignore[reportArgumentType]
    assert title == "drawn"
    assert seconds > 0
    ids = methods.encode(config, tokenizer, CAPTIONS)
    np.testing.assert_array_equal(images[:, 0, 0, 2], ids.sum(1).astype(np.uint8))
    return images, method, show


@pytest.mark.parametrize(
    ("mesh", "batch", "at_once", "a_device"),
    [
        (Mesh(data=1), 16, 12, 12),  # as many as are shown
        (Mesh(data=4), 16, 12, 3),
        (Mesh(data=2, fsdp=4), 16, 16, 2),  # four more, which nobody sees
        (Mesh(data=1, fsdp=8), 8, 8, 1),  # in two portions
        (Mesh(data=4), 8, 8, 2),
        (Mesh(data=1), 5, 5, 5),
    ],
)
def test_a_device_draws_no_more_than_its_share_and_no_more_than_it_trains_on(
    mesh: Mesh,
    batch: int,
    at_once: int,
    a_device: int,
    diffusion_config: Diffusion,
    tmp_path: Path,
) -> None:
    images, method, show = drawn(diffusion_config, mesh, batch, tmp_path)
    assert images.shape == (12, 2, 2, 3)
    assert {shape[0] for shape in method.given} == {at_once}
    assert len(method.given) == 1, "each portion by the same program"
    for ids in show._portions:
        assert {part.data.shape[0] for part in ids.addressable_shards} == {a_device}


def test_the_pictures_are_the_same_on_any_mesh(diffusion_config: Diffusion, tmp_path: Path) -> None:
    for batch in (8, 16):
        first, *others = (
            drawn(diffusion_config, mesh, batch, tmp_path)[0]
            for mesh in (Mesh(data=1), Mesh(data=4), Mesh(data=2, fsdp=4))
        )
        for other in others:
            np.testing.assert_array_equal(other, first)
        noise = first[..., :2].reshape(12, -1)
        assert len(np.unique(noise, axis=0)) == 12, "two of the pictures start from one noise"
