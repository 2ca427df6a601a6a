"""Progress that a person reads: a live bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

PLAIN_EVERY = 10.0  # seconds between plain lines


class Bar:
    """Counts to `total`; `note` is what stands behind the bar, such as loss terms."""

    def __init__(self, title: str, total: int, done: int = 0, unit: str = "step"):
        self._title, self._total, self._unit = title, total, unit
        self._done, self._last_plain = done, 0.0
        self._live: Progress | None = None
        if sys.stdout.isatty():
            self._live = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(),
            )
            self._task = self._live.add_task(title, total=total, completed=done, note="")

    def __enter__(self) -> "Bar":
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()

    def update(self, done: int, note: str = "") -> None:
        """Shows that `done` of the total are done."""
        if self._live:
            self._live.update(self._task, completed=done, note=note)
        elif done >= self._total or time.monotonic() - self._last_plain >= PLAIN_EVERY:
            self._last_plain = time.monotonic()
            self.say(f"{self._title}: {self._unit} {done}/{self._total}  {note}".rstrip())

    def resize(self, total: int) -> None:
        """Sets the total, where it is known late."""
        self._total = total
        if self._live:
            self._live.update(self._task, total=total)

    def say(self, line: str) -> None:
        """A line of its own, above the bar."""
        (self._live.console.print if self._live else print)(line)
        sys.stdout.flush()


def terms(values: Mapping[str, float]) -> str:
    """Metrics as one line of text."""
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())


def duration(seconds: float) -> str:
    """Seconds as a person says them: 42 s, 3 min 20 s, 2 h 05 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
