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
UNNAMED = "(unnamed)"


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

    Those of Python and of the runtime do not count. What runs on a GPU's streams without telling
    its operation, such as kernels of a CUDA graph, is `UNNAMED`.
    """
    streams = _streams(events)
    seconds: dict[str, float] = collections.defaultdict(float)
    for event in events:
        name = event.get("args", {}).get("hlo_op")
        if not name and (event.get("pid"), event.get("tid")) in streams:
            name = UNNAMED
        if event.get("ph") == "X" and name:
            seconds[re.sub(r"[.\d]+$", "", name)] += event.get("dur", 0) / 1e6
    total = sum(seconds.values())
    ranked = sorted(seconds.items(), key=lambda item: -item[1])
    # However little it is: the reader is to know that the rest is named.
    ranked = [item for n, item in enumerate(ranked) if n < MOST or item[0] == UNNAMED]
    return [{"operation": n, "seconds": s, "share": s / total} for n, s in ranked]


def _streams(events: list[dict[str, Any]]) -> set[tuple[Any, Any]]:
    """Process and thread numbers of the rows on which a GPU's kernels and copies are drawn."""
    called: dict[str, dict[tuple[Any, Any], str]] = {"process_name": {}, "thread_name": {}}
    for event in events:
        if event.get("ph") == "M" and event.get("name") in called:
            key = (event.get("pid"), event.get("tid") if event["name"] == "thread_name" else None)
            called[event["name"]][key] = str(event.get("args", {}).get("name", ""))
    devices = {pid for (pid, _), name in called["process_name"].items() if "/device:GPU" in name}
    threads = called["thread_name"].items()
    return {key for key, name in threads if key[0] in devices and name.startswith("Stream")}
