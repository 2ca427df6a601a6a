"""Tuning on flags, with stand-ins for the data, the training and the network that grades."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import finetune_flags
from benchmarks.finetune_flags import Asked, Options
from jaxgen import quality
from jaxgen.data.source import Source
from jaxgen.errors import UserError
from jaxgen.runtime import run
from jaxgen.weights import files

FLAGS = np.stack([np.full((32, 32, 3), 20 * n, np.uint8) for n in range(12)])
FLAGS[:, :, 16:] = 255 - FLAGS[:, :, 16:] // 2


def drawn(count: int) -> Source:
    """The first flags, each with captions in three languages."""
    captions = tuple((f"flag {n}", f"drapeau {n}", f"Flagge {n}") for n in range(count))
    ids = tuple(f"1F{n}" for n in range(count))
    return Source("openmoji", "flags", 32, FLAGS[:count], captions, np.zeros(count, np.int32),
                  ("flags",), ids, "content")  # fmt: skip


@pytest.fixture
def flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Options, Path]:
    """Options, and the folder of 11 flags that was written by them."""
    monkeypatch.setattr(finetune_flags, "FLAGS", 11)
    options = Options(folder=str(tmp_path / "tuned"))
    with monkeypatch.context() as patched:
        patched.setattr(finetune_flags, "open_source", lambda *_: drawn(len(FLAGS)))
        return options, finetune_flags._written(options)


def test_the_folder_of_flags_is_asked_for_in_english_then_in_french(flags) -> None:
    options, folder = flags
    entries = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert len(entries) == len(list(folder.glob("*.png"))) == 11
    for entry in entries:
        number = entry["file_name"].removeprefix("1F").removesuffix(".png")
        assert entry["text"] == [f"flag {number}", f"drapeau {number}"]
    new = finetune_flags._new(options, folder)
    learnt = len(new.images)
    assert learnt < 11, "some are held out"
    assert len(new.captions) == 2 * learnt
    for k, word in enumerate(("flag", "drapeau")):
        for n, caption in enumerate(new.captions[k * learnt : (k + 1) * learnt]):
            kind, number = caption.split()
            assert (kind, new.own[k * learnt + n]) == (word, n)
            np.testing.assert_array_equal(new.images[n], FLAGS[int(number)])


def test_measures_of_drawings_that_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    own = np.array([0, 1, 2, 0, 1, 2])
    new = Asked([str(n) for n in range(6)], FLAGS[:3], own)
    old = Asked(["a", "b"], FLAGS[10:], np.arange(2))
    eyes = SimpleNamespace(features=lambda images: np.eye(13)[images[:, 0, 0, 0] // 20])
    monkeypatch.setattr(quality, "grader", lambda *_, **__: eyes)
    before = np.stack([np.full((32, 32, 3), value, np.uint8) for value in (100, 110)])
    found = finetune_flags._measured(
        new,
        old,
        {
            "before": (np.roll(FLAGS[:3], 1, axis=0)[own], before),
            "full": (FLAGS[own], before + np.uint8(3)),
            "lora": (FLAGS[[0, 1, 2, 1, 2, 0]], FLAGS[10:]),
        },
    )
    shares = [row["flags, retrieval@1"]["value"] for row in found.values()]
    assert shares == [0.0, 1.0, 0.5]
    assert found["full"]["flags, RMSE"] == 0 < found["lora"]["flags, RMSE"]
    assert [found[name]["old captions, change"] for name in ("before", "full")] == [0, 3]
    assert {row["old captions, unlike"] for row in found.values()} == {10}
    assert found["lora"]["old captions, RMSE to real"] == 0


def test_rmse_is_of_each_picture_and_does_not_wrap() -> None:
    black, white = np.zeros((2, 4, 4, 3), np.uint8), np.full((2, 4, 4, 3), 255, np.uint8)
    assert finetune_flags._rmse(black, white) == finetune_flags._rmse(white, black) == 255
    half = np.concatenate([black[:1], white[:1]])
    assert finetune_flags._rmse(black, half) == 127.5
    white[:, :2] = 0
    assert finetune_flags._rmse(black, white) == pytest.approx(255 / np.sqrt(2))


def test_the_picture_has_flags_by_turns_in_two_languages_then_old_captions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = {}

    def grid(columns, captions, scale):
        told.update(columns=dict(columns), captions=captions, scale=scale)

    monkeypatch.setattr(finetune_flags.pictures, "grid", grid)
    new = Asked(["flag 0", "flag 1", "drapeau 0", "drapeau 1"], FLAGS[:2], np.array([0, 1, 0, 1]))
    old = Asked(list("abcdef"), FLAGS[6:], np.arange(6))
    pair = np.concatenate([255 - FLAGS[:2], FLAGS[:2]]), FLAGS[:6]
    finetune_flags._grid(new, old, {"before": pair})
    assert told["captions"] == ["flag 0", "drapeau 1", "a", "b", "c", "d"]
    np.testing.assert_array_equal(told["columns"]["real"], FLAGS[[0, 1, 6, 7, 8, 9]])
    expected = np.concatenate([255 - FLAGS[:1], FLAGS[1:2], FLAGS[:4]])
    np.testing.assert_array_equal(told["columns"]["before"], expected)


def test_seconds_are_those_of_a_whole_training_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    code = 0

    def trained(command: list[str], **how) -> SimpleNamespace:
        del how
        commands.append(command)
        run_folder = tmp_path / "full"
        run_folder.mkdir(exist_ok=True)
        (run_folder / run.CONFIG).write_text("{}")
        if not code:
            files.save(run_folder / run.WEIGHTS, {"a": np.ones(1)}, {"step": "800"})
        return SimpleNamespace(returncode=code)

    monkeypatch.setattr(subprocess, "run", trained)
    options, flags = Options(folder=str(tmp_path)), tmp_path / "flags"
    assert finetune_flags._tuned(options, flags, "full"), "some seconds"
    assert f"--data.name=imagefolder:{flags}" in commands[0]
    assert {"--train.steps=800", "--lora.rank=0"} <= set(commands[0])
    assert finetune_flags._tuned(options, flags, "full") is None, "it was finished"
    (tmp_path / "full" / run.WEIGHTS).unlink()
    assert finetune_flags._tuned(options, flags, "full") is None, "it was begun"
    with pytest.raises(UserError, match="trained for 800 steps, not 700; give --steps=800"):
        finetune_flags._tuned(Options(folder=str(tmp_path), steps=700), flags, "full")
    assert len(commands) == 3
    code = 2
    with pytest.raises(UserError, match=r"tuning \(full\) ended with code 2"):
        finetune_flags._tuned(options, flags, "full")


def test_no_steps_are_refused() -> None:
    with pytest.raises(UserError, match="--steps is 0; give 1 or more"):
        Options(steps=0).check()
