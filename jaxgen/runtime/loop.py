"""The training loop: the same for every method."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from jaxgen import storage
from jaxgen.errors import EXIT_AGAIN, EXIT_INTERRUPTED, Outage, UserError
from jaxgen.runtime import compiled, hosts
from jaxgen.runtime import mesh as meshes
from jaxgen.runtime.checkpoints import Checkpoints
from jaxgen.runtime.metrics import MetricsLog
from jaxgen.runtime.progress import Bar, duration, terms
from jaxgen.state import Metrics, State

AHEAD = 2  # steps under way before the next is begun: what a signal may have to wait for
GRACE = 50.0  # seconds that a bucket has to take the state; who stops us waits for 60 (tpu/)


class Data(Protocol):
    """An iterator of batches whose position can be saved."""

    def __next__(self) -> dict[str, np.ndarray]: ...
    def get_state(self) -> dict[str, Any]: ...
    def set_state(self, state: dict[str, Any]) -> None: ...


class Interrupted(Exception):  # noqa: N818
    """Ctrl-C or SIGTERM: the state after `step` steps is saved.

    `code` is the exit code: of Ctrl-C, or that on which launchers run the same command again.
    """

    def __init__(self, step: int, code: int):
        self.code = code
        super().__init__(f"interrupted after step {step}; the same command goes on from there")


def fit(
    *,
    title: str,
    mesh: jax.sharding.Mesh,
    rules: Sequence[str] = (),
    init: Callable[[Any], State],
    train_step: Callable[[State, Any, Any], tuple[State, Metrics]],
    frozen: Any,
    data: Data,
    steps: int,
    batch: int,
    log_every: int,
    checkpoints: Checkpoints,
    open_log: Callable[[int], MetricsLog],
    sample: Callable[[State, int, MetricsLog], None],
    sample_every: int,
) -> State:
    """Trains until `steps` steps are done, from the newest good checkpoint if there is one.

    `init` maps frozen to a fresh State, whose arrays are born where mesh and `rules` (see
    `jaxgen.config.Mesh`) have them. Raises Interrupted after saving on SIGINT or SIGTERM; the
    process ends where a bucket has not taken the state GRACE seconds later. Until a first step is
    done there is nothing to save: SIGTERM is left to the handler in force (`hosts.told_to_go`),
    unless there are several processes. Raises UserError naming step and term when a metric is not
    finite, with the last good checkpoint kept.
    """
    state = _start(mesh, rules, init, frozen, data, checkpoints)
    done = int(state.step)
    if done >= steps:
        return state
    log = open_log(done)
    step = program(train_step, state, mesh)
    pending: list[Metrics] = []
    since_save: list[float] = []
    with (
        Bar(title, steps, done) as bar,
        _Stop(checkpoints.folder) as stop,
        contextlib.closing(log),
        _outages_end(),
        compiled.cached() as cached,
    ):
        bar.say(f"{title}: compiling the train step")
        clock, clocked, first = time.monotonic(), done, done + 1
        while done < steps:
            state, metrics = step(state, frozen, meshes.put_batch(mesh, next(data)))
            pending.append(metrics)
            done += 1
            if len(pending) > AHEAD:
                jax.block_until_ready(pending[-1 - AHEAD])
            if done == first:
                jax.block_until_ready(metrics)
                stop.heed()
                how = "compiled before, loaded" if cached() else "compiled"
                bar.say(f"{title}: {how} in {duration(time.monotonic() - clock)}")
                clock, clocked = time.monotonic(), done
            preempted = hosts.preempted()
            if preempted and not stop.code:
                _limit(checkpoints.folder, EXIT_AGAIN)
            stopped = preempted or (stop.code if jax.process_count() == 1 else 0)
            save = done == steps or stopped or checkpoints.due(done)
            if done % log_every == 0 or save:
                values = _mean(pending, done)
                since_save.extend([values["loss"]] * len(pending))
                pending.clear()
                log.write(done, values)
                pace = (done - clocked) / max(time.monotonic() - clock, 1e-9)
                left = f"{duration((steps - done) / pace)} left" if pace else ""
                speed = f"{pace * batch:.0f} images/s  " if pace else ""
                bar.update(done, f"{speed}{terms(values)}  {left}")
            if save:
                loss = float(np.mean(since_save))
                since_save.clear()
                log.save()
                checkpoints.save(done, state, data.get_state(), loss, force=True)
            if stopped:
                checkpoints.close()
                raise Interrupted(done, stop.code or EXIT_AGAIN)
            if sample_every and done % sample_every == 0 and done < steps:
                paused = time.monotonic()
                sample(state, done, log)
                clock += time.monotonic() - paused
    if stop.code and jax.process_count() == 1:
        checkpoints.close()
        raise Interrupted(done, stop.code)
    return state


def program(
    train_step: Callable[[State, Any, Any], tuple[State, Metrics]],
    state: State,
    mesh: jax.sharding.Mesh,
) -> Any:
    """The step as it is compiled: the new state lies where the old one, which it replaces, did.

    `state` may be shapes with their places (`meshes.shaped`).
    """
    placed = jax.tree.map(lambda a: a.sharding, state)
    return jax.jit(
        meshes.known(mesh, train_step),
        donate_argnums=0,
        out_shardings=(placed, meshes.replicated(mesh)),
        compiler_options=meshes.options(mesh),
    )


def birth(init: Callable[[Any], State], where: Any) -> Any:
    """`init` as it is compiled: every array is made where it is to lie, piece by piece."""
    # Compiling initialisers costs more than running them unoptimised.
    options = {"xla_backend_optimization_level": 0}
    return jax.jit(init, out_shardings=where, compiler_options=options)


def _start(
    mesh: jax.sharding.Mesh,
    rules: Sequence[str],
    init: Callable[[Any], State],
    frozen: Any,
    data: Data,
    checkpoints: Checkpoints,
) -> State:
    shapes = jax.eval_shape(init, frozen)
    where = meshes.over_parameters(mesh, shapes, rules)
    found = checkpoints.restore(meshes.shaped(shapes, where), print, mend=True)
    if found is None:
        return birth(init, where)(frozen)
    state, position = found
    data.set_state(position)
    print(f"going on from the checkpoint of step {int(state.step)}", flush=True)
    return state


def _mean(pending: list[Metrics], done: int) -> dict[str, float]:
    rows = jax.device_get(pending)
    for step, row in zip(range(done - len(rows) + 1, done + 1), rows, strict=True):
        for name, value in row.items():
            if not np.isfinite(value):
                raise UserError(
                    f"{name} is {value} at step {step}; the last good checkpoint is kept: "
                    "lower the learning rate, or look at the data of that step"
                )
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


class _Stop:
    """SIGINT and SIGTERM ask for a stop after the current step; a second SIGINT stops at once.

    A second SIGTERM says nothing new: where a machine goes, the process may be told by more than
    one. They do so from `heed` on. From the first signal on the process has GRACE seconds, if the
    folder is in a bucket.

    Several processes must stop after the same step. JAX's coordination service sees to that: it
    takes SIGTERM, and a SIGINT is passed on to it as one, from the start.
    """

    def __init__(self, folder: Path):
        self.code, self._folder, self._several = 0, folder, jax.process_count() > 1
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_Stop":
        if self._several:
            self._catch(signal.SIGINT)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def heed(self) -> None:
        """From now on there is something to save."""
        if not self._several:
            self._catch(signal.SIGINT)
            self._catch(signal.SIGTERM)

    def _catch(self, number: int) -> None:
        self._before[number] = signal.getsignal(number)
        signal.signal(number, self._ask)

    def _ask(self, number: int, frame: Any) -> None:
        self.code = EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_AGAIN
        if number == signal.SIGINT:  # not by print, in whose midst the signal may have come
            os.write(2, b"\njaxgen: saving after this step; once more to stop at once\n")
        # Not the handler before, which a thread looks for, as it then would at this signal, to end
        # the process while that saves.
        again = signal.default_int_handler if number == signal.SIGINT else _told_already
        signal.signal(number, again)
        _limit(self._folder, self.code)
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)


def _told_already(*_: Any) -> None:
    """The state is being saved for the signal before."""


@contextlib.contextmanager
def _outages_end() -> Iterator[None]:
    """Where a bucket has failed a request, what else waits for it has GRACE seconds."""
    try:
        yield
    except Outage as outage:
        hosts.leave_after(GRACE, outage.code, str(outage))
        raise


def _limit(folder: Path, code: int) -> None:
    """From now on a bucket has GRACE seconds, whatever it does with the requests."""
    if storage.is_remote(folder):
        line = f"asked to stop, but {folder} did not take the state within {GRACE:.0f} s; the same "
        hosts.leave_after(GRACE, code, line + "command goes on from the last checkpoint")
