"""Latent adversarial diffusion distillation: the teacher itself is the judge's eyes.

Sauer et al. 2024 (arXiv 2403.12015). Three players: the student, a diffusion network that starts
from the teacher's weights; the teacher, frozen, in whose features pictures are judged, noised
again; the judge, trainable heads on those features. The step happens where diffusion does: no
picture is decoded in it. The training pictures, which the judge takes for real, are the teacher's
own guided samples, see `jaxgen.synthesis`; of a teacher of codes they are kept as pictures.

What the paper leaves open is decided so: a picture and the student's answer to it are noised to the
same t̂ by the same noise, so that their verdicts differ by the pictures alone; the teacher reads
them with their caption, unguided; heads are those of ADD, over tokens in a ring (the paper's are
two-dimensional); and timesteps are shares of the schedule's own time, which is the paper's where
the schedule is `flow` with `shift` 1.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxgen import config as configs
from jaxgen import optimizer
from jaxgen.config import Drawing, Optimizer
from jaxgen.diffusion import denoiser, distillation
from jaxgen.diffusion import sampler as sampling
from jaxgen.diffusion import schedule as schedules
from jaxgen.errors import UserError
from jaxgen.methods.distilled import (
    Distilled,
    first_student,
    frozen_teacher,
    measured_steps,
    samplers,
    shown,
    student_noise,
    student_sampler,
    teacher_shapes,
    weights,
)
from jaxgen.methods.text_to_image import (
    check_sampler,
    clean,
    once,
    said,
    sample,
    seen_words,
    unsaid,
)
from jaxgen.models import eyes
from jaxgen.models import judge as judges
from jaxgen.models.judge import Head
from jaxgen.models.unet import timestep_embedding
from jaxgen.state import Batch, Metrics, State, stream
from jaxgen.text.encoder import TextFeatures

Images = Float[Array, "b h w c"]
Times = Float[Array, " b"]
Features = list[Float[Array, "b n c"]]
Logits = list[Float[Array, "b n"]]
__all__ = [  # shared functions of this method
    "check_sampler",
    "measured_steps",
    "once",
    "sample",
    "samplers",
    "seen_words",
    "shown",
    "weights",
]


@dataclasses.dataclass(frozen=True)
class Ladd(Distilled):
    drawn: Drawing = Drawing()
    taps: tuple[int, ...] = ()
    """Which of the teacher's feature maps are judged, a head each: of a UNet every level going
    down, the middle, every level going up, counted from 0; of a DiT the blocks. Empty: all."""
    width: int = 64
    """Channels in which a head's tokens and conditions meet."""
    judge_optimizer: Optimizer = Optimizer(learning_rate=1e-3, b1=0.0, b2=0.99, clip=10.0)
    frequency: tuple[float, ...] = (0.7, 0.1, 0.1, 0.1)
    warmup_steps: int = 500
    """Train steps before that, in which only the less noisy half of them is drawn, equally."""
    noise_mean: float = 1.0
    """Mean of the logit of t̂, a share of the schedule: the higher, the more the heads look at
    shapes; the lower, at texture."""
    noise_std: float = 1.0
    """Deviation of the logit of t̂."""
    distillation: float = 0.0
    """Weight of ADD's distance to the teacher's prediction at t̂; the paper has none."""
    r1: float = 0.0
    """Weight of the gradient penalty on the features of real images; the paper names none."""

    def check(self) -> None:
        super().check()
        self.judge_optimizer.check("judge-optimizer")
        configs.check_not_negative(
            {
                "warmup-steps": self.warmup_steps,
                "distillation": self.distillation,
                "r1": self.r1,
            }
        )
        if self.warmup_steps >= self.train.steps and self.student_steps > 1:
            raise UserError(
                f"--warmup-steps {self.warmup_steps} are all of --train.steps {self.train.steps}: "
                "pure noise is never drawn, and one step never learnt; give fewer"
            )
        maps = denoiser.feature_maps(self.model)
        if self.taps and not 0 <= min(self.taps) <= max(self.taps) < maps:
            raise UserError(f"--taps is {self.taps}; the teacher has feature maps 0 to {maps - 1}")
        if self.width < 1:
            raise UserError(f"--width is {self.width}; give 1 or more")
        if not (abs(self.noise_mean) < float("inf") and 0 < self.noise_std < float("inf")):
            raise UserError(
                f"--noise-mean {self.noise_mean} --noise-std {self.noise_std}: give a number, and "
                "one above 0"
            )


def frozen(config: Ladd, filled: dict[str, Any]) -> dict[str, Any]:
    """The teacher's networks, from what was found for its role."""
    return frozen_teacher(config, filled)


def frozen_shapes(config: Ladd) -> dict[str, Any]:
    """A tree of the shapes of `frozen`, for planning."""
    return teacher_shapes(config)


def init(config: Ladd, frozen: Any, key: PRNGKeyArray) -> State:
    """A fresh state: the student from the teacher's weights, the judge's heads at random."""
    student_key, judge_key = jax.random.split(key)
    student = first_student(config, frozen, student_key)
    x_t = jnp.zeros((2, config.side, config.side, config.model.backbone.channels))
    t, empty = jnp.zeros(2), unsaid(config, frozen)
    text = jax.tree.map(lambda leaf: jnp.repeat(leaf, 2, axis=0), empty)
    features = look(config, frozen["teacher"], x_t, t, text)
    keys = jax.random.split(judge_key, len(features))
    heads = {
        f"head_{k}": Head(config.width).init(keys[k], tokens, conditions(config, t, text))["params"]
        for k, tokens in enumerate(features)
    }
    params = {"student": student, "judge": heads}
    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema={"student": jax.tree.map(jnp.copy, student)},
        opt_state={name: _optimizers(config)[name].init(params[name]) for name in params},
    )


def train_step(config: Ladd, state: State, frozen: Any, batch: Batch) -> tuple[State, Metrics]:
    """One update of the judge, then one of the student against the updated judge.

    The student runs forward once, the teacher once on either side; both updates use what came out.
    Metrics: the losses with their terms, the shares of logits that say real, gradient norms. Those
    of the terms are at the student's output, weights included.
    """

    def random(name: str) -> PRNGKeyArray:
        return stream(config.seed, state.step, name)

    schedule = config.model.schedule
    frozen = {**frozen, "teacher": denoiser.gathered(config.model, frozen["teacher"])}
    _, x0 = clean(config, frozen, batch, random("flip"))
    text = jax.lax.stop_gradient(said(config, frozen, batch))

    s = student_timesteps(config, random("student timestep"), state.step, len(x0))
    eps, paired = student_noise(config, batch, s, random("student noise"))
    x_s = schedules.add_noise(schedule, x0, eps, s, pure_terminal=True)

    def student(params: Any) -> Images:
        weights = denoiser.gathered(config.model, params)
        return denoiser.predict_x0(config.model, weights, x_s, s, text)

    fake, student_vjp = jax.vjp(student, state.params["student"])

    # The judge: hinge on real and fake, both as the teacher sees them at t̂.
    t = judge_timesteps(config, random("judge timestep"), len(x0))
    noise = jax.random.normal(random("judge noise"), x0.shape)
    told = conditions(config, t, text)

    def seen(image: Images) -> Features:
        x_t = schedules.add_noise(schedule, image, noise, t)
        return look(config, frozen["teacher"], x_t, t, text)

    real_features = seen(x0)
    fake_features, teacher_vjp = jax.vjp(seen, fake)

    def judge_loss(params: Any) -> tuple[Float[Array, ""], Metrics]:
        def said(features: Features) -> Logits:
            return verdicts(config, params, features, told)

        return judges.loss(said, real_features, fake_features, config.r1)

    optimizers = _optimizers(config)
    (_, judged), judge_gradient = jax.value_and_grad(judge_loss, has_aux=True)(
        state.params["judge"]
    )
    judge, judge_opt, judge_norm = optimizer.apply(
        optimizers["judge"], judge_gradient, state.opt_state["judge"], state.params["judge"]
    )

    # The student: the judge's verdict, through the teacher, and the distance to it if there is one.
    def adversarial(features: Features) -> Float[Array, ""]:
        return judges.generator_loss(verdicts(config, judge, features, told))

    verdict, features_gradient = jax.value_and_grad(adversarial)(fake_features)
    (gradient,) = teacher_vjp(features_gradient)
    loss, terms = (
        verdict,
        {"adversarial": verdict, "adversarial_gradient": jnp.linalg.norm(gradient)},
    )
    if config.distillation:
        x_t = schedules.add_noise(schedule, jax.lax.stop_gradient(fake), noise, t)
        target = denoiser.predict_x0(config.model, frozen["teacher"], x_t, t, text)

        def distance(fake: Images) -> Float[Array, ""]:
            return distillation.loss(schedule, "exponential", fake, target, t)

        distilled, distance_gradient = jax.value_and_grad(distance)(fake)
        distance_gradient *= config.distillation
        gradient += distance_gradient
        loss += config.distillation * distilled
        terms |= {
            "distillation": distilled,
            "distillation_gradient": jnp.linalg.norm(distance_gradient),
        }
    if config.regression:
        missed, features_gradient = jax.value_and_grad(
            lambda features: jnp.mean(paired * eyes.distance(features, real_features))
        )(fake_features)
        (regression_gradient,) = teacher_vjp(features_gradient)
        regression_gradient *= config.regression
        gradient += regression_gradient
        loss += config.regression * missed
        terms |= {
            "regression": missed,
            "regression_gradient": jnp.linalg.norm(regression_gradient),
        }
    (gradient,) = student_vjp(gradient)
    student_params, student_opt, student_norm = optimizer.apply(
        optimizers["student"], gradient, state.opt_state["student"], state.params["student"]
    )

    ema = optimizer.averaged(config.train, state.ema, {"student": student_params}, state.step)
    return State(
        step=state.step + 1,
        params={"student": student_params, "judge": judge},
        ema=ema,
        opt_state={"student": student_opt, "judge": judge_opt},
    ), {
        "loss": loss,
        **terms,
        **judged,
        "student_gradient": student_norm,
        "judge_gradient": judge_norm,
    }


def student_timesteps(
    config: Ladd, key: PRNGKeyArray, step: Int[Array, ""] | int, count: int
) -> Float[Array, " count"]:
    """s, drawn from the student's N timesteps τ, in the warm-up from those with least noise."""
    steps = config.student_steps
    taus = sampling.timesteps(student_sampler(config, steps), config.model.schedule)
    usual = np.asarray(config.frequency or (1.0,) * steps)
    early = np.arange(steps) >= steps // 2
    share = jnp.where(step < config.warmup_steps, early / early.sum(), usual / usual.sum())
    return jax.random.choice(key, jnp.asarray(taus, jnp.float32), (count,), p=share)


def judge_timesteps(config: Ladd, key: PRNGKeyArray, count: int) -> Float[Array, " count"]:
    """t̂, real numbers in [0, T - 1], logit-normal as a share of them."""
    logit = config.noise_mean + config.noise_std * jax.random.normal(key, (count,))
    return (config.model.schedule.timesteps - 1) * jax.nn.sigmoid(logit)


def look(config: Ladd, teacher: Any, x_t: Images, t: Times, text: TextFeatures) -> Features:
    """What the frozen teacher sees in noised images: the tokens of each map that has a head."""
    maps = denoiser.features(config.model, teacher, x_t, t, text)
    return [maps[tap] for tap in config.taps] if config.taps else maps


def conditions(config: Ladd, t: Times, text: TextFeatures) -> dict[str, Float[Array, "b d"]]:
    """What the heads know beside the features: how much noise there is, and the caption."""
    return {"time": timestep_embedding(t, 2 * config.width), "text": text.pooled}


def verdicts(
    config: Ladd, params: Any, features: Features, told: dict[str, Float[Array, "b d"]]
) -> Logits:
    """The judge's logits, one a token of each feature map; above 0 means real."""
    head = Head(config.width)
    return [
        head.apply({"params": params[f"head_{k}"]}, tokens, told)  # pyright: ignore[reportReturnType]
        for k, tokens in enumerate(features)
    ]


def _optimizers(config: Ladd) -> dict[str, Any]:
    return {
        "student": optimizer.build(config.optimizer, config.train),
        "judge": optimizer.build(config.judge_optimizer, config.train),
    }
