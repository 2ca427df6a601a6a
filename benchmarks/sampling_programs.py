"""The programs that `sampling_latency` measures: each sampler from end to end, and its parts."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from benchmarks import subject as subjects
from benchmarks.subject import Flops, Subject
from benchmarks.timing import Candidate
from jaxgen import config as configs
from jaxgen.diffusion import denoiser
from jaxgen.diffusion import sampler as sampling
from jaxgen.diffusion.denoiser import Denoiser, Weights
from jaxgen.diffusion.sampler import Sampler
from jaxgen.pixels import to_uint8
from jaxgen.runtime import mesh as meshes
from jaxgen.text.encoder import TextFeatures

Part = Literal["whole", "text", "denoise", "decode"]


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


def compared(subject: Subject, iterative: int, steps: Sequence[int]) -> dict[str, Sampler]:
    """The samplers by title: the iterative one first, then those of ADD's student.

    Raises UserError for numbers of steps that the schedule does not have.
    """
    guided = Sampler(steps=iterative, guidance=subject.guidance)
    how = {f"{_steps(iterative)}{', guided' * _is_guided(guided)}": guided}
    for n in steps:
        how.setdefault(_steps(n), Sampler(solver="euler_ancestral", steps=n))
    for sampler in how.values():
        sampling.check(sampler, subject.model.schedule)
    return how


def planned(
    subject: Subject, how: dict[str, Sampler], batches: Sequence[int], flops: Flops
) -> list[Program]:
    """All programs, the most telling first.

    First one step and the iterative sampler at every batch, then the other samplers, then the
    parts. One step goes first of all: its time tells what to expect of the others.
    """
    iterative, *few = how
    order = [*few[:1], iterative, *few[1:]]
    place = functools.cache(functools.partial(_placed, subject))
    program = functools.partial(_program, subject, how, flops, place)
    wholes = [
        program("whole", (title,), batch)
        for titles in (order[:2], order[2:])
        for batch in batches
        for title in titles
    ]
    unguided = tuple(title for title in order if not _is_guided(how[title]))
    guided = tuple(title for title in order if _is_guided(how[title]))
    parts: list[tuple[Part, tuple[str, ...]]] = [
        *(("text", titles) for titles in (unguided, guided) if titles),
        *(("denoise", (title,)) for title in order),
        ("decode", tuple(how)),
    ]
    return wholes + [program(part, titles, batch) for batch in batches for part, titles in parts]


def text_part(
    model: Denoiser, guided: bool, weights: Weights, caption: Int[Array, "b length"]
) -> tuple[TextFeatures, TextFeatures | None]:
    """Features of the captions and, for guidance, of the empty one."""
    empty = denoiser.empty_caption(model.text)[None]
    return (
        denoiser.encode(model, weights["text"], caption),
        denoiser.encode(model, weights["text"], empty) if guided else None,
    )


def denoise_part(
    model: Denoiser,
    size: int,
    sampler: Sampler,
    weights: Weights,
    key: PRNGKeyArray,
    text: tuple[TextFeatures, TextFeatures | None],
) -> Float[Array, "b h w c"]:
    """What `denoiser.sample` does after the text."""
    features, empty = text
    noise_key, sampler_key = jax.random.split(key)
    shape = (len(features.pooled), size, size, model.backbone.channels)

    def denoise(x_t, t, text):
        return denoiser.predict_x0(model, weights["denoiser"], x_t, t, text)

    guided = sampling.guided(denoise, features, empty, sampler.guidance)
    noise = jax.random.normal(noise_key, shape)
    return sampling.sample(sampler, model.schedule, guided, noise, sampler_key)


def _program(
    subject: Subject,
    how: dict[str, Sampler],
    flops: Flops,
    place: Callable[[int], Placed],
    part: Part,
    titles: tuple[str, ...],
    batch: int,
) -> Program:
    model, size, sampler = subject.model, subject.size, how[titles[0]]
    guided = _is_guided(sampler)
    devices = max(n for n in range(1, jax.device_count() + 1) if batch % n == 0)
    network = sampling.network_calls(sampler) * batch * (1 + guided) * flops.network
    text = (batch + guided) * flops.text
    encode = functools.partial(text_part, model, guided)

    def whole(weights, key, caption):
        return to_uint8(denoiser.sample(model, size, weights, key, caption, sampler))

    def captions(here: Placed) -> Array:
        return jax.device_put(subjects.captions(model.text, batch), here.over_batch)

    def features(here: Placed) -> Any:
        shapes = jax.eval_shape(encode, here.weights, captions(here))
        some, empty = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)
        return jax.device_put(some, here.over_batch), jax.device_put(empty, here.everywhere)

    def image(here: Placed) -> Array:
        zeros = np.zeros((batch, size, size, model.backbone.channels), np.float32)
        return jax.device_put(zeros, here.over_batch)

    denoise = functools.partial(denoise_part, model, size, sampler)
    kind, work, function, arguments = {
        "whole": ("network", text + network, whole, lambda p: (p.weights, p.key, captions(p))),
        "text": ("text", text, encode, lambda p: (p.weights, captions(p))),
        "denoise": ("network", network, denoise, lambda p: (p.weights, p.key, features(p))),
        "decode": ("decode", 0.0, to_uint8, lambda p: (image(p),)),
    }[part]
    label = f"batch {batch}, {part} of {titles[0]}{' and others' * (len(titles) > 1)}"
    candidate = Candidate(label, kind, work, function, lambda: arguments(place(devices)))
    return Program(part, titles, batch, devices, work, candidate)


def _placed(subject: Subject, devices: int) -> Placed:
    mesh = meshes.make(configs.Mesh(data=devices), devices)
    everywhere = meshes.replicated(mesh)
    weights, key = jax.device_put((subject.weights, jax.random.key(0)), everywhere)
    return Placed(weights, key, everywhere, meshes.over_batch(mesh))


def _steps(count: int) -> str:
    return f"{count} step{'s' * (count > 1)}"


def _is_guided(sampler: Sampler) -> bool:
    return sampler.guidance != 1
