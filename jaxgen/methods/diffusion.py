"""Text-conditioned diffusion: loss, step, sample (Ho et al. 2020; Ho & Salimans 2022).

From random weights, or from those of another run: all of them tuned, or a few adapters beside them
(`jaxgen.models.lora`).
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from jaxgen import config as configs
from jaxgen import methods
from jaxgen.config import Data, Experiment
from jaxgen.diffusion import denoiser, prediction
from jaxgen.diffusion import schedule as schedules
from jaxgen.diffusion.sampler import Sampler
from jaxgen.errors import UserError
from jaxgen.methods import text_to_image
from jaxgen.methods.denoising import Denoising, begun, dropped, stepped
from jaxgen.methods.text_to_image import (
    HOW,
    PUBLISHED,
    check_sampler,
    clean,
    codec_shapes,
    frozen_codec,
    numbered_noise,
    once,
    said,
)
from jaxgen.models import eyes, lora
from jaxgen.models.lora import WORDS, Lora
from jaxgen.state import Batch, Metrics, State, own, stream
from jaxgen.text.encoder import TextFeatures
from jaxgen.weights.pipelines import Pipeline

__all__ = ["check_sampler", "numbered_noise", "once"]  # shared functions of this method
_FREE = (".vocabulary", *(f".{name}" for name in HOW))  # fields that weights do not depend on


@dataclasses.dataclass(frozen=True)
class Diffusion(Denoising):
    timesteps: Literal["schedule", "logit_normal"] = "schedule"
    """How training timesteps are drawn: as the schedule's paper does (uniformly; log-normally for
    edm), or logit-normally, which favours the middle (Esser et al. 2024, eq. 19)."""
    weight: prediction.Weight = "uniform"
    """Weight of the loss over timesteps, for an error measured in the network's own output."""
    init_from: str = ""
    """Weights to start from, and a codec with them: the folder of a finished run, or shipped, the
    diffusion model that comes with jaxgen; empty: random ones."""
    lora: Lora = Lora()
    """What is trained in place of all weights, where they are given."""
    new_word_rate: float = 1.0
    """Learning rate of the words that the given weights never met, in those of all else: their rows
    start at zero, and each is moved only when its word comes up."""

    @property
    def fewest_pictures(self) -> int:
        """Pictures below which training makes no sense."""
        return 2 if self.init_from else 1

    @property
    def words_added_to(self) -> str:
        return "init_from" if self.init_from else ""

    @property
    def trains_text(self) -> bool:
        if not self.lora.rank or self.lora.train_words:
            return True
        self.lora.check()
        return any(path[0] == "text" for path in lora.matrices(self.lora, _shapes(self)))

    def roles(self) -> dict[str, str]:
        if not self.init_from:
            return super().roles()
        return {"init_from": self.init_from}  # whose weights hold the codec, if there is one

    def trains_first(self, role: str) -> bool:
        return role != "init_from"

    def stage(self, role: str) -> Experiment:
        """The config of the codec, or of the diffusion model that comes with jaxgen."""
        return configs.load("diffusion") if role == "init_from" else super().stage(role)

    def accept(self, role: str, other: Any, where: str) -> None:
        if role != "init_from":
            super().accept(role, other, where)
            return
        if methods.name(other) not in ("diffusion", "add", "ladd"):
            raise UserError(
                f"--init-from {where} is a run of {methods.name(other)}, not of a diffusion model; "
                "start from one of diffusion, add or ladd"
            )
        unlike = configs.differences(self, self.fitted(other))
        mine, its = ("one" if config.codec else "none" for config in (self, other))
        unlike["codec"] = mine, its
        compared = ("codec", "model.", *(["autoencoder."] if self.codec else []))
        unused = "model.unet." if self.model.network == "dit" else "model.dit."
        for field, (mine, its) in unlike.items():
            weighs = field.startswith(compared) and not field.startswith(unused)
            if mine != its and weighs and not field.endswith(_FREE):
                raise UserError(
                    f"--init-from {where} has {field} {its}, this run has {mine}; start from "
                    "another, or with the config of that one"
                )
        self.accept_codec(role, other, where)

    def check(self) -> None:
        super().check()
        if self.init_from == "train" or self.init_from in (*configs.known(), *eyes.NETWORKS):
            raise UserError(
                f"--init-from {self.init_from!r} trains nothing first: give the folder of a "
                "finished diffusion run, such as runs/diffusion, or shipped"
            )
        if not 0 < self.new_word_rate < float("inf"):
            raise UserError(f"--new-word-rate is {self.new_word_rate}; give a number above 0")
        self.lora.check()
        if self.lora.rank:
            if not self.init_from:
                raise UserError(
                    f"--lora.rank {self.lora.rank} adapts weights that are there: say which by "
                    "--init-from, a run's folder or shipped"
                )
            lora.matrices(self.lora, _shapes(self))


def published(pipeline: Pipeline, folder: Path) -> Diffusion:
    """What a run would be whose weights a folder in diffusers' layout holds."""
    guidance, steps = (1.0, 1) if pipeline.turbo else (7.5, 50)
    return Diffusion(
        name=folder.name,
        data=Data(name=PUBLISHED, size=pipeline.size),
        model=pipeline.model,
        codec=str(folder),
        autoencoder=pipeline.autoencoder,
        guidance=guidance,
        sampler_steps=steps,
    )


def frozen(config: Diffusion, filled: dict[str, Any]) -> dict[str, Any]:
    """The codec, if there is one, and the weights that training starts from, if these are given.

    LoRA needs the latter at every step. Tuning all weights needs them only at its start and to show
    what they drew, but holds them to the end: a fifth copy beside parameters, average and moments.
    """
    if not config.init_from:
        return frozen_codec(config, filled)
    found = filled["init_from"]
    both = merged(found.config, found.weights)
    base = {name: both[name] for name in ("text", "denoiser") if name in both}
    base = _with_words(base, config.model.text.vocabulary)
    if jax.tree.map(np.shape, base) != jax.tree.map(lambda leaf: leaf.shape, _shapes(config)):
        raise UserError(
            f"the weights in {found.folder} do not fit the config.json and tokenizer.json beside "
            "them; copy all from one run"
        )
    return _held(config, base) | ({"codec": both["codec"]} if config.codec else {})


def frozen_shapes(config: Diffusion) -> dict[str, Any]:
    """A tree of the shapes of `frozen`, for planning."""
    base = _held(config, _fresh(config, jax.random.key(0))) if config.init_from else {}
    return codec_shapes(config) | base


def init(config: Diffusion, frozen: Any, key: PRNGKeyArray) -> State:
    """A fresh state; the one player is the generator, text encoder and network together.

    With LoRA its parameters are the adapters; else they start as the weights in `frozen`, or at
    random.
    """
    if config.lora.rank:
        generator = lora.init(config.lora, frozen["base"], key)
    elif config.init_from:
        generator = own(frozen["base"])
    else:
        generator = _fresh(config, key)
    return begun(config, generator)


def train_step(config: Diffusion, state: State, frozen: Any, batch: Batch) -> tuple[State, Metrics]:
    """One AdamW step on the denoising loss; metrics: loss, gradient norm."""
    _, x0 = clean(config, frozen, batch, stream(config.seed, state.step, "flip"))
    batch = dropped(config, frozen, batch, stream(config.seed, state.step, "drop"))
    t = drawn_timesteps(config, stream(config.seed, state.step, "timestep"), len(x0))
    eps = jax.random.normal(stream(config.seed, state.step, "noise"), x0.shape)

    def loss_of(trained: Any) -> Float[Array, ""]:
        whole = _whole(config, trained, frozen)
        text = said(config, {**frozen, **whole}, batch)
        weights = denoiser.gathered(config.model, whole["denoiser"])
        return loss(config, weights, x0, text, t, eps)

    def hastened(before: Any, after: Any) -> Any:
        words = config.init_from and not config.text_once  # else none are trained
        return _hastened(config, frozen["base"], before, after) if words else after

    return stepped(config, state, loss_of, hastened)


def loss(
    config: Diffusion,
    params: denoiser.Weights,
    x0: Float[Array, "b h w c"],
    text: TextFeatures,
    t: Float[Array, " b"],
    eps: Float[Array, "b h w c"],
) -> Float[Array, ""]:
    """Mean weighted squared error of the network's output at timesteps `t` with noise `eps`."""
    model = config.model
    alpha, sigma = model.schedule.at(t)
    x_t = schedules.add_noise(model.schedule, x0, eps, t)
    output = denoiser.output(model, params, x_t, t, text)
    error = output - prediction.target(model.prediction, x0, eps, alpha, sigma)
    weight = prediction.weight(config.weight, model.prediction, alpha, sigma)
    return jnp.mean(weight * jnp.mean(error**2, axis=(1, 2, 3)))


def drawn_timesteps(config: Diffusion, key: PRNGKeyArray, count: int) -> Float[Array, " count"]:
    """Continuous training timesteps in [0, T - 1]."""
    schedule = config.model.schedule
    if config.timesteps == "schedule":
        return schedules.draw_timesteps(schedule, key, count, continuous=True)
    return (schedule.timesteps - 1) * jax.nn.sigmoid(jax.random.normal(key, (count,)))


def weights(config: Diffusion, state: State, frozen: Any) -> denoiser.Weights:
    """What sampling needs, averaged over training: text, denoiser, and the codec if there is one.

    Where LoRA's adapters are not to be merged, text and denoiser are what they belong to, and
    beside them is lora; `merged` makes the same of both.
    """
    if config.lora.rank and not config.lora.merge:
        return _sampled(config, {**frozen["base"], "lora": state.ema["generator"]}, frozen)
    return _sampled(config, _whole(config, state.ema["generator"], frozen), frozen)


def merged(config: Experiment, weights: denoiser.Weights) -> denoiser.Weights:
    """The weights of a run with the adapters that may be beside them merged in.

    `config` is the run's; weights without adapters, of whatever method, stay as they are.
    """
    if "lora" not in weights:
        return weights
    assert isinstance(config, Diffusion)
    base = {name: tree for name, tree in weights.items() if name != "lora"}
    return lora.merged(config.lora, base, weights["lora"])


def sample(
    config: Diffusion,
    weights: denoiser.Weights,
    key: PRNGKeyArray,
    caption: Int[Array, "b length"],
    sampler: Sampler,
    negative: Int[Array, "b length"] | None = None,
    start: UInt8[Array, "b h w 3"] | None = None,
    noise: Float[Array, "b side side c"] | None = None,
) -> Array:
    """uint8 images [b, h, w, 3] from caption ids: `text_to_image.sample`, adapters merged."""
    whole = merged(config, weights)
    return text_to_image.sample(config, whole, key, caption, sampler, negative, start, noise)


def seen_words(weights: denoiser.Weights) -> frozenset[int]:
    """Ids of the words met in training, in this run or the one that it started from."""
    seen = text_to_image.seen_words(weights)
    change = flatten_dict(weights.get("lora", {})).get((*WORDS, "delta"))
    if change is None:
        return seen
    return seen | frozenset(np.flatnonzero(np.asarray(change).any(axis=1)).tolist())


def samplers(config: Diffusion) -> dict[str, Sampler]:
    """The samplers worth a look, by title, the default first."""
    many = {} if config.distilled else {f"{config.sampler_steps} steps": config.iterative}
    return {**many, "1 step": Sampler(steps=1)}


def measured_steps(config: Diffusion) -> tuple[int, ...]:
    """Numbers of steps at which the samples are worth measuring."""
    return (config.sampler_steps, *(n for n in (8, 4, 2, 1) if n < config.sampler_steps))


def shown(
    config: Diffusion, state: State, frozen: Any
) -> list[tuple[str, denoiser.Weights, Sampler]]:
    """What the sample grids show: title, weights, sampler; tuned weights beside the first ones."""
    tuned = _sampled(config, _whole(config, state.ema["generator"], frozen), frozen)
    rows = [(title, tuned, sampler) for title, sampler in samplers(config).items()]
    if not config.init_from:
        return rows
    return [("before, 1 step", _sampled(config, frozen["base"], frozen), Sampler(steps=1)), *rows]


def _sampled(config: Diffusion, both: denoiser.Weights, frozen: Any) -> denoiser.Weights:
    """The weights that sampling takes, given those of the text encoder and the denoiser, or of the
    latter alone."""
    return {name: frozen[name] for name in ("text", "codec") if name in frozen} | both


def _held(config: Diffusion, base: denoiser.Weights) -> dict[str, Any]:
    """The weights that training starts from, as `frozen` has them: the text encoder apart where
    steps do without."""
    if not config.text_once:
        return {"base": base}
    return {"base": {"denoiser": base["denoiser"]}, "text": base["text"]}


def _whole(config: Diffusion, trained: Any, frozen: Any) -> denoiser.Weights:
    """The weights of both networks, given what is trained of them."""
    return lora.merged(config.lora, frozen["base"], trained) if config.lora.rank else trained


def _hastened(config: Diffusion, base: denoiser.Weights, before: Any, after: Any) -> Any:
    """`after`, the step from `before` made longer in the rows of words that `base` never met."""
    table = base["text"][WORDS[1]][WORDS[2]]
    rate = jnp.where(table.any(axis=1, keepdims=True), 1.0, config.new_word_rate)

    def moved(path: Any, old: Array, new: Array) -> Array:
        own = jax.tree_util.keystr(path, simple=True, separator="/").startswith("/".join(WORDS))
        return old + rate * (new - old) if own else new

    return jax.tree_util.tree_map_with_path(moved, before, after)


def _with_words(base: denoiser.Weights, vocabulary: int) -> denoiser.Weights:
    """The weights with zero rows for the words that they know nothing of: those not met yet."""
    flat: dict[Any, Any] = flatten_dict(base)  # pyright: ignore[reportAssignmentType]
    missing = vocabulary - len(flat.get(WORDS, ()))
    if WORDS in flat and missing > 0:
        flat[WORDS] = np.pad(flat[WORDS], ((0, missing), (0, 0)))
    return unflatten_dict(flat)


def _fresh(config: Diffusion, key: PRNGKeyArray) -> denoiser.Weights:
    return denoiser.init(config.model, config.side, key)


def _shapes(config: Diffusion) -> Any:
    """Shapes of the weights; where the vocabulary is not known yet, of a small one.

    Nothing is computed: configs are checked before JAX may look for its devices.
    """
    known: Any = config if config.model.text.vocabulary else config.resolved(1, 1)
    return jax.eval_shape(lambda: _fresh(known, jax.random.key(0)))
