"""The report of `sampling_latency` as a file, a table and a plot, each from the report alone."""

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from jaxgen.errors import UserError

Report = dict[str, Any]
WHOLE = ("compile s", "s/image", "min", "max")
PARTS = ("text", "denoise", "decode")
COLUMNS = ["batch", "sampler", *WHOLE, *PARTS, "speed-up", "by FLOPs"]


def write(report: Report, path: Path) -> None:
    """The report as JSON, written whole or not at all; UserError where it cannot be."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", "utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror})") from None


def read(path: Path) -> Report:
    """The report that `write` wrote; UserError where there is none."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--plot {path} cannot be read ({error}); give a results .json") from None
    if not isinstance(report, dict) or report.get("benchmark") != "sampling_latency":
        raise UserError(f"--plot {path} is no result of sampling_latency")
    return report


def table(report: Report) -> str:
    """Plain text: what was measured on what, a line for each batch and sampler, what was skipped.

    Times are medians for one image; min and max belong to the whole program.
    """
    found = {
        (row["batch"], row["part"], title): row
        for row in report["measured"]
        for title in row["samplers"]
    }
    faster = {(row["batch"], row["sampler"]): row for row in report["comparison"]}
    lines = [COLUMNS]
    for batch in report["batches"]:
        for title in report["samplers"]:
            lines.append(_line(batch, title, found, faster.get((batch, title))))
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    text = [title_of(report), *_facts(report), ""]
    for line in lines:
        cells = zip(line, widths, COLUMNS, strict=True)
        text.append("  ".join(f"{c:<{w}}" if n == "sampler" else f"{c:>{w}}" for c, w, n in cells))
    for row in report["skipped"]:
        title = row["samplers"][0] + (" and others" if len(row["samplers"]) > 1 else "")
        text.append(f"skipped: batch {row['batch']}, {row['part']} of {title}: {row['reason']}")
    return "\n".join(text)


def title_of(report: Report) -> str:
    """What was measured, on what."""
    subject, hardware = report["subject"], report["hardware"]
    return (
        f"{report['name']} ({subject['output']}), {subject['dtype']}, "
        f"{hardware['count']} {hardware['device']} device(s)"
    )


def draw(report: Report, path: Path) -> str:
    """Plots seconds per image against the batch as a PNG file; returns a line that says so.

    Without matplotlib nothing is drawn, and the line says that.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return "no plot: matplotlib is missing; pip install 'jaxgen[benchmark]'"
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.add_subplot(
        xscale="log", yscale="log", xlabel="images at once", ylabel="seconds per image"
    )
    for title in report["samplers"]:
        rows = [r for r in report["measured"] if r["part"] == "whole" and r["samplers"] == [title]]
        if not rows:
            continue
        rows.sort(key=lambda row: row["batch"])
        batch = np.array([row["batch"] for row in rows])
        low, middle, high = (
            np.array([row["seconds"][which] for row in rows]) / batch
            for which in ("min", "median", "max")
        )
        axes.errorbar(
            batch, middle, (middle - low, high - middle), marker="o", capsize=3, label=title
        )
    if axes.has_data():
        axes.legend(title="medians, bars from min to max")
    axes.set_xticks(report["batches"], [str(batch) for batch in report["batches"]])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.set_title(title_of(report))
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror})") from None
    return f"plot: {path}"


def _facts(report: Report) -> list[str]:
    subject, versions = report["subject"], report["versions"]
    millions = {name: n / 1e6 for name, n in subject["parameters"].items()}
    flops = {name: n / 1e9 for name, n in subject["flops_per_image"].items()}
    side, channels = subject["size"], subject["channels"]
    return [
        f"{report['hardware']['processor']}, {report['hardware']['cores']} cores; "
        f"Python {versions['python']}, jax {versions['jax']}",
        f"{side} x {side} x {channels}, decode makes uint8 of {subject['output']}; "
        f"parameters: text {millions['text']:.1f} M, denoiser {millions['denoiser']:.1f} M; "
        f"GFLOPs an image: text {_figure(flops['text'])}, one call {_figure(flops['network'])}",
        f"medians of {report['repeats']} interleaved runs, seconds per image",
    ]


def _line(batch: int, title: str, found: dict, faster: dict[str, Any] | None) -> list[str]:
    cells = dict.fromkeys(COLUMNS, "-") | {"batch": str(batch), "sampler": title}
    whole = found.get((batch, "whole", title))
    if whole is not None:
        cells["compile s"] = f"{whole['compile_seconds']:.1f}"
        times = (whole["seconds"][which] / batch for which in ("median", "min", "max"))
        cells |= zip(WHOLE[1:], map(_figure, times), strict=True)
    for part in PARTS:
        if row := found.get((batch, part, title)):
            cells[part] = _figure(row["seconds_per_image"])
    if faster is not None:
        if faster["speed_up"] is not None:
            cells["speed-up"] = f"{_figure(faster['speed_up'])} x"
        cells["by FLOPs"] = f"{_figure(faster['flop_ratio'])} x"
    return [*cells.values()]


def _figure(value: float) -> str:
    """Three significant digits, without an exponent."""
    return np.format_float_positional(value, 3, unique=False, fractional=False, trim="-")
