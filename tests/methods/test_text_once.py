"""Captions encoded once: what a step is told, and does, is the same without the text encoders."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import published
import pytest
from tiny import DIT_MODEL, random_like, state_like

from jaxgen import methods, plan, stages
from jaxgen.config import Mesh
from jaxgen.diffusion import denoiser
from jaxgen.errors import UserError
from jaxgen.methods import diffusion, text_to_image
from jaxgen.methods.diffusion import Diffusion
from jaxgen.methods.ladd import Ladd
from jaxgen.methods.threshold_diffusion import ThresholdDiffusion
from jaxgen.models.dit import DiTConfig
from jaxgen.models.lora import Lora
from jaxgen.runtime import mesh as meshes
from jaxgen.runtime import once
from jaxgen.state import Once, spared

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # of diffusers
CAPTIONS = ["a red heart", "trois pommes vertes", "", "a red heart"]
LORA = Lora(rank=2, train_words=False)


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """Published weights of a family, with a transformer that compiles fast as their denoiser."""

    @functools.cache
    def of(family: str) -> stages.Loaded:
        folder = tmp_path_factory.mktemp("published") / family
        published.write(folder, published.FAMILIES[family])
        loaded = stages.read(folder)
        its: Any = loaded.config
        dit = DiTConfig(patch=4, width=16, depth=1, heads=2, context_width=its.model.context_width)
        if its.model.time_ids:
            dit = dataclasses.replace(dit, added_width=its.model.backbone.added_width)
        model = dataclasses.replace(its.model, network="dit", dit=dit, zero_empty=family == "sdxl")
        config = dataclasses.replace(its, codec="", model=model, text_once=True)
        fresh = random_like(lambda: denoiser.init(model, config.side, jax.random.key(0)))
        weights = {"text": loaded.weights["text"], "denoiser": fresh["denoiser"]}
        return dataclasses.replace(loaded, config=config, weights=weights)

    return of


def encoded(
    config: Any, frozen: Any, loaded: stages.Loaded, cache: Path
) -> tuple[dict[str, Any], dict[str, Any], Once, Any]:
    """(A batch with what its captions say, without, what computes that, for the empty caption)."""
    ids = methods.encode(config, loaded.tokenizer, CAPTIONS)
    (text,) = methods.of(config).once(config, frozen)
    told, empty = once.captions(text, ids, cache, lambda *_: None)
    assert {len(table.kept) for table in told.values()} == {3}, "equal captions are encoded once"
    side = config.data.size
    image = np.random.default_rng(0).integers(0, 256, (len(ids), side, side, 3), np.uint8)
    batch = {"image": image, "caption": ids}
    held = {field: table[np.arange(len(ids))] for field, table in told.items()}
    return batch | held, batch, text, empty


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_step_is_told_the_same(family: str, read, tmp_path: Path) -> None:
    loaded = read(family)
    config = dataclasses.replace(loaded.config, drop_caption=0.5)
    frozen = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), loaded.weights)
    held, batch, text, empty = encoded(config, frozen, loaded, tmp_path)

    @jax.jit
    def features(frozen, batch):
        dropped = diffusion.dropped(config, frozen, batch, jax.random.key(1))
        said = functools.partial(text_to_image.said, config, frozen)
        return said(batch), said(dropped), text_to_image.unsaid(config, frozen)

    expected, found = features(frozen, batch), features(spared(text, frozen, empty), held)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), found, expected)
    whole, dropped, _ = expected
    changed = np.any(np.abs(whole.tokens - dropped.tokens) > 1e-3, axis=(1, 2))
    assert 0 < changed.sum() < len(changed)


@pytest.mark.parametrize("name", ["diffusion", "ladd"])
def test_a_step_is_the_same(name: str, read, diffusion_config, tmp_path: Path) -> None:
    loaded = read({"diffusion": "sd21", "ladd": "sd15"}[name])
    its, steady = loaded.config, diffusion_config.optimizer
    common = {"data": its.data, "model": its.model, "optimizer": steady, "text_once": True}
    if name == "ladd":
        config: Any = Ladd(judge_optimizer=steady, width=8, **common)
    else:
        config = Diffusion(init_from="it", lora=LORA, **common)
    config.check()
    method = methods.of(config)
    frozen = method.frozen(config, {"teacher": loaded, "init_from": loaded})
    held, batch, text, empty = encoded(config, frozen, loaded, tmp_path)
    without = spared(text, frozen, empty)
    assert "text" not in {**without, **without.get("base", {})}

    state = state_like(functools.partial(method.init, config, without, jax.random.key(0)))
    step = jax.jit(functools.partial(method.train_step, config))
    (expected, terms), (found, same) = step(state, frozen, batch), step(state, without, held)
    for term, value in terms.items():
        np.testing.assert_allclose(same[term], value, rtol=1e-3, atol=1e-6, err_msg=term)
    close = functools.partial(np.testing.assert_allclose, atol=1e-5)
    jax.tree.map(close, found.opt_state, expected.opt_state)


def test_a_plan_has_neither_the_encoders_nor_their_work(diffusion_config) -> None:
    config: Any = Ladd(
        data=diffusion_config.data, model=DIT_MODEL, train=diffusion_config.train, text_once=True
    )
    mesh = meshes.make(Mesh(data=1), config.train.batch, jax.devices()[:1])
    frozen, _ = plan._arguments(config, mesh)
    batch, frozen = plan._batch(config, mesh, frozen)
    length, width = config.caption_length, config.model.context_width
    assert "text" not in frozen
    assert batch["text_tokens"].shape == (config.train.batch, length, width)


@pytest.mark.parametrize(
    "config",
    [
        Diffusion(),
        Diffusion(init_from="shipped", lora=Lora(rank=2)),
        Diffusion(
            init_from="shipped", lora=dataclasses.replace(LORA, targets=("attn2", "self_attn"))
        ),
        ThresholdDiffusion(model=dataclasses.replace(DIT_MODEL, prediction="x0")),
    ],
    ids=["all weights", "words", "the encoder's attention", "threshold"],
)
def test_a_trained_text_encoder_is_refused(config: Any) -> None:
    with pytest.raises(UserError, match="--text-once is for a run that leaves its text encoder"):
        dataclasses.replace(config, text_once=True).check()
