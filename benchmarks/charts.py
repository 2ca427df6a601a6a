"""Figures as PNG files, the same bytes for the same numbers."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxgen.errors import UserError

MISSING = "no plot: matplotlib is missing; pip install 'jaxgen[benchmark]'"


def figure(path: Path, size: tuple[float, float], fill: Callable[[Any], None]) -> str:
    """A PNG of a matplotlib figure that `fill` draws on; returns a line that says so.

    Without matplotlib nothing is drawn, and the line says that.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return MISSING
    from matplotlib.figure import Figure

    made = Figure(figsize=size, layout="constrained")
    fill(made)
    try:
        # Without the version of matplotlib in it the same numbers are the same bytes.
        made.savefig(path, dpi=120, metadata={"Software": None})
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror})") from None
    return f"plot: {path}"
