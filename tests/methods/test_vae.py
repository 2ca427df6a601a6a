"""The autoencoder's training: each term, who pulls how hard, and what the codes are."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import assert_followed, random_like, state_like

from jaxgen.config import Data, Optimizer, Train
from jaxgen.diffusion import codec as codecs
from jaxgen.errors import UserError
from jaxgen.methods import vae
from jaxgen.methods.vae import Vae
from jaxgen.models.autoencoder import Autoencoder, AutoencoderConfig, Posterior
from jaxgen.models.eyes import distance
from jaxgen.models.patch_discriminator import PatchDiscriminator, PatchDiscriminatorConfig
from jaxgen.pixels import to_unit
from jaxgen.state import stream
from jaxgen.weights import files
from jaxgen.weights.efficientnet import load_efficientnet_lite0

CONFIG = Vae(
    name="tiny",
    data=Data(size=16),
    autoencoder=AutoencoderConfig(patch=4, block_out=(8,), layers=1, groups=4, mid_attention=False),
    kl=1e-3,
    taps=(0,),
    adversarial=0.7,
    adversarial_from=0.1,
    head_start=0.04,
    discriminator=PatchDiscriminatorConfig(width=8, layers=1),
    train=Train(steps=100, batch=8, ema=0.9),
    optimizer=Optimizer(learning_rate=5e-3, warmup=0),
    discriminator_optimizer=Optimizer(learning_rate=1e-3, warmup=0),
)
PLAIN = dataclasses.replace(CONFIG, kl=0.0, perceptual=0.0, adversarial=0.0)
JOINED = 50  # a step at which the discriminator plays


@pytest.fixture(scope="module")
def eyes():
    return {"eyes": load_efficientnet_lite0()}


@pytest.fixture(scope="module")
def state(eyes):
    state = state_like(functools.partial(vae.init, CONFIG, eyes, jax.random.key(0)))
    unit = {"mean": jnp.zeros(4), "square": jnp.ones(4)}
    return state.replace(ema={**state.ema, "latents": unit})


@pytest.fixture(scope="module")
def step():
    return jax.jit(functools.partial(vae.train_step, CONFIG))


@pytest.fixture(scope="module")
def plain_step():
    """Of the plain autoencoder, the seed an argument."""
    return jax.jit(
        lambda seed, s, b: vae.train_step(dataclasses.replace(PLAIN, seed=seed), s, {}, b)
    )


@pytest.fixture(scope="module")
def trained(plain_step, batch):
    """The plain autoencoder after 60 steps on one batch, and the first and last metrics."""
    state = jax.jit(functools.partial(vae.init, PLAIN))({}, jax.random.key(0))
    told = []
    for _ in range(60):
        state, metrics = plain_step(0, state, batch)
        told.append(metrics)
    return state, told[0], told[-1]


def at(state, step: int):
    return state.replace(step=jnp.asarray(step, jnp.int32))


def same(a, b) -> bool:
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_the_perceptual_distance_is_that_of_unit_vectors() -> None:
    rng = np.random.default_rng(0)
    shapes = [(2, 4, 4, 5), (2, 2, 2, 7)]
    a, b = ([rng.normal(size=shape) for shape in shapes] for _ in range(2))
    expected = 0.0
    for x, y in zip(a, b, strict=True):
        cosine = (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)
        expected += (2 - 2 * cosine).mean() / 2
    np.testing.assert_allclose(distance(a, b).mean(), expected, rtol=1e-5)
    stronger = [3 * x for x in a]
    np.testing.assert_allclose(distance(stronger, b).mean(), expected, rtol=1e-5)
    flat = [jnp.zeros_like(x) for x in a]
    gradient = jax.grad(lambda x: distance(x, flat).mean())(flat)
    assert all(np.isfinite(g).all() for g in gradient), "features may all be 0"


def test_the_kl_divergence_of_two_gaussians() -> None:
    """Against the integral of q·log(q/p) by quadrature, in float64."""
    mean, log_variance = np.array([0.0, 1.5, -2.0]), np.array([0.0, -3.0, 1.0])
    x = np.linspace(-30, 30, 200_001)[:, None]
    log_q = -0.5 * ((x - mean) ** 2 / np.exp(log_variance) + log_variance)
    log_p = -0.5 * x**2
    density = np.exp(log_q) / np.sqrt(2 * np.pi)
    each = np.trapezoid(density * (log_q - log_p), x[:, 0], axis=0)
    assert each[0] == pytest.approx(0, abs=1e-9)
    two = [np.stack([v, np.zeros(3)]).reshape(2, 1, 3, 1) for v in (mean, log_variance)]
    found = Posterior(*map(jnp.asarray, two))
    np.testing.assert_allclose(found.kl(), [each.sum(), 0], rtol=1e-5)
    np.testing.assert_allclose(vae.kl_loss(found, 48), each.sum() / 2 / 48, rtol=1e-5)


def test_the_adaptive_weight_of_a_linear_decoder_by_hand() -> None:
    """Image h·w of one number: rec |h·w - x|, verdict -c·(h·w), so ∇rec = ±h and ∇adv = -c·h."""
    h, c = np.array([3.0, 4.0]), 2.0
    of_rec, of_adv = h, -c * h
    np.testing.assert_allclose(vae.adaptive_weight(of_rec, of_adv), 5 / (10 + 1e-4), rtol=1e-6)
    np.testing.assert_allclose(vae.adaptive_weight(of_rec, 0 * h), 1e4)
    assert vae.adaptive_weight(0 * h, 0 * h) == 0


def test_psnr() -> None:
    real = np.zeros((2, 4, 4, 3))
    image = np.stack([real[0] + 0.2, real[1]])
    np.testing.assert_allclose(vae.psnr(image, real), [20, 100], rtol=1e-5)


def test_a_step_follows_the_gradient_of_the_whole_loss(eyes, state, batch, step) -> None:
    """What train_step says of itself, against each loss written out and differentiated plainly."""
    before = at(state, JOINED)
    real, params = to_unit(batch["image"]), before.params
    key = stream(CONFIG.seed, before.step, "posterior")
    pixels, (b, _, _, _) = 16 * 16 * 3, real.shape

    def autoencoded(params):
        posterior = vae.posterior(CONFIG, params, real)
        latent = posterior.sample(key)
        image = Autoencoder(CONFIG.autoencoder).apply({"params": params}, latent, method="decode")
        return image, posterior

    def judged(params, image):
        return PatchDiscriminator(CONFIG.discriminator).apply({"params": params}, image)

    def reconstruction(params):
        return vae.reconstruction_loss(CONFIG, eyes, autoencoded(params)[0], real)[0]

    def verdict(params):
        return -jnp.mean(judged(before.params["discriminator"], autoencoded(params)[0]))

    def divergence(params):
        mean, log_variance = autoencoded(params)[1]
        return jnp.sum(mean**2 + jnp.exp(log_variance) - 1 - log_variance) / 2 / b / pixels

    def hinge(params, fake):
        on_real, on_fake = judged(params, real), judged(params, fake)
        relu = jax.nn.relu
        return (jnp.mean(relu(1 - on_real)) + jnp.mean(relu(1 + on_fake))) / 2

    @jax.jit
    def written_out(params):
        losses = {"rec": reconstruction, "adv": verdict, "kl": divergence}
        found = {k: jax.value_and_grad(f)(params["autoencoder"]) for k, f in losses.items()}
        values = {name: value for name, (value, _) in found.items()}
        gradients = {name: gradient for name, (_, gradient) in found.items()}
        last = {
            n: jnp.linalg.norm(g["decoder"]["conv_out"]["kernel"]) for n, g in gradients.items()
        }
        adaptive = last["rec"] / (last["adv"] + 1e-4)
        weights = {"rec": 1.0, "adv": CONFIG.adversarial * adaptive, "kl": CONFIG.kl}
        total = jax.tree.map(
            lambda *leaves: sum(w * g for w, g in zip(weights.values(), leaves, strict=True)),
            *(gradients[name] for name in weights),
        )
        fake = jax.lax.stop_gradient(autoencoded(params["autoencoder"])[0])
        played = jax.value_and_grad(hinge)(params["discriminator"], fake)
        loss = sum(weights[name] * values[name] for name in weights)
        return {
            "loss": loss,
            "adaptive_weight": adaptive,
            "adversarial": values["adv"],
            "kl": values["kl"],
            "discriminator": played[0],
        }, {"autoencoder": total, "discriminator": played[1]}  # fmt: skip

    after, metrics = step(before, eyes, batch)
    told, gradients = written_out(params)
    optimizers = {
        "autoencoder": CONFIG.optimizer,
        "discriminator": CONFIG.discriminator_optimizer,
    }
    for player, gradient in gradients.items():
        assert_followed(optimizers[player], after.opt_state[player], gradient)
        told[f"{player}_gradient"] = optax.tree.norm(gradient)
    for name, expected in told.items():
        assert abs(expected) > 1e-5, name
        np.testing.assert_allclose(metrics[name], expected, rtol=2e-3, err_msg=name)
    l1 = np.abs(np.float64(autoencoded(params["autoencoder"])[0]) - np.float64(real)).mean()
    np.testing.assert_allclose(metrics["l1"], l1, rtol=1e-5)
    for player in params:
        assert not same(before.params[player], after.params[player])


def test_the_discriminator_waits(eyes, state, batch, step) -> None:
    after, metrics = step(at(state, 5), eyes, batch)
    assert same(state.params["discriminator"], after.params["discriminator"])
    assert same(state.opt_state["discriminator"], after.opt_state["discriminator"])
    for name in ("adversarial", "discriminator", "adaptive_weight", "discriminator_gradient"):
        assert metrics[name] == 0
    expected = metrics["l1"] + metrics["perceptual"] + CONFIG.kl * metrics["kl"]
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-6)


def test_the_discriminator_learns_before_it_is_heard(eyes, state, batch, step) -> None:
    unheard, metrics = step(at(state, 6), eyes, batch)
    assert not same(state.params["discriminator"], unheard.params["discriminator"])
    assert metrics["discriminator"] > 0
    without = metrics["l1"] + metrics["perceptual"] + CONFIG.kl * metrics["kl"]
    np.testing.assert_allclose(metrics["loss"], without, rtol=1e-6)
    _, metrics = step(at(state, 10), eyes, batch)
    verdict = CONFIG.adversarial * metrics["adaptive_weight"] * metrics["adversarial"]
    without = metrics["l1"] + metrics["perceptual"] + CONFIG.kl * metrics["kl"]
    np.testing.assert_allclose(metrics["loss"], without + verdict, rtol=1e-5)
    assert verdict != 0


def test_one_batch_is_learnt_by_heart(trained) -> None:
    state, first, last = trained
    assert set(state.params) == {"autoencoder"}, "no weight, no player"
    assert last["psnr"] > first["psnr"] + 8
    assert last["l1"] < first["l1"] / 2


def test_codes_have_unit_deviation_by_the_moments_kept(trained, batch) -> None:
    """A moving average over changing weights, against all codes of the averaged weights at once."""
    state, _, last = trained
    weights = vae.weights(PLAIN, state, {})
    codes = np.asarray(vae.encode(PLAIN, weights, to_unit(batch["image"])), np.float64)
    assert codes.shape == (8, 4, 4, 4)
    np.testing.assert_allclose(codes.std((0, 1, 2)), 1, atol=0.05)
    np.testing.assert_allclose(codes.mean((0, 1, 2)), 0, atol=0.05)
    raw = vae.posterior(PLAIN, state.ema["autoencoder"], to_unit(batch["image"])).mean
    assert np.abs(raw.std((0, 1, 2)) - 1).max() > 0.05, "or nothing was measured"
    assert last["latent_std"] == pytest.approx(float(raw.std()), rel=0.05)


@pytest.mark.parametrize("quant_conv", [True, False])
def test_a_standardised_codec_gives_the_same_pictures(quant_conv: bool) -> None:
    config = dataclasses.replace(CONFIG.autoencoder, quant_conv=quant_conv)
    params = random_like(functools.partial(codecs.init, config, jax.random.key(0)))
    del params["scale"]
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.uniform(-1, 1, (4, 16, 16, 3)), jnp.float32)
    network = Autoencoder(config)
    before = network.apply({"params": params}, image, method="encode")
    shift, scale = before.mean.mean((0, 1, 2)), before.mean.std((0, 1, 2))
    weights = codecs.standardised(config, params, shift, scale)
    codes = codecs.encode(config, weights, image)
    expected = network.apply({"params": params}, before.mean, method="decode")
    found = codecs.decode(config, weights, codes)
    np.testing.assert_allclose(found, expected, atol=1e-4 * float(jnp.abs(expected).max()))
    after = network.apply({"params": weights}, image, method="encode")
    if quant_conv:
        np.testing.assert_allclose(codes.mean((0, 1, 2)), 0, atol=1e-3)
        np.testing.assert_allclose(codes.std((0, 1, 2)), 1, rtol=1e-3)
        narrower = after.log_variance - before.log_variance
        np.testing.assert_allclose(
            narrower, jnp.broadcast_to(-2 * jnp.log(scale), narrower.shape), atol=1e-3
        )
    else:
        assert jnp.mean(codes.std((0, 1, 2)) ** 2) == pytest.approx(1, rel=1e-3)


def test_the_moments_are_those_of_the_encoder_in_training(eyes, state, batch, step) -> None:
    """Not of the averaged one, which is shipped: `weights` says so."""
    elsewhere = jax.tree.map(lambda leaf: 3 * leaf, state.ema["autoencoder"])
    before = at(state.replace(ema={**state.ema, "autoencoder": elsewhere}), 5000)
    after, _ = step(before, eyes, batch)
    means = vae.posterior(CONFIG, state.params["autoencoder"], to_unit(batch["image"])).mean
    moments = after.ema["latents"]
    np.testing.assert_allclose(moments["mean"], 0.01 * means.mean((0, 1, 2)), rtol=1e-4)
    square = 0.99 + 0.01 * (means**2).mean((0, 1, 2))
    np.testing.assert_allclose(moments["square"], square, rtol=1e-4)
    weights, averaged = vae.weights(CONFIG, after, {}), after.ema["autoencoder"]
    deviation = jnp.sqrt(moments["square"] - moments["mean"] ** 2)
    ratio = weights["post_quant_conv"]["kernel"] / averaged["post_quant_conv"]["kernel"]
    np.testing.assert_allclose(ratio[0, 0, :, 0], deviation, rtol=1e-4)


def test_a_channel_that_says_nothing_stays_small(state) -> None:
    """Its mean over the last batches is not quite that of the averaged encoder."""
    latents = {"mean": jnp.array([1.5, 0, 0, 0]), "square": jnp.array([2.25, 4.0, 1.0, 1.0])}
    averaged = state.ema["autoencoder"]
    weights = vae.weights(CONFIG, state.replace(ema={**state.ema, "latents": latents}), {})
    ratio = weights["quant_conv"]["kernel"] / averaged["quant_conv"]["kernel"]
    np.testing.assert_allclose(ratio[0, 0, 0, :4], [81.6, 0.5, 1, 1], rtol=1e-2)


def test_only_a_variational_autoencoder_draws(
    trained, plain_step, batch, step, state, eyes
) -> None:
    before = trained[0]
    _, one = plain_step(0, before, batch)
    _, other = plain_step(1, before, batch)
    assert one["loss"] == other["loss"]
    noisy = [
        step(at(state, number), eyes, batch)[1]["l1"] for number in (0, 1)
    ]  # the noise is all that differs
    assert noisy[0] != noisy[1]


def test_lines_between_images_begin_and_end_with_them(trained, batch) -> None:
    weights, image = vae.weights(PLAIN, trained[0], {}), batch["image"]
    line = jax.jit(functools.partial(vae.between, PLAIN), static_argnums=3)(
        weights, image, image[::-1], 5
    )
    assert line.shape == (8, 5, 16, 16, 3)
    assert line.dtype == jnp.uint8
    back = np.asarray(jax.jit(functools.partial(vae.reconstruct, PLAIN))(weights, image), np.int32)
    assert np.abs(back - np.asarray(image, np.int32)).mean() < 30
    for end, expected in ((0, back), (4, back[::-1])):
        assert np.abs(np.asarray(line[:, end], np.int32) - expected).max() <= 1
    np.testing.assert_array_equal(line[0, 2], line[7, 2])


def test_weights_code_alike_after_a_stay_on_disk(trained, batch, tmp_path: Path) -> None:
    weights, image = vae.weights(PLAIN, trained[0], {}), to_unit(batch["image"])
    files.save(tmp_path / "weights.safetensors", weights, {})
    again, _ = files.load(tmp_path / "weights.safetensors")
    codes = [vae.encode(PLAIN, each, image) for each in (weights, again)]
    np.testing.assert_array_equal(*codes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"l1": 0.0, "perceptual": 0.0}, "--l1 and --perceptual are both 0"),
        ({"kl": -1.0}, "--kl is -1"),
        ({"data": Data(size=18)}, "--data.size 18 is not a multiple of 4"),
        ({"taps": (16,)}, "--taps"),
        ({"features": "vgg"}, "--features 'vgg' is unknown; known: efficientnet-lite0"),
        ({"adversarial_from": 1.0}, "--adversarial-from is 1.0"),
        ({"head_start": -0.1}, "--head-start is -0.1"),
        ({"autoencoder": AutoencoderConfig(channels=1)}, "--autoencoder.channels is 1"),
        ({"discriminator": PatchDiscriminatorConfig(layers=3)}, "--data.size 16 is below 24"),
    ],
)
def test_impossible_configs_are_refused(change, message: str) -> None:
    CONFIG.check()
    with pytest.raises(UserError, match=message) as refused:
        dataclasses.replace(CONFIG, **change).check()
    assert "\n" not in str(refused.value)


def test_what_has_no_weight_is_not_asked_for(eyes) -> None:
    assert CONFIG.roles() == {"features": "efficientnet-lite0"}
    assert not PLAIN.roles()
    assert not vae.frozen(PLAIN, {})
    shapes = jax.eval_shape(lambda: vae.frozen_shapes(CONFIG))
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, eyes)
