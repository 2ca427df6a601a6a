"""Training pictures drawn by a teacher: for which captions, resumable, and never stale."""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import SIZE

from jaxgen import methods, synthesis
from jaxgen.config import Data, Drawing
from jaxgen.data import drawn as sets
from jaxgen.data.source import Source
from jaxgen.diffusion import denoiser
from jaxgen.diffusion.sampler import Sampler
from jaxgen.errors import UserError
from jaxgen.methods import diffusion
from jaxgen.methods.diffusion import Diffusion
from jaxgen.runtime import mesh as meshes
from jaxgen.stages import Loaded
from jaxgen.text import tokenizer as words

COUNT = 20
DRAWING = Drawing(count=COUNT, steps=2, guidance=1.5)


@pytest.fixture(scope="module")
def source() -> Source:
    names = ("red", "green", "blue")
    return Source(
        name="imagefolder:somewhere",
        split="train",
        size=SIZE,
        images=np.zeros((3, SIZE, SIZE, 3), np.uint8),
        captions=tuple((name, f"a {name} square") for name in names),
        label_ids=np.array([2, 0, 1], np.int32),
        labels=("x", "y", "z"),
        ids=names,
        content="0",
    )


@pytest.fixture(scope="module")
def loaded(diffusion_config, source: Source) -> Loaded:
    tokenizer = words.build([text for texts in source.captions for text in texts])
    config = diffusion_config.resolved(tokenizer.get_vocab_size(), 3)
    shapes = jax.eval_shape(lambda: denoiser.init(config.model, SIZE, jax.random.key(0)))
    rng = np.random.default_rng(0)  # fresh, it would say 0 whatever it is asked
    weights = jax.tree.map(lambda s: rng.normal(0, 0.3, s.shape).astype(np.float32), shapes)
    return Loaded(config, tokenizer, weights, 1, Path("teacher"), source.labels)


@pytest.fixture
def config(diffusion_config, tmp_path: Path):
    return dataclasses.replace(diffusion_config, data=Data(root=str(tmp_path), size=SIZE))


@pytest.fixture
def unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is drawn, and no folder made."""

    def pictures(folder, captions, size, draw, progress):
        return np.zeros((len(captions), size, size, 3), np.uint8)

    monkeypatch.setattr(sets, "pictures", pictures)


def test_a_killed_drawing_ends_in_the_same_pictures(
    config, loaded: Loaded, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sets, "SHARD", 8)
    monkeypatch.setattr(meshes, "images_at_once", lambda size: 8)
    progress = []
    whole = synthesis.drawn(config, DRAWING, loaded, source, lambda *done: progress.append(done))
    assert progress == [(8, COUNT), (16, COUNT), (COUNT, COUNT)]
    images = np.asarray(whole.images)
    assert images.shape == (COUNT, SIZE, SIZE, 3)
    assert len(np.unique(images, axis=0)) == COUNT, "no two alike"
    number, teacher = 13, cast(Diffusion, loaded.config)  # whose noise a student can be given
    ids = jnp.asarray(methods.encode(teacher, loaded.tokenizer, [whole.captions[number][0]]))
    noise = diffusion.numbered_noise(teacher, config.seed, jnp.array([number]))
    sampler = Sampler(steps=DRAWING.steps, guidance=DRAWING.guidance)
    alone = diffusion.sample(teacher, loaded.weights, jax.random.key(9), ids, sampler, noise=noise)
    np.testing.assert_allclose(alone[0].astype(int), images[number].astype(int), atol=1)

    first, second, third = sorted((tmp_path / "drawn" / whole.content).iterdir())
    written = first.stat().st_mtime_ns
    second.write_bytes(second.read_bytes()[:1000])
    third.unlink()
    again = synthesis.drawn(config, DRAWING, loaded, source, lambda *done: None)
    np.testing.assert_array_equal(again.images, images)
    assert again.fingerprint == whole.fingerprint != source.fingerprint
    assert first.stat().st_mtime_ns == written, "what was sound was not drawn again"


@pytest.mark.usefixtures("unasked")
def test_every_picture_lends_its_captions_and_its_label(config, loaded, source) -> None:
    drawn = synthesis.drawn(config, DRAWING, loaded, source, lambda *done: None)
    rows = [next(n for n, texts in enumerate(source.captions) if t in texts)
            for (t,) in drawn.captions]  # fmt: skip
    assert sorted(Counter(rows).values()) == [6, 7, 7]
    assert len(set(drawn.captions)) == 6, "every way to say it"
    np.testing.assert_array_equal(drawn.label_ids, source.label_ids[rows])
    assert (drawn.labels, drawn.split, len(drawn)) == (source.labels, "train", COUNT)


@pytest.mark.usefixtures("unasked")
def test_the_key_holds_all_that_the_pictures_depend_on(config, loaded: Loaded, source) -> None:
    def key(config=config, drawing=DRAWING, loaded=loaded, source=source) -> str:
        return synthesis.drawn(config, drawing, loaded, source, lambda *done: None).content

    weights = jax.tree.map(np.copy, loaded.weights)
    weights["denoiser"]["proj_out"]["bias"][0] += 1e-6
    teacher: Any = loaded.config
    model = dataclasses.replace(teacher.model, prediction="x0")
    others = [
        key(loaded=dataclasses.replace(loaded, weights=weights)),
        key(loaded=dataclasses.replace(loaded, config=dataclasses.replace(teacher, model=model))),
        key(drawing=dataclasses.replace(DRAWING, steps=3)),
        key(drawing=dataclasses.replace(DRAWING, guidance=1.0)),
        key(drawing=dataclasses.replace(DRAWING, count=COUNT + 1)),
        key(config=dataclasses.replace(config, seed=1)),
        key(source=dataclasses.replace(source, captions=source.captions[::-1])),
    ]
    assert len({key(), *others}) == 8
    elsewhere = dataclasses.replace(teacher, name="renamed", workdir="elsewhere")
    moved = dataclasses.replace(loaded, config=elsewhere, folder=Path("moved"))
    assert key(loaded=moved) == key(), "a teacher may move"


def test_what_does_not_fit_is_one_line(config, loaded: Loaded, source) -> None:
    with pytest.raises(UserError, match="steps"):
        synthesis.drawn(
            config, dataclasses.replace(DRAWING, steps=0), loaded, source, lambda *done: None
        )
    network = {name: w for name, w in loaded.weights["denoiser"].items() if name != "proj_out"}
    wrong = {**loaded.weights, "denoiser": network}
    with pytest.raises(UserError, match=r"weights in teacher do not fit the config\.json"):
        synthesis.drawn(
            config,
            DRAWING,
            dataclasses.replace(loaded, weights=wrong),
            source,
            lambda *done: None,
        )
