"""Tuning what a run has learnt: all weights, or LoRA's adapters beside them."""

import dataclasses
import functools
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from tiny import DIT_MODEL, MODEL, SIZE, VOCABULARY, random_like

from jaxgen import config as configs
from jaxgen import stages
from jaxgen.config import Data, Train
from jaxgen.diffusion import denoiser
from jaxgen.diffusion.sampler import Sampler
from jaxgen.errors import UserError
from jaxgen.methods import diffusion, text_to_image
from jaxgen.methods.classifier import Classifier
from jaxgen.methods.diffusion import Diffusion
from jaxgen.models.lora import WORDS, Lora
from jaxgen.stages import Loaded
from jaxgen.text import tokenizer as words
from jaxgen.weights import files

STEPS = 100


@pytest.fixture(scope="module")
def base():
    """Weights as of a finished run: nothing is left at zero but the words that it never met."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(functools.partial(denoiser.init, MODEL, SIZE), jax.random.key(0))
    flat = {}
    for path, leaf in flatten_dict(shapes).items():
        fan_in = np.prod(leaf.shape[:-1]) if path[-1] == "kernel" else 400
        noise = rng.standard_normal(leaf.shape) / np.sqrt(fan_in) + (path[-1] == "scale")
        flat[path] = jnp.asarray(noise, jnp.float32)
    flat[WORDS] = flat[WORDS].at[4:].set(0.0)
    return unflatten_dict(flat)


@pytest.fixture(scope="module")
def full(diffusion_config: Diffusion) -> Diffusion:
    model = dataclasses.replace(MODEL, prediction="x0")
    return dataclasses.replace(diffusion_config, model=model, init_from="shipped")


@pytest.fixture(scope="module")
def lora_config(full: Diffusion) -> Diffusion:
    return dataclasses.replace(
        full,
        lora=Lora(rank=8, targets=("*",), alpha=8.0),
        train=dataclasses.replace(full.train, steps=STEPS, ema=0.5),
        optimizer=dataclasses.replace(full.optimizer, learning_rate=2e-2),
        drop_caption=0.0,
    )


@pytest.fixture(scope="module")
def tuned(lora_config: Diffusion, base, batch):
    """(adapters at first, states after 2 and STEPS steps, losses)."""
    state = diffusion.init(lora_config, {"base": base}, jax.random.key(0))
    first = jax.tree.map(jnp.copy, state.params["generator"])
    step = jax.jit(functools.partial(diffusion.train_step, lora_config))
    early, losses = state, []
    for number in range(STEPS):
        state, metrics = step(state, {"base": base}, batch)
        losses.append(float(metrics["loss"]))
        early = state if number == 1 else early
    return first, early, state, losses


def test_one_batch_is_learnt_by_adapters(tuned) -> None:
    *_, losses = tuned
    assert np.mean(losses[-10:]) < 0.35 * np.mean(losses[:3])


def test_one_batch_is_learnt_by_all_weights(diffusion_config: Diffusion, batch) -> None:
    config = dataclasses.replace(
        diffusion_config,
        init_from="shipped",
        model=dataclasses.replace(DIT_MODEL, prediction="x0"),
        optimizer=dataclasses.replace(diffusion_config.optimizer, learning_rate=1e-2),
        drop_caption=0.0,
    )
    frozen = {"base": random_like(lambda: denoiser.init(config.model, SIZE, jax.random.key(0)))}
    state = diffusion.init(config, frozen, jax.random.key(0))
    step = jax.jit(functools.partial(diffusion.train_step, config))
    losses = []
    for _ in range(100):
        state, metrics = step(state, frozen, batch)
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-10:]) < 0.1 * np.mean(losses[:3])


def test_after_two_steps_both_factors_of_every_adapter_have_moved(tuned) -> None:
    first, early, _, _ = tuned
    before, after = flatten_dict(first), flatten_dict(early.params["generator"])
    assert {path[-1] for path in before} == {"a", "b", "delta"}
    for path, value in before.items():
        assert np.abs(after[path] - value).max() > 0, path


def test_new_words_may_learn_faster_than_known_ones(full: Diffusion, base) -> None:
    config = dataclasses.replace(full, new_word_rate=5.0)
    step = jax.tree.map(lambda leaf: leaf + 0.5, base)
    moved = flatten_dict(diffusion._hastened(config, base, base, step))
    change = moved.pop(WORDS) - flatten_dict(base)[WORDS]
    np.testing.assert_allclose(change[:4], 0.5, rtol=1e-5)
    np.testing.assert_allclose(change[4:], 2.5, rtol=1e-5)
    rest = {path: leaf for path, leaf in flatten_dict(step).items() if path != WORDS}
    chex.assert_trees_all_equal(moved, rest)
    adapters = {"text": {WORDS[1]: {WORDS[2]: {"delta": jnp.zeros((VOCABULARY, 16))}}}}
    step = jax.tree.map(jnp.ones_like, adapters)
    (change,) = jax.tree.leaves(diffusion._hastened(config, base, adapters, step))
    np.testing.assert_array_equal(change[:, 0], [1.0] * 4 + [5.0] * (VOCABULARY - 4))


def test_only_words_met_in_tuning_get_a_row(tuned, lora_config: Diffusion, base, batch) -> None:
    *_, state, _ = tuned
    weights = diffusion.weights(lora_config, state, {"base": base})
    met = frozenset(np.unique(batch["caption"]).tolist())
    before = text_to_image.seen_words(base)
    assert not before >= met
    assert diffusion.seen_words(weights) == before | met
    apart = dataclasses.replace(
        lora_config, lora=dataclasses.replace(lora_config.lora, merge=False)
    )
    kept = diffusion.weights(apart, state, {"base": base})
    assert diffusion.seen_words(kept) == before | met


def test_merged_and_unmerged_weights_are_the_same_to_sampling_also_from_a_file(
    tuned, lora_config: Diffusion, base, batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    *_, state, _ = tuned
    apart = dataclasses.replace(
        lora_config, lora=dataclasses.replace(lora_config.lora, merge=False)
    )
    one, both = (diffusion.weights(c, state, {"base": base}) for c in (lora_config, apart))
    assert one.keys() == {"text", "denoiser"}
    assert both.keys() == {"text", "denoiser", "lora"}
    chex.assert_trees_all_equal({name: both[name] for name in base}, base)
    files.save(tmp_path / "model.safetensors", both, {})
    both, _ = files.load(tmp_path / "model.safetensors")

    # Sampling itself is tested elsewhere.
    monkeypatch.setattr(text_to_image, "sample", lambda config, weights, *_: weights)
    sampled: Any = diffusion.sample(
        apart, both, jax.random.key(1), batch["caption"], Sampler(steps=1)
    )
    chex.assert_trees_all_close(sampled, one, atol=1e-6)
    by_hand = {path: np.asarray(leaf) for path, leaf in flatten_dict(base).items()}
    change = {path: np.asarray(leaf) for path, leaf in flatten_dict(both["lora"]).items()}
    for *path, part in change:
        if part == "a":  # alpha / rank is 1
            by_hand[*path] = by_hand[*path] + change[*path, "a"] @ change[*path, "b"]
    by_hand[WORDS] = by_hand[WORDS] + change[*WORDS, "delta"]
    chex.assert_trees_all_close(flatten_dict(one), by_hand, atol=1e-5)


def test_tuning_all_weights_starts_from_exactly_those_of_the_run(full: Diffusion, base) -> None:
    state = jax.jit(functools.partial(diffusion.init, full))({"base": base}, jax.random.key(0))
    chex.assert_trees_all_equal(state.params["generator"], base)
    chex.assert_trees_all_equal(diffusion.weights(full, state, {"base": base}), base)


def test_tuning_with_adapters_starts_from_exactly_those_of_the_run(
    lora_config: Diffusion, base
) -> None:
    state = diffusion.init(lora_config, {"base": base}, jax.random.key(0))
    chex.assert_trees_all_equal(diffusion.weights(lora_config, state, {"base": base}), base)


def test_what_was_drawn_before_is_shown_beside(full: Diffusion, base) -> None:
    frozen = {"base": base}
    state = jax.eval_shape(lambda: diffusion.init(full, frozen, jax.random.key(0)))
    titles = [title for title, _, _ in diffusion.shown(full, state, frozen)]
    assert titles == ["before, 1 step", "50 steps", "1 step"]


def found(config: Diffusion, weights) -> dict[str, Loaded]:
    tokenizer = words.build(french=10, english=10)
    return {"init_from": Loaded(config, tokenizer, weights, 1, Path("runs/base"), ())}


def test_the_run_is_taken_with_its_adapters_and_with_rows_for_new_words(
    tuned, lora_config: Diffusion, full: Diffusion, base
) -> None:
    *_, state, _ = tuned
    apart = dataclasses.replace(
        lora_config, lora=dataclasses.replace(lora_config.lora, merge=False)
    )
    kept = diffusion.weights(apart, state, {"base": base})
    merged = diffusion.weights(lora_config, state, {"base": base})
    chex.assert_trees_all_close(
        diffusion.frozen(full, found(apart, kept))["base"], merged, atol=1e-6
    )
    larger = full.resolved(VOCABULARY + 3, 1)
    assert isinstance(larger, Diffusion)
    taken = flatten_dict(diffusion.frozen(larger, found(full, base))["base"])
    table = flatten_dict(base)[WORDS]
    np.testing.assert_array_equal(taken[WORDS], np.pad(table, ((0, 3), (0, 0))))
    with pytest.raises(UserError, match=r"weights in runs/base do not fit"):
        diffusion.frozen(full, found(full, {**base, "denoiser": {}}))
    text = dataclasses.replace(full.model.text, vocabulary=0)
    unknown = dataclasses.replace(full, model=dataclasses.replace(full.model, text=text))
    smaller = unknown.resolved(VOCABULARY - 3, 1)
    assert isinstance(smaller, Diffusion)
    with pytest.raises(UserError, match=r"weights in runs/base do not fit"):
        diffusion.frozen(smaller, found(full, base))


def test_a_run_of_another_shape_is_refused_naming_both_sides(full: Diffusion) -> None:
    def other(**changes):
        return dataclasses.replace(full, model=dataclasses.replace(full.model, **changes))

    unet = dataclasses.replace(MODEL.unet, block_out=(16, 32))
    text = dataclasses.replace(MODEL.text, layers=2)
    for its, message in (
        (other(unet=unet), "--init-from here has model.unet.block_out (16, 32), this run has (16,"),
        (other(text=text), "--init-from here has model.text.layers 2, this run has 1"),
        (other(prediction="v"), "--init-from here has model.prediction v, this run has x0"),
        (other(network="dit"), "--init-from here has model.network dit, this run has unet"),
        (Classifier(name="c"), "--init-from here is a run of classifier, not of a diffusion model"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            full.accept("init_from", its, "here")


def test_runs_of_another_size_vocabulary_or_precision_are_taken(full: Diffusion) -> None:
    text = dataclasses.replace(MODEL.text, vocabulary=7)
    unet = dataclasses.replace(MODEL.unet, dtype="bfloat16", remat="blocks", gather_once=True)
    dit = dataclasses.replace(MODEL.dit, depth=2)  # not the network in use
    model = dataclasses.replace(full.model, text=text, unet=unet, dit=dit)
    other = dataclasses.replace(full, data=Data(size=64), train=Train(steps=5), model=model)
    full.accept("init_from", other, "here")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_from": "train"}, "--init-from 'train' trains nothing first"),
        ({"init_from": "diffusion"}, "--init-from 'diffusion' trains nothing first"),
        ({"init_from": "efficientnet-lite0"}, "--init-from 'efficientnet-lite0'"),
        ({"init_from": "", "lora": Lora(rank=2)}, "--lora.rank 2 adapts weights that are there"),
        ({"new_word_rate": 0.0}, "--new-word-rate is 0.0"),
        ({"lora": Lora(rank=-2)}, "--lora.rank is -2"),
        ({"lora": Lora(rank=17)}, "--lora.rank is 17, but "),
        ({"lora": Lora(rank=2, targets=("atn1",))}, "--lora.targets 'atn1' matches no matrix"),
    ],
)
def test_impossible_fields_are_refused(full: Diffusion, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        dataclasses.replace(full, **changes).check()


def test_a_config_with_lora_is_checked_before_jax_looks_for_devices() -> None:
    program = (
        "import jax; from jaxgen import config\n"
        "config.parse(config.load('finetune'), ['--lora.rank=8'], 'train')\n"
        "jax.config.update('jax_num_cpu_devices', 2)"  # as the doors do, and too late once JAX ran
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_config_starts_from_the_diffusion_model_that_comes_with_jaxgen() -> None:
    config = configs.load("finetune")
    (stage,) = stages.plan(config)
    assert stage.sources == {"init_from": stages.shipped("diffusion")}
    with pytest.raises(UserError, match=r"is a run of classifier"):
        stages.plan(dataclasses.replace(config, init_from=str(stages.shipped("classifier"))))  # pyright: ignore


def test_one_picture_is_too_few_to_tune_on(full: Diffusion) -> None:
    assert full.fewest_pictures == 2
    assert dataclasses.replace(full, init_from="").fewest_pictures == 1
