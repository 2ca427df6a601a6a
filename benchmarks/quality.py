"""How good one step of a student is beside the many steps of its teacher, and how fast.

    python -m benchmarks.quality
    python -m benchmarks.quality --name=mine --evaluated runs/NAME/quality.json

The teacher at 50, 8, 4, 2 and 1 steps, ADD at 1, 2 and 4, LADD, both also with pairs (--regression:
held to what the teacher draws from the same noise), GAN, all on the same pictures, of which no more
is said than the subgroup: where a caption names one picture of few, a teacher's first step knows it
already. What is not trained is trained, what is not measured is measured. With
--evaluated from files that `jaxgen.evaluate` wrote, and no more.

Writes a table, its numbers as JSON, and a plot of the Fréchet distance over seconds per image to
the results of the hardware that was measured on; and says whether one step of ADD, as it is and
with pairs, reaches what it should: TARGETS.
"""

import dataclasses
import datetime
import itertools
import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import machine, reports, runs
from benchmarks.quality_report import draw, markdown
from benchmarks.runs import Budget, Clock, Spec
from jaxgen import config as configs
from jaxgen import quality as measures
from jaxgen import stages
from jaxgen.diffusion.sampler import Sampler
from jaxgen.errors import UserError, reported

PROGRAM = "python -m benchmarks.quality"
TEACHER = "diffusion_subgroups"
SPECS = (
    Spec(TEACHER, "50,8,4,2,1"),
    Spec("add_subgroups", "1,2,4", share=0.25, roles=(("teacher", TEACHER),)),
    Spec("ladd_subgroups", "1,4", share=0.25, roles=(("teacher", TEACHER),)),
    Spec("add_paired", "1,2,4", share=0.25, roles=(("teacher", TEACHER),)),
    Spec("ladd_paired", "1,4", share=0.25, roles=(("teacher", TEACHER),)),
    Spec("gan_subgroups"),
)
TITLES = {"diffusion": "teacher", "add": "ADD", "ladd": "LADD", "gan": "GAN"}
TITLES |= {f"{name}_subgroups": title for name, title in TITLES.items()}
TITLES |= {f"{name}_paired": f"{TITLES[name]} with pairs" for name in ("add", "ladd")}
JUDGED = (TITLES["add"], TITLES["add_paired"])

Entry = dict[str, Any]


class Target(NamedTuple):
    """What ADD at one step should reach: at most, or at least, `factor` times the teacher's."""

    says: str
    metric: str
    most: bool
    factor: float
    steps: tuple[int, ...]
    """Those of the teacher, at whatever guidance; of several rows the best counts."""


TARGETS = (
    Target("lower Fréchet distance than the teacher at 4 steps or fewer", "frechet", True, 1.0,
           (4, 2, 1)),
    Target("Fréchet distance at most 1.15 times the teacher's at 50", "frechet", True, 1.15, (50,)),
    Target("caption retrieval (R@1) at least 0.9 times the teacher's at 50", "retrieval@1", False,
           0.9, (50,)),
    Target("recall at least 0.7 times the teacher's at 50", "recall", False, 0.7, (50,)),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Options(Budget):
    images: int = 64_000
    """Images that teacher and GAN see in training, counted with their repetitions; students see a
    quarter as many."""
    workdir: str = "runs/quality"
    """Folder of the runs."""
    name: str = ""
    """What the result is called: quality_NAME; quality by default."""
    evaluated: tuple[str, ...] = ()
    """Files of jaxgen.evaluate, in place of the runs."""
    rounds: int = 3
    """Times that every sampler's speed is measured, all in turn; 0: what it was in evaluating,
    which may have been beside other work."""

    def check(self) -> None:
        """Raises UserError for what cannot be measured."""
        super().check()
        if self.rounds < 0:
            raise UserError(f"--rounds is {self.rounds}; give 0 or more")


def main() -> None:
    with reported():
        options = configs.parse(Options(), sys.argv[1:], PROGRAM)
        if options.evaluated:
            files = [_read(file) for file in options.evaluated]
            found = entries(files)
            count, _, device = files[0]["hardware"].partition(" x ")
            about: dict[str, Any] = {
                "date": files[0]["date"],
                "hardware": {"device": device, "count": int(count)},
                "data": files[0]["data"]["name"],
            }
        else:
            clock = Clock(options.minutes)
            runs.prepare(options.workdir)
            for spec in SPECS:
                runs.train(spec, options, clock)
            grader = runs.grader_of(SPECS, options)
            rows = {spec.config: runs.measured(spec, options, grader, clock) for spec in SPECS}
            _time(rows, options)
            found = [entry for name, own in rows.items() for entry in _entries(name, own)]
            about = {
                "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "hardware": machine.hardware(),
                "versions": machine.versions(),
                "images": options.images,
                "data": options.data,
            }
        report = {
            "benchmark": "quality",
            "command": reports.command(PROGRAM, sys.argv[1:]),
            **about,
            "grader": _grader(found),
            "rows": found,
            "targets": judged(found),
        }
        title = "_".join(filter(None, ("quality", options.name)))
        path = machine.folder(about["hardware"]) / f"{title}.json"
        if path.resolve() in [Path(file).resolve() for file in options.evaluated]:
            raise UserError(f"--evaluated {path} is where the result goes; rename that file first")
        reports.write(report, path)
        text = markdown(report)
        path.with_suffix(".md").write_text(text, encoding="utf-8")
        print(text)
        print(f"numbers: {path}")
        print(draw(report, path.with_suffix(".png")))


def _time(rows: dict[str, list[dict[str, Any]]], options: Options) -> None:
    """Puts the median of all rounds in place of the seconds that an image took in evaluating."""
    loaded = {spec.config: stages.read(options.folder(spec)) for spec in SPECS}
    source, _ = measures.both_splits(loaded[TEACHER].config, "")
    taken: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        for name, own in rows.items():
            ids = measures.asked(loaded[name], source, 0, measures.BATCH, 0).ids
            for row in own[::2]:  # its two sets of captions are drawn alike
                _, seconds = measures.drawn(loaded[name], Sampler(**row["sampler"]), ids, 0)
                taken.setdefault(f"{name} {row['sampler']}", []).append(seconds)
    for name, own in rows.items():
        for row in own:
            if found := taken.get(f"{name} {row['sampler']}"):
                row["seconds_per_image"] = statistics.median(found)


def entries(files: Sequence[dict[str, Any]]) -> list[Entry]:
    """A row for each run and sampler of what `evaluate` wrote; UserError where nothing is known."""
    found = []
    for report in files:
        for run in dict.fromkeys(row["run"] for row in report["rows"]):
            name = Path(run.rpartition(":")[2]).name
            if name not in TITLES:
                raise UserError(f"{run} is none of {', '.join(TITLES)}: its file compares others")
            found += _entries(name, [row for row in report["rows"] if row["run"] == run])
    return found


def _entries(name: str, rows: Sequence[dict[str, Any]]) -> list[Entry]:
    """The rows of one run; both sets of captions together."""
    found: dict[str, Entry] = {}
    for row in rows:
        sampler = row["sampler"]
        entry = found.setdefault(
            json.dumps(sampler),
            {
                "method": TITLES[name],
                "steps": sampler["steps"],
                "guidance": sampler["guidance"],
                "calls": row["network_calls"],
                "seconds_per_image": row["seconds_per_image"],
                "batch": row["batch"],
            },
        )
        entry[row["captions"]] = {what.partition(" (")[0]: v for what, v in row["metrics"].items()}
        by = next(iter(row["metrics"])).partition(" (")[2].removesuffix(")")
        entry.setdefault("by", {})[row["captions"]] = by
    return list(found.values())


def judged(rows: Sequence[Entry]) -> list[dict[str, Any]]:
    """For each target, by training captions: met or not, by what share, and whether that is sure.

    Sure is a difference beyond the 95 % intervals of both, taken as independent. Without the rows
    that a target compares there is none.
    """

    def of(method: str, steps: Sequence[int]) -> list[dict[str, dict[str, float]]]:
        return [row[measures.TRAINING] for row in rows
                if row["method"] == method and row["steps"] in steps]  # fmt: skip

    found = []
    for method, target in itertools.product(JUDGED, TARGETS):
        student, teacher = of(method, (1,)), of(TITLES[TEACHER], target.steps)
        if not student or not teacher:
            continue
        own = student[0][target.metric]
        best = (min if target.most else max)(
            (other[target.metric] for other in teacher), key=lambda v: v["value"]
        )
        limit = target.factor * best["value"]
        gap = limit - own["value"] if target.most else own["value"] - limit
        noise = math.hypot(_half(own), target.factor * _half(best))
        found.append({
            "method": method,
            "target": target.says,
            "value": own["value"],
            "limit": limit,
            "met": gap > 0,
            "by": gap / limit if limit else 0.0,
            "sure": abs(gap) > noise,
        })  # fmt: skip
    return found


def _half(estimate: dict[str, float]) -> float:
    return (estimate["high"] - estimate["low"]) / 2


def _grader(rows: Sequence[Entry]) -> str:
    """The feature network of all; UserError where they were graded by several."""
    names = {row["by"][captions].partition(";")[0] for row in rows for captions in row["by"]}
    if len(names) != 1:
        raise UserError(f"the rows were graded by {' and '.join(sorted(names))}; use one grader")
    return names.pop()


def _read(file: str) -> dict[str, Any]:
    try:
        report = json.loads(Path(file).read_text(encoding="utf-8"))
        if "benchmark" in report:
            reason = "it is a comparison made of such files"
        elif {"rows", "grader", "hardware", "data"} <= report.keys():
            return report
        else:
            reason = "it has no rows with a grader"
    except (OSError, ValueError, AttributeError) as error:
        reason = str(error)
    raise UserError(f"--evaluated {file} is no file of jaxgen.evaluate: {reason}")


if __name__ == "__main__":
    main()
