"""The programs that `latency` measures: each sampler from end to end, and its parts."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32, PRNGKeyArray

from benchmarks import subject as subjects
from benchmarks import timing
from benchmarks.subject import Flops, Subject
from benchmarks.timing import Candidate
from jaxgen import config as configs
from jaxgen import methods
from jaxgen.diffusion import denoiser
from jaxgen.diffusion import sampler as sampling
from jaxgen.diffusion.denoiser import Denoiser, Weights
from jaxgen.diffusion.sampler import Sampler
from jaxgen.errors import UserError
from jaxgen.methods import diffusion, text_to_image
from jaxgen.methods.text_to_image import TextToImage, decoded
from jaxgen.pixels import to_uint8
from jaxgen.runtime import mesh as meshes
from jaxgen.text.encoder import TextFeatures

Part = Literal["whole", "text", "denoise", "decode", "transfer", "dispatch"]
PARTS: tuple[Part, ...] = get_args(Part)
TIMED = (text_to_image.sample, diffusion.sample)  # the same, where there are no adapters


@dataclasses.dataclass(frozen=True)
class Program:
    """What is compiled and timed: a sampler from end to end, or a part that some may share."""

    part: Part
    samplers: tuple[str, ...]
    batch: int
    devices: int
    flops: float
    candidate: Candidate


class Placed(NamedTuple):
    """The arguments that all batches of a number of devices share, and where the others go."""

    weights: Weights
    key: PRNGKeyArray
    everywhere: jax.sharding.Sharding
    over_batch: jax.sharding.Sharding


Place = Callable[[int], Placed]


def compared(subject: Subject, iterative: int, steps: Sequence[int]) -> dict[str, Sampler]:
    """The samplers by title: the teacher's, iterative, first, then those of ADD's student.

    Raises UserError for a method that draws otherwise than `whole`, and for numbers of steps that
    the schedule does not have.
    """
    if methods.of(subject.config).sample not in TIMED:
        raise UserError(
            f"{subject.name} is of {methods.name(subject.config)}, which draws in a way of its own "
            "that is not timed yet; measure another"
        )
    guided = Sampler(steps=iterative, guidance=subject.config.guidance)
    spacing: Any = getattr(subject.config, "spacing", "trailing")
    how = {f"{_steps(iterative)}{', guided' * _is_guided(guided)}": guided}
    for n in steps:
        how.setdefault(_steps(n), Sampler(solver="euler_ancestral", spacing=spacing, steps=n))
    for sampler in how.values():
        sampling.check(sampler, subject.model.schedule)
    return how


def mesh_of(devices: int) -> jax.sharding.Mesh:
    """So many devices, over which a batch is split."""
    return meshes.make(configs.Mesh(data=devices), devices)


def placing(subject: Subject) -> Place:
    """Puts weights and key on a number of devices, once; in bf16 where that is computed in."""
    half = subject.model.backbone.dtype == "bfloat16"

    @functools.cache
    def place(devices: int) -> Placed:
        mesh = mesh_of(devices)
        everywhere = meshes.replicated(mesh)
        weights = meshes.put(subject.weights, everywhere, jnp.bfloat16 if half else None)
        key = jax.device_put(jax.random.key(0), everywhere)
        return Placed(weights, key, everywhere, meshes.over_batch(mesh))

    return place


def planned(
    subject: Subject, how: dict[str, Sampler], batch: int, part: Part, flops: Flops, place: Place
) -> list[Program]:
    """The programs of one part at one batch; those of one step first, as they tell what to expect
    of the others."""
    first, *few = how
    order = [*few, first]
    program = functools.partial(_program, subject, how, flops, place, part, batch)
    if part == "whole":
        return [program((title,)) for title in order]
    if part == "denoise":  # what lies between tells nothing more
        return [program((title,)) for title in dict.fromkeys((order[0], first))]
    if part != "text":
        return [program((*order,))]
    unguided = tuple(title for title in order if not _is_guided(how[title]))
    guided = tuple(title for title in order if _is_guided(how[title]))
    return [program(titles) for titles in (unguided, guided) if titles]


def whole(
    config: TextToImage,
    sampler: Sampler,
    weights: Weights,
    key: PRNGKeyArray,
    caption: Int[Array, "b length"],
) -> Array:
    """uint8 images [b, h, w, 3] from caption ids."""
    return text_to_image.sample(config, weights, key, caption, sampler)


def text_part(
    model: Denoiser, guided: bool, weights: Weights, caption: Int[Array, "b length"]
) -> tuple[TextFeatures, TextFeatures | None]:
    """Features of the captions and, for guidance, of the empty one."""
    empty = denoiser.empty_caption(model)[None]
    return (
        denoiser.encode(model, weights["text"], caption),
        denoiser.encode(model, weights["text"], empty) if guided else None,
    )


def denoise_part(
    config: TextToImage,
    sampler: Sampler,
    weights: Weights,
    key: PRNGKeyArray,
    text: tuple[TextFeatures, TextFeatures | None],
) -> Float[Array, "b h w c"]:
    """What `denoiser.sample` does after the text."""
    features, empty = text
    model, side = config.model, config.side
    noise_key, sampler_key = jax.random.split(key)
    shape = (len(features.pooled), side, side, model.backbone.channels)

    def denoise(x_t, t, text):
        return denoiser.predict_x0(model, weights["denoiser"], x_t, t, text)

    guided = sampling.guided(denoise, features, empty, sampler.guidance)
    noise = jax.random.normal(noise_key, shape)
    return sampling.sample(sampler, model.schedule, guided, noise, sampler_key)


def decode_part(config: TextToImage, weights: Weights, x0: Float[Array, "b h w c"]) -> Array:
    """From what is diffused to uint8 pixels."""
    return to_uint8(decoded(config, weights, x0))


def _program(
    subject: Subject,
    how: dict[str, Sampler],
    flops: Flops,
    place: Place,
    part: Part,
    batch: int,
    titles: tuple[str, ...],
) -> Program:
    config, model, sampler = subject.config, subject.model, how[titles[0]]
    guided, calls = _is_guided(sampler), sampling.network_calls(sampler)
    devices = max(n for n in range(1, jax.device_count() + 1) if batch % n == 0)
    network, decode = calls * batch * (1 + guided) * flops.network, batch * flops.decode
    text = (batch + guided) * flops.text
    ids = subjects.captions(model.text, batch)
    encode = functools.partial(text_part, model, guided)

    def noise(here: Placed, *shape: int) -> Array:
        drawn = np.random.default_rng(0).standard_normal((batch, *shape), np.float32)
        return jax.device_put(drawn, here.over_batch)

    def features(here: Placed) -> Any:
        shapes = jax.eval_shape(encode, here.weights, ids)
        some, empty = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)
        return jax.device_put(some, here.over_batch), jax.device_put(empty, here.everywhere)

    def called(here: Placed) -> tuple[Any, ...]:
        return here.weights, here.key, jax.device_put(ids, here.over_batch)

    side, channels = config.side, model.backbone.channels
    codec = {name: tree for name, tree in subject.weights.items() if name == "codec"}
    kind, work, function, arguments, prepared = {
        "whole": ("network", text + network + decode,
                  functools.partial(whole, config, sampler), called, _from_ids(ids)),
        "text": ("text", text, encode,
                 lambda p: (_some(p.weights, "text"), called(p)[2]), timing.computed),
        "denoise": ("network", network, functools.partial(denoise_part, config, sampler),
                    lambda p: (_some(p.weights, "denoiser"), p.key, features(p)), timing.computed),
        "decode": ("decode", decode, functools.partial(decode_part, config),
                   lambda p: (_some(p.weights, *codec), noise(p, side, side, channels)),
                   timing.computed),
        "transfer": ("transfer", 0.0, to_uint8,
                     lambda p: (noise(p, config.data.size, config.data.size, 3),), _to_host),
        "dispatch": ("dispatch", 0.0, lambda weights, key, caption: caption + 1,
                     called, _from_ids(ids)),
    }[part]  # fmt: skip
    label = f"batch {batch}, {part} of {titles[0]}{' and others' * (len(titles) > 1)}"
    function = meshes.known(mesh_of(devices), function)  # as where jaxgen itself draws
    candidate = Candidate(label, kind, work, function, lambda: arguments(place(devices)), prepared)
    return Program(part, titles, batch, devices, work, candidate)


def _from_ids(ids: Int32[np.ndarray, "b length"]) -> Callable[..., Callable[[], Any]]:
    """A run from token ids on the host to results on the host."""

    def prepared(compiled: Any, arguments: tuple[Any, ...]) -> Callable[[], Any]:
        weights, key, placed = arguments
        return lambda: np.asarray(compiled(weights, key, jax.device_put(ids, placed.sharding)))

    return prepared


def _to_host(compiled: Any, arguments: tuple[Any, ...]) -> Callable[[], Any]:
    """The way of results that are there from the devices to the host."""
    made = jax.block_until_ready(compiled(*arguments))
    return lambda: np.asarray(made)


def _some(weights: Weights, *names: str) -> Weights:
    return {name: weights[name] for name in names}


def _steps(count: int) -> str:
    return f"{count} step{'s' * (count > 1)}"


def _is_guided(sampler: Sampler) -> bool:
    return sampler.guidance != 1
