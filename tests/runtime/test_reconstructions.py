"""What is said and drawn of an autoencoder."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxgen.config import Mesh
from jaxgen.data.source import Source
from jaxgen.errors import UserError
from jaxgen.runtime import mesh as meshes
from jaxgen.runtime import reconstructions

IMAGES = np.random.default_rng(0).integers(20, 236, (19, 8, 8, 3), np.uint8)


def source(count: int) -> Source:
    return Source(
        name="noise",
        split="test",
        size=8,
        images=IMAGES[:count],
        captions=tuple((f"noise {n}",) for n in range(count)),
        label_ids=np.zeros(count, np.int32),
        labels=("noise",),
        ids=tuple(map(str, range(count))),
        content="",
    )


def brighter(weights, image):
    return image + weights.astype(jnp.uint8)


def blend(weights, a, b, count):
    share = jnp.linspace(0, 1, count)[:, None, None, None]
    return ((1 - share) * a[:, None] + share * b[:, None]).astype(jnp.uint8)


@pytest.mark.parametrize("count", [19, 16, 2])
def test_the_grade_is_said_and_drawn(count: int, tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    shapes = []

    def traced(weights, image):
        shapes.append(image.shape)
        return brighter(weights, image)

    mesh = meshes.make(Mesh(data=4, fsdp=2), 8)
    said = reconstructions.grade(traced, blend, jnp.full((), 5.0), source(count), 8, mesh, tmp_path)
    psnr = 20 * np.log10(255 / 5)
    line, one, other = said.splitlines()
    assert line == f"PSNR {psnr:.2f} dB ({psnr:.2f} to {psnr:.2f}), {count} held-out pictures"
    assert shapes == [(8, 8, 8, 3)], "one program, whatever the count"
    for path in (one, other):
        with Image.open(path.split(": ")[1]) as picture:
            assert picture.size[0] > 200


def test_originals_stand_beside_their_own_reconstructions(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    mesh = meshes.make(Mesh(data=1), 8)
    reconstructions.grade(brighter, blend, jnp.zeros(()), source(2), 8, mesh, tmp_path)
    for name in ("reconstructions", "interpolations"):
        page = np.asarray(Image.open(tmp_path / "samples" / f"{name}.png"))
        columns = [_found(page, image) for image in IMAGES[:2]]
        if name == "reconstructions":
            assert [len(found) for found in columns] == [2, 2], "each image twice, side by side"
            assert all(found[0][0] == found[1][0] for found in columns)
        else:
            assert [len(found) for found in columns] == [1, 1], "the two ends of one line"
            assert columns[0][0][0] == columns[1][0][0]
            assert abs(columns[0][0][1] - columns[1][0][1]) > 6 * 64


def test_psnr_of_each_picture() -> None:
    other = IMAGES[:3].astype(np.int32)
    other[1] += 1
    other[2, 0, 0, 0] += 16
    found = reconstructions.psnr(IMAGES[:3], other.astype(np.uint8))
    expected = 10 * np.log10(255**2 / np.array([1 / 12, 1, 16**2 / 192]))
    np.testing.assert_allclose(found, expected)


def test_one_picture_has_no_pair(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="noise has 1 picture"):
        reconstructions.grade(
            brighter, blend, jnp.zeros(()), source(1), 8, meshes.make(Mesh(data=1), 8), tmp_path
        )


def _found(page: np.ndarray, image: np.ndarray) -> list[tuple[int, int]]:
    """Where the picture stands on the page, enlarged eightfold: rows and columns."""
    large = image.repeat(8, 0).repeat(8, 1)
    corners = np.argwhere((page == image[0, 0]).all(-1))
    return [
        (int(y), int(x)) for y, x in corners if np.array_equal(page[y : y + 64, x : x + 64], large)
    ]
