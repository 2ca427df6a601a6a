"""The report of `benchmarks.ablation`: which orderings hold, as a table and plots."""

import math
from collections.abc import Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from scipy.stats import t as student_t

from benchmarks import charts, curves

MAIN, PAIRS = "ADD", "ADD with pairs"
REPRODUCED, REVERSED, NOISE, UNKNOWN = "reproduced", "not reproduced", "hidden by noise", "one seed"
METRICS = {
    "frechet": ("Fréchet", -1),
    "retrieval@1": ("R@1", 1),
    "recall": ("recall", 1),
}  # which way is better
SHOWN = {"frechet": ("Fréchet ↓", 1, 2), "retrieval@1": ("R@1 ↑, %", 100, 1),
         "retrieval@10": ("R@10 ↑, %", 100, 1), "recall": ("recall ↑, %", 100, 1),
         "precision": ("precision ↑, %", 100, 1), "kid": ("KID·10³ ↓", 1000, 1)}  # fmt: skip

Arms = Mapping[str, dict[str, Any]]


class Claim(NamedTuple):
    """An ordering of the paper's Table 1, FID as Fréchet and CLIP score as retrieval."""

    better: str
    worse: str
    metric: str
    paper: str


CLAIMS = (
    Claim(MAIN, "adversarial only", "frechet", "20.6 < 20.8"),
    Claim(MAIN, "adversarial only", "retrieval@1", ".319 > .315"),
    Claim(MAIN, "distillation only", "frechet", "20.6 < 315.6"),
    Claim(MAIN, "distillation only", "retrieval@1", ".319 > .076"),
    Claim("adversarial only", "distillation only", "frechet", "20.8 < 315.6"),
    Claim("adversarial only", "distillation only", "retrieval@1", ".315 > .076"),
    Claim(MAIN, "random start", "frechet", "20 < 293"),
    Claim(MAIN, "judge told nothing", "frechet", "20.6 < 21.2"),
    Claim(MAIN, "judge told nothing", "retrieval@1", ".319 > .302"),
    Claim(MAIN, "judge told text", "frechet", "20.6 < 21.2"),
    Claim(MAIN, "judge told text", "retrieval@1", ".319 > .307"),
    Claim(MAIN, "judge told image", "frechet", "20.6 < 21.1"),
    Claim(MAIN, "judge told image", "retrieval@1", ".319 > .316"),
    Claim("judge told image", "judge told text", "retrieval@1", ".316 > .307"),
    Claim("judge told image", "judge told nothing", "retrieval@1", ".316 > .302"),
    Claim("judge told text", "judge told nothing", "retrieval@1", ".307 > .302"),
    *(Claim(PAIRS, MAIN, metric, "") for metric in METRICS),
)


def orderings(arms: Arms) -> list[dict[str, Any]]:
    """Each claim whose arms were trained, and each further arm against the main one.

    The difference of two arms is taken seed by seed. It counts where its 95 % interval over the
    seeds (Student's t) leaves out 0; otherwise the noise hides it, and one seed says nothing.
    """
    claimed = {name for claim in CLAIMS for name in (claim.better, claim.worse)}
    further = [
        Claim(MAIN, name, metric, "") for name in arms if name not in claimed for metric in METRICS
    ]
    return [
        found
        for claim in (*CLAIMS, *further)
        if claim.better in arms and claim.worse in arms and (found := _ordering(claim, arms))
    ]


def _ordering(claim: Claim, arms: Arms) -> dict[str, Any]:
    way = METRICS[claim.metric][1]
    values = [_values(arms[name], claim.metric) for name in (claim.better, claim.worse)]
    seeds = sorted(values[0].keys() & values[1].keys())
    if not seeds:
        return {}
    gained = [way * (values[0][seed] - values[1][seed]) for seed in seeds]
    half = spread(gained)
    middle = mean(gained)
    verdict = UNKNOWN if math.isinf(half) else NOISE
    if abs(middle) > half:
        verdict = REPRODUCED if middle > 0 else REVERSED
    finite = not math.isinf(half)
    return {
        **claim._asdict(),
        "seeds": len(seeds),
        "gain": middle,
        "low": middle - half if finite else None,
        "high": middle + half if finite else None,
        "verdict": verdict,
    }


def spread(values: list[float]) -> float:
    """Half of the 95 % interval of the mean, by Student's t; infinite for a single value."""
    if len(values) < 2:
        return math.inf
    return float(student_t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))


def _values(arm: dict[str, Any], metric: str) -> dict[str, float]:
    return {seed: one["metrics"][metric]["value"] for seed, one in arm["seeds"].items()}


def markdown(report: dict[str, Any]) -> str:
    """The arms, then the orderings."""
    settings = report["settings"]
    most = max(len(arm["seeds"]) for arm in report["arms"].values())
    parts = [
        f"{settings['steps']} train steps of {settings['batch']} images; measured at one step "
        f"without guidance on {report['captions']} training captions; grader: {report['grader']}. "
        f"Mean over {most} seeds at most ± standard deviation.",
        table(report),
        "An ordering counts where the 95 % interval of its differences, seed by seed, leaves out "
        "0. Each stands alone: of twenty intervals over noise one leaves out 0 by chance, and "
        f"{len(report['orderings'])} are here. Numbers of the paper: FID and CLIP score on COCO at "
        "one step, Stable Diffusion 2.1.",
        verdicts(report),
    ]
    return "\n\n".join(parts) + "\n"


def table(report: dict[str, Any]) -> str:
    """A Markdown table, a line an arm; first the teacher, where they start."""
    lines = [["", "changed", "seeds", *(title for title, *_ in SHOWN.values())]]
    lines.append(["---"] * len(lines[0]))
    if report["curve"] and report["curve"][0]["step"] == 0:
        start = report["curve"][0]["metrics"]
        cells = [f"{f * start[name]['value']:.{d}f}" for name, (_, f, d) in SHOWN.items()]
        lines.append(["the teacher at one step", "", "", *cells])
    for name, arm in report["arms"].items():
        line = [name, f"`{arm['arguments']}`" if arm["arguments"] else "", str(len(arm["seeds"]))]
        for metric, (_, factor, digits) in SHOWN.items():
            values = [factor * value for value in _values(arm, metric).values()]
            spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
            line.append(f"{mean(values):.{digits}f}{spread}")
        lines.append(line)
    return _rows(lines)


def verdicts(report: dict[str, Any]) -> str:
    """A Markdown table, a line an ordering."""
    lines = [["better", "worse", "by", "the paper", "here, better by", ""], ["---"] * 6]
    for found in report["orderings"]:
        title, _ = METRICS[found["metric"]]
        _, factor, digits = SHOWN[found["metric"]]
        gain = f"{factor * found['gain']:.{digits}f}"
        if found["low"] is not None:
            low, high = factor * found["low"], factor * found["high"]
            gain += f" ({low:.{digits}f} to {high:.{digits}f})"
        verdict: str = found["verdict"]
        if not found["paper"]:
            verdict = {REPRODUCED: "better", REVERSED: "worse"}.get(verdict, verdict)
        said = found["paper"] or "does not say"
        lines.append([found["better"], found["worse"], title, said, gain, verdict])
    return _rows(lines)


def _rows(lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw(report: dict[str, Any], path: Path) -> str:
    """Two plots: every arm with its seeds, and beside it the main arm's curves, `_curves.png`."""
    arms = report["arms"]

    def fill(figure: Any) -> None:
        both = figure.subplots(1, 2, sharey=True)
        for axes, (metric, (title, factor, _)) in zip(both, list(SHOWN.items())[:2], strict=True):
            for at, arm in enumerate(arms.values()):
                values = [factor * value for value in _values(arm, metric).values()]
                half = spread(values)
                bar = 0.0 if math.isinf(half) else half
                axes.plot(values, [at] * len(values), "o", color="0.7", markersize=4)
                axes.errorbar(mean(values), at, xerr=bar, marker="s", capsize=3, color="C0")
            if report["curve"]:
                start = factor * report["curve"][0]["metrics"][metric]["value"]
                axes.axvline(start, color="C1", linestyle=":", label="the teacher at one step")
            axes.set_xlabel(title)
            axes.grid(alpha=0.3)
        both[0].set_yticks(range(len(arms)), list(arms))
        both[0].invert_yaxis()
        both[0].legend(fontsize=8)
        figure.suptitle("grey: each seed; bars: 95 % of the mean over seeds", fontsize=9)

    told = charts.figure(path, (8.0, 0.32 * len(arms) + 1.8), fill)
    beside = path.with_name(f"{path.stem}_curves.png")
    return f"{told}\n{curves.draw(report['log'], report['curve'], beside)}"
