"""The report of `benchmarks.quality` as a table and a plot, each from the report alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import charts
from jaxgen import evaluate
from jaxgen.quality import HELD_OUT, TRAINING

Report = dict[str, Any]
ESTIMATE = ("value", "low", "high")
FEW = ("Fréchet", "KID·10³", "precision", "recall", "coverage", "told", "R@1", "R@10")
ALL = tuple(title for title in evaluate.COLUMNS if title != "CMMD")


def markdown(report: Report) -> str:
    """Both tables and the targets."""
    parts = [f"Grader: {report['grader']}. Shares in %; ± the longer side of the 95 % interval."]
    for captions in (TRAINING, HELD_OUT):
        parts += [f"{captions.capitalize()} captions", table(report, captions, ALL)]
    return "\n\n".join([*parts, targets(report)]) + "\n"


def table(report: Report, captions: str = TRAINING, columns: Sequence[str] = FEW) -> str:
    """A Markdown table of one set of captions, a line a method and number of steps."""
    # A file may be older than a measure.
    known = [title for title in columns if any(_of(row[captions], title) for row in report["rows"])]
    slow = max(report["rows"], key=lambda row: row["calls"])
    lines = [["", "calls", "s/image", "faster", *known], ["---"] * (4 + len(known))]
    for row in report["rows"]:
        seconds = row["seconds_per_image"]
        line = [title_of(row), str(row["calls"]), f"{seconds:.4f}"]
        line.append(f"{slow['seconds_per_image'] / seconds:.1f} x" if row is not slow else "")
        for title in known:
            _, factor, digits = evaluate.COLUMNS[title]
            estimate = _of(row[captions], title)
            if estimate is None:
                line.append("")
                continue
            value, low, high = (factor * estimate[key] for key in ESTIMATE)
            line.append(f"{value:.{digits}f} ± {max(value - low, high - value):.{digits}f}")
        lines.append(line)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _of(found: dict[str, Any], title: str) -> dict[str, float] | None:
    return found.get(evaluate.COLUMNS[title][0])


def targets(report: Report) -> str:
    """A line for each target of ADD at one step."""
    lines = ["| one step of | should have | it has | limit | |", "|---|---|---|---|---|"]
    for found in report["targets"]:
        said = f"{'met' if found['met'] else 'missed'} by {abs(found['by']):.0%}"
        said += "" if found["sure"] else ", within the noise"
        lines.append(
            f"| {found['method']} | {found['target']} | {found['value']:.3g} "
            f"| {found['limit']:.3g} | {said} |"
        )
    return "\n".join(lines)


def title_of(row: dict[str, Any]) -> str:
    """Method and steps, and the guidance where there is some."""
    guided = f", guidance {row['guidance']:g}" if row["guidance"] != 1 else ""
    return f"{row['method']}, {row['steps']} step{'s' * (row['steps'] > 1)}{guided}"


def draw(report: Report, path: Path) -> str:
    """Plots the Fréchet distance over seconds per image as a PNG file; returns a line about it."""

    def fill(figure: Any) -> None:
        axes = figure.add_subplot(
            xscale="log",
            xlabel="seconds per image",
            ylabel="Fréchet distance (lower is better)",
        )
        lines: dict[tuple[str, float], list[dict[str, Any]]] = {}
        for row in report["rows"]:
            lines.setdefault((row["method"], row["guidance"]), []).append(row)
        for (method, guidance), rows in lines.items():
            rows = sorted(rows, key=lambda row: row["steps"])
            x = [row["seconds_per_image"] for row in rows]
            found = [row[TRAINING]["frechet"] for row in rows]
            y = [estimate["value"] for estimate in found]
            bars = [
                [estimate["value"] - estimate["low"] for estimate in found],
                [estimate["high"] - estimate["value"] for estimate in found],
            ]
            label = method + (f", guidance {guidance:g}" if guidance != 1 else "")
            axes.errorbar(x, y, bars, marker="o", capsize=3, label=label)
            for row, at, height in zip(rows, x, y, strict=True):
                axes.annotate(
                    str(row["steps"]), (at, height), (4, 5), textcoords="offset points", fontsize=8
                )
        values = [row[TRAINING]["frechet"]["value"] for row in report["rows"]]
        if max(values) > 6 * min(values):
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3, which="both")
        axes.legend(title="with number of steps, bars: 95 %")
        hardware = report["hardware"]
        on = f"{hardware['count']} x {hardware['device']}"
        axes.set_title(f"training captions, {on}; features: {report['grader']}", fontsize=8)

    return charts.figure(path, (6.4, 4.4), fill)
