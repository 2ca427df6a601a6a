"""The one kind of failure that is the user's to mend."""

import contextlib
import errno
import sys
from collections.abc import Iterator

EXIT_FAULT = 1  # Python's own, of a traceback
EXIT_USER_ERROR = 2
EXIT_AGAIN = 75  # EX_TEMPFAIL: the state is saved, or a host was lost; run the same command again
EXIT_INTERRUPTED = 130
_MACHINE_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES}
_CLIENTS = ("gcsfs", "fsspec", "aiohttp", "requests", "google")  # of a bucket, by their modules
_STATUSES = ("UNAVAILABLE", "PERMISSION_DENIED", "UNAUTHENTICATED", "DEADLINE_EXCEEDED")
_STATUSES += ("RESOURCE_EXHAUSTED", "ABORTED", "CANCELLED")  # as TensorStore words them


class UserError(Exception):
    """Bad input. Its text is one line that names the thing and the remedy."""


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Turns a `UserError`, a full disk or a forbidden file into one line on stderr and exit code 2.

    Ctrl-C is one line and exit code 130. Doors run inside it.
    """
    try:
        yield
    except UserError as error:
        _end(str(error))
    except KeyboardInterrupt:
        _end("interrupted", EXIT_INTERRUPTED)
    except Exception as error:
        if reason := trouble(error):
            _end(f"a bucket cannot be used ({reason}); see to network and rights and run again")
        if not isinstance(error, OSError) or error.errno not in _MACHINE_FAULTS:
            raise
        _end(f"{error.strerror}: {error.filename or 'a file of the run'}; mend that and run again")


def trouble(error: BaseException) -> str:
    """What an error says of network, rights or quota of a bucket, in a line; empty for all others.

    That an object is missing or damaged is no such trouble: another try would find it so again.
    """
    told = " ".join(str(error).split())
    module = type(error).__module__.partition(".")[0]
    refused = isinstance(error, OSError) and told.startswith("Forbidden")  # as gcsfs words it
    status = isinstance(error, ValueError) and any(word in told for word in _STATUSES)
    if module in _CLIENTS or refused or status:
        return f"{type(error).__name__}: {told}"[:160]
    return ""


def _end(line: str, code: int = EXIT_USER_ERROR) -> None:
    print(f"jaxgen: {' '.join(line.split())}", file=sys.stderr, flush=True)
    sys.exit(code)
