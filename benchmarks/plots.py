"""Draws every plot again from the committed numbers alone: python -m benchmarks.plots"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import ablation_report, curves, quality_report, sampling_report, scaling
from benchmarks.check_readme import of_file
from benchmarks.machine import RESULTS
from jaxgen.errors import reported

DRAWN: dict[str, Callable[[Any, Path], str]] = {
    "ablation": ablation_report.draw,
    "quality": quality_report.draw,
    "sampling_latency": sampling_report.draw,
    "scaling": lambda report, path: f"plot: {scaling.draw(report['plans'], path)}",
}  # by the report's `benchmark`
HEALTHY = RESULTS / "cpu-2" / "add_metrics.jsonl"  # of docs/add.md


def main() -> None:
    with reported():
        for line in drawn(RESULTS):
            print(line)
        docs = RESULTS.parent.parent / "docs"
        print(curves.draw(curves.read(HEALTHY), [], docs / "add_curves.png"))


def drawn(results: Path) -> list[str]:
    """Draws the plots of all reports in a folder, each beside its JSON; a line for each."""
    said = []
    for path in sorted(results.rglob("*.json")):
        report = of_file(path)
        draw = DRAWN.get(report.get("benchmark", "")) if isinstance(report, dict) else None
        if draw:
            said.append(draw(report, path.with_suffix(".png")))
    return said


if __name__ == "__main__":
    main()
