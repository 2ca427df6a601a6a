"""Meshes: who gets what, and the same numbers on any of them."""

import contextlib
import dataclasses
import functools
import math
import re
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from tiny import random_like

from benchmarks import meshes as compared
from benchmarks.meshes import Deviation, deviations
from jaxgen import methods
from jaxgen.config import Mesh
from jaxgen.diffusion import denoiser
from jaxgen.errors import UserError
from jaxgen.runtime import hlo, loop
from jaxgen.runtime import mesh as meshes
from jaxgen.runtime import metrics as logs
from jaxgen.runtime.checkpoints import Checkpoints
from jaxgen.state import State
from jaxgen.text.encoder import TextConfig, TextEncoder, TextFeatures


@pytest.mark.parametrize(
    ("mesh", "shape"),
    [
        (Mesh(), (8, 1)),
        (Mesh(data=4, fsdp=2), (4, 2)),
        (Mesh(data=2, fsdp=-1), (2, 4)),
        (Mesh(data=1), (1, 1)),
        (Mesh(data=2, fsdp=1), (2, 1)),
    ],
)
def test_a_mesh_is_what_was_asked_for(mesh: Mesh, shape: tuple[int, int]) -> None:
    assert tuple(meshes.make(mesh, 16).shape.values()) == shape


@pytest.mark.parametrize(
    ("mesh", "batch", "words"),
    [
        (Mesh(data=16), 16, "16 x 1 needs 16 devices; there are 8"),
        (Mesh(), 12, "--train.batch 12 does not divide over 8 x 1 devices"),
        (Mesh(data=-1, fsdp=-1), 16, "at most one of them -1"),
        (Mesh(data=0), 16, "--mesh.data 0"),
        (Mesh(data=3, fsdp=-1), 12, "data 3 --mesh.fsdp -1: the 8 .* 4, 8, .* leaves 2 idle"),
        (Mesh(data=-1, fsdp=5), 15, "--mesh.data -1 --mesh.fsdp 5: the 8 devices .* by 5; give o"),
    ],
)
def test_a_mesh_that_cannot_be_is_one_line(mesh: Mesh, batch: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        meshes.make(mesh, batch)


def test_several_processes_have_no_smaller_mesh_than_their_devices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process none of whose devices is in the mesh would have no part in anything."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert meshes.make(Mesh(data=2, fsdp=-1), 16).size == 8
    with pytest.raises(UserError, match=r"2 x 3 leaves 2 of the 8 devices .* is 8"):
        meshes.make(Mesh(data=2, fsdp=3), 12)


def test_rules_are_exceptions_by_path() -> None:
    mesh = meshes.make(Mesh(data=2, fsdp=4), 8)
    array = jax.ShapeDtypeStruct((512, 1024), np.float32)
    tree = {"params": {"in": array, "out": array}, "moments": {"in": array, "count": array.dtype}}
    tree["moments"]["count"] = jax.ShapeDtypeStruct((), np.int32)
    where = meshes.over_parameters(mesh, tree, ("/in=0", "params/out=whole", "count=1"))
    for each in (where["params"]["in"], where["moments"]["in"]):
        assert each.shard_shape((512, 1024)) == (128, 1024)
    assert where["params"]["out"].is_fully_replicated
    assert where["moments"]["count"].is_fully_replicated, "a count beside moments has no axes"
    last = meshes.over_parameters(mesh, tree, ("in=whole", "params/in=1"))
    assert last["params"]["in"].shard_shape((512, 1024)) == (512, 256)
    assert last["moments"]["in"].is_fully_replicated
    with pytest.raises(UserError, match=r"axis 2 of params/in, whose shape is \(512, 1024\)"):
        meshes.over_parameters(mesh, tree, ("params=2",))
    meshes.check_rules(("/in=0", "frozen=whole"), tree, {"frozen": array})
    with pytest.raises(UserError, match="'head=0' fits no array; there is, say, params/in"):
        meshes.check_rules(("head=0",), tree)


@pytest.mark.parametrize("rule", ["kernel", "=0", "kernel=first", "(=0"])
def test_a_rule_that_cannot_be_read_is_one_line(rule: str) -> None:
    line = "no regular expression" if rule == "(=0" else "give PATTERN=AXIS or PATTERN=whole"
    with pytest.raises(UserError, match=line):
        meshes.make(Mesh(rules=(rule,)), 8)


def test_large_arrays_are_split_over_fsdp_and_small_ones_copied() -> None:
    mesh = meshes.make(Mesh(data=2, fsdp=4), 8)
    shapes = {
        "large": jax.ShapeDtypeStruct((3, 512, 128), np.float32),
        "small": jax.ShapeDtypeStruct((512,), np.float32),
        "odd": jax.ShapeDtypeStruct((511, 513), np.float32),
    }
    where = meshes.over_parameters(mesh, shapes)
    assert where["large"].shard_shape((3, 512, 128)) == (3, 128, 128)
    assert where["small"].is_fully_replicated
    assert where["odd"].is_fully_replicated


def test_no_device_ever_holds_the_whole_of_a_split_array(
    diffusion_config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither where a state is born, by all arrays of the compiled program, nor restored."""
    monkeypatch.setattr(meshes, "SHARD_FROM", 64)
    mesh = meshes.make(Mesh(data=1, fsdp=8), 8)
    init, _ = methods.programs(diffusion_config)
    frozen = methods.seeded(diffusion_config, {})
    shapes = jax.eval_shape(init, frozen)
    where = meshes.over_parameters(mesh, shapes)
    parts = jax.tree.map(lambda a, s: math.prod(s.shard_shape(a.shape)), shapes, where)
    largest = max(jax.tree.leaves(parts))
    assert largest < max(a.size for a in jax.tree.leaves(shapes)) / 7
    born = loop.birth(init, where).lower(frozen).compile()
    made = re.findall(r"\b[fus]\d+\[([\d,]+)\]", born.as_text())
    assert max(math.prod(map(int, sides.split(","))) for sides in made) <= largest

    def held(state: Any) -> Any:
        return jax.tree.map(lambda a: {part.data.size for part in a.addressable_shards}, state)

    state = born(frozen)
    assert held(state) == jax.tree.map(lambda part: {part}, parts)
    with contextlib.closing(Checkpoints(tmp_path / "checkpoints", 1)) as checkpoints:
        checkpoints.save(1, state, {}, 0.0, force=True)
        found = checkpoints.restore(meshes.shaped(shapes, where), print, mend=False)
    assert found
    assert held(found[0]) == held(state)


@pytest.mark.parametrize("name", ["add_gathered", "latent_diffusion"])
def test_a_step_split_over_eight_devices_is_that_of_one(name: str) -> None:
    """The other methods, for which `benchmarks.meshes` does the same, take too long here."""
    shape = Mesh(data=4, fsdp=2)
    (found,) = deviations(name, (shape,))
    assert not compared.exceeding(name, shape, found)


BIAS = "judge/head_0/text/bias"


def test_every_method_was_tried_on_every_mesh_and_none_was_beyond_its_tolerance() -> None:
    """Of which this suite tries but some."""
    rows = compared.read(compared.machine.RESULTS / "cpu-8/meshes.json")
    assert [(row["method"], row["mesh"]) for row in rows] == compared.claims()
    for row in rows:
        most = max(row[kind] for kind in ("metrics", "gradients", "parameters"))
        arrays = [one for method, one in compared.CANCELLING if method == row["method"]]
        cancels = any(row["where"].endswith(one) for one in arrays)
        assert most < (2e-5 if cancels else compared.TOLERANCE), row


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        ((1e-5, 2e-6, 0.0), []),
        ((1.1e-5, 0.0, 0.0), ["above 1e-05: ladd on 4 x 2, by 1.1e-05 in loss"]),
        ((0.0, 1.4e-5, 1e-7), ["above 1e-05: ladd on 4 x 2, by 1.4e-05 in gradient of a"]),
        ((1.1e-5, 1e-7, 0.3), ["above 1e-05: ladd on 4 x 2, by 3.0e-01 in a"]),
    ],
)
def test_what_differs_between_meshes_is_named(shares: tuple[float, ...], words: list[str]) -> None:
    loss, slope, p = shares
    found = Deviation({"loss": loss}, {"gradient of a": slope}, {"a": p})
    assert compared.exceeding("ladd", Mesh(data=4, fsdp=2), found) == words


@pytest.mark.parametrize(("by", "told"), [(1.9e-5, 0), (2.1e-5, 1)])
def test_where_real_and_generated_cancel_a_mesh_may_differ_more(by: float, told: int) -> None:
    for found in (Deviation({}, {}, {BIAS: by}), Deviation({}, {f"gradient of {BIAS}": by}, {})):
        assert len(compared.exceeding("ladd", Mesh(data=8), found)) == told
        assert len(compared.exceeding("add", Mesh(data=8), found)) == 1


def test_beside_what_may_differ_more_the_others_may_not() -> None:
    (line,) = compared.exceeding(
        "ladd", Mesh(data=8), Deviation({}, {}, {BIAS: 1.4e-5, "a": 1.3e-5})
    )
    assert line.endswith("by 1.3e-05 in a")


@pytest.mark.parametrize(
    ("mesh", "batch", "told"),
    [
        (Mesh(data=1, fsdp=8), 16, 4),
        (Mesh(data=2, fsdp=4), 16, 4),
        (Mesh(), 16, 0),
        (Mesh(data=1, fsdp=8), 12, 0),  # what the devices do not divide is left alone
    ],
)
def test_where_parameters_are_split_images_stay_where_they_are(
    mesh: Mesh, batch: int, told: int
) -> None:
    """What goes in and comes out of both modules is split over the batch."""
    network = nn.Sequential([nn.Conv(8, (3, 3)), lambda x: x * 2])
    image = jax.ShapeDtypeStruct((batch, 4, 4, 3), np.float32)
    weights = jax.eval_shape(network.init, jax.random.key(0), image)
    place = meshes.make(mesh, 16)
    traced = jax.jit(meshes.known(place, network.apply)).trace(weights, image)
    text = str(traced.jaxpr)
    assert text.count("sharding_constraint[") == told
    assert text.count("('data', 'fsdp')") >= told


@pytest.mark.parametrize("told", [True, False])
def test_noise_drawn_in_a_program_is_split_too(told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where XLA is not told, the gradient holds all images on every device."""
    monkeypatch.setattr(meshes, "SHARD_FROM", 64)
    mesh = meshes.make(Mesh(data=2, fsdp=4), 8)
    network = nn.Sequential(
        [nn.Conv(32, (3, 3)), nn.silu, nn.Conv(32, (3, 3)), nn.Conv(16, (3, 3))]
    )
    size = (8, 16, 16, 16)
    weights = jax.eval_shape(network.init, jax.random.key(0), np.zeros(size, np.float32))
    weights = meshes.shaped(weights, meshes.over_parameters(mesh, weights))

    def slope(weights: Any) -> jax.Array:
        noise = jax.random.normal(jax.random.key(0), size)
        return jax.grad(lambda z: jnp.sum(network.apply(weights, z) ** 2))(noise)

    program = jax.jit(meshes.known(mesh, slope) if told else slope).lower(weights).compile()
    assert bool(re.search(r"f32\[8,16,16,\d+\]", program.as_text())) != told


def test_a_table_of_positions_is_no_batch() -> None:
    """Though the devices divide its length, it stays whole: nothing has to travel."""
    mesh = meshes.make(Mesh(data=1, fsdp=8), 8)
    network = TextEncoder(TextConfig(vocabulary=40, width=16, layers=1, heads=2, length=16))
    ids = jax.ShapeDtypeStruct((8, 16), np.int32, sharding=meshes.over_batch(mesh))
    weights = jax.eval_shape(network.init, jax.random.key(0), ids)
    weights = meshes.shaped(weights, jax.tree.map(lambda _: meshes.replicated(mesh), weights))
    program = jax.jit(meshes.known(mesh, network.apply)).lower(weights, ids).compile()
    assert "all-gather" not in program.as_text()


@pytest.mark.parametrize(
    ("platform", "fsdp", "told"), [("tpu", 8, True), ("tpu", 1, False), ("cpu", 8, False)]
)
def test_only_a_tpus_compiler_is_told_to_gather_and_only_where_parameters_are_split(
    platform: str, fsdp: int, told: bool
) -> None:
    devices = np.asarray([types.SimpleNamespace(platform=platform)] * 8)
    mesh: Any = types.SimpleNamespace(shape={"data": 8 // fsdp, "fsdp": fsdp}, devices=devices)
    assert bool(meshes.options(mesh)) == told


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_network_that_gathers_once_does_so_for_forward_and_backward_pass(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each matrix, where a block that is computed again would gather its own twice or more."""
    monkeypatch.setattr(meshes, "SHARD_FROM", 64)
    mesh = meshes.make(Mesh(data=1, fsdp=8), 8)
    model = dataclasses.replace(compared.CONFIGS["add_gathered"].model, prediction="v")
    x, t = jnp.ones((8, 16, 16, 3)), jnp.full((8,), 500.0)
    text = TextFeatures(jnp.ones((8, 4, 16)), jnp.ones((8, 16)), jnp.ones((8, 4), bool))
    params = random_like(lambda: denoiser.init(model, 16, jax.random.key(0)))["denoiser"]
    where = meshes.over_parameters(mesh, params)
    matrices = [a.shape for a in jax.tree.leaves(params) if a.ndim > 1 and a.size >= 64]
    sizes = {math.prod(shape) * width for shape in matrices for width in (2, 4)}

    def run(once: bool) -> tuple[int, Any]:
        dit = dataclasses.replace(model.dit, gather_once=once, dtype=dtype)
        config = dataclasses.replace(model, dit=dit)

        def loss(params: Any, x: Any) -> Any:
            weights = denoiser.gathered(config, params)
            return jnp.mean(denoiser.output(config, weights, x, t, text) ** 2)

        placed = jax.device_put(params, where), jax.device_put(x, meshes.over_batch(mesh))
        step = jax.jit(meshes.known(mesh, jax.grad(loss)), out_shardings=where)
        compiled = step.lower(*placed).compile()
        gathers = [
            e for e in hlo.exchanged(hlo.parse(compiled.as_text())) if e.kind == "all-gather"
        ]
        return sum(e.times for e in gathers if e.bytes in sizes), compiled(*placed)

    (often, expected), (once, gradient) = run(False), run(True)
    assert once == len(matrices)
    assert often > 1.4 * once
    chex.assert_trees_all_equal_dtypes(gradient, params)
    chex.assert_trees_all_close(gradient, expected, rtol=1e-5, atol=1e-6)


def test_no_other_program_is_told_of_the_mesh() -> None:
    """Neither one that is traced meanwhile in another thread, nor the next after a failure."""
    mesh, module = meshes.make(Mesh(data=1, fsdp=8), 8), nn.Dense(4)
    image = jax.ShapeDtypeStruct((8, 4), np.float32)
    weights = jax.eval_shape(module.init, jax.random.key(0), image)

    def told() -> int:
        return str(jax.make_jaxpr(module.apply)(weights, image)).count("sharding_constraint[")

    def failing(weights: Any) -> None:
        with ThreadPoolExecutor() as pool:
            assert pool.submit(told).result() == 0
        assert told() == 2
        raise RuntimeError

    with pytest.raises(RuntimeError):
        jax.jit(meshes.known(mesh, failing)).trace(weights)
    assert told() == 0


@pytest.mark.parametrize("broken", ["loss", "gradient", "parameter"])
def test_what_is_no_number_on_a_mesh_differs_from_one_device(broken: str) -> None:
    def made(bad: bool) -> tuple[State, dict[str, np.ndarray]]:
        loss, slope, p = (
            np.full(3, np.nan if bad and broken == what else 1.0, np.float32)
            for what in ("loss", "gradient", "parameter")
        )
        optimiser = optax.ScaleByAdamState(np.zeros((), np.int32), {"p": slope}, {"p": p})
        return State(np.zeros((), np.int32), {"p": p}, {"p": p}, optimiser), {"loss": loss[0]}

    def largest(a: bool, b: bool) -> float:
        return max(compared._deviation(made(a), made(b)).every.values())

    assert largest(False, False) == 0
    assert largest(False, True) == np.inf
    assert largest(True, True) == np.inf


@dataclasses.dataclass
class Rolled:
    """The batch's pictures under ever other captions."""

    batch: dict[str, np.ndarray]
    position: int = 0

    def __next__(self) -> dict[str, np.ndarray]:
        self.position += 1
        return {**self.batch, "caption": np.roll(self.batch["caption"], self.position, 0)}

    def get_state(self) -> dict[str, int]:
        return {"next_index": self.position}

    def set_state(self, state: dict[str, int]) -> None:
        self.position = state["next_index"]


@pytest.mark.long
def test_a_run_moved_to_other_meshes_goes_on_along_the_same_curve(
    diffusion_config, batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its checkpoints, for 50 steps: from eight devices to a split over four by two, to one."""
    monkeypatch.setattr(meshes, "SHARD_FROM", 64)
    batch = {name: np.asarray(values) for name, values in batch.items()}

    def train(name: str, shape: Mesh, steps: int) -> list[dict[str, float]]:
        folder = tmp_path / name
        init, train_step = methods.programs(diffusion_config)
        with contextlib.closing(Checkpoints(folder / "checkpoints", 100)) as checkpoints:
            loop.fit(
                title=name,
                mesh=meshes.make(shape, 8),
                init=init,
                train_step=train_step,
                frozen=methods.seeded(diffusion_config, {}),
                data=Rolled(batch),
                steps=steps,
                batch=8,
                log_every=1,
                checkpoints=checkpoints,
                open_log=functools.partial(logs.MetricsLog, folder),
                sample=lambda *_: None,
                sample_every=0,
            )
        return logs.read(folder)

    whole = train("whole", Mesh(data=1), 55)
    for shape, steps in ((Mesh(data=8), 5), (Mesh(data=4, fsdp=2), 30), (Mesh(data=1), 55)):
        moved = train("moved", shape, steps)
    assert whole[-1]["loss"] < 0.9 * whole[0]["loss"], "so there is a curve to follow"
    for expected, found in zip(whole, moved, strict=True):
        for term in expected:
            message = f"{term} at step {expected['step']}"
            np.testing.assert_allclose(found[term], expected[term], rtol=1e-4, err_msg=message)
