"""Plans: what the TPU compiler says of a config, and that no config claims what is not so."""

import contextlib
import dataclasses
import importlib.util
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest
import shallow

from benchmarks import plans
from jaxgen import config as configs
from jaxgen import methods, plan, stages
from jaxgen.config import Mesh, Train
from jaxgen.methods.add import Add
from jaxgen.plan import Compiled
from jaxgen.runtime import costs, topologies
from jaxgen.runtime import mesh as meshes
from jaxgen.runtime.costs import Costs, Exchange, Memory

needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason=f"the TPU compiler is not installed: {topologies.INSTALL}",
)


@needs_compiler
@pytest.mark.compiler
def test_the_train_step_of_an_embedded_config_fits_v5e_2x2() -> None:
    """And takes what its committed plan says: others' fingerprints do not see the code."""
    config, place = configs.load("dit"), topologies.parse("v5e:2x2")
    mesh = plan.mesh_of(config, topologies.devices(place))
    step = plan.train_step(config, place, mesh)
    assert step.fits(place)
    assert step.memory
    assert step.costs
    (planned,) = (row["train_step"] for row in plans.read() if row["config"] == "dit")
    assert step.memory.total == pytest.approx(planned["memory"]["total"], rel=0.1)
    assert step.costs.flops == pytest.approx(planned["costs"]["flops"], rel=0.1)
    kinds = step.memory.arguments
    parameters = kinds["parameters"]
    assert parameters > 2**20
    assert kinds["average (EMA)"] == parameters
    assert 2 * parameters < kinds["optimiser state"] < 2.001 * parameters  # and its counts
    # Each chip has the whole network, so what is exchanged is the gradient, once.
    assert {exchange.kind for exchange in step.costs.exchanges} == {"all-reduce"}
    (reduced,) = step.costs.exchanges
    assert reduced.devices == 4
    assert reduced.bytes == pytest.approx(parameters, rel=1e-3)
    assert step.costs.guessed_loops == 0


@needs_compiler
@pytest.mark.compiler
@pytest.mark.parametrize("name", shallow.CONFIGS)
def test_a_layer_of_each_kind_of_an_embedded_config_fits_v5e_2x2(name: str) -> None:
    made = shallow.compiled(name)
    assert made.fits(topologies.parse(shallow.TOPOLOGY))
    assert made.memory
    assert made.memory.arguments["parameters"] > 2**14


@pytest.mark.parametrize("name", shallow.CONFIGS)
def test_a_config_made_shallow_is_one_that_can_be_trained(name: str) -> None:
    whole = configs.load(name)
    small = shallow.shallow(whole)
    small.check()
    assert (small.data, small.train) == (whole.data, whole.train)
    assert configs.differences(small, whole)


def _split(**fields: Any) -> tuple[Any, int]:
    """Blocks of DiT-XL's width over the chips of v5e:4x4: the step, the bytes of its parameters."""
    config = _shallow(configs.load("dit_64"), width=1152, heads=16, **fields)
    text = dataclasses.replace(config.model.text, layers=1)
    model = dataclasses.replace(config.model, text=text)
    config = dataclasses.replace(config, model=model, mesh=Mesh(data=1, fsdp=-1))
    place = topologies.parse("v5e:4x4")
    mesh = plan.mesh_of(config, topologies.devices(place))
    step = plan.train_step(config, place, mesh, quick=True)
    assert step.fits(place)
    _, state = plan._arguments(plan._resolved(config)[0], mesh)
    trained = state.params["generator"]
    return step, sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(trained))


@needs_compiler
@pytest.mark.compiler
def test_a_large_network_is_split_over_the_chips_of_v5e_4x4() -> None:
    """Every large array of it lies on all sixteen."""
    step, whole = _split(depth=2)
    assert whole > 2**28
    assert step.memory.arguments["parameters"] < 1.1 * whole / 16
    gathered = sum(e.bytes for e in step.costs.exchanges if e.kind == "all-gather")
    assert gathered > whole / 2, "a chip needs what lies on the others, in bfloat16 at the least"
    passed = [e for e in step.costs.exchanges if e.kind == "collective-permute"]
    assert not passed, "parts of an array go round, and products with them in loops"


@needs_compiler
@pytest.mark.compiler
def test_a_network_that_gathers_once_does_so_in_its_own_type() -> None:
    """What a block more costs of the links: its gradient, and itself, both narrow."""
    (less, small), (more, large) = (
        _split(depth=depth, remat="blocks", gather_once=True) for depth in (1, 2)
    )
    gathered, reduced = (
        sum(e.bytes for e in more.costs.exchanges if e.kind == kind)
        - sum(e.bytes for e in less.costs.exchanges if e.kind == kind)
        for kind in ("all-gather", "all-reduce")
    )
    assert gathered == pytest.approx((large - small) / 2, rel=0.02)
    assert reduced == pytest.approx((large - small) / 2, rel=0.02)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--topology=v5e:5x5"], "unknown topology 'v5e:5x5'; known, written as v5e:4x4, are v5e:"),
        (["--topology"], "unknown topology ''"),
    ],
)
def test_bad_arguments_are_one_line(
    arguments: list[str], words: str, refused: Callable[..., str]
) -> None:
    assert words in refused(plan.main, "--config=dit", *arguments)


def test_a_machine_without_the_compiler_is_told_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    monkeypatch.setattr(topologies, "_installed", lambda: False)
    assert topologies.INSTALL in refused(plan.main, "--config=dit")


def test_a_batch_that_does_not_divide_is_one_line(
    monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    monkeypatch.setattr(topologies, "devices", lambda place: jax.devices())
    line = refused(plan.main, "--config=dit", "--train.batch=12")
    assert "12 does not divide over 8 x 1" in line


def test_a_rule_is_refused_where_the_trainer_would_and_else_taken(
    monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    monkeypatch.setattr(topologies, "devices", lambda place: jax.devices())
    line = refused(plan.main, "--config=dit", "--mesh.rules=judge/=whole")
    assert "--mesh.rules 'judge/=whole' fits no array" in line
    line = refused(plan.main, "--config=dit", "--mesh.data=1", "--mesh.rules=kernel=7")
    assert "--mesh.rules asks for axis 7 of params/generator/" in line
    for name, rules in {
        "dit": ("embedding=0", "mlp=whole"),
        "classifier": ("head/kernel=1",),
    }.items():  # how many words and classes there are is known with the data
        config = dataclasses.replace(configs.load(name), mesh=Mesh(1, 8, rules))
        stages.check_rules(config, meshes.make(config.mesh, 8))


@pytest.mark.parametrize(
    ("batch", "largest", "expected"),
    [(16, 100, 96), (64, 30, 28), (8, 8, 8), (16, 3, 0), (16, 4, 4)],
)
def test_the_search_ends_at_the_largest_batch_that_fits(
    batch: int, largest: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four chips, to an eighth; no batch is compiled twice."""
    place, tried = topologies.parse("v5e:2x2"), []

    def step(config, place, mesh, quick=False) -> Compiled:
        size = config.train.batch
        tried.append(size)
        need = int(place.chip.usable) + (1 if size > largest else 0)
        return Compiled(Memory({}, 0, 0, need, 0), None, 0.0)

    config = configs.load("dit")
    config = dataclasses.replace(
        config, mesh=Mesh(), train=dataclasses.replace(config.train, batch=batch)
    )
    monkeypatch.setattr(plan, "train_step", step)
    devices = jax.devices()[:4]
    first = step(config, place, None)
    found = plan.largest_batch(config, place, devices, first, lambda *_: None)
    assert found == expected
    assert len(set(tried)) == len(tried)


def made(used: float) -> Compiled:
    """A program that takes so many GiB of a chip, or is refused for them."""
    if used > 15.75:
        return Compiled(None, None, 1.0, f"Used {used}G of 15.75G hbm.")
    costs = Costs(10**12, 10**9, (Exchange("all-reduce", 4, 1, 10**6, 1e-3),), 0.02, 0.01, 0)
    return Compiled(Memory({"parameters": int(used * 2**30)}, 0, 0, 0, 0), costs, 1.0)


@pytest.mark.parametrize(
    ("step", "sampler", "beside", "code", "words"),
    [
        (1, 2, 1, 0, ["3.00 GiB of 15.75 GiB: fits (19 %)", "15238 to 16000 images/s"]),
        (17, 1, 0, 1, ["DOES NOT FIT: Used 17G of 15.75G hbm.", "or --search", "optimiser state"]),
        (1, 20, 0, 1, ["DOES NOT FIT: Used 20G of", "fit: fewer captions in --shown"]),
        (1, 9, 8, 1, ["17.00 GiB of 15.75 GiB: DOES NOT FIT (108 %)", "fewer captions in --shown"]),
    ],
)
def test_the_exit_code_says_whether_the_step_and_the_last_grid_fit(
    step: float,
    sampler: float,
    beside: int,
    code: int,
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """Of programs that are not compiled here, with their sizes in GiB."""
    monkeypatch.setattr(topologies, "devices", lambda place: jax.devices()[:4])
    monkeypatch.setattr(plan, "train_step", lambda *_: made(step))
    drawn = ("student", 12, beside * 2**30, made(sampler))
    monkeypatch.setattr(plan, "sampler", lambda *_: drawn)
    options = ["--config=dit", "--topology=v5e:2x2", "--train.sample-every=0", "--mesh.data=-1"]
    monkeypatch.setattr(sys, "argv", ["plan", *options, "--train.batch=320"])
    with contextlib.nullcontext() if code == 0 else pytest.raises(SystemExit) as stop:
        plan.main()
    assert (stop.value.code if stop else 0) == code
    out = capsys.readouterr().out
    assert "the compiler hands out 15.75 GiB of HBM a chip" in out
    for each in words:
        assert each in out
    assert ("sampler of the grids" in out) == (step < 16)


@pytest.mark.parametrize(
    ("largest", "sampler", "code", "words"),
    [
        (0, 1, 1, ["  none: not even one image a chip\n"]),
        (64, 1, 0, ["  --train.batch 64\n", "1.00 GiB of 15.75 GiB: fits"]),
        (64, 20, 1, ["  --train.batch 64\n", "fit: fewer captions in --shown"]),
        (400, 1, 0, ["  --train.batch 400\n", "1.00 GiB of 15.75 GiB: fits"]),
    ],
)
def test_a_search_that_finds_no_batch_for_which_all_fits_is_no_success(
    largest: int,
    sampler: float,
    code: int,
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """The sampler is that of the batch found."""
    batches = []

    def drawn(config: Any, *_: Any) -> tuple[str, int, int, Compiled]:
        batches.append(config.train.batch)
        return "student", 12, 0, made(sampler)

    monkeypatch.setattr(topologies, "devices", lambda place: jax.devices()[:4])
    monkeypatch.setattr(
        plan, "train_step", lambda config, *_: made(1 if config.train.batch <= largest else 17)
    )
    monkeypatch.setattr(plan, "sampler", drawn)
    options = ["--config=dit", "--topology=v5e:2x2", "--mesh.data=-1", "--train.batch=320"]
    monkeypatch.setattr(sys, "argv", ["plan", *options, "--search"])
    with contextlib.nullcontext() if code == 0 else pytest.raises(SystemExit) as stop:
        plan.main()
    assert (stop.value.code if stop else 0) == code
    out = capsys.readouterr().out
    for each in words:
        assert each in out
    assert batches == [largest] * (largest > 0)


def test_what_would_make_a_config_fit_is_what_it_does_not_do_yet() -> None:
    config: Any = configs.load("dit")
    dit = dataclasses.replace(config.model.dit, remat="blocks", gather_once=True)
    model = dataclasses.replace(config.model, dit=dit)
    config = dataclasses.replace(config, model=model, train=Train(batch=8))

    def advised(mesh: Mesh) -> list[str]:
        advice = plan._suggestions(config, meshes.make(mesh, 8))
        return [each.split()[0] for each in advice]

    others = ["--model.dit.dtype", "--train.batch"]
    assert advised(Mesh(data=1, fsdp=4)) == ["--model.dit.no-gather-once", *others]
    assert advised(Mesh(data=4)) == ["--mesh.data", *others], "nothing is gathered there"


def test_every_claim_of_a_config_was_planned_as_the_config_is_now_and_fits() -> None:
    rows = {plans.key(row): row for row in plans.read()}
    claims = plans.claims()
    assert claims
    for name, topology in claims:
        row = rows.get((name, topology))
        again = f"run: {plans.PROGRAM} --only {name}"
        assert row, f"{name} claims {topology} and was never planned; {again}"
        assert row["fits"], f"{name} claims to fit {topology} and does not"
        config = configs.load(name)
        draws = hasattr(methods.of(config), "sample")
        assert bool(row["sampler"]) == draws, f"what {name} draws was never planned; {again}"
        assert row["fingerprint"] == plans.fingerprint(config), f"{name} has changed; {again}"
        assert row["batch"] == config.train.batch


@pytest.mark.parametrize("name", [name for name, _ in plans.claims()])
def test_what_a_config_says_of_its_plan_is_what_was_found(name: str) -> None:
    (row,) = (row for row in plans.read() if row["config"] == name)
    text = (plans.CONFIGS / f"{name}.py").read_text("utf-8").split("Plan:")[1]
    said = " ".join(text.split('"""')[0].split())
    step, sampler, usable = row["train_step"], row["sampler"], row["assumed"]["usable"]
    assert f"{plans.needed(step) / 2**30:.2f} of {usable / 2**30:.2f} GiB" in said
    for seconds in step["costs"]["seconds"]:
        assert f"{1e3 * seconds:.3g} ms" in said or f"{seconds:.3g} s" in said
    if "to draw" in said:
        assert f"at most {plans.needed(sampler) / 2**30:.2f} GiB" in said


def test_a_plan_fits_where_the_step_does_and_the_sampler_beside_the_rest() -> None:
    """Of a chip of 10 bytes."""

    def row(step: int, sampler: dict[str, Any] | None) -> dict[str, Any]:
        made = {"train_step": {"memory": {"total": step}}, "sampler": sampler}
        return {"assumed": {"usable": 10}, **made}

    def sampler(total: int, beside: int) -> dict[str, Any]:
        return {"memory": {"total": total}, "beside": beside}

    assert plans.fits(row(10, None))
    assert not plans.fits(row(11, None))
    assert plans.fits(row(10, sampler(6, 4)))
    assert not plans.fits(row(10, sampler(6, 5)))
    assert not plans.fits(row(10, {"memory": None, "beside": 0}))


def test_what_is_made_for_a_grid_lies_beside_all_that_it_is_made_of() -> None:
    """The tuned weights whose adapters are merged; where nothing is made, nothing counts twice."""
    place = topologies.parse("v5e:2x4")
    for name in ("diffusion_64", "finetune_64"):
        config = configs.load(name)
        mesh = meshes.make(config.mesh, config.train.batch, jax.devices()[:8])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(plan, "_compiled", lambda _program, _arguments, kinds, *_: kinds)
            _, _, beside, kinds = plan.sampler(config, place, mesh)
        frozen, state = plan._arguments(plan._resolved(config)[0], mesh)
        whole, drawn = map(costs.bytes_on_one, ((state, frozen), kinds["weights"]))
        if name == "diffusion_64":
            assert beside == whole - drawn
        else:
            assert whole - drawn < beside < whole


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ({"sampler": None}, "nothing is drawn"),
        ({"sampler": {"memory": None, "refusal": "Used 17G"}}, "does not fit: Used 17G"),
        (
            {"sampler": {"memory": {"total": 2**30}, "beside": 2**29, "quick": True}},
            "1.50 GiB, quick",
        ),
    ],
)
def test_the_table_says_what_drawing_takes(made: dict[str, Any], words: str) -> None:
    row = {name: value for name, value in plans.read()[0].items() if name != "sampler"}
    head, cells = plans._HEAD, plans._cells(row | made)
    assert cells[head.index("in drawing")] == words
    assert len(cells) == len(head)


def test_samplers_alone_are_compiled_beside_steps_that_are_there(
    monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    (name, topology), *_ = plans.claims()
    row = {"config": name, "topology": topology, "fingerprint": "of another config"}
    monkeypatch.setattr(plans, "read", lambda: [row])
    line = refused(plans.main, "--only", name, "--sampler")
    assert f"no train step of {name} as it is now was planned for {topology}" in line


def test_a_claim_may_be_broken_over_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.py").write_text(
        '"""Plan: python -m jaxgen.plan --config=a\n      --topology=v5e:4x4 says so."""'
    )
    monkeypatch.setattr(plans, "CONFIGS", tmp_path)
    assert plans.claims() == [("a", "v5e:4x4")]


def test_every_config_for_more_than_a_cpu_claims_a_slice() -> None:
    hardware = {
        path.stem: re.findall(r"^Hardware: (.*)", path.read_text("utf-8"), re.MULTILINE)
        for path in plans.CONFIGS.glob("*.py")
    }
    named = {name for name, (place,) in hardware.items() if not place.startswith("2 CPU cores")}
    assert len(named) > 10
    assert named <= {name for name, _ in plans.claims()}


def test_every_embedded_method_claims_the_smallest_slice() -> None:
    assert {(name, shallow.TOPOLOGY) for name in shallow.CONFIGS} <= set(plans.claims())


def test_results_can_be_read_by_others() -> None:
    written = json.loads(plans.RESULTS.read_text("utf-8"))["plans"]
    assert [plans.key(row) for row in written] == plans.claims()
    table = plans.RESULTS.with_suffix(".md").read_text("utf-8")
    assert all(f"| {row['config']} | {row['topology']} |" in table for row in written)


def test_shapes_of_stable_diffusion_are_the_published_ones() -> None:
    config = plan._resolved(configs.load("add_sd21"))[0]
    frozen = jax.eval_shape(lambda: methods.of(config).frozen_shapes(config))
    counts = {name: sum(a.size for a in jax.tree.leaves(tree)) for name, tree in frozen.items()}
    assert counts["teacher"] == 865_910_724
    assert counts["text"] == 340_387_840
    assert counts["codec"] == 83_653_863 + 1  # and the scale of its codes


def _shallow(config: Any, depth: int = 1, **fields: Any) -> Any:
    """A transformer of few blocks: of eight, compiling takes three times as long."""
    dit = dataclasses.replace(config.model.dit, depth=depth, **fields)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, dit=dit))


def test_a_fingerprint_is_of_what_memory_and_costs_depend_on() -> None:
    config = configs.load("add_64")
    assert isinstance(config, Add)
    first = plans.fingerprint(config)

    def with_(**fields: Any) -> str:
        return plans.fingerprint(dataclasses.replace(config, **fields))

    fast = dataclasses.replace(config.optimizer, learning_rate=1.0, warmup=7)
    seldom = dataclasses.replace(config.train, sample_every=7, steps=7)
    assert with_(optimizer=fast, train=seldom, guidance=7.0, shown=("a",) * 12, seed=7) == first
    assert with_(drawn=dataclasses.replace(config.drawn, steps=7)) == first
    noisier = dataclasses.replace(config.model.schedule, kind="linear")
    model = dataclasses.replace(config.model, schedule=noisier)
    more = dataclasses.replace(model, schedule=dataclasses.replace(noisier, beta_end=0.5))
    assert with_(model=more) == with_(model=model) != first
    others = [
        with_(guidance=1.0),
        with_(shown=("a",)),
        with_(drawn=dataclasses.replace(config.drawn, count=0)),
        with_(train=dataclasses.replace(config.train, batch=8)),
        with_(judge=dataclasses.replace(config.judge, dtype="float32")),
    ]
    assert len({first, *others}) == 6
