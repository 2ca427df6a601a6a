"""Whether every config that names a TPU slice fits it: compiles each and writes what was found.

    python -m benchmarks.plans                      (all; minutes each)
    python -m benchmarks.plans --only add_64 dit_64
    python -m benchmarks.plans --quick      (by hastier programs, a tenth of the time)
    python -m benchmarks.plans --sampler    (the samplers alone, beside the steps that stand there)

A config claims a slice by naming the plan's command line in its docstring. The train step is
compiled, and of the samplers that draw the run's grids the costliest, as by `jaxgen.plan`. Results
are results/tpu-plans.json and, as a table, results/tpu-plans.md. Exit code 1 where a claim is
false.
"""

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import jax

from benchmarks import machine, reports
from jaxgen import config as configs
from jaxgen import methods, plan
from jaxgen.config import Drawing, Experiment, Optimizer
from jaxgen.data.source import digest
from jaxgen.diffusion.denoiser import Denoiser
from jaxgen.diffusion.schedule import Schedule
from jaxgen.errors import UserError, reported
from jaxgen.plan import Compiled
from jaxgen.runtime import topologies
from jaxgen.runtime.topologies import Slice

PROGRAM = "python -m benchmarks.plans"
CONFIGS = Path(__file__).parent.parent / "configs"
RESULTS = Path(__file__).parent / "results" / "tpu-plans.json"
_CLAIM = re.compile(r"python -m jaxgen\.plan\s+--config=(\w+)\s+--topology=([\w:]+)")
_TRAIN = ("steps", "ema", "log_every", "sample_every", "checkpoint_every")
_HEAD = ("config", "slice", "mesh", "batch", "HBM a chip", "in drawing", "", "TFLOPs a chip",
         "HBM GB", "links GB", "step ms", "bound by", "images/s")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Options:
    only: tuple[str, ...] = ()
    """Configs to plan again; the others' results stay. Empty: all that claim a slice."""
    quick: bool = False
    """Compile as `jaxgen.plan --quick`: more memory and traffic than the trainer will have."""
    sampler: bool = False
    """Compile the samplers alone; what was found of the train steps stays."""

    def check(self) -> None:
        """Raises UserError for a config that claims nothing, or whose step was not planned."""
        if unknown := set(self.only) - {name for name, _ in claims()}:
            raise UserError(f"--only {min(unknown)}: its docstring names no plan")
        there = {key(row): row["fingerprint"] for row in read()} if self.sampler else {}
        for name, topology in claims() if self.sampler else ():
            asked = not self.only or name in self.only
            if asked and there.get((name, topology)) != fingerprint(configs.load(name)):
                raise UserError(
                    f"--sampler: no train step of {name} as it is now was planned for {topology}; "
                    "leave --sampler out"
                )


def main() -> None:
    with reported():
        options = configs.parse(Options(), sys.argv[1:], PROGRAM)
        topologies.on_cpu()
        rows = {key(row): row for row in read()}
        for name, topology in claims():
            if not options.only or name in options.only:
                step = rows[name, topology] if options.sampler else None
                row = planned(name, topology, options.quick, step)
                rows[key(row)] = row
                write([rows[claim] for claim in claims() if claim in rows])
                print(line(row), flush=True)
        print(f"numbers: {RESULTS}, {RESULTS.with_suffix('.md')}")
        sys.exit(0 if all(row["fits"] for row in rows.values()) else 1)


def claims() -> list[tuple[str, str]]:
    """Config and slice of every plan that a config's docstring names."""
    found = (_CLAIM.findall(path.read_text("utf-8")) for path in sorted(CONFIGS.glob("*.py")))
    return [claim for some in found for claim in some]


def planned(
    name: str, topology: str, quick: bool = False, step: dict[str, Any] | None = None
) -> dict[str, Any]:
    """What a config's train step and sampler cost on a slice, as JSON; the step of a row, if given.

    The sampler is None where nothing is drawn.
    """
    config, place = configs.load(name), topologies.parse(topology)
    mesh = plan.mesh_of(config, topologies.devices(place))
    if step is None:
        made = plan.train_step(config, place, mesh, quick)
        step = {
            "config": name,
            "topology": topology,
            "fingerprint": fingerprint(config),
            "commit": machine.commit(),
            "versions": machine.versions(),
            "mesh": dict(mesh.shape),
            "batch": config.train.batch,
            "quick": quick,
            "assumed": {k: v for k, v in dataclasses.asdict(place.chip).items() if k != "shapes"},
            "train_step": as_json(made),
        }
    row = {**step, "sampler": _sampler(config, place, mesh, quick)}
    return {**row, "fits": fits(row)}


def fits(row: dict[str, Any]) -> bool:
    """Whether a chip has room for the step, and for the last grid beside the run's state."""
    found = [row["train_step"], *([row["sampler"]] if row["sampler"] else [])]
    return all(made["memory"] and needed(made) <= row["assumed"]["usable"] for made in found)


def needed(made: dict[str, Any]) -> int:
    """Bytes that a program takes of a chip, with what lies beside it."""
    return made["memory"]["total"] + made.get("beside", 0)


def _sampler(
    config: Experiment, place: Slice, mesh: jax.sharding.Mesh, quick: bool
) -> dict[str, Any] | None:
    found = plan.sampler(config, place, mesh, quick)
    if found is None:
        return None
    title, count, beside, made = found
    return {"title": title, "images": count, "beside": beside, "quick": quick, **as_json(made)}


def fingerprint(config: Experiment) -> str:
    """Changes with everything of a config's own that memory and costs may depend on."""
    config = _costing(config)
    said = configs.differences(type(config)(), config)
    own = sorted((field, repr(value)) for field, (_, value) in said.items())
    return digest(methods.name(config).encode(), repr(own).encode())


def _costing(config: Experiment) -> Experiment:
    """The config without what is but a number in its programs, or in none of them."""
    usual = type(config)()
    train = {name: getattr(usual.train, name) for name in _TRAIN}
    same: dict[str, Any] = {"seed": usual.seed, "workdir": usual.workdir}
    same |= {"data": dataclasses.replace(config.data, name=usual.data.name, root=usual.data.root)}
    same |= {"train": dataclasses.replace(config.train, **train)}
    same |= {"shown": (f"{len(config.shown) or configs.SHOWN} captions",)}
    for field in dataclasses.fields(config):
        value, default = getattr(config, field.name), getattr(usual, field.name)
        if isinstance(value, Optimizer):
            fixed = {name: getattr(default, name) for name in ("learning_rate", "warmup")}
            same[field.name] = dataclasses.replace(value, **fixed)
        elif isinstance(value, Drawing):  # for the sake of which a batch has another picture
            same[field.name] = Drawing(count=bool(value.count))
        elif isinstance(value, Denoiser):
            betas = {name: getattr(Schedule(), name) for name in ("beta_start", "beta_end")}
            schedule = dataclasses.replace(value.schedule, **betas)
            same[field.name] = dataclasses.replace(value, schedule=schedule)
        elif field.name == "teacher_range":
            same[field.name] = default
        elif field.name == "guidance":  # which doubles the batch
            same[field.name] = float(value != 1)
    return dataclasses.replace(config, **same)


def read() -> list[dict[str, Any]]:
    """The rows of the last results."""
    return rows_of(RESULTS)


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The plans in a file of results; none where there is no file."""
    return json.loads(path.read_text("utf-8"))["plans"] if path.is_file() else []


def write(rows: list[dict[str, Any]]) -> None:
    """JSON, and the table beside it."""
    reports.write({"benchmark": "plans", "command": PROGRAM, "plans": rows}, RESULTS)
    lines = [_HEAD, ("---",) * len(_HEAD), *(_cells(row) for row in rows)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    RESULTS.with_suffix(".md").write_text(
        f"What `{PROGRAM}` found: no TPU was there. Memory and bytes are those of programs made by "
        "the TPU compiler; times are lower bounds from the chips' published peaks, with all "
        "collectives hidden behind other work, and with none. In drawing: the costliest sampler of "
        "the run's grids, with the rest of the run's state beside it. Those marked quick are of "
        "programs that the compiler spent little on, with more memory and traffic than the "
        f"trainer's will have.\n\n{table}\n",
        "utf-8",
    )


def key(row: dict[str, Any]) -> tuple[str, str]:
    """Which claim a row answers."""
    return row["config"], row["topology"]


def line(row: dict[str, Any]) -> str:
    """The row in plain text."""
    return "  ".join(cell for cell in _cells(row) if cell)


def as_json(made: Compiled) -> dict[str, Any]:
    """A compiled program's memory and costs as JSON; null where it is too large."""
    found = made.costs
    return {
        "compile_seconds": round(made.compile_seconds, 1),
        "refusal": made.refusal,
        "memory": None
        if made.memory is None
        else {**dataclasses.asdict(made.memory), "total": made.memory.total},
        "costs": None
        if found is None
        else {
            **dataclasses.asdict(found),
            "link_seconds": found.link_seconds,
            "seconds": found.seconds,
            "bound": found.bound,
        },
    }


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    step = row["train_step"]
    mesh = "{data} x {fsdp}".format(**row["mesh"])
    head = (row["config"], row["topology"], mesh, str(row["batch"]))
    drawing = _of_drawing(row)
    if step["memory"] is None:
        return (*head, "", drawing, f"does not fit: {step['refusal']}", *[""] * 6)
    costs, batch = step["costs"], row["batch"]
    least, most = costs["seconds"]
    sent = sum(exchange["bytes"] for exchange in costs["exchanges"])
    return (
        *head,
        f"{needed(step) / 2**30:.2f} of {row['assumed']['usable'] / 2**30:.2f} GiB",
        drawing,
        ("fits" if row["fits"] else "does not fit") + (", quick" if row["quick"] else ""),
        f"{costs['flops'] / 1e12:.3g}",
        f"{costs['hbm_bytes'] / 1e9:.3g}",
        f"{sent / 1e9:.3g}",
        f"{1e3 * least:.3g} to {1e3 * most:.3g}",
        costs["bound"],
        f"{batch / most:.0f} to {batch / least:.0f}",
    )


def _of_drawing(row: dict[str, Any]) -> str:
    made = row["sampler"]
    if made is None:
        return "nothing is drawn"
    if made["memory"] is None:
        return f"does not fit: {made['refusal']}"
    return f"{needed(made) / 2**30:.2f} GiB{', quick' if made['quick'] else ''}"


if __name__ == "__main__":
    main()
