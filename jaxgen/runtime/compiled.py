"""Whether a program was compiled, or an earlier process had and the compile cache kept it."""

import collections
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax.monitoring

_EVENTS = "/jax/compilation_cache/"
_ASKED, _FOUND = _EVENTS + "compile_requests_use_cache", _EVENTS + "cache_hits"


@contextlib.contextmanager
def cached() -> Iterator[Callable[[], bool]]:
    """What says whether all that was to be compiled since, one program or more, was in the cache.

    Programs that compile within a second never are.
    """
    events: collections.Counter[str] = collections.Counter()

    def listen(event: str, **_: Any) -> None:
        events[event] += 1

    jax.monitoring.register_event_listener(listen)
    try:
        yield lambda: events[_ASKED] == events[_FOUND] > 0
    finally:
        jax.monitoring.unregister_event_listener(listen)
