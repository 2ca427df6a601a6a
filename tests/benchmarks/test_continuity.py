"""Continuity of codes: what is done to the images, what is measured of codes that are known."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import continuity
from jaxgen.config import Data, Experiment, Train
from jaxgen.errors import UserError
from jaxgen.methods.diffusion import Diffusion
from jaxgen.methods.vae import Vae
from jaxgen.runtime import mesh as meshes
from jaxgen.runtime import run
from jaxgen.text import tokenizer as words
from jaxgen.weights import files

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (12, 4, 4, 3)).astype(np.uint8)
FLAT = np.broadcast_to(IMAGES[:, :1, :1], IMAGES.shape)


def test_shifted_images_stand_one_pixel_to_the_right_and_repeat_their_border() -> None:
    (row,) = continuity.shifted(np.array([[[[1] * 3, [2] * 3, [3] * 3]]], np.uint8))[0]
    assert row[:, 0].tolist() == [1, 1, 2]


def test_colours_turn_about_grey_by_a_twelfth_of_the_circle() -> None:
    grey = np.array([0, 77, 255], np.uint8)[None, :, None, None].repeat(3, axis=-1)
    np.testing.assert_array_equal(continuity.recoloured(grey), grey)
    red, green = np.array([[150, 90, 90], [90, 150, 90]], np.uint8)
    turned = [red[None, None, None]]
    for _ in range(12):
        turned.append(continuity.recoloured(turned[-1]))
    np.testing.assert_allclose(turned[4].ravel(), green, atol=4)  # a third, 4 times rounded
    np.testing.assert_allclose(turned[12].ravel(), red, atol=8)
    assert len({image.tobytes() for image in turned[:12]}) == 12
    yellow = np.array([[[[255, 255, 0]]]], np.uint8)
    assert continuity.recoloured(yellow)[0, 0, 0, 1] == 255, "clipped, not wrapped"


def pixels(images: np.ndarray) -> np.ndarray:
    return images.astype(np.float32)


def test_distances_are_shares_of_the_distance_between_two_images() -> None:
    own = continuity.distances(pixels, IMAGES)
    scaled = continuity.distances(lambda images: 5 * pixels(images), IMAGES)
    for name, value in own.items():
        np.testing.assert_allclose(scaled[name], value, rtol=1e-5, err_msg=name)
    # Of independent values two differ by √2 deviations, and shifted ones in 3 of 4 columns.
    assert own["pair"].value == pytest.approx(np.sqrt(2), rel=0.05)
    assert own["shifted"].value == pytest.approx(np.sqrt(3 / 4), rel=0.1)
    assert 0.1 < own["recoloured"].value < own["shifted"].value
    flat = continuity.distances(pixels, FLAT)
    assert flat["shifted"].value == 0
    assert flat["recoloured"].value > 0.1
    # A code that sees no colour stays where colours turn, but for what is rounded and clipped.
    grey = continuity.distances(lambda images: pixels(images).mean(-1, keepdims=True), IMAGES // 2)
    assert grey["recoloured"].value < 0.05 < grey["shifted"].value


def test_midpoints_are_further_from_real_images_than_reconstructions() -> None:
    network: Any = SimpleNamespace(features=lambda images: pixels(images).reshape(-1, 48)[:, :3])
    kept: list[np.ndarray] = []

    def decode(codes: np.ndarray) -> np.ndarray:
        kept.append(codes)
        return np.rint(codes)

    real = network.features(IMAGES)
    found = continuity.plausibility(pixels, decode, IMAGES, real, network)
    codes, middle = kept
    np.testing.assert_array_equal(codes, IMAGES)
    # Every image is once the one and once the other of a pair: the mean stays, and half of the
    # variance goes.
    np.testing.assert_allclose(middle.mean(0), codes.mean(0), atol=1e-3)
    assert middle.std() < 0.85 * codes.std()
    assert found["reconstructions"].value == pytest.approx(0, abs=1e-3)
    assert found["midpoints"].value > 100


def test_pixels_are_their_own_codes() -> None:
    encode, decode = continuity._of_pixels()
    np.testing.assert_array_equal(decode(encode(IMAGES)), IMAGES)
    assert decode(encode(IMAGES) + 0.4).dtype == np.uint8


def test_the_table_has_a_row_for_each_subject() -> None:
    value = {"value": 0.25, "low": 0.2, "high": 0.3}
    found = {"subjects": {"pixels": {"shifted": value}, "vae": {"shifted": value | {"low": 0.1}}}}
    head, pixel, vae = continuity.table(found).splitlines()
    assert head.split() == ["shifted"]
    assert pixel.split(maxsplit=1) == ["pixels", "0.250 (0.200 to 0.300)"]
    assert vae.split(maxsplit=1) == ["vae", "0.250 (0.100 to 0.300)"]
    assert len(head) == len(pixel) == len(vae)


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Experiment], None]:
    """Writes the folder of a run that looks finished; the weights are none."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(meshes, "prepare", lambda *_: None)
    tokenizer = words.build(french=5, english=5)

    def finished(config: Experiment) -> None:
        method = type(config).__name__.lower()
        with run.opened(config, method, tokenizer, (), "data") as folder:
            files.save(folder / run.WEIGHTS, {"scale": np.ones(1)}, {"step": "1000"})

    return finished


PLAIN = Vae(kl=0)


@pytest.mark.parametrize(
    ("own", "plain", "message"),
    [
        (Vae(), Vae(), "--plain runs/plain is to have --kl=0, and --run runs/own a KL weight"),
        (PLAIN, PLAIN, "--plain runs/plain is to have --kl=0, and --run runs/own a KL weight"),
        (Vae(), replace(PLAIN, data=Data(size=16)), "data.size is 32 in --run runs/own and 16 in"),
        (Vae(), replace(PLAIN, l1=2.0), "l1 is 1.0 in --run runs/own and 2.0 in --plain runs/"),
        (Vae(), replace(PLAIN, seed=1), "seed is 0 in --run runs/own and 1 in --plain runs/plain"),
        (Vae(), replace(PLAIN, train=Train(steps=9)), "train.steps is 1000 in --run runs/own and"),
        (Vae(), Diffusion(), "runs/plain is a run of diffusion, no autoencoder"),
    ],
)
def test_runs_that_differ_in_more_than_the_kl_weight_are_refused_in_one_line(
    own: Vae, plain: Experiment, message: str, finished, refused
) -> None:
    finished(replace(own, name="own"))
    finished(replace(plain, name="plain"))
    assert message in refused(continuity.main, "--run=runs/own", "--plain=runs/plain")


def test_runs_may_differ_in_what_weights_do_not_depend_on(finished) -> None:
    finished(Vae(name="own"))
    finished(replace(PLAIN, name="plain", shown=("a heart",), data=Data(root="elsewhere")))
    own, plain = (continuity._read(f"runs/{name}") for name in ("own", "plain"))
    continuity._refuse_unlike(own, plain)
    with pytest.raises(UserError, match="steps done is 1000 in --run runs/own and 900 in --plain"):
        continuity._refuse_unlike(own, replace(plain, step=900))
