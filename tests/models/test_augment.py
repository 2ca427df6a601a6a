"""What the judge sees is changed as DiffAugment says, image by image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from jaxgen.errors import UserError
from jaxgen.models.augment import diffaug, resize_area

POLICY = ("color", "translation", "cutout")
B, SIDE = 64, 20  # translation by up to 3 (20/8 + .5), holes of 4

jitted = jax.jit(diffaug, static_argnames="policy")


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).uniform(0.1, 1, (B, SIDE, SIDE, 3)).astype(np.float32)


def test_no_policy_changes_nothing(image):
    np.testing.assert_array_equal(diffaug(jax.random.key(0), image, ()), image)


def test_unknown_policy_is_named():
    with pytest.raises(UserError, match="colour"):
        diffaug(jax.random.key(0), jnp.zeros((1, 4, 4, 3)), ("colour",))


def test_color_draws_brightness_saturation_and_contrast(image):
    out = np.asarray(jitted(jax.random.key(1), image, ("color",)), np.float64)
    image = image.astype(np.float64)
    brightness = (out - image).mean((1, 2, 3))
    grey, out_grey = image.mean(3), out.mean(3)
    contrast = out_grey.std((1, 2)) / grey.std((1, 2))
    saturation = (out - out_grey[..., None]).std((1, 2, 3)) / contrast
    saturation /= (image - grey[..., None]).std((1, 2, 3))
    # B uniform draws: inside the range, and near both of its ends.
    for draws, low, high in ((brightness, -0.5, 0.5), (saturation, 0, 2), (contrast, 0.5, 1.5)):
        margin = 0.15 * (high - low)
        assert low - 1e-4 <= draws.min() < low + margin
        assert high - margin < draws.max() <= high + 1e-4
    # And nothing else: the three draws rebuild the image.
    rebuilt = image + brightness[:, None, None, None]
    grey = rebuilt.mean(3, keepdims=True)
    rebuilt = (rebuilt - grey) * saturation[:, None, None, None] + grey
    grey = rebuilt.mean((1, 2, 3), keepdims=True)
    rebuilt = (rebuilt - grey) * contrast[:, None, None, None] + grey
    np.testing.assert_allclose(out, rebuilt, atol=1e-4)


def test_translation_is_an_exact_shift_filled_with_zero(image):
    out = np.asarray(jitted(jax.random.key(2), image, ("translation",)))
    shifts = set()
    for before, after in zip(image, out, strict=True):
        rows, columns = np.nonzero(after[..., 0])
        dy = rows.min() if rows.min() else rows.max() + 1 - SIDE
        dx = columns.min() if columns.min() else columns.max() + 1 - SIDE
        padded = np.pad(before, ((3, 3), (3, 3), (0, 0)))
        expected = padded[3 - dy : 3 - dy + SIDE, 3 - dx : 3 - dx + SIDE]
        np.testing.assert_array_equal(after, expected)
        shifts.add((int(dy), int(dx)))
    assert {dy for dy, _ in shifts} == {dx for _, dx in shifts} == set(range(-3, 4))


def test_cutout_blanks_one_square(image):
    out = np.asarray(jitted(jax.random.key(3), image, ("cutout",)))
    sides = set()
    for before, after in zip(image, out, strict=True):
        rows, columns = np.nonzero(after[..., 0] == 0)
        top, bottom = rows.min(), rows.max() + 1
        left, right = columns.min(), columns.max() + 1
        assert len(rows) == (bottom - top) * (right - left)
        expected = before.copy()
        expected[top:bottom, left:right] = 0
        np.testing.assert_array_equal(after, expected)
        for low, high in ((top, bottom), (left, right)):
            inside = low > 0 and high < SIDE
            assert high - low == 4 if inside else 2 <= high - low <= 4
            sides.add(int(high - low))
    assert sides == {2, 3, 4}


def test_noise_is_normal_and_of_every_level_up_to_one(image):
    added = np.asarray(jitted(jax.random.key(6), image, ("noise",)), np.float64) - image
    levels = added.std((1, 2, 3))
    assert levels.min() < 0.1
    assert 0.9 < levels.max() < 1.1
    assert np.corrcoef(np.sort(levels), np.arange(B))[0, 1] > 0.98, "uniform"
    each = added / levels[:, None, None, None]
    assert abs((each**4).mean() - 3) < 0.1, "a normal's fourth moment"
    assert abs(np.corrcoef(each[0].ravel(), each[1].ravel())[0, 1]) < 0.1


def test_an_image_draws_by_its_place_alone(image):
    key, policy = jax.random.key(4), (*POLICY, "noise")
    whole = jitted(key, image, policy)
    np.testing.assert_allclose(jitted(key, image[:8], policy), whole[:8], atol=1e-6)
    assert len({np.asarray(x).tobytes() for x in jitted(key, image[:1].repeat(8, 0), policy)}) == 8


def test_gradient_is_the_finite_difference(image):
    key = jax.random.key(5)
    weight = np.random.default_rng(1).normal(size=image[:4].shape)
    direction = np.random.default_rng(2).normal(size=image[:4].shape)
    with jax.enable_x64(True):
        loss = jax.jit(
            jax.value_and_grad(lambda x: (diffaug(key, x, POLICY) ** 2 * weight).sum()),
            compiler_options={"xla_backend_optimization_level": 0},
        )
        x, step = image[:4].astype(np.float64), 1e-5 * direction
        slope = (loss(x + step)[0] - loss(x - step)[0]) / 2e-5
        found = (loss(x)[1] * direction).sum()
    np.testing.assert_allclose(found, slope, rtol=1e-6)


@pytest.mark.parametrize(("h", "w", "side"), [(32, 32, 64), (64, 48, 24), (30, 20, 16), (5, 5, 5)])
def test_resize_is_pytorchs_area(h, w, side):
    image = np.random.default_rng(0).uniform(-1, 1, (2, h, w, 3)).astype(np.float32)
    expected = F.interpolate(torch.from_numpy(image).permute(0, 3, 1, 2), (side, side), mode="area")
    found = jax.jit(resize_area, static_argnums=1)(image, side)
    np.testing.assert_allclose(found, expected.permute(0, 2, 3, 1), atol=1e-6)
