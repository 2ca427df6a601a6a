import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.diffusion import prediction
from jaxgen.diffusion.schedule import Schedule, add_noise, per_image
from jaxgen.errors import UserError

SD = Schedule("scaled_linear")
ZERO = Schedule("scaled_linear", zero_terminal_snr=True)
FLOW = Schedule("flow")
EDM = Schedule("edm")
LEGAL = [
    ("epsilon", SD),
    ("x0", SD),
    ("v", SD),
    ("x0", ZERO),
    ("v", ZERO),
    ("x0", FLOW),
    ("flow", FLOW),
    ("edm", EDM),
    ("edm", FLOW),
    ("edm", ZERO),
]
legal = pytest.mark.parametrize(("kind", "schedule"), LEGAL)


@pytest.fixture(scope="module")
def images():
    x0, eps, error = jax.random.normal(jax.random.key(0), (3, 4, 8, 8, 3))
    return x0, eps, error, jnp.array([0.0, 20.0, 600.0, 999.0])


@legal
def test_the_target_gives_back_image_and_noise(kind, schedule, images):
    x0, eps, _, t = images
    prediction.check(schedule, kind)
    alpha, sigma = schedule.at(t)
    x_t = add_noise(schedule, x0, eps, t)
    output = prediction.target(kind, x0, eps, alpha, sigma)
    recovered = prediction.to_x0(kind, x_t, output, alpha, sigma)
    np.testing.assert_allclose(recovered, x0, atol=3e-5)
    # eps from x0 at small sigma is (x_t - alpha·x0)/sigma: float32 leaves 1e-7/sigma of it.
    noise = prediction.to_epsilon(kind, x_t, output, alpha, sigma)
    np.testing.assert_allclose(noise, eps, atol=5e-4)


@legal
def test_image_and_noise_of_any_output_make_up_x_t(kind, schedule, images):
    """alpha·x0 + sigma·eps = x_t for whatever the network says, not for the truth alone."""
    x_t, output, _, t = images
    alpha, sigma = schedule.at(t)
    x0 = prediction.to_x0(kind, x_t, output, alpha, sigma)
    eps = prediction.to_epsilon(kind, x_t, output, alpha, sigma)
    np.testing.assert_allclose(
        per_image(alpha, x0) * x0 + per_image(sigma, x0) * eps, x_t, atol=2e-5
    )


def test_targets_by_their_definitions(images):
    x0, eps, _, t = images
    alpha, sigma = SD.at(t)
    a, s = per_image(alpha, x0), per_image(sigma, x0)
    np.testing.assert_array_equal(prediction.target("epsilon", x0, eps, alpha, sigma), eps)
    np.testing.assert_array_equal(prediction.target("x0", x0, eps, alpha, sigma), x0)
    v = prediction.target("v", x0, eps, alpha, sigma)
    np.testing.assert_allclose(v, a * eps - s * x0, atol=1e-6)
    flow = prediction.target("flow", x0, eps, *FLOW.at(t))
    np.testing.assert_array_equal(flow, eps - x0)


def test_edm_preconditioning_is_table_1_of_karras(images):
    x0, eps, output, t = images
    alpha, sigma = EDM.at(t)
    s = np.asarray(per_image(sigma, x0), np.float64)
    x_t = np.asarray(x0) + s * eps
    c_skip = 0.5**2 / (s**2 + 0.5**2)
    c_out = s * 0.5 / np.sqrt(s**2 + 0.5**2)
    c_in = 1 / np.sqrt(s**2 + 0.5**2)
    x_t32 = jnp.asarray(x_t, jnp.float32)
    np.testing.assert_allclose(
        prediction.network_input("edm", x_t32, alpha, sigma), c_in * x_t, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        prediction.to_x0("edm", x_t32, output, alpha, sigma),
        c_skip * x_t + c_out * output,
        rtol=1e-5,
        atol=1e-5,
    )
    np.testing.assert_allclose(
        prediction.target("edm", x0, eps, alpha, sigma), (x0 - c_skip * x_t) / c_out, atol=2e-4
    )


def test_edm_preconditioning_is_the_same_in_every_parametrisation(images):
    """x_t / alpha at the level sigma / alpha is Karras's own x: same input, same image."""
    x_t, _, output, _ = images
    alpha, sigma = FLOW.at(jnp.array([20.0, 300.0, 600.0, 990.0]))
    x, one, level = x_t / per_image(alpha, x_t), jnp.ones_like(alpha), sigma / alpha
    np.testing.assert_allclose(
        prediction.network_input("edm", x_t, alpha, sigma),
        prediction.network_input("edm", x, one, level),
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        prediction.to_x0("edm", x_t, output, alpha, sigma),
        prediction.to_x0("edm", x, output, one, level),
        rtol=1e-4,
        atol=1e-5,
    )


def test_at_pure_noise_edm_takes_nothing_from_the_input(images):
    x_t, _, output, _ = images
    alpha, sigma = FLOW.at(jnp.full(4, 999.0))
    np.testing.assert_array_equal(prediction.to_x0("edm", x_t, output, alpha, sigma), output / 2)


def test_only_edm_scales_its_input(images):
    x_t, _, _, t = images
    for kind, schedule in LEGAL:
        if kind == "edm":
            continue
        assert prediction.network_input(kind, x_t, *schedule.at(t)) is x_t


@legal
@pytest.mark.parametrize("weighting", ["min_snr", "edm", "velocity"])
def test_one_loss_whatever_is_predicted(kind, schedule, weighting, images):
    """The weighted error of the output is the weighted error of x0, in every prediction."""
    output, x_t, error, _ = images
    t = jnp.array([0.0, 20.0, 600.0, 990.0])
    alpha, sigma = schedule.at(t)
    snr = (alpha / sigma) ** 2
    velocity = 1 / jnp.maximum(sigma, 0.05) ** 2
    weight = {"min_snr": jnp.minimum(snr, 5.0), "edm": snr + 4.0, "velocity": velocity}[weighting]
    x0_error = prediction.to_x0(kind, x_t, output + 0.1 * error, alpha, sigma) - prediction.to_x0(
        kind, x_t, output, alpha, sigma
    )
    of_x0 = per_image(weight, error) * x0_error**2
    of_output = prediction.weight(weighting, kind, alpha, sigma)
    per = per_image(of_output, error) * (0.1 * error) ** 2
    np.testing.assert_allclose(
        per.mean(axis=(1, 2, 3)), of_x0.mean(axis=(1, 2, 3)), rtol=0.01, atol=1e-6
    )


def test_weights_by_their_formulas():
    alpha, sigma = SD.at(jnp.array([0.0, 300.0, 999.0]))
    snr = (alpha / sigma) ** 2
    np.testing.assert_array_equal(prediction.weight("uniform", "v", alpha, sigma), 1)
    np.testing.assert_allclose(
        prediction.weight("min_snr", "epsilon", alpha, sigma), np.minimum(snr, 5) / snr,
        rtol=1e-5,
    )  # fmt: skip
    np.testing.assert_allclose(
        prediction.weight("min_snr", "v", alpha, sigma), np.minimum(snr, 5) / (snr + 1),
        rtol=1e-4,
    )  # fmt: skip
    np.testing.assert_allclose(
        prediction.weight("min_snr", "x0", alpha, sigma, gamma=2.0), np.minimum(snr, 2),
        rtol=1e-5,
    )  # fmt: skip


def test_edm_weight_makes_the_edm_output_uniform():
    """lambda(sigma)·c_out² = 1, and for D itself lambda = (σ² + σ_data²)/(σ·σ_data)²."""
    alpha, sigma = EDM.at(jnp.array([0.0, 500.0, 999.0]))
    np.testing.assert_allclose(prediction.weight("edm", "edm", alpha, sigma), 1, rtol=1e-5)
    expected = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    np.testing.assert_allclose(prediction.weight("edm", "x0", alpha, sigma), expected, rtol=1e-5)


def test_weights_are_finite_at_pure_noise():
    alpha, sigma = np.zeros(1, np.float32), np.ones(1, np.float32)
    for kind in ("v", "x0", "flow"):
        for weighting in ("uniform", "min_snr", "edm"):
            assert np.isfinite(prediction.weight(weighting, kind, alpha, sigma)).all()


@pytest.mark.parametrize(
    ("schedule", "kind", "words"),
    [
        (ZERO, "epsilon", "pure noise.* x0, or v"),
        (FLOW, "epsilon", "pure noise.* x0, or flow"),
        (SD, "flow", "schedule.kind flow, or prediction v"),
        (FLOW, "v", "prediction flow"),
        (EDM, "v", "edm"),
        (EDM, "epsilon", "edm"),
        (EDM, "x0", "edm"),
        (FLOW, "noise", "'noise' is unknown: choose epsilon"),
        (Schedule(timesteps=0), "flow", "timesteps is 0"),
    ],
)
def test_check_refuses(schedule, kind, words):
    with pytest.raises(UserError, match=words):
        prediction.check(schedule, kind)
