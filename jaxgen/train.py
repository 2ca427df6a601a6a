"""python -m jaxgen.train --config=add: trains what a config says, and first what it needs."""

import contextlib
import functools
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
from tokenizers import Tokenizer

from jaxgen import cli, methods, stages, storage, synthesis
from jaxgen import config as configs
from jaxgen.config import Experiment
from jaxgen.data.pipeline import Shared, batches, iterate
from jaxgen.data.source import Source, digest
from jaxgen.data.sources import opened
from jaxgen.errors import EXIT_INTERRUPTED, UserError, reported
from jaxgen.runtime import classes, hosts, loop, once, pictures, reconstructions, run
from jaxgen.runtime import mesh as meshes
from jaxgen.runtime.checkpoints import Checkpoints, saved
from jaxgen.runtime.metrics import MetricsLog, NoLog
from jaxgen.runtime.progress import Bar, duration
from jaxgen.stages import Stage
from jaxgen.state import State, spared, stream
from jaxgen.text import tokenizer as words

TIMED = 3  # runs behind each time in the table


def main() -> None:
    with reported(), hosts.told_to_go():
        config = cli.configured(sys.argv[1:], prog="python -m jaxgen.train")
        began = time.monotonic()
        plan = stages.plan(config)
        batch = math.gcd(*(stage.config.train.batch for stage in plan))
        meshes.prepare(batch, storage.folder(config.workdir) / ".compiled")
        hosts.join(config.hosts)
        with hosts.together():
            if not all(stage.finished for stage in plan):
                storage.check_writable(config.workdir, "--workdir ")
            _agree(config, plan)
            _print_plan(plan)
            _check_meshes(plan)
            try:
                for stage in plan:
                    _train(stage)
            except (loop.Interrupted, KeyboardInterrupt) as stop:
                note = str(stop) or f"interrupted; {hosts.GOES_ON}"
                code = stop.code if isinstance(stop, loop.Interrupted) else EXIT_INTERRUPTED
                hosts.leave(code, note)
        print(f"all done in {duration(time.monotonic() - began)}")


def _agree(config: Experiment, plan: list[Stage]) -> None:
    """UserError unless all processes do the same, by the same code, in the same folders."""
    described = {**json.loads(configs.to_json(config)), "version of": run.versions()}
    hosts.agree(
        {**described, "code of jaxgen": hosts.code()},
        "start all with the same command and the same version of jaxgen",
    )
    hosts.agree(
        {f"whether {stage.config.folder} is finished": stage.finished for stage in plan},
        "all need one --workdir",
    )


def _print_plan(plan: list[Stage]) -> None:
    devices = jax.devices()
    print(f"plan, on {len(devices)} x {devices[0].device_kind}:")
    for number, stage in enumerate(plan, 1):
        config, train = stage.config, stage.config.train
        state = "done" if stage.finished else f"{train.steps} steps of {train.batch} images to do"
        if not stage.finished and (there := saved(config.folder / "checkpoints")):
            state += f"; its last checkpoint is of step {there[-1]}"
        print(f"  {number}. {config.name} ({methods.name(config)}, {config.data.name} at "
              f"{config.data.size} px), in {config.folder}: {state}")  # fmt: skip
        for role, source in stage.sources.items():
            print(f"     {role}: {source}")
        if drawing := config.drawing():
            role, how = drawing
            print(f"     pictures: {how.count} drawn by the {role} in {how.steps} steps")
        counts = stages.parameters(stage)
        print(f"     parameters: {', '.join(f'{k} {n / 1e6:.2f} M' for k, n in counts.items())}")
    sys.stdout.flush()


def _check_meshes(plan: list[Stage]) -> None:
    """Raises UserError where devices, batch or rules do not fit a stage that is to be trained."""
    for stage in plan:
        config = stage.config
        if stage.finished:
            continue
        try:
            mesh = meshes.make(config.mesh, config.train.batch)
            stages.check_rules(config, mesh, every=stage is plan[-1])
            if idle := jax.device_count() - mesh.size:
                print(f"  {config.name}: by --mesh, {idle} device(s) have nothing to do")
        except UserError as error:
            raise UserError(f"{config.name}: {error}") from None


def _train(stage: Stage) -> None:
    if stage.finished:
        print(f"{stage.config.name}: finished; samples: {stage.config.folder / 'samples'}")
        return
    filled = stages.fill(stage)
    source = _source(stage.config)
    tokenizer = _tokenizer(stage.config, filled, source)
    learnt = _drawn(stage.config, filled, source)
    fingerprint = stages.fingerprint(stage.config, filled, learnt.fingerprint)
    _agree_on_data(stage.config, source, tokenizer, fingerprint)
    config = stage.config.resolved(tokenizer.get_vocab_size(), len(source.labels))
    method = methods.of(config)
    mesh = meshes.make(config.mesh, config.train.batch)
    frozen = method.frozen(config, filled)
    frozen, aside, beside, told = _once(config, method, frozen, learnt, tokenizer)

    def placed(tree: Any) -> Any:
        return meshes.put(tree, meshes.over_parameters(mesh, tree, config.mesh.rules))

    frozen = placed(methods.seeded(config, frozen))

    def whole() -> dict[str, Any]:
        """All that is frozen: what steps do without is on the devices for as long as it is used."""
        return {**frozen, **placed(aside)}

    description = (config, methods.name(config), tokenizer, source.labels, fingerprint)
    with (
        run.opened(*description) as folder,
        contextlib.closing(
            Checkpoints(folder / "checkpoints", config.train.checkpoint_every)
        ) as checkpoints,
    ):
        show = _Show(config, method, mesh, whole, source, tokenizer, folder / "samples")
        init, train_step = methods.programs(config)
        state = loop.fit(
            title=config.name,
            mesh=mesh,
            rules=config.mesh.rules,
            init=init,
            train_step=train_step,
            frozen=frozen,
            data=iterate(_batches(config, learnt, tokenizer, beside, told)),
            steps=config.train.steps,
            batch=config.train.batch,
            log_every=config.train.log_every,
            checkpoints=checkpoints,
            open_log=functools.partial(MetricsLog if hosts.is_first() else NoLog, folder),
            sample=show.during,
            sample_every=config.train.sample_every,
        )
        checkpoints.close()
        show.final(state)
        weights = hosts.whole(method.weights(config, state, whole()))
        if hosts.is_first() and hasattr(method, "predict"):
            _grade(config, method, weights, folder)
        if hosts.is_first() and hasattr(method, "reconstruct"):
            _reconstruct(config, method, weights, source, folder)
        run.save_weights(folder, weights, int(state.step))


def _agree_on_data(
    config: Experiment, source: Source, tokenizer: Tokenizer, fingerprint: str
) -> None:
    """UserError unless all processes learn from the same pictures, captions and weights."""
    hosts.agree(
        {
            "number of pictures": len(source),
            "labels": list(source.labels),
            "pictures and captions": source.fingerprint,
            "vocabulary": digest(tokenizer.to_str().encode()),
            "what is learnt from or built on": fingerprint,
        },
        f"give every host the same data of {config.data.name} (--data.root) and the same weights",
    )


def _grade(config: Experiment, method: ModuleType, weights: Any, folder: Path) -> None:
    """How often the classes of held-out pictures are told rightly, printed and in the folder."""
    predict = functools.partial(method.predict, config)
    try:
        source = _opened(config, "test")
        batch = config.train.batch
        told = classes.grade(predict, weights, source, batch, meshes.dividing(batch), folder)
        print(told, flush=True)
    except UserError as error:  # nothing is held out: the weights are worth keeping
        print(f"no held-out accuracy: {error}", flush=True)


def _reconstruct(
    config: Experiment, method: ModuleType, weights: Any, source: Source, folder: Path
) -> None:
    """How near pictures come back from their codes: held-out ones, or where none are the data's."""
    with contextlib.suppress(UserError):
        held_out = _opened(config, "test")
        source = held_out if len(held_out) > 1 else source
    if len(source) < 2:
        print("nothing is graded: one picture alone", flush=True)
        return
    there, between = (
        functools.partial(function, config) for function in (method.reconstruct, method.between)
    )
    batch = config.train.batch
    mesh = meshes.dividing(batch)
    print(reconstructions.grade(there, between, weights, source, batch, mesh, folder), flush=True)


def _once(
    config: Experiment, method: ModuleType, frozen: Any, source: Source, tokenizer: Tokenizer
) -> tuple[Any, dict[str, Any], dict[str, np.ndarray], dict[str, Shared]]:
    """What steps need of `frozen`, and what they do without; the fields of batches for whose sake
    that is so, from the cache or computed now: those of pictures, and those of captions."""
    needed, beside, told = frozen, dict[str, np.ndarray](), dict[str, Shared]()
    cache = Path(config.data.root) / ".once"
    for wanted in method.once(config, frozen) if hasattr(method, "once") else ():
        if wanted.field == "image":
            with _counting("computing codes", "image") as progress:
                beside = once.pictures(wanted, source, cache, progress)
        else:
            ids = methods.encode(config, tokenizer, _captions(source))
            with _counting("encoding captions", "caption") as progress:
                told, empty = once.captions(wanted, ids, cache, progress)
            needed = spared(wanted, needed, empty)
    aside = {name: tree for name, tree in frozen.items() if name not in needed}
    return needed, aside, beside, told


def _source(config: Experiment) -> Source:
    source = _opened(config, "train")
    if len(source) < config.fewest_pictures:
        raise UserError(
            f"{config.data.name} has {len(source)} picture(s) to learn from; {config.name} needs "
            f"{config.fewest_pictures} or more"
        )
    for note in source.notes:
        print(note)
    labels = len(set(source.label_ids.tolist()))
    print(f"data: {len(source)} images of {config.data.name} to learn from, {labels} label(s)",
          flush=True)  # fmt: skip
    return source


def _drawn(config: Experiment, filled: dict[str, Any], source: Source) -> Source:
    """The pictures to learn from: the source's, or those which a network draws in their place."""
    drawing = config.drawing()
    if drawing is None:
        return source
    role, how = drawing
    with Bar(f"pictures by the {role}", how.count, unit="image") as bar:
        return synthesis.drawn(config, how, filled[role], source, lambda done, _: bar.update(done))


def _opened(config: Experiment, split: str) -> Source:
    data = config.data
    with _counting(f"preparing {data.name}", "image") as progress:
        return opened(data, split, progress)


@contextlib.contextmanager
def _counting(title: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar, as the function that tells it how many are done, and of how many."""
    with Bar(title, 1, unit=unit) as bar:

        def progress(done: int, total: int) -> None:
            bar.resize(total)
            bar.update(done)

        yield progress


def _captions(source: Source) -> list[str]:
    return [text for texts in source.captions for text in texts]


def _tokenizer(config: Experiment, filled: dict[str, Any], source: Source) -> Tokenizer:
    """That of the network which the run builds on, with the data's words added where it may learn.

    Without such a network one that knows the data's words. UserError where words cannot be added
    and a good half of the captions has none that the network has met.
    """
    captions = _captions(source)
    if config.words_added_to:
        return words.extended(filled[config.words_added_to].tokenizer, captions)
    if role := config.words_of:
        found = filled[role]
        met = methods.of(found.config).seen_words(found.weights)
        strange = [text for text in captions if not words.has_met(found.tokenizer, text, met)]
        if 2 * len(strange) > len(captions):
            none = (
                f"it has met none of {strange[0]!r}, nor of {len(strange)} of the {len(captions)} "
                f"captions of {config.data.name}"
            )
            ours = config.roles()[role] == stages.TRAIN
            its, own = found.config.data, config.data
            if ours or (its.name, its.caption) == (own.name, own.caption):  # on these very ones
                more = f"give more --{role}-train-steps" if ours else "train it longer"
                raise UserError(
                    f"the {role} {found.folder} was trained too little, {found.step} step(s): "
                    f"{none}; {more}"
                )
            raise UserError(
                f"the {role} {found.folder} was trained with other words: {none}; train one on "
                f"these, for instance --{role}=train"
            )
        unknown = {w for text in captions for w in words.unknown_words(found.tokenizer, text)}
        if unknown:
            print(f"{len(unknown)} words of the captions are unknown to {found.folder}, "
                  f"such as {', '.join(sorted(unknown)[:5])}")  # fmt: skip
        return found.tokenizer
    return words.build(captions)


def _batches(
    config: Experiment,
    source: Source,
    tokenizer: Tokenizer,
    beside: dict[str, np.ndarray],
    told: dict[str, Shared],
) -> Any:
    return batches(
        source,
        functools.partial(methods.encode, config, tokenizer),
        batch=config.train.batch,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        beside=beside,
        told=told,
    )


class _Show:
    """What a method wants shown, from the same captions and noise each time."""

    def __init__(
        self,
        config: Experiment,
        method: ModuleType,
        mesh: jax.sharding.Mesh,
        frozen: Callable[[], Any],
        source: Source,
        tokenizer: Tokenizer,
        folder: Path,
    ):
        self._config, self._method, self._frozen, self._folder = config, method, frozen, folder
        chosen = np.random.default_rng(config.seed).permutation(len(source))[: configs.SHOWN]
        said = {
            w for texts in source.captions for text in texts for w in words.split(tokenizer, text)
        }
        shown = [text for text in config.shown if said.issuperset(words.split(tokenizer, text))]
        self._captions = shown or [source.captions[i][0] for i in chosen]
        if left := [text for text in config.shown if text not in shown]:
            others = "" if shown else "; some of the data's are shown"
            print(f"--shown: {len(left)} caption(s) left out, as the data's have not all of their "
                  f"words, such as {left[0]!r}{others}")  # fmt: skip
        ids = methods.encode(config, tokenizer, self._captions)
        # Not all on every device where their number does not divide: large images would not fit.
        self._at_once = meshes.shown_at_once(mesh, len(ids), config.train.batch)
        count = -(-len(ids) // self._at_once)
        ids = np.resize(ids, (count * self._at_once, *ids.shape[1:]))  # the first ones once more
        where = meshes.over_batch(mesh)
        self._portions = [meshes.put(part, where) for part in np.split(ids, count)]
        self._program, self._told = None, False
        if hasattr(method, "sample"):
            self._program = jax.jit(
                meshes.known(mesh, functools.partial(method.sample, config)),
                static_argnums=3,
                out_shardings=meshes.replicated(mesh),
                compiler_options=meshes.options(mesh),
            )

    def during(self, state: State, step: int, log: MetricsLog) -> None:
        """A grid in the folder and on TensorBoard."""
        if self._program:
            columns = [(title, images) for title, images, _ in self._drawn(state, timed=False)]
            if hosts.is_first():
                picture = pictures.grid(columns, self._captions, self._scale)
                pictures.save(picture, self._folder / f"step_{step:06d}.png")
                log.picture(step, "samples", np.asarray(picture))

    def final(self, state: State) -> None:
        """The last grid, with times, and the table of times."""
        if not self._program:
            return
        print(f"{self._config.name}: drawing the samples", flush=True)
        rows = self._drawn(state, timed=True)
        if not hosts.is_first():
            return
        columns = [(f"{title}\n{seconds:.4f} s/image", images) for title, images, seconds in rows]
        path = self._folder / "final.png"
        pictures.save(pictures.grid(columns, self._captions, self._scale), path)
        width = max(len(title) for title, _, _ in rows)
        print(f"{'':{width}}  seconds per image, {self._at_once} at once")
        for title, _, seconds in rows:
            print(f"{title:{width}}  {seconds:.4f}")
        print(f"samples: {path}", flush=True)

    def _drawn(self, state: State, timed: bool) -> list[tuple[str, np.ndarray, float]]:
        assert self._program
        if not self._told:
            print(f"{self._config.name}: compiling the samplers", flush=True)
            self._told = True
        rows = []
        for title, weights, sampler in self._method.shown(self._config, state, self._frozen()):
            draws = [
                functools.partial(self._program, weights, self._key(number), ids, sampler)
                for number, ids in enumerate(self._portions)
            ]
            images = np.concatenate([np.asarray(draw()) for draw in draws])[: len(self._captions)]
            times = []
            for _ in range(TIMED if timed else 0):
                start = time.monotonic()
                draws[0]().block_until_ready()
                times.append((time.monotonic() - start) / self._at_once)
            rows.append((title, images, float(np.median(times)) if times else float("nan")))
        return rows

    def _key(self, portion: int) -> jax.Array:
        return stream(self._config.seed, portion, "samples")

    @property
    def _scale(self) -> int:
        return max(1, 64 // self._config.data.size)


if __name__ == "__main__":
    main()
