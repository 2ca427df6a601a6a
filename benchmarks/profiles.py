"""Where a program's time goes, by XLA's profiler: a trace for ui.perfetto.dev, and its sums."""

import collections
import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

MOST = 12  # rows


def traced(folder: Path, run: Callable[[], Any]) -> list[dict[str, Any]]:
    """Runs under the profiler, leaves the trace in `folder`, returns what took longest in it."""
    folder.mkdir(parents=True, exist_ok=True)
    with jax.profiler.trace(str(folder), create_perfetto_trace=True):
        run()
    newest = max(folder.rglob("perfetto_trace.json.gz"), key=lambda path: path.stat().st_mtime)
    with gzip.open(newest, "rt", encoding="utf-8") as file:
        return summed(json.load(file)["traceEvents"])


def summed(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Seconds by kind of XLA operation, all devices together, the longest first.

    Only events that tell their operation count: those of Python and of the runtime do not.
    """
    seconds: dict[str, float] = collections.defaultdict(float)
    for event in events:
        name = event.get("args", {}).get("hlo_op")
        if event.get("ph") == "X" and name:
            seconds[re.sub(r"[.\d]+$", "", name)] += event.get("dur", 0) / 1e6
    total = sum(seconds.values())
    ranked = sorted(seconds.items(), key=lambda item: -item[1])[:MOST]
    return [{"operation": n, "seconds": s, "share": s / total} for n, s in ranked]
