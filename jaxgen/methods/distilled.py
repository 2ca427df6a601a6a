"""What every method shares that distils an iterative teacher into a student of few steps."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgen import config as configs
from jaxgen import methods
from jaxgen.config import Drawing, Experiment
from jaxgen.diffusion import denoiser
from jaxgen.diffusion import sampler as sampling
from jaxgen.diffusion.denoiser import Denoiser
from jaxgen.diffusion.sampler import Sampler
from jaxgen.errors import UserError
from jaxgen.methods.diffusion import Diffusion, merged
from jaxgen.methods.text_to_image import TextToImage, codec_shapes, numbered_noise, weighed
from jaxgen.state import Batch, State, own


@dataclasses.dataclass(frozen=True)
class Distilled(TextToImage):
    teacher: str = "shipped"
    """shipped (trained weights that come with jaxgen), train (train them first, on the --codec if
    there is one), the name of a config of the same pictures to train, or a folder of weights such
    as a finished run."""
    teacher_config: str = "diffusion"
    """The config that trains the teacher, and by which the shipped one was trained. Its data and
    --model are this run's; which network that is, what it predicts and the kind of its schedule
    must be what the config says."""
    teacher_train_steps: int = 0
    """Train steps of a teacher that is trained first; 0: what its config says."""
    initialise: Literal["teacher", "random"] = "teacher"
    """Where the student's weights come from (section 3.1: from random ones it fails)."""
    student_steps: int = 4
    """N: the student is trained at N timesteps, the last of which is pure noise."""
    spacing: Literal["trailing", "turbo"] = "trailing"
    """Which timesteps those are: 999, 749, 499, 249, or Stability's 999, 899, 799, 699."""

    frequency: tuple[float, ...] = ()
    """How often each of them is drawn, relative to the others, pure noise first; empty: equally,
    as the paper of ADD has it."""
    drawn: Drawing = Drawing(count=0)
    """The teacher's samples from which the student learns; --drawn.count 0: the real pictures."""
    regression: float = 0.0
    """Weight of the distance between the student's one step and what the teacher draws from the
    very same noise, in the features by which the judge sees (Yin et al. 2023, DMD, arXiv
    2311.18828, eq. 9): without it nothing says that other noise is to give another picture. A mean
    over the whole batch, to which only the images at pure noise add: see --frequency."""

    def drawing(self) -> tuple[str, Drawing] | None:
        return ("teacher", self.drawn) if self.drawn.count else None

    @property
    def words_of(self) -> str:
        return "teacher"

    @property
    def trains_text(self) -> bool:
        return False  # the teacher's, in every method

    @property
    def distilled(self) -> bool:
        return True

    def roles(self) -> dict[str, str]:
        return {"teacher": self.teacher}  # whose weights hold the codec, if there is one

    def stage(self, role: str) -> Experiment:
        config = configs.load(self.teacher_config)
        if not isinstance(config, Diffusion):
            raise UserError(
                f"--teacher-config {self.teacher_config} is a config of {methods.name(config)}, "
                "and only diffusion can teach"
            )
        if self.teacher == "train":
            self._same_kind(config)
        train = config.train
        if self.teacher_train_steps:
            train = dataclasses.replace(train, steps=self.teacher_train_steps)
        return dataclasses.replace(
            config,
            data=self.data,
            model=self.model,
            codec=self.codec,
            autoencoder=self.autoencoder,
            train=train,
            seed=self.seed,
            mesh=self.mesh,
            shown=self.shown,
        )

    def _same_kind(self, teacher: Diffusion) -> None:
        """Raises UserError where the config of the teacher trains what is no teacher of this."""
        mine, its = (
            {"network": m.network, "prediction": m.prediction, "schedule.kind": m.schedule.kind}
            for m in (self.model, teacher.model)
        )
        for field, value in mine.items():
            if value != its[field]:
                raise UserError(
                    f"the student's model.{field} is {value}, that of --teacher-config "
                    f"{self.teacher_config} is {its[field]}; give both the same"
                )

    def accept(self, role: str, other: Any, where: str) -> None:
        if role != "teacher":
            return
        if not isinstance(other, Diffusion):
            raise UserError(
                f"--teacher {where} is no diffusion model but a run of {methods.name(other)}; "
                "give a run of diffusion"
            )
        other = self.fitted(other)
        unlike = {
            "data.size": (self.data.size, other.data.size),
            "codec": tuple("there" if c.codec else "none" for c in (self, other)),
        }
        if self.codes and other.codes:
            codecs = configs.differences(self.codes, other.codes)
            unlike |= {f"autoencoder.{field}": both for field, both in codecs.items()}
        models = configs.differences(_shape(self), _shape(other))
        unlike |= {f"model.{field}": both for field, both in models.items()}
        for name, (a, b) in unlike.items():
            if a != b:
                raise UserError(
                    f"the student's {name} is {a}, that of the teacher {where} is {b}; give both "
                    "the same, or another --teacher"
                )
        self.accept_codec(role, other, where)

    def check(self) -> None:
        super().check()
        if self.train.batch < 2:
            raise UserError(
                f"--train.batch is {self.train.batch}: the judge compares images of a batch, and a "
                "student alone in it collapses; give 2 or more"
            )
        few = student_sampler(self, self.student_steps)
        sampling.check(few, self.model.schedule, "--student-steps")
        share = self.frequency
        if share and len(share) != self.student_steps:
            raise UserError(
                f"--frequency has {len(share)} entries; give one for each of the "
                f"{self.student_steps} --student-steps, or none for equal shares"
            )
        if share and not (share[0] > 0 <= min(share) and sum(share) < float("inf")):
            raise UserError(
                f"--frequency is {share}; give numbers from 0 up, the first above 0, or one step "
                "is never learnt"
            )
        configs.check_not_negative(
            {
                "drawn.count": self.drawn.count,
                "drawn.guidance": self.drawn.guidance,
                "regression": self.regression,
            }
        )
        if self.drawn.count:
            drawing = Sampler(steps=self.drawn.steps)
            sampling.check(drawing, self.model.schedule, "--drawn.steps")
        if self.regression and not self.drawn.count:
            raise UserError(
                "--regression asks what the teacher draws from the student's noise, and it draws "
                "nothing: give --drawn.count"
            )
        if self.regression and self.data.flip:
            raise UserError(
                "--regression has no meaning with mirrored pictures, which no noise gave: give "
                "--data.no-flip"
            )
        if self.teacher_train_steps < 0:
            raise UserError(f"--teacher-train-steps is {self.teacher_train_steps}; give 0 or more")
        if self.teacher_train_steps and self.teacher != "train":
            raise UserError("--teacher-train-steps goes with --teacher=train")


def student_sampler(config: Distilled, steps: int) -> Sampler:
    """Few steps at the timesteps that the student was trained at, noising again between them."""
    return Sampler(solver="euler_ancestral", spacing=config.spacing, steps=steps)


def student_noise(
    config: Distilled, batch: Batch, s: Float[Array, " b"], key: PRNGKeyArray
) -> tuple[Float[Array, "b side side c"], Float[Array, " b"]]:
    """The student's ε at timesteps s, and 1 for the images which the teacher drew from theirs.

    These are, with a `regression`, those at pure noise; all others' noise is fresh.
    """
    shape = (len(s), config.side, config.side, config.model.backbone.channels)
    fresh = jax.random.normal(key, shape)
    if not config.regression:
        return fresh, jnp.zeros(len(s))
    last = sampling.timesteps(student_sampler(config, 1), config.model.schedule)[0]
    pure = s >= last
    theirs = numbered_noise(config, config.seed, batch["row"])
    return jnp.where(pure[:, None, None, None], theirs, fresh), pure.astype(jnp.float32)


def samplers(config: Distilled) -> dict[str, Sampler]:
    """Samplers of the student, by title, the default first: one step, and all its trained steps."""
    return {
        f"{n} step{'s' * (n > 1)}": student_sampler(config, n)
        for n in sorted({1, config.student_steps})
    }


def measured_steps(config: Distilled) -> tuple[int, ...]:
    """Numbers of steps at which the samples are worth measuring."""
    return tuple(n for n in (4, 2, 1) if n <= config.student_steps)


def weights(config: Distilled, state: State, frozen: Any) -> denoiser.Weights:
    """What sampling the student needs: its averaged network, what else it has of its teacher."""
    return as_sampled(config, frozen, state.ema["student"])


def first_student(config: Distilled, frozen: Any, key: PRNGKeyArray) -> Any:
    """The student's first weights: a copy of the teacher's, or random ones."""
    if config.initialise == "random":
        return denoiser.init(config.model, config.side, key)["denoiser"]
    return own(frozen["teacher"])


def as_sampled(config: Distilled, frozen: Any, network: Any) -> denoiser.Weights:
    """The weights that sampling takes, with `network` as the denoiser."""
    codec = {"codec": frozen["codec"]} if config.codec else {}
    return {"text": frozen["text"], "denoiser": network, **codec}


def frozen_teacher(config: Distilled, filled: dict[str, Any]) -> dict[str, Any]:
    """The teacher's networks, and its codec if it has one, from what was found for the role."""
    found = filled["teacher"]
    teacher = merged(found.config, found.weights)
    codec = {"codec": teacher["codec"]} if config.codec else {}
    return {"teacher": teacher["denoiser"], "text": teacher["text"], **codec}


def teacher_shapes(config: Distilled) -> dict[str, Any]:
    """A tree of the shapes of `frozen_teacher`, for planning."""
    teacher = denoiser.init(config.model, config.side, jax.random.key(0))
    found = {"teacher": teacher["denoiser"], "text": teacher["text"]}
    return found | codec_shapes(config)


def shown(
    config: Distilled, state: State, frozen: Any
) -> list[tuple[str, denoiser.Weights, Sampler]]:
    """What the sample grids show: title, weights, sampler, of the teacher and the student."""
    teacher = as_sampled(config, frozen, frozen["teacher"])
    many = config.iterative
    student = weights(config, state, frozen)
    return [
        (f"teacher, {many.steps} steps", teacher, many),
        ("teacher, 1 step", teacher, Sampler(steps=1)),
        *((f"student, {title}", student, how) for title, how in samplers(config).items()),
    ]


def _shape(config: Any) -> Denoiser:
    """The denoiser without what the data decide, and without how it computes."""
    model = config.model
    return dataclasses.replace(
        model,
        text=weighed(dataclasses.replace(model.text, vocabulary=0)),
        text_2=weighed(model.text_2) if model.text_2 else None,
        unet=weighed(model.unet),
        dit=weighed(model.dit),
    )
