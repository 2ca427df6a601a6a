"""Results as JSON files, which grow measurement by measurement so that a stopped run goes on."""

import json
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import timing
from jaxgen.errors import UserError

Report = dict[str, Any]


def write(report: Report | list[Any], path: Path) -> None:
    """The report as JSON, written whole or not at all; UserError where it cannot be."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", "utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror})") from None


def command(program: str, arguments: Sequence[str]) -> str:
    """The command line again, without the folders of this machine."""
    return shlex.join([*program.split(), *(bare(argument) for argument in arguments)])


def bare(argument: str) -> str:
    """The argument without the folders of this machine.

    >>> bare("--teacher=/home/me/runs/add")
    '--teacher=add'
    """
    return re.sub(r"(^|[=:])/(?:[^/]*/)*", r"\1", argument)


def read(path: Path, benchmark: str) -> Report:
    """The report that `write` wrote; UserError where there is none of this benchmark's."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); give a results .json") from None
    if not isinstance(report, dict) or report.get("benchmark") != benchmark:
        raise UserError(f"{path} is no result of {benchmark}")
    return report


def taken_up(head: Report, path: Path, compared: tuple[str, ...], anew: bool) -> Report:
    """The report at `path` to go on with, or a new one that begins with `head`.

    UserError where what is there differs in a field of `compared`, so that its numbers would stand
    beside others that they do not go with.
    """
    if anew or not path.is_file():
        return {**head, "measured": [], "skipped": []}
    found = read(path, head["benchmark"])
    fresh = json.loads(json.dumps(head))
    for name in compared:
        if found.get(name) != fresh[name]:
            raise UserError(
                f"{path} was measured with another {name}; --anew measures all of it again"
            )
    return {**found, **fresh}


def still_holds(row: dict[str, Any], seconds: float) -> bool:
    """Whether what was skipped would be skipped again, with `seconds` left: memory stays what it
    was, time may be more than it was."""
    return row["reason"].startswith(timing.MEMORY) or seconds <= 1.1 * row["seconds_left"]


def figure(value: float | None) -> str:
    """Three significant digits, without an exponent; a dash for what is not known."""
    if value is None or not np.isfinite(value):
        return "-"
    return np.format_float_positional(value, 3, unique=False, fractional=False, trim="-")


def lines(rows: list[list[str]], left: tuple[str, ...]) -> list[str]:
    """Aligned columns under the titles of the first row; those called in `left` to the left."""
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    return [
        "  ".join(
            f"{cell:<{width}}" if title in left else f"{cell:>{width}}"
            for cell, width, title in zip(row, widths, rows[0], strict=True)
        ).rstrip()
        for row in rows
    ]
