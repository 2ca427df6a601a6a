"""The failures that are a user's to mend, or that pass."""

import contextlib
import errno
import os
import re
import select
import sys
import threading
from collections.abc import Iterator

EXIT_FAULT = 1  # Python's own, of a traceback
EXIT_USER_ERROR = 2
EXIT_AGAIN = 75  # EX_TEMPFAIL: saved, or a host or bucket was lost; run the same command again
EXIT_INTERRUPTED = 130
_MACHINE_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO}
_IN_THE_WAY = {errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}
_REMEDIES = {
    errno.ENOSPC: "free space there",
    errno.EDQUOT: "free space there",
    errno.EFBIG: "raise the limit (ulimit -f) or use another disk",
    None: "free space there",  # what does not say why mostly lacks that
}
_CLIENTS = ("gcsfs", "fsspec", "aiohttp", "requests", "google")  # of a bucket, by their modules
_STATUSES = ("UNAVAILABLE", "PERMISSION_DENIED", "UNAUTHENTICATED", "DEADLINE_EXCEEDED")
_STATUSES += ("RESOURCE_EXHAUSTED", "ABORTED", "CANCELLED")  # as TensorStore words them
_DENIED = ("PERMISSION_DENIED", "UNAUTHENTICATED", "Forbidden", "DefaultCredentials")
_DENIED += ("invalid_grant",)  # of credentials that were revoked
_PASSING = (408, 429)  # HTTP: timed out, too many requests; and all from 500


class UserError(Exception):
    """Bad input. Its text is one line that names the thing and the remedy."""

    code = EXIT_USER_ERROR


class Outage(UserError):  # noqa: N818
    """A bucket that does not answer, or not well: the same command may find it as it should be.

    So its code is that on which launchers run it again.
    """

    code = EXIT_AGAIN


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Turns a `UserError` or a disk's or file's fault into one line on stderr and exit code 2.

    An `Outage` is exit code 75, and Ctrl-C one line and 130. Doors run inside it.
    """
    try:
        yield
    except KeyboardInterrupt:
        _end("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:
        if not _unread():
            raise
        sys.exit(EXIT_FAULT)
    except Exception as error:
        told = mendable(error)
        if told is None:
            raise
        if isinstance(error, OSError):  # threads, and what is yet to close, may meet it too
            threading.excepthook = sys.unraisablehook = lambda _: None
        _end(str(told), told.code)


def _unread() -> bool:
    """Whether who read what is printed, `head` say, has seen enough; nothing is printed then."""
    out = select.poll()
    out.register(sys.stdout.fileno(), 0)
    if not any(event & select.POLLERR for _, event in out.poll(0)):
        return False  # another pipe, a bucket's say
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def mendable(error: Exception) -> UserError | None:
    """What to tell the user, the error itself where it is a `UserError`; None of a fault."""
    if isinstance(error, UserError):
        return error
    if reason := trouble(error):
        return unusable(error, f"a bucket cannot be used ({reason})")
    if isinstance(error, OSError) and error.errno in _MACHINE_FAULTS | _IN_THE_WAY:
        place = error.filename2 or error.filename or "a file of the run"
        return UserError(f"{error.strerror}: {place}; {remedy(error)} and run again")
    return None


def trouble(error: BaseException) -> str:
    """What an error says of network, rights or quota of a bucket, in a line; empty for all others.

    That an object is missing or damaged is no such trouble: another try would find it so again.
    """
    told = " ".join(str(error).split())
    module = type(error).__module__.partition(".")[0]
    refused = isinstance(error, OSError) and told.startswith("Forbidden")  # as gcsfs words it
    status = isinstance(error, ValueError) and any(word in told for word in _STATUSES)
    status = status and os_fault(error) is None  # as TensorStore words a full disk
    if module in _CLIENTS or refused or status:
        return f"{type(error).__name__}: {told}"[:160]
    return ""


def fails_the_machine(error: BaseException | None) -> bool:
    """Whether the machine failed, whatever was read: out of memory, a disk in error, no rights.

    That is what the error, or one that it was raised from, says: itself, or for TensorStore.
    """
    while error is not None:
        full = isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
        if full or isinstance(error, MemoryError) or os_fault(error) in _MACHINE_FAULTS:
            return True
        error = error.__cause__
    return False


def os_fault(error: BaseException) -> int | None:
    """The number of the operating system's fault, of an OSError or in TensorStore's words."""
    if isinstance(error, ValueError) and (code := re.search(r"os_error_code='(\d+)'", str(error))):
        return int(code[1])
    return getattr(error, "errno", None)


def remedy(error: BaseException) -> str:
    """What is to be done where something cannot be written."""
    return _REMEDIES.get(os_fault(error), "mend that")


def unusable(error: BaseException, line: str) -> UserError:
    """What to raise for an error that is `trouble`, with `line` and the remedy behind it."""
    if _passes(error):
        return Outage(f"{line}; see to the network, and run the same command again")
    return UserError(f"{line}; see to rights and credentials, and run the same command again")


def _passes(error: BaseException) -> bool:
    """Whether another try may go well though nobody has mended anything."""
    status = getattr(error, "status", None) or getattr(error, "code", None)
    if str(status).isdigit():
        return int(str(status)) in _PASSING or int(str(status)) >= 500
    told = f"{type(error).__name__}: {error}"
    return not any(word in told for word in _DENIED)


def _end(line: str, code: int = EXIT_USER_ERROR) -> None:
    print(f"jaxgen: {' '.join(line.split())}", file=sys.stderr, flush=True)
    sys.exit(code)
