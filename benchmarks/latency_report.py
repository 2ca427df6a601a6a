"""What `latency` measured as comparisons, a table and a plot, each from the report alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import charts, timing
from benchmarks.reports import Report, figure, lines

PARTS = ("text", "denoise", "decode", "transfer", "dispatch")
ON_DEVICE = PARTS[:3]
COLUMNS: tuple[str, ...] = (
    "dtype",
    "batch",
    "sampler",
    "compile s",
    "s/image",
    "min",
    "max",
    *PARTS,
)
COLUMNS += ("% FLOP/s", "speed-up", "by FLOPs", "share")
GOAL, FROM_BATCH = 0.9, 8  # of the ratio of FLOPs, the speed-up wanted, at this batch and above

Rows = dict[tuple[str, int, str, str], dict[str, Any]]


def rows_of(report: Report) -> Rows:
    """The measurements by dtype, batch, part and sampler."""
    return {
        (row["dtype"], row["batch"], row["part"], title): row
        for row in report["measured"]
        for title in row["samplers"]
    }


def compared(report: Report) -> list[dict[str, Any]]:
    """How much faster each sampler is than the first, the teacher's, measured and by FLOPs.

    `share` is the first over the second. `lost`, in seconds of a run, says where the rest goes:
    what each part takes beyond its FLOPs at the teacher's pace. Their sum is what the run takes
    beyond all its FLOPs at that pace. A part alone pays for being dispatched too, which is taken
    off; `rest` is what the parts do not explain.
    """
    found = rows_of(report)
    against, *others = report["samplers"]
    made = []
    for dtype, batch, title in sorted({(d, b, t) for d, b, p, t in found if p == "whole"}):
        teacher = found.get((dtype, batch, "whole", against))
        if title not in others or teacher is None:
            continue
        few = found[dtype, batch, "whole", title]
        taken = {"teacher": _median(teacher), "student": _median(few)}
        ratio = teacher["flops"] / few["flops"]
        speed_up = taken["teacher"] / taken["student"]
        row: dict[str, Any] = {
            "dtype": dtype,
            "batch": batch,
            "sampler": title,
            "speed_up": speed_up,
            "flop_ratio": ratio,
            "share": speed_up / ratio,
            "goal_met": bool(speed_up / ratio >= GOAL) if batch >= FROM_BATCH else None,
        }
        parts = {p: found.get((dtype, batch, p, title)) for p in PARTS}
        if all(parts.values()):
            pace = taken["teacher"] / teacher["flops"]
            own = own_seconds({p: _median(r) for p, r in parts.items() if r})
            lost = {p: own[p] - pace * r["flops"] for p, r in parts.items() if r}
            lost["rest"] = taken["student"] - sum(own.values())
            overhead = own["transfer"] + own["dispatch"]
            without = (taken["teacher"] - overhead) / (taken["student"] - overhead)
            row |= {"lost": lost, "share_without_overhead": without / ratio}
        made.append(row)
    return made


def own_seconds(parts: dict[str, float]) -> dict[str, float]:
    """The parts' times without the dispatch that each of them, run alone, pays for."""
    return {
        name: max(0.0, seconds - parts["dispatch"]) if name in ON_DEVICE else seconds
        for name, seconds in parts.items()
    }


def table(report: Report) -> str:
    """Plain text: what was measured on what, a line for each batch and sampler, what was skipped.

    Times are medians for one image; min and max belong to the whole.
    """
    found = rows_of(report)
    faster = {(row["dtype"], row["batch"], row["sampler"]): row for row in report["comparison"]}
    cells: list[list[str]] = [[*COLUMNS]]
    for dtype, batch, part, title in sorted(found, key=lambda k: _order(report, k)):
        if part == "whole":
            cells.append(_line(dtype, batch, title, found, faster.get((dtype, batch, title))))
    text = [title_of(report), *_facts(report), "", *lines(cells, ("sampler",))]
    for row in report["skipped"]:
        title = row["samplers"][0] + (" and others" if len(row["samplers"]) > 1 else "")
        text.append(f"skipped: {row['dtype']}, batch {row['batch']}, {row['part']} of {title}: "
                    f"{row['reason']}")  # fmt: skip
    return "\n".join(text)


def title_of(report: Report) -> str:
    """What was measured, on what."""
    hardware = report["hardware"]
    return f"{report['name']}, {hardware['count']} {hardware['device']} device(s)"


def draw(report: Report, path: Path) -> str:
    """Seconds per image, the speed-up, and where one step's time goes, as a PNG file.

    Returns a line that says so, or that matplotlib is missing.
    """

    def fill(canvas: Any) -> None:
        canvas.suptitle(title_of(report))
        times, speed, split = canvas.subplots(1, 3)
        batches = sorted({row["batch"] for row in report["measured"]}) or [1]
        _draw_times(times, report)
        _draw_speed(speed, report)
        _draw_split(split, report)
        for axes in (times, speed):
            axes.set_xscale("log")
            axes.set_xlabel("images at once")
            axes.set_xticks(batches, [str(batch) for batch in batches])
            axes.minorticks_off()
            axes.grid(alpha=0.3)
            if axes.has_data():
                axes.legend(fontsize="small")

    return charts.figure(path, (13, 4.6), fill)


def _draw_times(axes: Any, report: Report) -> None:
    axes.set_yscale("log")
    axes.set_ylabel("seconds per image")
    for dtype, title, rows in _series(report):
        batch = np.array([row["batch"] for row in rows])
        low, middle, high = (
            np.array([row["seconds"][which] for row in rows]) / batch
            for which in ("min", "median", "max")
        )
        axes.errorbar(
            batch, middle, (middle - low, high - middle), marker="o", capsize=3,
            ls=_style(report, dtype), label=f"{title}, {dtype}",
        )  # fmt: skip


def _draw_speed(axes: Any, report: Report) -> None:
    axes.set_ylabel("times faster than the teacher")
    for dtype in report["dtypes"]:
        for title in list(report["samplers"])[1:]:
            rows = [r for r in report["comparison"] if (r["dtype"], r["sampler"]) == (dtype, title)]
            if rows:
                batch = [row["batch"] for row in rows]
                (line,) = axes.plot(
                    batch, [row["speed_up"] for row in rows], marker="o",
                    ls=_style(report, dtype), label=f"{title}, {dtype}",
                )  # fmt: skip
                axes.plot(batch, [row["flop_ratio"] for row in rows], ls=":", alpha=0.6,
                          color=line.get_color())  # fmt: skip
    axes.set_title("dotted: by FLOPs", fontsize="small")


def _draw_split(axes: Any, report: Report) -> None:
    found, title = rows_of(report), list(report["samplers"])[1]
    bars = [
        (dtype, batch)
        for dtype in report["dtypes"]
        for batch in sorted({row["batch"] for row in report["measured"]})
        if all((dtype, batch, part, title) in found for part in ("whole", *PARTS))
    ]
    below = np.zeros(len(bars))
    for part in (*PARTS, "rest"):
        heights = np.array(
            [_shares_of_run(found, dtype, batch, title)[part] for dtype, batch in bars]
        )
        axes.bar(range(len(bars)), heights, bottom=below, label=part)
        below += heights
    axes.set_xticks(range(len(bars)), [f"{batch}\n{_short(dtype)}" for dtype, batch in bars])
    axes.set_ylabel(f"% of the time of {title}")
    axes.set_xlabel("images at once")
    if bars:
        axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))


def _shares_of_run(found: Rows, dtype: str, batch: int, title: str) -> dict[str, float]:
    """Hundredths of the run that each part takes; the rest is what they leave, if anything."""
    own = own_seconds({p: _median(found[dtype, batch, p, title]) for p in PARTS})
    own["rest"] = max(0.0, _median(found[dtype, batch, "whole", title]) - sum(own.values()))
    return {part: 100 * seconds / sum(own.values()) for part, seconds in own.items()}


def _series(report: Report) -> list[tuple[str, str, list[dict[str, Any]]]]:
    found = rows_of(report)
    series = []
    for dtype in report["dtypes"]:
        for title in report["samplers"]:
            rows = [
                row for (d, _, p, t), row in found.items() if (d, p, t) == (dtype, "whole", title)
            ]
            if rows:
                series.append((dtype, title, sorted(rows, key=lambda row: row["batch"])))
    return series


def _style(report: Report, dtype: str) -> str:
    return ("-", "--", "-.")[report["dtypes"].index(dtype) % 3]


def _short(dtype: str) -> str:
    return {"float32": "f32", "bfloat16": "bf16"}[dtype]


def _facts(report: Report) -> Sequence[str]:
    subject, versions = report["subject"], report["versions"]
    millions = ", ".join(f"{n} {size / 1e6:.1f} M" for n, size in subject["parameters"].items())
    flops = ", ".join(f"{n} {figure(f / 1e9)}" for n, f in subject["flops_per_image"].items())
    facts = [
        f"{report['hardware']['processor']}, {report['hardware']['cores']} cores; "
        f"Python {versions['python']}, jax {versions['jax']}",
        f"{subject['size']} px; parameters: {millions}; GFLOPs an image: {flops}",
        f"medians over {report['repeats']} turns, in each of which a short program runs up to "
        f"{timing.MOST} times; seconds per image, from token ids on the host to pixels on the host",
    ]
    for dtype, most in report["ceilings"].items():
        facts.append(f"ceilings in {dtype}: {figure(most['flops'] / 1e12)} TFLOP/s, "
                     f"{figure(most['bytes'] / 1e9)} GB/s")  # fmt: skip
    for dtype, starts in report["starts"].items():
        told = "; ".join(
            f"{name} start {found['total']:.1f} s ({found['compile']:.1f} of compiling)"
            for name, found in starts.items()
        )
        facts.append(f"from the command to a picture, {dtype}: {told}")
    return facts


def _order(report: Report, key: tuple[str, int, str, str]) -> tuple[int, int, int]:
    dtype, batch, _, title = key
    return report["dtypes"].index(dtype), batch, list(report["samplers"]).index(title)


def _line(
    dtype: str, batch: int, title: str, found: Rows, faster: dict[str, Any] | None
) -> list[str]:
    cells = dict.fromkeys(COLUMNS, "-") | {"dtype": dtype, "batch": str(batch), "sampler": title}
    whole = found[dtype, batch, "whole", title]
    cells["compile s"] = f"{whole['compile_seconds']:.1f}"
    times = (whole["seconds"][which] / batch for which in ("median", "min", "max"))
    cells |= zip(("s/image", "min", "max"), map(figure, times), strict=True)
    cells["% FLOP/s"] = figure(100 * whole["share_of_flops"])
    for part in PARTS:
        if row := found.get((dtype, batch, part, title)):
            cells[part] = figure(row["seconds_per_image"])
    if faster is not None:
        cells["speed-up"] = f"{figure(faster['speed_up'])} x"
        cells["by FLOPs"] = f"{figure(faster['flop_ratio'])} x"
        cells["share"] = f"{faster['share']:.2f}"
    return [*cells.values()]


def _median(row: dict[str, Any]) -> float:
    return row["seconds"]["median"]
