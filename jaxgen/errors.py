"""The one kind of failure that is the user's to mend."""

import contextlib
import sys
from collections.abc import Iterator

EXIT_USER_ERROR = 2


class UserError(Exception):
    """Bad input. Its text is one line that names the thing and the remedy."""


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Turns a `UserError` into its one line on stderr and exit code 2; doors run inside it."""
    try:
        yield
    except UserError as error:
        print(f"jaxgen: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        sys.exit(EXIT_USER_ERROR)
