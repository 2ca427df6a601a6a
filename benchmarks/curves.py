"""The course of a run of ADD or of a GAN, drawn from its metrics log.

docs/add.md explains what those of ADD say.

python -m benchmarks.curves --log=runs/add/metrics.jsonl --out=curves.png
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import charts
from jaxgen import config as configs
from jaxgen.errors import UserError, reported

PROGRAM = "python -m benchmarks.curves"
Panels = dict[str, tuple[str, ...]]  # title: metrics
PANELS: Panels = {
    "the student's verdict, the judge's hinge": ("adversarial", "judge"),
    "shares that the judge takes for real": ("real_believed", "fake_believed"),
    "gradients at the student's pixels": ("adversarial_gradient", "distillation_gradient"),
    "distance to the teacher": ("distillation",),
    "gradient norms of the players": ("student_gradient", "judge_gradient"),
    "gradient penalty": ("r1",),
}
GAN: Panels = {
    "shares: pairs judged rightly, fakes that pass": ("rightly_judged", "fakes_pass"),
    "losses of the players": ("generator", "discriminator"),
    "loss on captions of other pictures": ("mismatched",),
    "gradient norms of the players": ("generator_gradient", "discriminator_gradient"),
    "gradient penalties": ("r1", "r2"),
    "weight of the penalties": ("gamma",),
}


@dataclasses.dataclass(frozen=True)
class Options:
    log: str = ""
    """The metrics.jsonl of a run."""
    out: str = ""
    """PNG file to write."""

    def check(self) -> None:
        """Raises UserError where one is missing."""
        if not self.log or not self.out:
            raise UserError("give --log=runs/NAME/metrics.jsonl and --out=FILE.png")


def main() -> None:
    with reported():
        options = configs.parse(Options(), sys.argv[1:], PROGRAM)
        told = draw(read(Path(options.log)), [], Path(options.out))
        if told == charts.MISSING:  # and there is nothing else to be had
            raise UserError(told)
        print(told)


def read(path: Path) -> list[dict[str, float]]:
    """The lines of a metrics log of ADD or of a GAN."""
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"--log {path} cannot be read ({error})") from None
    if not lines or not _panels(lines):
        raise UserError(f"--log {path} is no metrics log of ADD or of a GAN")
    return lines


def _panels(lines: Sequence[dict[str, float]]) -> Panels:
    """Those whose metrics are all there; none where no method's are."""
    for panels in (PANELS, GAN):
        if {name for panel in panels.values() for name in panel} <= lines[0].keys():
            return panels
    return {}


def draw(lines: Sequence[dict[str, float]], measured: Sequence[dict[str, Any]], path: Path) -> str:
    """Plots the log, and the Fréchet distance where a run was measured on its way."""
    panels = list(_panels(lines).items())
    if measured:
        panels[-1] = ("Fréchet distance at one step", ())

    def fill(figure: Any) -> None:
        steps = [line["step"] for line in lines]
        for axes, (title, names) in zip(figure.subplots(2, 3).flat, panels, strict=True):
            axes.set_title(title, fontsize=9)
            axes.set_xlabel("step", fontsize=8)
            axes.tick_params(labelsize=8)
            axes.grid(alpha=0.3)
            for name in names:
                axes.plot(steps, [line[name] for line in lines], label=name)
            if not names:
                found = [one["metrics"]["frechet"] for one in measured]
                y = [estimate["value"] for estimate in found]
                bars = [
                    [estimate["value"] - estimate["low"] for estimate in found],
                    [estimate["high"] - estimate["value"] for estimate in found],
                ]
                axes.errorbar([one["step"] for one in measured], y, bars, marker="o", capsize=3)
            if title.startswith("gradient norms"):
                axes.set_yscale("log")
            if title.startswith("shares"):
                axes.set_ylim(0, 1)
                axes.axhline(0.5, color="0.5", linestyle=":")
            elif not title.startswith("gradient norms"):
                axes.set_ylim(bottom=0)
            if names:
                axes.legend(fontsize=8)

    return charts.figure(path, (10.0, 5.4), fill)


if __name__ == "__main__":
    main()
