"""python -m jaxgen.train --config=add: trains what a config says, and first what it needs."""

import functools
import os
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxgen import cli, methods, stages
from jaxgen.data.pipeline import batches, iterate
from jaxgen.data.source import Source
from jaxgen.data.sources import open_source
from jaxgen.errors import reported
from jaxgen.runtime import loop, pictures, run
from jaxgen.runtime import mesh as meshes
from jaxgen.runtime.checkpoints import Checkpoints
from jaxgen.runtime.metrics import MetricsLog
from jaxgen.runtime.progress import Bar, duration
from jaxgen.stages import Stage
from jaxgen.state import State
from jaxgen.text import tokenizer as words

SHOWN = 12  # captions of the sample grids


def main() -> None:
    with reported():
        config = cli.configured(sys.argv[1:], prog="python -m jaxgen.train")
        meshes.prepare(config.train.batch, Path(config.workdir) / ".compiled")
        began = time.monotonic()
        plan = stages.plan(config)
        _print_plan(plan)
        try:
            for stage in plan:
                _train(stage)
        except (loop.Interrupted, KeyboardInterrupt) as stop:
            print(f"jaxgen: {stop or 'interrupted; the same command goes on'}", file=sys.stderr)
            sys.stderr.flush()
            os._exit(loop.EXIT_INTERRUPTED)
        print(f"all done in {duration(time.monotonic() - began)}")


def _print_plan(plan: list[Stage]) -> None:
    devices = jax.devices()
    print(f"plan, on {len(devices)} {devices[0].device_kind} device(s):")
    for number, stage in enumerate(plan, 1):
        config = stage.config
        state = "done" if stage.finished else "to do"
        print(f"  {number}. {config.name}: {methods.name(config)} in {config.folder}, {state}:")
        print(f"     {config.train.steps} steps of {config.train.batch} images, {config.data.name}")
        for role, source in stage.sources.items():
            print(f"     {role}: {source}")
    sys.stdout.flush()


def _train(stage: Stage) -> None:
    if stage.finished:
        print(f"{stage.config.name}: finished, in {stage.config.folder}")
        return
    filled = stages.fill(stage)
    source = _source(stage.config, "train")
    tokenizer = next(
        (f.tokenizer for f in filled.values() if isinstance(f, stages.Loaded)), None
    ) or words.build(text for texts in source.captions for text in texts)
    config = stage.config.resolved(tokenizer.get_vocab_size(), len(source.labels))
    method = methods.of(config)
    mesh = meshes.make(config.mesh, config.train.batch)
    frozen = jax.device_put(method.frozen(config, filled), meshes.replicated(mesh))
    captions, ids = _shown(config, source, tokenizer)
    encode = functools.partial(words.encode, tokenizer, length=config.caption_length)
    data = batches(
        source,
        encode,
        batch=config.train.batch,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    with run.opened(config, methods.name(config), tokenizer) as folder:
        checkpoints = Checkpoints(folder / "checkpoints", config.train.checkpoint_every)
        draw = functools.partial(_draw, _program(config, method), config, method, frozen, ids)

        def sample(state: State, step: int, log: MetricsLog) -> None:
            columns = [(title, images) for title, images, _ in draw(state)]
            picture = pictures.grid(columns, captions, scale=_scale(config.data.size))
            pictures.save(picture, folder / "samples" / f"step_{step:06d}.png")
            log.picture(step, "samples", np.asarray(picture))

        state = loop.fit(
            title=config.name,
            mesh=mesh,
            init=lambda frozen: method.init(config, frozen, jax.random.key(config.seed)),
            train_step=functools.partial(method.train_step, config),
            frozen=frozen,
            data=iterate(data),
            steps=config.train.steps,
            batch=config.train.batch,
            log_every=config.train.log_every,
            checkpoints=checkpoints,
            open_log=functools.partial(MetricsLog, folder),
            sample=sample,
            sample_every=config.train.sample_every,
        )
        checkpoints.close()
        _finish(folder, draw(state, timed=True), captions, _scale(config.data.size))
        run.save_weights(folder, method.weights(config, state, frozen), int(state.step))


def _source(config: Any, split: str) -> Source:
    with Bar(f"preparing {config.data.name}", 1, unit="image") as bar:

        def progress(done: int, total: int) -> None:
            bar.resize(total)
            bar.update(done)

        source = open_source(config.data.name, split, config.data.size, config.data.root, progress)
    for note in source.notes:
        print(note)
    return source


def _shown(config: Any, source: Source, tokenizer: Any) -> tuple[list[str], np.ndarray]:
    """The captions of the grids: the config's own, or some of the data's."""
    captions = list(config.shown)
    if not captions:
        chosen = np.random.default_rng(config.seed).permutation(len(source))[:SHOWN]
        captions = [source.captions[i][0] for i in chosen]
    return captions, words.encode(tokenizer, captions, config.caption_length)


def _program(config: Any, method: Any) -> Any:
    """The compiled sampler: (weights, key, caption ids, sampler) to uint8 images."""
    return jax.jit(functools.partial(method.sample, config), static_argnums=3)


def _draw(
    program: Any,
    config: Any,
    method: Any,
    frozen: Any,
    ids: np.ndarray,
    state: State,
    timed: bool = False,
) -> list[tuple[str, np.ndarray, float]]:
    """(title, images, seconds per image) of each way that the method wants shown."""
    rows = []
    key = jax.random.key(config.seed)
    for title, weights, sampler in method.shown(config, state, frozen):
        images = np.asarray(program(weights, key, ids, sampler))
        seconds = float("nan")
        if timed:
            times = []
            for _ in range(3):
                start = time.monotonic()
                np.asarray(program(weights, key, ids, sampler))
                times.append(time.monotonic() - start)
            seconds = float(np.median(times)) / len(ids)
        rows.append((title, images, seconds))
    return rows


def _finish(folder: Path, rows: list, captions: list[str], scale: int) -> None:
    columns = [(f"{title}\n{seconds:.3f} s/image", images) for title, images, seconds in rows]
    path = folder / "samples" / "final.png"
    pictures.save(pictures.grid(columns, captions, scale), path)
    width = max(len(title) for title, _, _ in rows)
    print(f"{'':{width}}  seconds per image (batch of {len(captions)})")
    for title, _, seconds in rows:
        print(f"{title:{width}}  {seconds:.4f}")
    print(f"samples: {path}")


def _scale(size: int) -> int:
    return max(1, 64 // size)


if __name__ == "__main__":
    main()
