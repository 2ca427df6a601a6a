"""One method's train step as `jaxgen.train` runs it: its pace, its memory, and what feeds it."""

import dataclasses
import math
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import ceilings, profiles, timing, training_data
from benchmarks import subject as subjects
from jaxgen import config as configs
from jaxgen import methods, stages
from jaxgen.config import Experiment
from jaxgen.data.pipeline import batches, iterate
from jaxgen.data.source import Source
from jaxgen.data.sources import opened
from jaxgen.errors import UserError
from jaxgen.runtime import costs, loop
from jaxgen.runtime import mesh as meshes
from jaxgen.text import tokenizer as words

BLOCK = 1.0  # seconds that are timed at once, if a step does not take longer
AHEAD = 16  # batches, more than the pipeline reads ahead
PICTURES = 512  # generated, where the config's own are the user's
GOAL_OF_PEAK = 0.5  # of the published bf16 FLOP/s of a GPU
OF_PEAK = "dit_64"  # the config that is to reach that
GOAL = 10  # times what the trainer consumes, which the pipeline alone should deliver


def measured(name: str, repeats: int, trace: str) -> dict[str, Any]:
    """The report of a config's train step; with `trace`, a profile is left in that folder.

    The networks are random, of the config's shapes: no teacher or codec needs to be trained. The
    batch is halved until it fits, and peaks of memory, which then are those of the larger batches,
    are left out. UserError where not even the smallest does.
    """
    config = configs.load(name)
    meshes.prepare(config.train.batch)
    with tempfile.TemporaryDirectory() as folder:
        source = _source(config, Path(folder))
        batch = config.train.batch
        while True:
            train = dataclasses.replace(config.train, batch=batch)
            try:
                tried = dataclasses.replace(config, train=train)
                row = _measured(tried, source, repeats, trace)
                break
            except jax.errors.JaxRuntimeError as error:
                reason = timing.exhausted(error)
            if batch % 2:
                raise UserError(f"{reason}, even for a batch of {batch}")
            batch //= 2
    if batch < config.train.batch:
        row["memory"] |= {"device_peak": None, "process_peak": None}
    # Last, for the peaks of memory are this process's.
    taken = row["seconds_per_step"]["alone"]["median"]
    return row | reached(row, _dtype(config), taken, config.name == OF_PEAK)


def _measured(config: Any, source: Source, repeats: int, trace: str) -> dict[str, Any]:
    batch, mesh = config.train.batch, meshes.make(config.mesh, config.train.batch)
    config, tokenizer = _resolved(config, source)
    frozen = subjects.noisy(stages.frozen_shapes(config))
    data = _data(config, source, tokenizer, frozen)
    frozen = methods.seeded(config, frozen)
    frozen = meshes.put(frozen, meshes.over_parameters(mesh, frozen, config.mesh.rules))
    init, train_step = methods.programs(config)
    where = meshes.over_parameters(mesh, jax.eval_shape(init, frozen), config.mesh.rules)
    state = loop.birth(init, where)(frozen)
    placed = meshes.put_batch(mesh, next(data))
    flops = subjects.flops_of(train_step, state, frozen, placed)
    begun = time.perf_counter()
    compiled = loop.program(train_step, state, mesh).lower(state, frozen, placed).compile()
    compile_seconds = time.perf_counter() - begun
    memory = costs.memory(compiled, {"state": state, "frozen": frozen, "batch": placed})

    step = _Stepping(compiled, state, frozen)
    step.seconds(1, lambda: placed)
    pace = step.seconds(2, lambda: placed)
    count = max(1, math.ceil(BLOCK / pace))
    taken = max(AHEAD, round(BLOCK / _pipeline_pace(data)))
    times = timing.interleaved(
        {
            "fed": lambda: step.seconds(count, lambda: meshes.put_batch(mesh, next(data))),
            "alone": lambda: step.seconds(count, lambda: placed),
            "pipeline": lambda: _taken(data, taken),
        },
        repeats,
    )
    fed, alone, pipeline = (timing.spread(times[name]) for name in times)
    rate = batch / fed["median"]
    supply = batch / pipeline["median"]
    row = {
        "config": config.name,
        "method": methods.name(config),
        "dtype": _dtype(config),
        "batch": batch,
        "size": config.data.size,
        "pictures": len(source),
        "devices": mesh.size,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(step.state.params)),
        "images_per_second": rate,
        "seconds_per_step": {"fed": fed, "alone": alone},
        "steps_timed_at_once": count,
        "compile_seconds": compile_seconds,
        "flops": flops,
        "bytes": timing.bytes_of(compiled),
        "pipeline": {
            "images_per_second": supply,
            "seconds_per_batch": pipeline,
            "times_consumed": supply / rate,
            "goal": GOAL,
            "goal_met": supply >= GOAL * rate,
        },
        "memory": {**dataclasses.asdict(memory), "program": memory.total, **peaks()},
    }
    if trace:
        folder = Path(trace) / config.name
        row["where"] = profiles.traced(folder, lambda: step.seconds(3, lambda: placed))
    return row


def reached(row: dict[str, Any], dtype: str, seconds: float, goal: bool) -> dict[str, Any]:
    """The `flops` and `bytes` of a row's step of `seconds`, as shares of what is possible.

    That is measured here, in memory of its own, and the maker's peak FLOP/s, where these are known.
    With a `goal` it is judged by the latter, on a GPU.
    """
    most = ceilings.measured(dtype)
    peak = ceilings.published(dtype)
    goal = goal and jax.default_backend() == "gpu"
    return {
        **ceilings.shares(row["flops"], row["bytes"], seconds, most),
        "share_of_published": row["flops"] / seconds / peak.flops if peak else None,
        "goal_of_published": GOAL_OF_PEAK if goal else None,
        "goal_of_published_met": row["flops"] / seconds >= GOAL_OF_PEAK * peak.flops
        if peak and goal
        else None,
        "ceilings": most._asdict(),
    }


def peaks() -> dict[str, int | None]:
    """The most bytes so far of this process: on one device, where it tells, and in main memory."""
    stats = jax.local_devices()[0].memory_stats() or {}
    resident = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"device_peak": stats.get("peak_bytes_in_use"), "process_peak": resident}


class _Stepping:
    """A state that is trained on, as each step takes the place of the last."""

    def __init__(self, compiled: Any, state: Any, frozen: Any):
        self._compiled, self.state, self._frozen = compiled, state, frozen

    def seconds(self, count: int, batch: Callable[[], Any]) -> float:
        """Of one of `count` steps, the waiting for their end among them."""
        metrics: Any = None
        begun = time.perf_counter()
        for _ in range(count):
            self.state, metrics = self._compiled(self.state, self._frozen, batch())
        jax.block_until_ready((self.state, metrics))
        return (time.perf_counter() - begun) / count


def _pipeline_pace(data: Iterator[Any]) -> float:
    return _taken(data, AHEAD)


def _taken(data: Iterator[Any], count: int) -> float:
    """Seconds of one of `count` batches, after those that were read ahead."""
    for _ in range(AHEAD):
        next(data)
    begun = time.perf_counter()
    for _ in range(count):
        next(data)
    return (time.perf_counter() - begun) / count


def _source(config: Experiment, folder: Path) -> Source:
    """The config's pictures; of the user's own, which are not here, as many generated ones."""
    data = config.data
    kind, _, path = data.name.partition(":")
    if kind == "imagefolder" and not Path(path).is_dir():
        training_data.write_pictures(folder, PICTURES, data.size)
        data = dataclasses.replace(data, name=f"imagefolder:{folder}", root=str(folder))
    return opened(data, "train")


def _resolved(config: Any, source: Source) -> tuple[Any, Any]:
    """The config for these pictures, and a tokenizer of their words."""
    tokenizer = words.build([text for texts in source.captions for text in texts])
    text = getattr(getattr(config, "model", None), "text", None)
    vocabulary = getattr(text, "vocabulary", 0) or tokenizer.get_vocab_size()
    return config.resolved(vocabulary, len(source.labels)), tokenizer


def _data(config: Any, source: Source, tokenizer: Any, frozen: Any) -> Iterator[Any]:
    """The batches of a training, with noise for what is computed once of each picture."""
    text = getattr(getattr(config, "model", None), "text", None)
    most = (getattr(text, "vocabulary", 0) or tokenizer.get_vocab_size()) - 1

    def encode(captions: Any) -> np.ndarray:
        return np.minimum(methods.encode(config, tokenizer, captions), most)

    method = methods.of(config)
    image = jax.ShapeDtypeStruct((len(source), *[source.size] * 2, 3), np.uint8)
    beside = {}
    for once in method.once(config, frozen) if hasattr(method, "once") else ():
        if once.field == "image":
            beside = subjects.noisy(jax.eval_shape(once.compute, once.weights, image))
    return iterate(
        batches(source, encode, batch=config.train.batch, seed=config.seed, beside=beside)
    )


def _dtype(config: Experiment) -> str:
    """bfloat16 where any of its networks computes in that."""
    return "bfloat16" if '"bfloat16"' in configs.to_json(config) else "float32"
