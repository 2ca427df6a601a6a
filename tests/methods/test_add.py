"""Adversarial diffusion distillation: what each player sees, and which way gradients go."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import state_like

from jaxgen.config import Train
from jaxgen.diffusion import denoiser, distillation
from jaxgen.diffusion import schedule as schedules
from jaxgen.errors import UserError
from jaxgen.methods import add
from jaxgen.methods.add import Add
from jaxgen.models import judge as judges
from jaxgen.models.judge import Judge
from jaxgen.pixels import to_unit


@pytest.fixture(scope="module")
def state(add_config: Add, frozen):
    make = functools.partial(add.init, add_config, frozen, jax.random.key(0))
    return state_like(make, student=frozen["teacher"])


@pytest.fixture(scope="module")
def x0(batch):
    return to_unit(batch["image"])


@pytest.fixture(scope="module")
def text(add_config: Add, frozen, batch):
    encode = jax.jit(functools.partial(denoiser.encode, add_config.model))
    return encode(frozen["text"], batch["caption"])


def normal(name: str, like: jax.Array) -> jax.Array:
    return jax.random.normal(jax.random.key(sum(name.encode())), like.shape)


def test_the_student_starts_as_the_teacher_or_at_random(add_config: Add, frozen) -> None:
    random = dataclasses.replace(add_config, initialise="random")

    @jax.jit
    def students(frozen):
        states = [add.init(config, frozen, jax.random.key(0)) for config in (add_config, random)]
        return [(state.params["student"], state.ema["student"]) for state in states]

    (same, averaged), (other, _) = students(frozen)
    jax.tree.map(np.testing.assert_array_equal, same, frozen["teacher"])
    jax.tree.map(np.testing.assert_array_equal, averaged, same)
    assert moved(other, frozen["teacher"]) > 0.05


def test_student_timesteps_are_the_four_and_the_last_is_pure_noise(add_config: Add, x0) -> None:
    s = np.asarray(add.student_timesteps(add_config, jax.random.key(0), 4000))
    values, counts = np.unique(s, return_counts=True)
    np.testing.assert_array_equal(values, [249, 499, 749, 999])
    assert counts.min() > 850
    often = dataclasses.replace(add_config, frequency=(5, 0, 1, 2))
    s = np.asarray(add.student_timesteps(often, jax.random.key(0), 4000))
    values, counts = np.unique(s, return_counts=True)
    np.testing.assert_array_equal(values, [249, 499, 999])
    np.testing.assert_allclose(counts / 4000, [2 / 8, 1 / 8, 5 / 8], atol=0.03)
    turbo = dataclasses.replace(add_config, spacing="turbo")
    s = np.unique(add.student_timesteps(turbo, jax.random.key(0), 400))
    np.testing.assert_array_equal(s, [699, 799, 899, 999])
    eps = normal("eps", x0)
    for kind in ("flow", "scaled_linear"):  # the second has some image left at its own end
        schedule = schedules.Schedule(kind=kind)
        config = dataclasses.replace(
            add_config, model=dataclasses.replace(add_config.model, schedule=schedule)
        )
        last = jnp.full(len(x0), 999.0)
        pure = add.student_input(config, x0, eps, last)
        np.testing.assert_array_equal(pure, add.student_input(config, -3 * x0, eps, last))
        np.testing.assert_allclose(pure, eps * schedule.sigmas()[-1], rtol=1e-6)


def test_teacher_timesteps_fill_their_range(add_config: Add) -> None:
    for share, first, last in (
        ((0.0, 1.0), 0, 999),
        ((0.3, 0.32), 300, 319),
        ((0.9996, 1.0), 999, 999),
    ):
        config = dataclasses.replace(add_config, teacher_range=share)
        t = np.unique(add.teacher_timesteps(config, jax.random.key(0), 20_000))
        assert (t[0], t[-1], len(t)) == (first, last, last - first + 1)
    for share in ((0.5, 0.5), (-0.1, 1.0), (0.0, 1.1)):
        with pytest.raises(UserError, match="--teacher-range"):
            dataclasses.replace(add_config, teacher_range=share).check()


def test_the_teacher_is_fed_the_student_output_noised_again(
    add_config: Add, frozen, x0, text, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def predict(config, unet, x_t, t, text):
        seen.append((x_t, t))
        return x_t

    monkeypatch.setattr(denoiser, "predict_x0", predict)
    fake, eps, t = 0.5 * x0, normal("eps", x0), jnp.linspace(10.0, 999.0, len(x0))

    @jax.jit
    def run(frozen, fake, eps, t, text):
        add.teacher_target(add_config, frozen, fake, eps, t, text)
        return seen

    ((x_t, at),) = run(frozen, fake, eps, t, text)
    alpha, sigma = add_config.model.schedule.at(t)
    expected = alpha[:, None, None, None] * fake + sigma[:, None, None, None] * eps
    np.testing.assert_allclose(x_t, expected, rtol=1e-6)
    np.testing.assert_array_equal(at, t)


@pytest.mark.parametrize("weighting", ["exponential", "nfsd"])
def test_no_gradient_reaches_the_teacher_nor_the_student_through_the_target(
    add_config: Add, frozen, x0, text, weighting
) -> None:
    config = dataclasses.replace(add_config, weighting=weighting)
    t, eps = jnp.linspace(100.0, 999.0, len(x0)), normal("eps", x0)

    @jax.jit
    def gradients(frozen, fake):
        def loss(frozen, fake):
            target = add.teacher_target(config, frozen, fake, eps, t, text)
            return distillation.loss(config.model.schedule, weighting, fake, target, t)

        target = add.teacher_target(config, frozen, fake, eps, t, text)
        networks = {name: frozen[name] for name in ("teacher", "text")}
        return jax.grad(lambda n, f: loss({**frozen, **n}, f), (0, 1))(networks, fake), target

    (to_networks, to_fake), target = gradients(frozen, 0.3 * x0)
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(to_networks))
    alpha, sigma = config.model.schedule.at(t)
    c = (alpha if weighting == "exponential" else alpha * sigma / 2)[:, None, None, None]
    np.testing.assert_allclose(to_fake, 2 * c * (0.3 * x0 - target) / x0.size, rtol=1e-4, atol=1e-9)


def test_sds_weighting_is_the_score_distillation_gradient(add_config: Add, x0) -> None:
    """c(t) = α/(2σ)·w(t), w = σ²: half the gradient of ‖·‖² is w·(ε̂ - ε)·∂x̂ (Poole et al. 2022)."""
    t, eps = jnp.linspace(50.0, 950.0, len(x0)), normal("eps", x0)
    alpha, sigma = (level[:, None, None, None] for level in add_config.model.schedule.at(t))
    fake, target = 0.4 * x0, normal("target", x0)
    eps_hat = (alpha * fake + sigma * eps - alpha * target) / sigma
    got = jax.grad(lambda f: distillation.loss(add_config.model.schedule, "sds", f, target, t))(
        fake
    )
    np.testing.assert_allclose(got, sigma**2 * (eps_hat - eps) / x0.size, rtol=1e-3, atol=1e-8)


def test_teacher_steps_follow_ddim(
    add_config: Add, frozen, x0, text, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four calls at falling timesteps, and between two of them exactly a DDIM step."""
    calls = []

    def predict(config, unet, x_t, t, text):
        calls.append((x_t, float(t[0])))
        return jnp.tanh(x_t)

    monkeypatch.setattr(denoiser, "predict_x0", predict)
    t, eps = jnp.full(len(x0), 799.0), normal("eps", x0)
    config = dataclasses.replace(add_config, teacher_steps=4)
    add.teacher_target(config, frozen, x0, eps, t, text)
    np.testing.assert_allclose([t for _, t in calls], [799, 599.25, 399.5, 199.75], rtol=1e-5)
    for (x, t), (y, after) in itertools.pairwise(calls):
        alpha, sigma = config.model.schedule.levels(np.float64(t))
        alpha_, sigma_ = config.model.schedule.levels(np.float64(after))
        eps_hat = (x - alpha * jnp.tanh(x)) / sigma
        np.testing.assert_allclose(y, alpha_ * jnp.tanh(x) + sigma_ * eps_hat, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def step(add_config: Add):
    """A train step with λ and the student's learning rate as arguments, compiled once."""

    @jax.jit
    def run(distillation, state, frozen, batch, rate=add_config.optimizer.learning_rate):
        optimizer = dataclasses.replace(add_config.optimizer, learning_rate=rate)
        config = dataclasses.replace(add_config, distillation=distillation, optimizer=optimizer)
        return add.train_step(config, state, frozen, batch)

    return run


def moved(before, after) -> float:
    return max(
        np.abs(np.asarray(a) - np.asarray(b)).max()
        for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    )


def test_the_judge_alone_moves_the_student_and_nothing_frozen(frozen, state, batch, step) -> None:
    after, metrics = step(0.0, state, frozen, batch)
    assert metrics["student_gradient"] > 1e-4
    assert metrics["adversarial_gradient"] > 1e-4
    assert metrics["distillation_gradient"] == 0, "its weight is in it"
    assert moved(state.params["student"], after.params["student"]) > 1e-4
    assert moved(state.params["judge"], after.params["judge"]) > 1e-4
    assert set(after.params) == {"student", "judge"}, "nothing frozen is in the state"
    assert set(after.ema) == {"student"}
    assert after.step == state.step + 1


def test_one_batch_improves_the_measures_of_both_players(
    add_config: Add, frozen, state, batch, step
) -> None:
    first = None
    for _ in range(12):
        again = state.replace(step=jnp.zeros((), jnp.int32))
        state, metrics = step(add_config.distillation, again, frozen, batch)
        first = first or metrics
    assert metrics["judge"] < 0.9 * first["judge"], "the judge learns to tell"
    assert metrics["real_believed"] > metrics["fake_believed"]
    assert metrics["distillation"] < first["distillation"], "the student nears its teacher"


def test_one_batch_is_learnt_from_the_teacher_alone(frozen, state, batch, step) -> None:
    """By the distance at the same draws, its weight so high that the judge goes under."""
    rows = []
    for _ in range(40):
        again = state.replace(step=jnp.zeros((), jnp.int32))
        state, metrics = step(1e4, again, frozen, batch, 1e-2)
        rows.append(float(metrics["distillation"]))
    assert rows[-1] < 0.6 * rows[0]


def test_judge_losses_have_the_right_signs(add_config: Add, frozen, state, x0, text) -> None:
    """Only judging differs: swapping real and fake swaps the two hinge terms."""
    look = jax.jit(functools.partial(add.look, add_config))
    features, c_img = look(frozen["eyes"], x0)
    other, _ = look(frozen["eyes"], -x0)
    conditions = (text.pooled, c_img)
    params = state.params["judge"]
    judge = jax.jit(Judge(add_config.judge).apply)

    def means(features):
        logits = judge({"params": params}, features, *conditions)
        return [
            (float(jnp.maximum(0, 1 - x).mean()), float(jnp.maximum(0, 1 + x).mean()))
            for x in logits
        ]

    def said(features):
        return add.verdicts(add_config, params, features, conditions)

    total, metrics = jax.jit(lambda *both: judges.loss(said, *both, add_config.r1))(features, other)
    expected = sum(real for real, _ in means(features)) + sum(fake for _, fake in means(other))
    np.testing.assert_allclose(metrics["judge"], expected, rtol=1e-5)
    assert metrics["r1"] > 0
    np.testing.assert_allclose(total, metrics["judge"] + add_config.r1 * metrics["r1"], rtol=1e-6)
    without, rest = jax.eval_shape(lambda *both: judges.loss(said, *both, 0.0), features, other)
    assert without.shape == ()
    assert rest.keys() == metrics.keys() - {"r1"}, "a second derivative that nothing asks for"


def test_what_does_not_fit_names_both_sides(add_config: Add, diffusion_config) -> None:
    add_config.accept("teacher", diffusion_config, "runs/t")
    larger = dataclasses.replace(
        diffusion_config, data=dataclasses.replace(diffusion_config.data, size=32)
    )
    with pytest.raises(UserError, match=r"data\.size is 16, that of the teacher runs/t is 32"):
        add_config.accept("teacher", larger, "runs/t")
    cosine = dataclasses.replace(
        diffusion_config,
        model=dataclasses.replace(
            diffusion_config.model, schedule=schedules.Schedule(kind="cosine"), prediction="v"
        ),
    )
    with pytest.raises(UserError, match=r"model\.schedule.*flow.*cosine"):
        add_config.accept("teacher", cosine, "runs/t")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distillation": -3.0}, "--distillation is -3.0; give 0 or more"),
        ({"adversarial": float("nan")}, "--adversarial is nan; give 0 or more"),
        ({"r1": -1.0}, "--r1 is -1.0; give 0 or more"),
        ({"teacher_guidance": -5.0}, "--teacher-guidance is -5.0; give 0 or more"),
        ({"adversarial": 0.0, "distillation": 0.0}, "are all 0; nothing would be learnt"),
        ({"train": Train(batch=1)}, "--train.batch is 1: .* give 2 or more"),
    ],
)
def test_what_is_impossible_is_one_line(add_config: Add, changes, message) -> None:
    add_config.check()
    with pytest.raises(UserError, match=message):
        dataclasses.replace(add_config, **changes).check()
