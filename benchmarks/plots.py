"""Draws every plot again from the committed numbers alone: python -m benchmarks.plots"""

import importlib
from pathlib import Path

from benchmarks import curves
from benchmarks.check_readme import of_file
from benchmarks.machine import RESULTS
from jaxgen.errors import reported

DRAWN = {
    "ablation": "ablation_report",
    "latency": "latency_report",
    "quality": "quality_report",
    "scaling": "scaling",
}  # by a report's `benchmark`, the module here whose `draw` takes the report and the PNG's path
COURSES = ("add", "gan")  # runs whose metrics are committed, and drawn in docs/


def main() -> None:
    with reported():
        for line in drawn(RESULTS):
            print(line)
        docs = RESULTS.parent.parent / "docs"
        for name in COURSES:
            log = curves.read(RESULTS / "cpu-2" / f"{name}_metrics.jsonl")
            print(curves.draw(log, [], docs / f"{name}_curves.png"))


def drawn(results: Path) -> list[str]:
    """Draws the plots of all reports in a folder, each beside its JSON; a line for each."""
    said = []
    for path in sorted(results.rglob("*.json")):
        report = of_file(path)
        name = DRAWN.get(report.get("benchmark", "")) if isinstance(report, dict) else None
        if name:
            module = importlib.import_module(f"benchmarks.{name}")
            what = report["plans"] if name == "scaling" else report
            said.append(str(module.draw(what, path.with_suffix(".png"))))
    return said


if __name__ == "__main__":
    main()
