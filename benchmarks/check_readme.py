"""Fails where a number in a README or docs is not that of a committed result.

    python -m benchmarks.check_readme            (names every number that differs; exit code 1)
    python -m benchmarks.check_readme --write    (puts the results' numbers there)

A measured number stands between two comments that GitHub does not show:

    <!--= cpu-2/linear_probe.json accuracy/groups, classifier/value *100-->67<!--/-->

First the file in benchmarks/results, then the way to the value in it: names of a JSON object (the
beginning of one is enough, where it is the only such), numbers of a list's elements, or what is to
be found in one of them, as in `rows/batch=1&who=eager/times_eager`; `*100` makes per cent. The text
says how many decimals are shown. In a log the way is a regular expression with one group, whose
last match counts. Tables are whole:

    <!--table quality cpu-2/quality.json-->
    <!--/table-->

Numbers of the README that look measured (with decimals, or before a unit) and stand nowhere between
such comments, in code or in the address of a link are named too.
"""

import dataclasses
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import quality_report
from benchmarks.machine import RESULTS
from jaxgen import config as configs
from jaxgen.errors import UserError, reported

PROGRAM = "python -m benchmarks.check_readme"
ROOT = Path(__file__).parent.parent
TABLES: dict[str, Callable[[Any], str]] = {
    "quality": quality_report.table,
    "targets": quality_report.targets,
}
NUMBER = re.compile(r"<!--= *(?P<file>\S+) +(?P<way>.+?)(?: +\*(?P<factor>\d+))? *-->"
                    r"(?P<text>.*?)<!--/-->", re.DOTALL)  # fmt: skip
TABLE = re.compile(
    r"<!--table (?P<name>\S+) (?P<file>\S+?)-->\n(?P<text>.*?)<!--/table-->", re.DOTALL
)
UNITS = r"(?:%|times|x|minutes?|min|seconds?|s|ms|hours?|GB|MB|dB|images/s|FLOP/s)"
MEASURED = re.compile(rf"\d+\.\d+(?!\.\d)|\b\d[\d ]*(?= ?{UNITS}(?![\w-]))")
# What has a number and is no measurement: versions, papers, licences, shapes, code, addresses.
NAMED = re.compile(
    r"```.*?```|`[^`]*`|\]\([^)]*\)|<!--.*?-->|arXiv [\d.]+|(?:CC BY-SA|Python|Diffusion|Apache-)"
    r"\s?[\d.]+(?:, [\d.]+)*|\d+ x \d+(?: x \d+)*|95 % interval",
    re.DOTALL,
)


@dataclasses.dataclass(frozen=True)
class Options:
    write: bool = False
    """Put the results' numbers into the files, in place of what stands there."""

    def check(self) -> None:
        """Nothing can be wrong."""


def main() -> None:
    with reported():
        options = configs.parse(Options(), sys.argv[1:], PROGRAM)
        wrong = []
        pages = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "tpu/README.md")
        for path in pages:
            text = path.read_text(encoding="utf-8")
            right, found = checked(text, RESULTS)
            if options.write and right != text:
                path.write_text(right, encoding="utf-8")
            name = path.relative_to(ROOT)
            wrong += [f"{name}:{line}" for line in ([] if options.write else found)]
            if path == pages[0]:
                wrong += [f"{name}:{line}" for line in unsourced(right)]
        print("\n".join(wrong) or "every number is that of a committed result")
        sys.exit(1 if wrong else 0)


def checked(text: str, results: Path) -> tuple[str, list[str]]:
    """The text with the results' numbers in place, and a line for each that was another.

    Raises UserError where a comment names what is not there.
    """
    wrong = []

    def number(match: re.Match[str]) -> str:
        where = f"{match['file']} {match['way']}"
        value = sought(_result(results, match["file"]), match["way"])
        right = shown(value, int(match["factor"] or 1), match["text"])
        if right != match["text"]:
            wrong.append(f"{_line(match)}: says {match['text']}, but {right} stands in {where}")
        start = match.start("text") - match.start()
        return match[0][:start] + right + "<!--/-->"

    def table(match: re.Match[str]) -> str:
        if match["name"] not in TABLES:
            raise UserError(f"no table {match['name']!r}; known: {', '.join(TABLES)}")
        right = TABLES[match["name"]](_result(results, match["file"])) + "\n"
        if right != match["text"]:
            wrong.append(f"{_line(match)}: the table is not that of {match['file']}")
        start = match.start("text") - match.start()
        return match[0][:start] + right + "<!--/table-->"

    return TABLE.sub(table, NUMBER.sub(number, text)), wrong


def sought(found: Any, way: str) -> Any:
    """The value in a JSON document, or the group of a regular expression in a text."""
    if isinstance(found, str):
        matches = re.findall(way, found)
        if not matches:
            raise UserError(f"{way!r} is nowhere in the log")
        return matches[-1].strip()
    for step in way.split("/"):
        found = _entered(found, step, way)
    if isinstance(found, (dict, list)):
        raise UserError(f"{way} is no single value")
    return found


def _entered(found: Any, step: str, way: str) -> Any:
    if isinstance(found, dict):
        near = [name for name in found if name.startswith(step)]
        if step in found or len(near) == 1:
            return found[step if step in found else near[0]]
    elif isinstance(found, list) and "=" in step:
        pairs = [pair.partition("=") for pair in step.split("&")]
        fits = [row for row in found if all(str(row.get(k)) == v for k, _, v in pairs)]
        if len(fits) == 1:
            return fits[0]
    elif isinstance(found, list) and step.isdigit() and int(step) < len(found):
        return found[int(step)]
    raise UserError(f"{way}: {step!r} is not there, or there several times")


def shown(value: Any, factor: int, like: str) -> str:
    """The value with as many decimals as the text `like` has, if that is a number."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    decimals = len(like.partition(".")[2]) if re.fullmatch(r"-?\d*\.?\d*", like.strip()) else 4
    return f"{factor * number:.{decimals}f}"


def unsourced(text: str) -> Iterator[str]:
    """A line for each number that looks measured and is not between comments."""
    blank = TABLE.sub(_blank, NUMBER.sub(_blank, text))
    blank = NAMED.sub(_blank, blank)
    for match in MEASURED.finditer(blank):
        yield f"{_line(match)}: {match[0]} has no result behind it: {_around(blank, match)!r}"


def of_file(path: Path) -> Any:
    """A file of results: JSON, lines of JSON, or the text of a log."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines()]
        return json.loads(text) if path.suffix == ".json" else text
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error})") from None


def _result(results: Path, file: str) -> Any:
    return of_file(results / file)


def _line(match: re.Match[str]) -> int:
    return match.string.count("\n", 0, match.start()) + 1


def _around(text: str, match: re.Match[str]) -> str:
    return " ".join(text[max(0, match.start() - 30) : match.end() + 20].split())


def _blank(match: re.Match[str]) -> str:
    """As many lines, and nothing in them."""
    return "\n" * match[0].count("\n")


if __name__ == "__main__":
    main()
