"""The resizes are those of the published metrics, to less than a hundredth of a grey level."""

from typing import Any

import numpy as np
import pytest
import torch
from reference import cleanfid, torch_fidelity

from jaxgen.metrics.resize import bicubic, bilinear_tf1

SHAPES = [(32, 32), (64, 40), (301, 512)]  # up, not square, down


def images(shape: tuple[int, int]) -> Any:
    """Noise, which overshoots the range when resampled, and a ramp."""
    noise = np.random.default_rng(0).integers(0, 2, (*shape, 3)) * 255
    ramp = np.broadcast_to(np.linspace(0, 255, shape[1])[None, :, None], noise.shape)
    return np.stack([noise, ramp]).astype(np.uint8)


# Pillow deprecates the keyword that clean-fid names the mode by.
@pytest.mark.filterwarnings("ignore:'mode' parameter:DeprecationWarning")
@pytest.mark.parametrize("shape", SHAPES)
def test_bicubic_is_that_of_clean_fid(shape: tuple[int, int]) -> None:
    resizer = cleanfid.resize.build_resizer("clean")
    theirs = np.stack([resizer(image) for image in images(shape)])
    assert theirs.min() == 0
    assert theirs.max() == 255, "clipping is tested"
    np.testing.assert_allclose(bicubic(images(shape), 299), theirs, atol=1e-2)


@pytest.mark.parametrize("shape", SHAPES)
def test_bilinear_is_that_of_tensorflow_1_in_torch_fidelity(shape: tuple[int, int]) -> None:
    published = torch_fidelity.interpolate_compat_tensorflow
    x = torch.from_numpy(images(shape)).permute(0, 3, 1, 2).float()
    theirs = published.interpolate_bilinear_2d_like_tensorflow1x(x, (299, 299), align_corners=False)
    np.testing.assert_allclose(
        bilinear_tf1(images(shape), 299), theirs.permute(0, 2, 3, 1), atol=1e-2
    )


def test_an_image_of_the_right_size_is_left_alone() -> None:
    same = images((16, 16))
    np.testing.assert_array_equal(bicubic(same, 16), same)
    np.testing.assert_array_equal(bilinear_tf1(same, 16), same)
