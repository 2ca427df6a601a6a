"""The teacher's target for a student's image."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.diffusion import distillation
from jaxgen.diffusion.schedule import Schedule
from jaxgen.text.encoder import TextFeatures


@pytest.mark.parametrize("shift", [1.0, 4.0])
def test_noise_free_distillation_keeps_the_image_term_where_there_is_little_noise(shift) -> None:
    """Which timesteps those are follows the noise (Stable Diffusion's at T/5), not t itself."""
    alpha, sigma = Schedule(kind="scaled_linear").levels(np.asarray(200.0))
    np.testing.assert_allclose(distillation.NFSD_LOW_NOISE, sigma / alpha, rtol=1e-5)
    schedule = Schedule(kind="flow", shift=shift)
    ratios = np.array([0.1, 0.56, 0.58, 5.0])
    t = jnp.asarray(schedule.timestep(ratios), jnp.float32)
    image = jnp.linspace(-1, 1, 4 * 2 * 2).reshape(4, 2, 2, 1)
    text = TextFeatures(jnp.zeros((4, 3, 2)), jnp.zeros((4, 2)), jnp.ones((4, 3), bool))
    none = TextFeatures(jnp.zeros((1, 3, 2)), jnp.zeros((1, 2)), jnp.ones((1, 3), bool))
    target = distillation.target(
        schedule,
        lambda x_t, t, text: jnp.full_like(x_t, 0.25),  # whatever the caption says
        image,
        jnp.zeros_like(image),
        t,
        text,
        none,
        weighting="nfsd",
        steps=1,
        guidance=7.5,
    )
    np.testing.assert_allclose(target[:2], 0.25, atol=1e-5)
    np.testing.assert_allclose(target[2:], image[2:], atol=1e-6)
