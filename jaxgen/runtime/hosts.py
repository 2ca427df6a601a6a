"""Several processes as one run: how they find each other, agree, and end together.

One process a host, each with its own devices. All run the same program; the first alone writes
logs, pictures and weights, while Orbax saves checkpoints from all. Where one of them is lost, JAX
aborts the others after `hosts.heartbeat` seconds at most.
"""

import atexit
import contextlib
import importlib.util
import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jax.experimental import multihost_utils

import jaxgen
from jaxgen.config import Hosts
from jaxgen.data.source import digest
from jaxgen.errors import EXIT_AGAIN, EXIT_FAULT, EXIT_INTERRUPTED, UserError, mendable
from jaxgen.runtime import arrivals

AUTO = "auto"
PATIENCE = 2.0  # seconds in which the main thread is to hear of Ctrl-C
GOES_ON = "the same command goes on from what is saved, if anything is"
_HEARD = threading.Event()
_LOST = (
    "gloo",
    "coordination",
    "heartbeat",
    "deadline_exceeded",
    "unavailable",
    "connection",
    "barrier",
)


def join(config: Hosts) -> None:
    """Makes this process one of several, before anything else touches JAX.

    By the coordinator that the config names; on a Cloud TPU host, or with the coordinator `auto`,
    by what the cluster says of itself; else the process stays alone. The others print nothing: what
    the run has to say, the first process says. Raises UserError where they have not all come within
    `config.wait` seconds, or the coordinator's port is in use.
    """
    if not config.coordinator and not _on_cloud_tpu():
        return
    known: dict[str, Any] = {}
    if config.coordinator not in ("", AUTO):
        known = {
            "coordinator_address": config.coordinator,
            "num_processes": config.count,
            "process_id": config.index,
        }
        arrivals.meet(config)
    _announce_end(f"process {config.index}" if known else "a process")
    try:
        jax.distributed.initialize(
            **known,
            initialization_timeout=config.wait,
            heartbeat_timeout_seconds=config.heartbeat,
        )
    except (RuntimeError, ValueError) as error:
        if "coordinator_address should be defined" in str(error):  # nothing was tried
            raise UserError(
                "--hosts.coordinator auto finds no cluster that JAX knows here; give HOST:PORT of "
                "the first process, and --hosts.count and --hosts.index"
            ) from None
        raise arrivals.unreached(config, str(error).strip().splitlines()[0][:160]) from None
    if jax.process_count() == 1:
        # JAX has taken SIGTERM for itself, of which a process alone hears before its first step.
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    elif jax.default_backend() == "cpu":
        # Where programs are kept, those of a CPU have another name for every process, and only the
        # first finds its own: by the time that the others have compiled theirs, Gloo has given up.
        jax.config.update("jax_enable_compilation_cache", False)
    if jax.process_index():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (open until the process ends)


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def agree(described: Mapping[str, Any], remedy: str) -> None:
    """Raises UserError, naming the first difference and the remedy, unless all say the same.

    Compared is what each process says of itself, as nested JSON values; `hosts.` may differ.
    """
    told = gathered(flatten_dict(dict(described), sep="."))
    for number, other in enumerate(told):
        for field in {**told[0], **other}:
            a, b = told[0].get(field), other.get(field)
            if a != b and not field.startswith("hosts."):
                raise UserError(
                    f"the processes differ in {field}: {a!r} in process 0, {b!r} in process "
                    f"{number}; {remedy}"
                )


def code() -> str:
    """A digest of jaxgen's own source files."""
    folder = Path(jaxgen.__file__).parent
    paths = sorted(folder.rglob("*.py"))
    return digest(*(str(p.relative_to(folder)).encode() + p.read_bytes() for p in paths))


def barrier(name: str) -> None:
    """Waits for all processes."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def gathered(value: Any) -> list[Any]:
    """Every process's JSON value, in the order of the processes; waits for all of them."""
    if jax.process_count() == 1:
        return [value]
    raw = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = np.atleast_1d(multihost_utils.process_allgather(np.int32(len(raw))))
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(raw)] = raw
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [json.loads(row[:n].tobytes()) for row, n in zip(rows, lengths, strict=True)]


def preempted() -> bool:
    """Whether a host has been told that it goes, and all are to stop after the step just done.

    Every process asks after every step. JAX takes the highest number by which any has asked when
    the news comes, and says yes to the next one alone: so it is given one that never falls back,
    as the step does where a run is taken up or a stage follows another.
    """
    if not jax.config.jax_enable_preemption_service:  # pyright: ignore[reportAttributeAccessIssue]
        return False
    return multihost_utils.reached_preemption_sync_point(next(_ASKED))


_ASKED = itertools.count(1)  # how often `preempted` was, in all runs and stages of the process


def whole(tree: Any) -> Any:
    """The tree as NumPy arrays on every host, whatever devices hold its parts; one array a time."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return jax.tree.map(
        lambda a: np.asarray(multihost_utils.process_allgather(a, tiled=True)), tree
    )


@contextlib.contextmanager
def together() -> Iterator[None]:
    """One of several processes that fails ends at once, so that the others are not kept waiting.

    Where it has lost another one, that is with the exit code on which launchers start again.
    """
    try:
        yield
    except Exception as error:  # whatever it is, JAX would make the process wait for the others
        if jax.process_count() == 1:
            raise
        if told := mendable(error):
            leave(told.code, " ".join(str(told).split()))
        reason = loss(error)
        if not reason:
            traceback.print_exc()
            leave(EXIT_FAULT, f"process {jax.process_index()} ends by a fault of its own")
        leave(
            EXIT_AGAIN,
            f"process {jax.process_index()} has lost contact with another ({reason}); start all "
            "again with the same command: they go on from the last checkpoint",
        )


def leave(code: int, line: str) -> NoReturn:
    """Ends the process at once, with a line on stderr; no thread and no other process is awaited.

    Reading and saving threads hold nothing that a checkpoint needs.
    """
    print(f"jaxgen: {line}", file=sys.stderr, flush=True)
    _goodbye()
    os._exit(code)


def leave_after(seconds: float, code: int, line: str) -> None:
    """Has the process `leave` if it has not ended by then, whatever it waits for."""
    clock = threading.Timer(seconds, leave, (code, line))
    clock.daemon = True
    clock.start()


def loss(error: BaseException | None) -> str:
    """What JAX says, itself or as another error's cause, of a process lost; else empty."""
    while error is not None:
        told = str(error).strip()
        words = _LOST if isinstance(error, jax.errors.JaxRuntimeError) else ()
        words = ("gloo",) if isinstance(error, ValueError) else words
        if any(word in told.lower() for word in words):
            return textwrap.shorten(told.splitlines()[0], 160, placeholder=" …")
        error = error.__cause__
    return ""


@contextlib.contextmanager
def told_to_go() -> Iterator[None]:
    """SIGTERM ends the process at once with EXIT_AGAIN, but where another handler is in force.

    Such as the training loop's, which saves. A thread sees to it, since the main one may be in the
    compiler for minutes, which no handler interrupts. Nor does Ctrl-C: what has not heard it within
    PATIENCE seconds is ended likewise, with EXIT_INTERRUPTED, and so is one that hears it in the
    midst of collecting garbage, where Python drops the exception. Several processes that have
    joined are told of SIGTERM by JAX, and stop together when the loop has done its next step
    (`preempted`).
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    handlers = {signal.SIGTERM: _noted, signal.SIGINT: _interrupted}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    wakes = signal.set_wakeup_fd(write)
    dropped, sys.unraisablehook = sys.unraisablehook, _dropped
    threading.Thread(target=_heed, args=(read,), daemon=True).start()
    try:
        yield
    finally:
        sys.unraisablehook = dropped
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakes)
        os.close(write)


def _noted(*_: Any) -> None:
    """The thread acts on it."""


def _interrupted(number: int, frame: Any) -> None:
    """As Python does; and the thread knows that the main one has heard."""
    _HEARD.set()
    signal.default_int_handler(number, frame)


def _dropped(unraisable: Any) -> None:
    """What Python calls where it goes on in spite of an exception."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        leave(EXIT_INTERRUPTED, f"interrupted; {GOES_ON}")
    sys.__unraisablehook__(unraisable)


def _heed(signals: int) -> None:
    with open(signals, "rb", buffering=0) as stream:
        while number := stream.read(1):
            if number[0] == signal.SIGTERM and signal.getsignal(signal.SIGTERM) is _noted:
                leave(EXIT_AGAIN, f"told to go; {GOES_ON}")
            if number[0] == signal.SIGINT and signal.getsignal(signal.SIGINT) is _interrupted:
                heard = _HEARD.wait(PATIENCE)
                _HEARD.clear()  # by no other signal, which may come between handler and thread
                if not heard:
                    leave(EXIT_INTERRUPTED, f"interrupted; {GOES_ON}")


_ENDS: list[int] = []  # the write end of the pipe to the shell that announces an abrupt end


def _announce_end(which: str) -> None:
    """Has a shell say so if this process ends without a goodbye: killed, or aborted by JAX."""
    read, write = os.pipe()
    line = (
        f"jaxgen: {which} ended abruptly: it was killed, or, where JAX says so above, another one "
        "was lost or never came; start all again with the same command: they go on from the last "
        "checkpoint"
    )
    subprocess.Popen(
        ["/bin/sh", "-c", 'read -r _ || echo "$0" >&2', line], stdin=read, start_new_session=True
    )
    os.close(read)
    _ENDS.append(write)
    atexit.register(_goodbye)


def _goodbye() -> None:
    while _ENDS:
        os.write(_ENDS[-1], b"\n")
        os.close(_ENDS.pop())


def _on_cloud_tpu() -> bool:
    """Whether this machine has TPU chips that JAX may use."""
    if importlib.util.find_spec("libtpu") is None:
        return False
    asked = os.environ.get("JAX_PLATFORMS", "tpu")
    devices = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*")]
    return bool(devices) and "tpu" in asked
