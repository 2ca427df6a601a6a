"""The metrics log of a run: JSON lines and TensorBoard."""

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxgen import storage

LINES = "metrics.jsonl"


def _board(folder: Path, step: int) -> Any:
    """tensorboardX's writer, whose import takes a tenth of the start of all doors.

    It is told that there is no PyTorch: it would import it, for 3 seconds.
    """
    hidden: Any = {} if "torch" in sys.modules else {"torch": None}
    sys.modules.update(hidden)
    try:
        from tensorboardX import SummaryWriter
    finally:
        for name in hidden:
            del sys.modules[name]
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)


class MetricsLog:
    """Appends to metrics.jsonl and to TensorBoard; on resume, later lines are cut off first.

    In a bucket they are as they were at the last `save`, which must come before a checkpoint's: so
    no line up to it can miss.
    """

    def __init__(self, folder: Path, step: int):
        self._growing = storage.Growing(folder)
        self._growing.pull(LINES)
        path = self._growing.path / LINES
        _cut(path, step)
        self._lines = path.open("a", encoding="utf-8")
        self._board = _board(path.parent, step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Mean values of the steps since the last line, under the count of steps done."""
        with _named(self._lines.name):
            self._lines.write(json.dumps({"step": step, **values}) + "\n")
            self._lines.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """A uint8 picture [h, w, 3] for TensorBoard."""
        self._board.add_image(name, image, step, dataformats="HWC")

    def save(self) -> None:
        """Makes what was written outlive this machine, where the run's folder does."""
        if self._growing.is_copy:
            self._board.flush()
            self._growing.push()

    def close(self) -> None:
        """Writes out what is buffered."""
        with _named(self._lines.name):
            self._lines.close()
            self._board.close()
        self._growing.push()
        self._growing.close()


@contextlib.contextmanager
def _named(path: str) -> Iterator[None]:
    """Has a fault in writing say of what file."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or path
        raise


class NoLog(MetricsLog):
    """The log of a process that is not the first: nothing is written."""

    def __init__(self, folder: Path, step: int):
        del folder, step

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing."""

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """Nothing."""

    def save(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def read(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics log."""
    path = folder / LINES
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _cut(path: Path, step: int) -> None:
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except json.JSONDecodeError:  # a line cut short by a kill
            break
    storage.write_text(path, "".join(kept))
