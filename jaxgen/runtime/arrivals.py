"""Whether all processes of a run have come, before JAX is asked to bring them together.

JAX aborts a process, with a stack trace, where another one never comes. So the first one listens at
the coordinator's address until all have told it their numbers, and then leaves it to JAX. What does
not fit together is told to those whom it concerns.
"""

import contextlib
import errno
import socket
import time
from collections.abc import Iterable

from jaxgen.config import Hosts
from jaxgen.errors import UserError

_ALL_HERE = b"all here\n"
_REFUSED = "refused: "  # before the reason
_HELLO = "jaxgen"  # before index and count; who says anything else is somebody else
_LONGEST = 500  # bytes of an answer
_PAUSE = 0.2  # seconds between tries


def meet(config: Hosts) -> None:
    """Returns in every process once all `config.count` have come.

    Raises UserError in those that have come where that takes longer than `config.wait` seconds, or
    where one was told another count; in one whose number another has; and in the first where the
    coordinator's port is in use.
    """
    give_up = time.monotonic() + config.wait
    if config.index == 0:
        _gather(config, give_up)
        return
    reason = ""
    while (left := give_up - time.monotonic()) > 0:
        try:
            reason = _told(config, left)
        except OSError as error:
            reason = error.strerror or str(error)
        if not reason:
            return
        time.sleep(_PAUSE)
    raise unreached(config, reason)


def unreached(config: Hosts, reason: str) -> UserError:
    """The coordinator did not bring the processes together in time."""
    return UserError(
        f"the coordinator {config.coordinator or 'auto'} was not reached within {config.wait} s "
        f"({reason}); start one process on every host, with --hosts.index 0 on that one"
    )


def _address(config: Hosts) -> tuple[str, int]:
    host, _, port = config.coordinator.rpartition(":")
    return host.strip("[]"), int(port)


def _told(config: Hosts, seconds: float) -> str:
    """Tells the first process that this one is here; empty if it says that all are, or why not."""
    with socket.create_connection(_address(config), timeout=seconds) as line:
        line.sendall(f"{_HELLO} {config.index} {config.count}\n".encode())
        try:
            answer = line.makefile("rb").readline(_LONGEST)
        except TimeoutError:
            return "it waits for others"
    if answer == _ALL_HERE:
        return ""
    if not answer.endswith(b"\n"):
        return "it hung up"
    words = answer.decode(errors="replace").strip()
    if not words.startswith(_REFUSED):
        raise UserError(
            f"at {config.coordinator} answers what is no process of jaxgen ({words[:40]!r}); give "
            "--hosts.coordinator the host and a free port of the process with --hosts.index 0"
        )
    raise UserError(words.removeprefix(_REFUSED))


def _gather(config: Hosts, give_up: float) -> None:
    came: dict[int, socket.socket] = {}
    others = config.count - 1
    with contextlib.ExitStack() as lines, _listening(config) as door:
        while len(came := {n: line for n, line in came.items() if _is_there(line)}) < others:
            door.settimeout(max(0.01, give_up - time.monotonic()))
            try:
                line = lines.enter_context(door.accept()[0])
                line.settimeout(max(0.01, min(5.0, give_up - time.monotonic())))
                hello, number, count = line.makefile("rb").readline(32).decode().split()
                if hello == _HELLO:
                    _enter(config, came, line, int(number), int(count))
            except (OSError, ValueError):  # too late, or somebody else who knocks
                if time.monotonic() >= give_up:
                    raise _missing(config, came) from None
        _tell(came.values(), _ALL_HERE)  # one that has gone since JAX will miss
        for line in came.values():
            with contextlib.suppress(OSError):
                line.recv(1)  # who hangs up first keeps the port for a while


def _enter(
    config: Hosts, came: dict[int, socket.socket], line: socket.socket, number: int, count: int
) -> None:
    """Counts a process among those that came, if no other that is still there has its number."""
    if count != config.count:
        differ = (
            f"the processes differ in hosts.count: {config.count} in process 0, {count} in process "
            f"{number}; start all with the same"
        )
        _tell([*came.values(), line], f"{_REFUSED}{differ}\n".encode())
        raise UserError(differ)
    if number in came and _is_there(came[number]):
        reason = f"process {number} of {count} has come already; give each its own --hosts.index"
        _tell([line], f"{_REFUSED}{reason}\n".encode())
    else:
        came[number] = line


def _tell(lines: Iterable[socket.socket], words: bytes) -> None:
    for line in lines:
        with contextlib.suppress(OSError):
            line.sendall(words)


def _is_there(line: socket.socket) -> bool:
    """Whether the other end has not hung up: nothing more is said, but the end can be read."""
    limit = line.gettimeout()
    line.setblocking(False)
    try:
        return bool(line.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        line.settimeout(limit)


def _listening(config: Hosts) -> socket.socket:
    """The port that JAX will take, on all of this host's addresses."""
    dual = socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            ("", _address(config)[1]),
            family=socket.AF_INET6 if dual else socket.AF_INET,
            dualstack_ipv6=dual,
            backlog=config.count,
        )
    except OSError as error:
        reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be had ({error})"
        raise UserError(
            f"port {_address(config)[1]} of --hosts.coordinator {config.coordinator} {reason}; "
            "give another one to all processes"
        ) from None


def _missing(config: Hosts, came: dict[int, socket.socket]) -> UserError:
    absent = [number for number in range(1, config.count) if number not in came]
    return UserError(
        f"process {', '.join(map(str, absent))} of {config.count} did not come to "
        f"{config.coordinator} within {config.wait} s; start one process on every host, each with "
        "its own --hosts.index"
    )
