"""Adversarial diffusion distillation: a one-step student of an iterative teacher.

Sauer et al. 2023 (arXiv 2311.17042). Three players: the student, a diffusion network that starts
from the teacher's weights; the teacher, frozen; the judge, trainable heads on a frozen feature
network. The text encoder is the teacher's, frozen. Distances are means over pixels, logits means
over tokens, so that neither weight depends on the size of the image.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgen import config as configs
from jaxgen import methods, optimizer
from jaxgen.config import Experiment, Optimizer
from jaxgen.diffusion import denoiser, distillation
from jaxgen.diffusion import sampler as sampling
from jaxgen.diffusion import schedule as schedules
from jaxgen.diffusion.distillation import Weighting
from jaxgen.errors import UserError
from jaxgen.methods import classifier
from jaxgen.methods.classifier import Classifier
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
    decoded,
    once,
    said,
    sample,
    seen_words,
    unsaid,
)
from jaxgen.models import eyes as eyesight
from jaxgen.models import judge as judges
from jaxgen.models.augment import POLICIES, diffaug
from jaxgen.models.eyes import Eyes
from jaxgen.models.judge import Judge, JudgeConfig
from jaxgen.state import Batch, Metrics, State, stream
from jaxgen.text.encoder import TextFeatures

Images = Float[Array, "b h w c"]
Features = list[Float[Array, "b n c"]]
Conditions = tuple[Float[Array, "b d"], Float[Array, "b e"]]  # caption, real image
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
class Add(Distilled):
    judge: JudgeConfig = JudgeConfig()
    judge_optimizer: Optimizer = Optimizer(learning_rate=1e-3, b1=0.0, b2=0.99, clip=10.0)
    adversarial: float = 1.0
    """Weight of the judge's verdict in the student's loss; 0 trains by distillation alone."""
    distillation: float = 2.5
    """λ, the weight of the distance to the teacher; 0 trains by the judge alone and only measures
    the distance. The paper's 2.5 goes with its judge: compare adversarial_gradient and
    distillation_gradient in the metrics."""
    distance: Literal["pixels", "latents"] = "pixels"
    """Where that distance is taken: between pictures, through the frozen decoder, or between codes,
    which saves the decoder's second pass. The same thing without a codec."""
    weighting: Weighting = "exponential"
    """c(t): exponential α_t; sds; or nfsd, noise-free score distillation."""
    teacher_range: tuple[float, float] = (0.0, 1.0)
    """Part of the schedule from which the teacher's timestep t is drawn. The paper takes all of it;
    a teacher that blurs images with little noise, as x0-prediction does, does harm there."""
    teacher_steps: int = 1
    """Steps that the teacher takes from the noised student output to its prediction."""
    teacher_guidance: float = 1.0
    """Guidance of the teacher's prediction; of its conditional part with nfsd."""
    r1: float = 1e-5
    """γ, the weight of the gradient penalty on the features of real images."""

    def roles(self) -> dict[str, str]:
        return {"teacher": self.teacher, "features": self.judge.eyes}

    def weights_file(self, role: str) -> str:
        return self.judge.weights if role == "features" else ""

    def accept(self, role: str, other: Experiment, where: str) -> None:
        if role != "features":
            super().accept(role, other, where)
        elif isinstance(other, Classifier):
            seen = classifier.network(other)
            eyesight.check(f"the classifier {where}", seen, self.judge.taps, self.judge.resize)
        else:
            raise UserError(
                f"--judge.features {where} is a run of {methods.name(other)}, no classifier; the "
                "judge cannot see by it"
            )

    def check(self) -> None:
        super().check()
        self.judge_optimizer.check("judge-optimizer")
        self.judge.check()
        if unknown := set(self.judge.augment) - set(POLICIES):
            raise UserError(f"--judge.augment {min(unknown)!r} is none of {', '.join(POLICIES)}")
        if self.teacher in eyesight.NETWORKS:
            raise UserError(f"--teacher {self.teacher!r} is a feature network, no diffusion model")
        low, high = self.teacher_range
        if not 0 <= low < high <= 1:
            raise UserError(f"--teacher-range is {low} {high}; give two shares from 0 to 1, rising")
        if self.teacher_steps < 1:
            raise UserError(f"--teacher-steps is {self.teacher_steps}; give 1 or more")
        if self.teacher_steps > 1 and self.weighting == "nfsd":
            raise UserError("--teacher-steps above 1 has no meaning with --weighting nfsd")
        configs.check_not_negative(
            {
                "adversarial": self.adversarial,
                "distillation": self.distillation,
                "teacher-guidance": self.teacher_guidance,
                "r1": self.r1,
            }
        )
        if self.adversarial == self.distillation == self.regression == 0:
            raise UserError(
                "--adversarial, --distillation and --regression are all 0; nothing would be learnt"
            )


def frozen(config: Add, filled: dict[str, Any]) -> dict[str, Any]:
    """The teacher's two networks and the judge's eyes, from the networks found for the roles."""
    return {**frozen_teacher(config, filled), "eyes": _eyes(config, filled["features"])}


def frozen_shapes(config: Add, features: Any = None) -> dict[str, Any]:
    """A tree of the shapes of `frozen`, for planning.

    `features` is the classifier found for that role, whose shape nothing in the config says.
    """
    if features is not None:
        eyes = _eyes(config, features)
    else:
        network = eyesight.NETWORKS[config.judge.eyes]
        eyes = eyesight.fresh(network, config.judge.resize, jax.random.key(0))
    return {**teacher_shapes(config), "eyes": eyes}


def init(config: Add, frozen: Any, key: PRNGKeyArray) -> State:
    """A fresh state: the student from the teacher's weights, the judge's heads at random."""
    student_key, judge_key = jax.random.split(key)
    student = first_student(config, frozen, student_key)
    image = jnp.zeros((2, config.data.size, config.data.size, 3))
    features, c_img = look(config, frozen["eyes"], image)
    c_text = jnp.zeros((2, config.model.pooled_width))
    judge = Judge(config.judge).init(judge_key, features, c_text, c_img)
    params = {"student": student, "judge": judge["params"]}
    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema={"student": jax.tree.map(jnp.copy, student)},
        opt_state={name: _optimizers(config)[name].init(params[name]) for name in params},
    )


def train_step(config: Add, state: State, frozen: Any, batch: Batch) -> tuple[State, Metrics]:
    """One update of the judge, then one of the student against the updated judge.

    The student and the feature network each run forward once; both updates use what came out.
    Metrics: the losses with their terms, the shares of logits that say real, gradient norms. Those
    of the terms are at the student's pixels (its codes, where the distance is between codes),
    weights included: which of them leads is seen there and nowhere else.
    """

    def random(name: str) -> PRNGKeyArray:
        return stream(config.seed, state.step, name)

    image, x0 = clean(config, frozen, batch, random("flip"))
    text = jax.lax.stop_gradient(said(config, frozen, batch))

    s = student_timesteps(config, random("student timestep"), len(x0))
    eps, paired = student_noise(config, batch, s, random("student noise"))
    x_s = student_input(config, x0, eps, s)

    def student(params: Any) -> Images:
        weights = denoiser.gathered(config.model, params)
        return denoiser.predict_x0(config.model, weights, x_s, s, text)

    fake, student_vjp = jax.vjp(student, state.params["student"])
    picture, decoder_vjp = jax.vjp(lambda codes: decoded(config, frozen, codes), fake)

    # The judge: hinge on real and fake, and R1 (eq. 3).
    policy = config.judge.augment
    # A regression compares real and fake picture by picture: then both are augmented alike.
    alike = random("augment real" if config.regression else "augment fake")

    def seen(image: Images) -> Features:
        return look(config, frozen["eyes"], diffaug(alike, image, policy))[0]

    # One pass for the real images twice, augmented to be judged and as they are to condition on;
    # an image's two rows are neighbours, so that sharding keeps them together.
    real = [diffaug(random("augment real"), image, policy), image]
    real = rearrange(real, "two b ... -> (b two) ...")
    features, vectors = look(config, frozen["eyes"], real)
    real_features, conditions = [tokens[::2] for tokens in features], (text.pooled, vectors[1::2])
    fake_features, eyes_vjp = jax.vjp(seen, picture)

    def judge_loss(params: Any) -> tuple[Float[Array, ""], Metrics]:
        def said(features: Features) -> list[Float[Array, "b n"]]:
            return verdicts(config, params, features, conditions)

        return judges.loss(said, real_features, fake_features, config.r1)

    optimizers = _optimizers(config)
    (_, judged), judge_gradient = jax.value_and_grad(judge_loss, has_aux=True)(
        state.params["judge"]
    )
    judge, judge_opt, judge_norm = optimizer.apply(
        optimizers["judge"], judge_gradient, state.opt_state["judge"], state.params["judge"]
    )

    # The student: the judge's verdict and the distance to the teacher (eq. 1); with pairs, that to
    # what the teacher draws from the same noise (DMD, eq. 9).
    def adversarial(features: Features) -> Float[Array, ""]:
        return judges.generator_loss(verdicts(config, judge, features, conditions))

    verdict, features_gradient = jax.value_and_grad(adversarial)(fake_features)
    (verdict_gradient,) = eyes_vjp(features_gradient)

    t = teacher_timesteps(config, random("teacher timestep"), len(x0))
    noise = jax.random.normal(random("teacher noise"), x0.shape)
    target = teacher_target(config, frozen, fake, noise, t, text)

    in_pixels = config.distance == "pixels"

    def weighed(weight: float, gradient: Images) -> Images:
        """A picture's gradient times its weight, where the distance's is taken."""
        return weight * (gradient if in_pixels else decoder_vjp(gradient)[0])

    goal = decoded(config, frozen, target) if in_pixels else target

    def distance(made: Images) -> Float[Array, ""]:
        return distillation.loss(config.model.schedule, config.weighting, made, goal, t)

    distilled, distance_gradient = jax.value_and_grad(distance)(picture if in_pixels else fake)
    verdict_gradient = weighed(config.adversarial, verdict_gradient)
    distance_gradient *= config.distillation
    gradient = verdict_gradient + distance_gradient
    loss = config.adversarial * verdict + config.distillation * distilled
    terms = {}
    if config.regression:
        missed, features_gradient = jax.value_and_grad(
            lambda features: jnp.mean(paired * eyesight.distance(features, real_features))
        )(fake_features)
        regression_gradient = weighed(config.regression, eyes_vjp(features_gradient)[0])
        gradient += regression_gradient
        loss += config.regression * missed
        terms = {
            "regression": missed,
            "regression_gradient": jnp.linalg.norm(regression_gradient),
        }
    if in_pixels:
        (gradient,) = decoder_vjp(gradient)
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
        "adversarial": verdict,
        "distillation": distilled,
        **terms,
        **judged,
        "adversarial_gradient": jnp.linalg.norm(verdict_gradient),
        "distillation_gradient": jnp.linalg.norm(distance_gradient),
        "student_gradient": student_norm,
        "judge_gradient": judge_norm,
    }


def student_timesteps(config: Add, key: PRNGKeyArray, count: int) -> Float[Array, " count"]:
    """s, drawn from the student's N timesteps τ."""
    taus = sampling.timesteps(student_sampler(config, config.student_steps), config.model.schedule)
    share = jnp.asarray(config.frequency or (1.0,) * len(taus))
    return jax.random.choice(key, jnp.asarray(taus, jnp.float32), (count,), p=share / share.sum())


def student_input(config: Add, x0: Images, eps: Images, s: Float[Array, " b"]) -> Images:
    """x_s = α_s·x0 + σ_s·ε; at the last timestep nothing but noise, whatever the schedule."""
    return schedules.add_noise(config.model.schedule, x0, eps, s, pure_terminal=True)


def teacher_timesteps(config: Add, key: PRNGKeyArray, count: int) -> Float[Array, " count"]:
    """t, uniform over the timesteps of the `teacher_range`."""
    steps = config.model.schedule.timesteps
    low = min(round(config.teacher_range[0] * steps), steps - 1)
    high = max(round(config.teacher_range[1] * steps), low + 1)
    return jax.random.randint(key, (count,), low, high).astype(jnp.float32)


def teacher_target(
    config: Add,
    frozen: Any,
    fake: Images,
    eps: Images,
    t: Float[Array, " b"],
    text: TextFeatures,
) -> Images:
    """x̂_ψ, the teacher's image from the student's output noised again to t: no gradient passes."""
    model = config.model
    empty = unsaid(config, frozen)

    def denoise(x_t: Images, t: Float[Array, " b"], text: TextFeatures) -> Images:
        return denoiser.predict_x0(model, frozen["teacher"], x_t, t, text)

    return distillation.target(
        model.schedule,
        denoise,
        fake,
        eps,
        t,
        text,
        empty,
        weighting=config.weighting,
        steps=config.teacher_steps,
        guidance=config.teacher_guidance,
    )


def verdicts(
    config: Add, params: Any, features: Features, conditions: Conditions
) -> list[Float[Array, "b n"]]:
    """The judge's logits, one a token of each feature map; above 0 means real."""
    return Judge(config.judge).apply({"params": params}, features, *conditions)  # pyright: ignore[reportReturnType]


def look(config: Add, eyes: Eyes, image: Images) -> tuple[Features, Float[Array, "b d"]]:
    """What the judge's frozen eyes see: tokens at each tap, and one vector for the whole image."""
    return eyesight.look(eyes, image, config.judge.taps, config.judge.resize, config.judge.dtype)


def _eyes(config: Add, found: Any) -> Eyes:
    """Eyes from what was found for the role: a network's variables, or a classifier's run."""
    name = config.judge.eyes
    if name in eyesight.NETWORKS:
        return Eyes(eyesight.NETWORKS[name], found["params"])
    eyes = Eyes(classifier.network(found.config), found.weights)
    fresh = functools.partial(eyesight.fresh, eyes.network, config.judge.resize)
    expected = jax.eval_shape(fresh, jax.random.key(0))
    if jax.tree.map(jnp.shape, eyes) != jax.tree.map(jnp.shape, expected):
        raise UserError(
            f"the weights in {found.folder} do not fit the config.json beside them; copy both "
            "from one run"
        )
    return eyes


def _optimizers(config: Add) -> dict[str, Any]:
    return {
        "student": optimizer.build(config.optimizer, config.train),
        "judge": optimizer.build(config.judge_optimizer, config.train),
    }
