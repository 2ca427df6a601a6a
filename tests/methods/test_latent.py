"""Diffusion and ADD on a codec's codes: what is encoded, decoded, and where gradients pass."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import DIT_MODEL, SIZE, assert_followed, random_like, state_like

from jaxgen import config as configs
from jaxgen.config import Data
from jaxgen.diffusion import codec as codecs
from jaxgen.diffusion import denoiser, distillation
from jaxgen.diffusion.schedule import Schedule
from jaxgen.errors import UserError
from jaxgen.methods import add, diffusion, text_to_image
from jaxgen.methods.add import Add
from jaxgen.methods.diffusion import Diffusion
from jaxgen.methods.vae import Vae
from jaxgen.models import judge as judges
from jaxgen.models.augment import diffaug
from jaxgen.models.autoencoder import AutoencoderConfig
from jaxgen.pixels import to_unit
from jaxgen.state import State, stream

# Unoptimised, two ways to the same gradient are half a per cent apart on some machines.
OPTIMISED = {"xla_backend_optimization_level": 3}
CODEC = AutoencoderConfig(
    latent_channels=4, block_out=(8, 8), layers=1, groups=4, mid_attention=False
)
LATENT_MODEL = dataclasses.replace(
    DIT_MODEL, dit=dataclasses.replace(DIT_MODEL.dit, channels=4, patch=2)
)


@pytest.fixture(scope="module")
def codec() -> dict[str, Any]:
    weights = random_like(lambda: codecs.init(CODEC, jax.random.key(3)))
    return {**weights, "scale": jnp.asarray(1.7)}


@pytest.fixture(scope="module")
def config(diffusion_config: Diffusion) -> Diffusion:
    return dataclasses.replace(
        diffusion_config,
        codec="vae",
        autoencoder=CODEC,
        model=LATENT_MODEL,
        data=Data(size=SIZE, flip=True),
    )


def test_codes_computed_beforehand_are_those_of_the_mirrored_pictures(config, codec, batch) -> None:
    (wanted,) = text_to_image.once(config, {"codec": codec})
    kept = jax.jit(wanted.compute)(codec, batch["image"])
    key = jax.random.key(0)
    clean = jax.jit(functools.partial(text_to_image.clean, config, {"codec": codec}))
    image, now = clean(batch, key)
    same, before = clean({**batch, **kept}, key)
    np.testing.assert_allclose(image, same, atol=1e-6)
    np.testing.assert_allclose(now, before, atol=1e-5)
    turned = np.any(np.abs(image - to_unit(batch["image"])) > 1e-3, axis=(1, 2, 3))
    assert 0 < turned.sum() < len(turned)
    assert now.shape == (len(image), SIZE // 2, SIZE // 2, 4)


def test_codes_have_the_scale_and_come_back_without_it(codec, batch) -> None:
    image = to_unit(batch["image"])
    codes = codecs.encode(CODEC, codec, image)
    unscaled = {**codec, "scale": jnp.ones(())}
    np.testing.assert_allclose(codes, 1.7 * codecs.encode(CODEC, unscaled, image), rtol=1e-5)
    np.testing.assert_allclose(
        codecs.decode(CODEC, codec, codes),
        codecs.decode(CODEC, unscaled, codes / 1.7),
        rtol=1e-5,
        atol=1e-6,
    )


def test_samples_are_decoded_codes(config, codec, batch) -> None:
    weights = random_like(lambda: denoiser.init(config.model, config.side, jax.random.key(0)))
    sampler = dataclasses.replace(config.iterative, steps=2, guidance=1.0)
    images = jax.jit(
        lambda w: diffusion.sample(config, w, jax.random.key(1), batch["caption"], sampler)
    )({**weights, "codec": codec})
    assert (images.shape, images.dtype) == ((len(batch["caption"]), SIZE, SIZE, 3), jnp.uint8)


@pytest.fixture(scope="module", params=["pixels", "latents"])
def student(request, add_config: Add, codec: Any, frozen: Any):
    """Config, frozen networks, first state and train step of a student of codes.

    Its judge is as good as untouched: two updates in turn see the same one.
    """
    config = dataclasses.replace(
        add_config,
        codec="vae",
        autoencoder=CODEC,
        model=LATENT_MODEL,
        distance=request.param,
        judge=dataclasses.replace(add_config.judge, taps=(0,)),  # compiles fastest
        optimizer=dataclasses.replace(add_config.optimizer, learning_rate=5e-3, clip=1e9),
        judge_optimizer=dataclasses.replace(add_config.judge_optimizer, learning_rate=1e-30),
    )
    weights = random_like(lambda: denoiser.init(LATENT_MODEL, config.side, jax.random.key(5)))
    held = {"teacher": weights["denoiser"], "text": weights["text"], "codec": codec}
    held["eyes"] = frozen["eyes"]
    state = state_like(lambda: add.init(config, held, jax.random.key(7)), student=held["teacher"])
    step = functools.partial(add.train_step, config)
    return config, held, state, jax.jit(step, compiler_options=OPTIMISED)


def test_the_student_learns_through_the_decoder(student, batch: Any) -> None:
    """Its gradient is that of the two losses, written down in one piece, at every parameter."""
    config, held, state, step = student
    after, metrics = step(state, held, batch)
    whole = jax.grad(functools.partial(_whole_loss, config, state, held, batch))
    gradient = jax.jit(whole, compiler_options=OPTIMISED)(state.params["student"])
    assert_followed(config.optimizer, after.opt_state["student"], gradient)
    norm = optax.tree.norm(gradient)
    np.testing.assert_allclose(metrics["student_gradient"], norm, rtol=1e-3)


def test_a_student_of_codes_learns_one_batch(student, batch: Any) -> None:
    """Drawn alike each time, before a judge that stays."""
    _, held, state, step = student
    rows = []
    for _ in range(40):
        state, metrics = step(state.replace(step=jnp.zeros((), jnp.int32)), held, batch)
        rows.append(metrics)
    for loss in ("loss", "distillation"):
        assert rows[-1][loss] < 0.7 * rows[0][loss]


def test_one_batch_of_codes_is_learnt(config: Diffusion, codec: Any, batch: Any) -> None:
    quick = dataclasses.replace(
        config,
        model=dataclasses.replace(LATENT_MODEL, schedule=Schedule(kind="flow"), prediction="x0"),
        optimizer=dataclasses.replace(config.optimizer, learning_rate=1e-2),
        drop_caption=0.0,
    )
    state = jax.jit(functools.partial(diffusion.init, quick))({}, jax.random.key(0))
    step = jax.jit(functools.partial(diffusion.train_step, quick))
    losses = []
    for _ in range(100):
        state, metrics = step(state, {"codec": codec}, batch)
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:3])


def _whole_loss(config: Add, state: State, held: Any, batch: Any, params: Any) -> jax.Array:
    def random(name):
        return stream(config.seed, state.step, name)

    image, x0 = text_to_image.clean(config, held, batch, random("flip"))
    text = denoiser.encode(config.model, held["text"], batch["caption"])
    s = add.student_timesteps(config, random("student timestep"), len(x0))
    noise = jax.random.normal(random("student noise"), x0.shape)
    x_s = add.student_input(config, x0, noise, s)
    fake = denoiser.predict_x0(config.model, params, x_s, s, text)
    picture = codecs.decode(config.autoencoder, held["codec"], fake)
    augmented = diffaug(random("augment fake"), picture, config.judge.augment)
    seen, _ = add.look(config, held["eyes"], augmented)
    _, vectors = add.look(config, held["eyes"], image)
    verdict = judges.generator_loss(
        add.verdicts(config, state.params["judge"], seen, (text.pooled, vectors))
    )
    t = add.teacher_timesteps(config, random("teacher timestep"), len(x0))
    eps = jax.random.normal(random("teacher noise"), x0.shape)
    target = add.teacher_target(config, held, fake, eps, t, text)
    made = fake
    if config.distance == "pixels":
        made, target = picture, codecs.decode(config.autoencoder, held["codec"], target)
    far = distillation.loss(config.model.schedule, config.weighting, made, target, t)
    return config.adversarial * verdict + config.distillation * far


def test_a_codec_must_fit(config: Diffusion) -> None:
    small = Vae(name="small", data=Data(size=32), autoencoder=CODEC)
    with pytest.raises(UserError, match=r"data.size is 16, that of the codec runs/small is 32"):
        config.accept("codec", small, "runs/small")
    wide = dataclasses.replace(CODEC, latent_channels=8)
    other = Vae(name="wide", data=config.data, autoencoder=wide)
    with pytest.raises(UserError, match=r"latent_channels is 4, that of the codec runs/wide is 8"):
        config.accept("codec", other, "runs/wide")
    with pytest.raises(UserError, match="runs/d is no autoencoder but a run of diffusion"):
        config.accept("codec", config, "runs/d")
    with pytest.raises(UserError, match=r"dit.channels is 4; the codec's codes have 8"):
        dataclasses.replace(config, autoencoder=wide).check()
    with pytest.raises(UserError, match="channels is 4; images have 3"):
        dataclasses.replace(config, codec="").check()


def test_a_student_has_its_teachers_codec(add_config: Add, config: Diffusion) -> None:
    student = dataclasses.replace(add_config, model=LATENT_MODEL)
    with pytest.raises(
        UserError, match=r"codec is none, that of the teacher runs/t is there; give"
    ):
        student.accept("teacher", config, "runs/t")
    deep = dataclasses.replace(CODEC, layers=2, dtype="bfloat16")
    student = dataclasses.replace(student, codec="vae", autoencoder=deep)
    with pytest.raises(
        UserError,
        match=r"student's autoencoder\.layers is 2, that of the teacher runs/t is 1; give",
    ):
        student.accept("teacher", config, "runs/t")


def test_a_teacher_to_be_trained_is_trained_on_the_codec_asked_for() -> None:
    student = configs.load("add_latent")
    assert isinstance(student, Add)
    mine = dataclasses.replace(student, teacher="train", codec="runs/my_vae")
    assert mine.stage("teacher").roles() == {"codec": "runs/my_vae"}
    mine.accept("teacher", mine.stage("teacher"), "config add_latent_teacher")


@pytest.mark.parametrize(
    ("start", "field", "given", "its"),
    [
        ("add_latent", "teacher", "runs/t", "vae"),
        ("add_latent", "teacher", "latent_diffusion", "vae"),
        ("latent_diffusion", "init_from", "runs/t", "runs/its_vae"),
    ],
)
def test_a_codec_that_would_not_be_used_is_refused(
    start: str, field: str, given: str, its: str
) -> None:
    teacher = dataclasses.replace(configs.load("latent_diffusion"), codec=its)  # pyright: ignore

    def asked(codec: str) -> None:
        config = dataclasses.replace(configs.load(start), **{field: given, "codec": codec})
        config.accept(field, teacher, "runs/t")

    option = "--" + field.replace("_", "-")
    with pytest.raises(
        UserError, match=f"--codec is 'runs/my_vae', that of {option} runs/t is '{its}'"
    ):
        asked("runs/my_vae")
    for codec in (its, "vae", "the teacher's"):
        asked(codec)
