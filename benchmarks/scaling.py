"""Weak scaling on paper: the train step compiled for 4 to 256 chips, and how much of it is links.

    python -m benchmarks.scaling                    (hours on two cores; it goes on)
    python -m benchmarks.scaling --quick            (hastier programs, a tenth of the time)
    python -m benchmarks.scaling --config add_sd21 --kind v5e --chips 4 16
    python -m benchmarks.scaling --config add_sd21 --chips 16 --fsdp 4   (another mesh)
    python -m benchmarks.scaling --plot             (draws the plot again)

Every chip has as many images as on the others. Efficiency is the time that one chip's work takes
without any exchange, by the roofline of `jaxgen.runtime.costs` in the best program, over the time
with it: the upper number with all collectives hidden behind other work, the lower with none. What
links cost by their published bandwidths and a microsecond a hop is in it; stragglers, input and
compute below the peak, which would make links look cheaper, are not. Programs are compared with
those that were made alike, hastily or not, and the plot is of the usual meshes. Each program is
written to results/tpu-scaling.json as soon as it is compiled, and not compiled again where it
stands there; the table is results/tpu-scaling.md.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine, plans, reports
from jaxgen import config as configs
from jaxgen import plan
from jaxgen.config import Experiment
from jaxgen.errors import UserError, reported
from jaxgen.runtime import topologies

PROGRAM = "python -m benchmarks.scaling"
RESULTS = Path(__file__).parent / "results" / "tpu-scaling.json"
SHAPES = {4: "2x2", 16: "4x4", 64: "8x8", 256: "16x16"}
IMAGES = {"dit_64": 32, "add_64": 32, "add_sd21": 8}
"""Images a chip."""
FSDP = {"dit_64": 1, "add_64": 1, "add_sd21": 4}
"""Most chips over which parameters are split: as few as memory allows, for the links' sake."""
GOAL = 0.9


@dataclasses.dataclass(frozen=True)
class Options:
    config: tuple[str, ...] = tuple(IMAGES)
    """Configs to compile."""
    kind: tuple[str, ...] = ("v5e", "v6e")
    """Kinds of chips."""
    chips: tuple[int, ...] = tuple(SHAPES)
    """Numbers of chips."""
    quick: bool = False
    """Compile as `jaxgen.plan --quick`, where nothing better stands there."""
    fsdp: int = 0
    """Most chips over which parameters are split; 0: as is usual for the config."""
    plot: bool = False
    """Draw and print the results that are there, and compile nothing."""

    def check(self) -> None:
        """Raises UserError for what is not among those that are scaled."""
        for name, given, known in (
            ("config", self.config, IMAGES),
            ("kind", self.kind, ("v5e", "v6e")),
            ("chips", self.chips, SHAPES),
        ):
            if unknown := [one for one in given if one not in known]:
                raise UserError(f"--{name} {unknown[0]}: give some of {', '.join(map(str, known))}")
        if self.fsdp and any(chips % min(chips, self.fsdp) for chips in self.chips):
            raise UserError(f"--fsdp {self.fsdp} does not divide all of --chips")


def main() -> None:
    with reported():
        options = configs.parse(Options(), sys.argv[1:], PROGRAM)
        topologies.on_cpu()
        rows = {_key(row): row for row in read()}
        for name in () if options.plot else options.config:
            for kind in options.kind:
                for chips in options.chips:
                    config = _of(name, chips, options.fsdp)
                    key = (name, kind, chips, config.mesh.fsdp)
                    if wanted(rows.get(key), config, options.quick):
                        rows[key] = compiled(config, kind, chips, options.quick)
                        write([rows[key] for key in sorted(rows)])
                        print(f"{name} on {chips} {kind}: compiled", flush=True)
        found = [rows[key] for key in sorted(rows)]
        print(table(found))
        RESULTS.with_suffix(".md").write_text(page(found), "utf-8")
        print(f"numbers: {RESULTS}; plot: {draw(found, RESULTS.with_suffix('.png'))}")


def wanted(row: dict[str, Any] | None, config: Experiment, quick: bool) -> bool:
    """Whether a program is to be compiled in a row's place."""
    return (
        row is None
        or row["fingerprint"] != plans.fingerprint(config)
        or (row["quick"] and not quick)
    )


def compiled(config: Experiment, kind: str, chips: int, quick: bool = False) -> dict[str, Any]:
    """What the train step of a config costs on a number of chips, as JSON."""
    place = topologies.parse(f"{kind}:{SHAPES[chips]}")
    mesh = plan.mesh_of(config, topologies.devices(place))
    return {
        "config": config.name,
        "kind": kind,
        "chips": chips,
        "fingerprint": plans.fingerprint(config),
        "commit": machine.commit(),
        "versions": machine.versions(),
        "mesh": dict(mesh.shape),
        "batch": config.train.batch,
        "quick": quick,
        "usable": place.chip.usable,
        **plans.as_json(plan.train_step(config, place, mesh, quick)),
    }


def efficiency(rows: list[dict[str, Any]], row: dict[str, Any]) -> tuple[float, float] | None:
    """The least and the most, of a program that was made; None of one that did not fit.

    It is measured by the program that was made as this one was, on whatever mesh, and does its work
    in the least time. That need not be the one for the fewest chips, which may be split worse.
    """
    if row["costs"] is None:
        return None
    alike = ("config", "kind", "quick")
    own = [r for r in rows if r["costs"] and all(r[name] == row[name] for name in alike)]
    alone = min(max(r["costs"]["compute_seconds"], r["costs"]["hbm_seconds"]) for r in own)
    least, most = row["costs"]["seconds"]
    return alone / most, alone / least


def usual(row: dict[str, Any]) -> bool:
    """Whether parameters are split as is usual for the config."""
    return row["mesh"]["fsdp"] == min(row["chips"], FSDP[row["config"]])


def table(rows: list[dict[str, Any]]) -> str:
    """Plain text: a line for each program, with its costliest collective."""
    lines = []
    for row in rows:
        mesh = "{data} x {fsdp}".format(**row["mesh"])
        head = (
            f"{row['config']:10} {row['chips']:4} x {row['kind']} as {mesh:8} batch "
            f"{row['batch']:5}{', quick' if row['quick'] else ''}"
        )
        found = efficiency(rows, row)
        if found is None:
            lines.append(f"{head}  does not fit: {row['refusal']}")
            continue
        low, high = found
        costs, fits = row["costs"], row["memory"]["total"] <= row["usable"]
        most = max(costs["exchanges"], key=lambda exchange: exchange["seconds"], default=None)
        worst = most and (
            f"; {most['kind']} over {most['devices']}: {1e3 * most['seconds']:.1f} ms"
        )
        lines.append(
            f"{head}  {row['memory']['total'] / 2**30:5.2f} GiB{'' if fits else ' DOES NOT FIT'}  "
            f"compute {1e3 * costs['compute_seconds']:6.1f} ms, memory "
            f"{1e3 * costs['hbm_seconds']:6.1f} ms, links {1e3 * costs['link_seconds']:6.1f} ms"
            f"{worst or ''}  efficiency {100 * low:.0f} to {100 * high:.0f} %"
        )
    return "\n".join(lines)


def page(rows: list[dict[str, Any]]) -> str:
    """The table as Markdown."""
    return (
        f"What `{PROGRAM}` found, by the TPU compiler alone: no TPU was there. Efficiency is with "
        f"no collective hidden behind other work, and with all.\n\n```\n{table(rows)}\n```\n"
    )


def draw(rows: list[dict[str, Any]], path: Path) -> Path:
    """The plot of the predicted efficiencies, a panel for each config."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = sorted({row["config"] for row in rows})
    figure, panels = pyplot.subplots(1, len(names), figsize=(5 * len(names), 4), squeeze=False)
    for panel, name in zip(panels[0], names, strict=True):
        for colour, kind in zip(("tab:blue", "tab:orange"), ("v5e", "v6e"), strict=True):
            found = {
                row["chips"]: efficiency(rows, row)
                for row in rows
                if (row["config"], row["kind"]) == (name, kind) and row["costs"] and usual(row)
            }
            if found:
                chips = sorted(found)
                low, high = np.asarray([found[n] for n in chips]).T
                panel.fill_between(chips, 100 * low, 100 * high, color=colour, alpha=0.2)
                panel.plot(chips, 100 * low, "o-", color=colour, label=f"{kind}, nothing hidden")
                panel.plot(chips, 100 * high, "o--", color=colour, label=f"{kind}, all hidden")
        panel.axhline(100 * GOAL, color="grey", linewidth=1)
        panel.set_xscale("log", base=2)
        panel.set_xticks(sorted(SHAPES), [str(n) for n in sorted(SHAPES)])
        panel.set_ylim(0, 105)
        panel.set_title(f"{name}, {IMAGES[name]} image(s) a chip")
        panel.set_xlabel("chips")
        panel.set_ylabel("predicted efficiency, %")
        panel.legend(fontsize=8, loc="lower left")
    figure.tight_layout()
    figure.savefig(path, dpi=120, metadata={"Software": None})
    pyplot.close(figure)
    return path


def read() -> list[dict[str, Any]]:
    """The rows of the last results."""
    return plans.rows_of(RESULTS)


def write(rows: list[dict[str, Any]]) -> None:
    """The rows as JSON."""
    reports.write({"benchmark": "scaling", "command": PROGRAM, "plans": rows}, RESULTS)


def _of(name: str, chips: int, fsdp: int = 0) -> Experiment:
    config = configs.load(name)
    fsdp = min(chips, fsdp or FSDP[name])
    train = dataclasses.replace(config.train, batch=chips * IMAGES[name])
    mesh = dataclasses.replace(config.mesh, data=chips // fsdp, fsdp=fsdp)
    return dataclasses.replace(config, train=train, mesh=mesh)


def _key(row: dict[str, Any]) -> tuple[str, str, int, int]:
    return row["config"], row["kind"], row["chips"], row["mesh"]["fsdp"]


if __name__ == "__main__":
    main()
