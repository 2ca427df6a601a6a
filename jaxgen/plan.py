"""python -m jaxgen.plan --config=add_64 --topology=v5e:2x4: what a run would cost on a TPU slice.

The real train step and sampler are compiled for the slice by the TPU compiler, which needs no TPU.
Memory and collectives are those of the compiled programs; the times are lower bounds from the
chip's published peaks (`jaxgen.runtime.costs`).

With --quick the compiler spends less on the programs: they take a fraction of the time to make, and
more memory and traffic than those that the trainer will have. So what fits then will fit, and what
does not may.

Exit code 0: the step and the last grid fit, with --search at some batch. 1: they do not; what
would help is said. 2: bad input.
"""

import dataclasses
import functools
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen import cli, methods, stages
from jaxgen import config as configs
from jaxgen.config import Experiment
from jaxgen.errors import reported
from jaxgen.methods.text_to_image import TextToImage
from jaxgen.runtime import costs, loop, topologies
from jaxgen.runtime import mesh as meshes
from jaxgen.runtime.costs import Costs, Memory
from jaxgen.runtime.topologies import Slice
from jaxgen.state import State, spared
from jaxgen.text import tokenizer as words

TOPOLOGY = "v5e:2x4"
EXIT_NO_FIT = 1
QUICK = {"exec_time_optimization_effort": -1.0, "memory_fitting_effort": -1.0}
"""What tells XLA to spend the least on a program."""


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A program that fits the compiler's memory, or why it does not."""

    memory: Memory | None
    costs: Costs | None
    compile_seconds: float
    refusal: str = ""

    def fits(self, place: Slice, beside: int = 0) -> bool:
        """Whether it runs with `beside` bytes of other arrays on each device."""
        return self.memory is not None and self.memory.total + beside <= place.chip.usable


def main() -> None:
    with reported():
        topology, search, quick, rest = _own_options(sys.argv[1:])
        place = topologies.parse(topology)
        topologies.on_cpu()
        config = cli.configured(rest, prog="python -m jaxgen.plan")
        devices = topologies.devices(place)
        mesh = mesh_of(config, devices)
        stages.check_rules(config, mesh)
        _print_head(config, place, mesh)
        step = train_step(config, place, mesh, quick)
        _print_step(config, place, mesh, step)
        batch = config.train.batch if step.fits(place) else 0
        if search:
            batch = _search(config, place, devices, step, quick)
        if not batch:
            sys.exit(EXIT_NO_FIT)
        config = _at(config, batch)
        if not _print_sampler(config, place, mesh_of(config, devices), quick):
            sys.exit(EXIT_NO_FIT)


def mesh_of(config: Experiment, devices: Sequence[Any]) -> jax.sharding.Mesh:
    """The mesh that the config makes of a slice's devices, as of those of a machine."""
    return meshes.make(config.mesh, config.train.batch, devices=devices)


def train_step(
    config: Experiment, place: Slice, mesh: jax.sharding.Mesh, quick: bool = False
) -> Compiled:
    """The train step as `jaxgen.runtime.loop.fit` compiles it; with `quick` a hastier one."""
    config, _ = _resolved(config)
    frozen, state = _arguments(config, mesh)
    batch, frozen = _batch(config, mesh, frozen)
    program = loop.program(methods.programs(config)[1], state, mesh)
    kinds = {
        "parameters": state.params,
        "average (EMA)": state.ema,
        "optimiser state": state.opt_state,
        "frozen networks": frozen,
        "batch": batch,
    }
    return _compiled(program, (state, frozen, batch), kinds, place, mesh, quick)


def sampler(
    config: Experiment, place: Slice, mesh: jax.sharding.Mesh, quick: bool = False
) -> tuple[str, int, int, Compiled] | None:
    """The costliest sampler of a run's sample grids: title, images at once, bytes beside, program.

    None where the method draws nothing. Beside it are the parts of the training state that the
    program does not use.
    """
    config, method = _resolved(config)
    if not hasattr(method, "sample"):
        return None
    frozen, state = _arguments(config, mesh)
    rows: list[tuple[str, Any]] = []

    def weights(state: State, frozen: Any) -> list[Any]:
        found = method.shown(config, state, frozen)
        rows.extend((title, how) for title, _, how in found)
        return [weights for _, weights, _ in found]

    traced, shapes = jax.make_jaxpr(weights, return_shape=True)(state, frozen)
    number = max(range(len(rows)), key=lambda n: rows[n][1].steps)
    title, how = rows[number]
    where = meshes.over_parameters(mesh, shapes[number], config.mesh.rules)
    chosen = meshes.shaped(shapes[number], where)
    count = len(config.shown) or configs.SHOWN
    count = meshes.shown_at_once(mesh, count, config.train.batch)
    where = meshes.over_batch(mesh)
    ids = jax.ShapeDtypeStruct((count, config.caption_ids), jnp.int32, sharding=where)
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=meshes.replicated(mesh))
    program = jax.jit(
        meshes.known(mesh, functools.partial(method.sample, config)),
        static_argnums=3,
        out_shardings=meshes.replicated(mesh),
        compiler_options=meshes.options(mesh),
    )
    made = _compiled(program, (chosen, key, ids, how), {"weights": chosen}, place, mesh, quick)
    own = {id(variable) for variable in traced.jaxpr.invars}
    given = [id(variable) in own for variable in traced.jaxpr.outvars]
    given = jax.tree.leaves(jax.tree.unflatten(jax.tree.structure(shapes), given)[number])
    leaves = zip(jax.tree.leaves(chosen), given, strict=True)
    parts = [leaf for leaf, given in leaves if given]  # others, such as merged ones, are made of it
    beside = costs.bytes_on_one((state, frozen)) - costs.bytes_on_one(parts)
    return title, count, beside, made


def largest_batch(
    config: Experiment,
    place: Slice,
    devices: Sequence[Any],
    first: Compiled,
    say: Any,
    quick: bool = False,
) -> int:
    """The largest batch whose train step fits, to an eighth; 0 where that of 1 a chip does not."""
    ways = mesh_of(config, devices).size
    low, high = (config.train.batch, 0) if first.fits(place) else (0, config.train.batch)
    while True:
        between = max(ways, (low + high) // 2 // ways * ways) if high else 2 * low
        if between in (low, high) or (high and low and high - low <= low // 8):
            return low
        tried = _at(config, between)
        fits = train_step(tried, place, mesh_of(tried, devices), quick).fits(place)
        say(between, fits)
        low, high = (between, high) if fits else (low, between)


def _at(config: Experiment, batch: int) -> Experiment:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, batch=batch))


def _own_options(arguments: Sequence[str]) -> tuple[str, bool, bool, list[str]]:
    topology, rest = cli.taken("--topology", TOPOLOGY, arguments)
    search, quick = "--search" in rest, "--quick" in rest
    rest = [a for a in rest if a not in ("--search", "--quick")]
    if "--help" in rest or "-h" in rest:
        print(
            f"--topology KIND:SHAPE (default: {TOPOLOGY}), --search: the largest batch that fits, "
            "--quick: hastier programs, which take more memory than the trainer's"
        )
    return topology, search, quick, rest


def _resolved(config: Experiment) -> tuple[Any, Any]:
    """The config with a vocabulary, its own or the tokenizer's without the data's words."""
    own = config.model.text.vocabulary if isinstance(config, TextToImage) else 0
    config = config.resolved(own or words.build().get_vocab_size(), 2)
    return config, methods.of(config)


def _arguments(config: Any, mesh: jax.sharding.Mesh) -> tuple[Any, State]:
    """Shapes of the frozen networks and the state, each where the loop would put it."""
    frozen = jax.eval_shape(functools.partial(methods.seeded, config), stages.frozen_shapes(config))
    frozen = meshes.shaped(frozen, meshes.over_parameters(mesh, frozen, config.mesh.rules))
    state = jax.eval_shape(methods.programs(config)[0], frozen)
    return frozen, meshes.shaped(state, meshes.over_parameters(mesh, state, config.mesh.rules))


def _batch(config: Any, mesh: jax.sharding.Mesh, frozen: Any) -> tuple[dict[str, Any], Any]:
    """Shapes of a batch, and what a step needs of the frozen networks beside it."""
    b, side = config.train.batch, config.data.size
    image = jax.ShapeDtypeStruct((b, side, side, 3), jnp.uint8)
    shapes = {
        "image": image,
        "caption": jax.ShapeDtypeStruct((b, config.caption_ids), jnp.int32),
        "label": jax.ShapeDtypeStruct((b,), jnp.int32),
        "row": jax.ShapeDtypeStruct((b,), jnp.int32),
    }
    method = methods.of(config)
    for once in method.once(config, frozen) if hasattr(method, "once") else ():
        shapes |= jax.eval_shape(once.compute, once.weights, shapes[once.field])
        if once.spares:
            empty = jax.eval_shape(once.compute, once.weights, once.empty)
            where = meshes.over_parameters(mesh, empty, config.mesh.rules)
            frozen = spared(once, frozen, meshes.shaped(empty, where))
    return meshes.shaped(shapes, dict.fromkeys(shapes, meshes.over_batch(mesh))), frozen


def _compiled(
    program: Any, arguments: tuple, kinds: dict, place: Slice, mesh: jax.sharding.Mesh, quick: bool
) -> Compiled:
    began = time.monotonic()
    try:
        made = program.lower(*arguments).compile(QUICK if quick else None)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Compiled(None, None, time.monotonic() - began, _refusal(str(error)))
    seconds = time.monotonic() - began
    coordinates = [tuple(device.coords) for device in mesh.devices.flat]
    return Compiled(
        costs.memory(made, kinds), costs.costs(made.as_text(), place, coordinates), seconds
    )


def _refusal(message: str) -> str:
    """The compiler's words about memory, in one line."""
    for pattern in (r"Used [\d.]+\w of [\d.]+\w hbm[^\n]*", r"the total memory required[^\n]*"):
        if found := re.search(pattern, message):
            return found[0]
    return message.splitlines()[0]


def _print_head(config: Experiment, place: Slice, mesh: jax.sharding.Mesh) -> None:
    chip, batch = place.chip, config.train.batch
    print(
        f"plan of {config.name} ({methods.name(config)}) for {place.name}, {mesh.size} chip(s) as "
        f"data {mesh.shape['data']} x fsdp {mesh.shape['fsdp']}: batch {batch}, "
        f"{batch // mesh.size} a chip\n"
        f"assumed, as published: a chip does {chip.flops / 1e12:.0f} bf16 TFLOP/s and reads "
        f"{chip.bandwidth / 1e9:.0f} GB/s from HBM; a link carries {chip.link / 1e9:.0f} GB/s each "
        f"way; the compiler hands out {_size(chip.usable)} of HBM a chip",
        flush=True,
    )


def _print_step(config: Any, place: Slice, mesh: jax.sharding.Mesh, step: Compiled) -> None:
    print(f"\ntrain step, compiled in {step.compile_seconds:.0f} s; of each chip")
    if step.memory is None:
        frozen, state = _arguments(_resolved(config)[0], mesh)
        for name, tree in {
            "parameters": state.params,
            "average (EMA)": state.ema,
            "optimiser state": state.opt_state,
            "frozen networks": frozen,
        }.items():
            print(f"  {name:24}{_size(costs.bytes_on_one(tree)):>12}")
        print(f"  DOES NOT FIT: {step.refusal}")
    else:
        _print_memory(step.memory, place)
    if not step.fits(place):
        print(f"  to make it fit: {'; '.join(_suggestions(config, mesh))}")
    if step.costs is not None:
        _print_costs(step.costs, config.train.batch, "step")


def _print_memory(memory: Memory, place: Slice, beside: int = 0) -> None:
    rows = {
        **memory.arguments,
        "padding of all these": memory.padding,
        "results": memory.results,
        "temporaries": memory.temporaries,
        "program": memory.code,
    }
    if beside:
        rows["rest of the run's state"] = beside
    for name, size in rows.items():
        print(f"  {name:24}{_size(size):>12}")
    total, usable = memory.total + beside, place.chip.usable
    verdict = "fits" if total <= usable else "DOES NOT FIT"
    print(f"  {'total':24}{_size(total):>12} of {_size(usable)}: {verdict} "
          f"({100 * total / usable:.0f} %)")  # fmt: skip


def _print_costs(found: Costs, images: int, unit: str) -> None:
    print(f"  FLOPs a {unit}: {found.flops:.3g}, in {1e3 * found.compute_seconds:.2f} ms")
    print(f"  bytes of HBM a {unit}: {found.hbm_bytes:.3g}, in {1e3 * found.hbm_seconds:.2f} ms")
    for e in found.exchanges:
        print(f"  {e.kind} over {e.devices} chips: {e.count}, {e.bytes:.3g} bytes, "
              f"in {1e3 * e.seconds:.2f} ms")  # fmt: skip
    if found.guessed_loops:
        print(f"  {found.guessed_loops} loop(s) of unknown length are counted as one turn")
    least, most = found.seconds
    print(
        f"  roofline: {1e3 * least:.2f} ms a {unit} with the collectives hidden behind other work, "
        f"{1e3 * most:.2f} ms with none hidden, bound by {found.bound}: at most "
        f"{images / most:.0f} to {images / least:.0f} images/s",
        flush=True,
    )


def _print_sampler(config: Experiment, place: Slice, mesh: jax.sharding.Mesh, quick: bool) -> bool:
    """And whether it fits, as it must: a run draws its last grid whatever --train.sample-every."""
    found = sampler(config, place, mesh, quick)
    if found is None:
        print("\nno sampler: the method draws nothing")
        return True
    title, count, beside, made = found
    print(f"\nsampler of the grids ({title}, {count} images at once), compiled in "
          f"{made.compile_seconds:.0f} s; of each chip")  # fmt: skip
    if made.memory is None:
        print(f"  DOES NOT FIT: {made.refusal}")
    else:
        _print_memory(made.memory, place, beside)
    fits = made.fits(place, beside)
    if not fits:
        fewer = "fewer captions in --shown, or a smaller batch; " if count > mesh.size else ""
        print(f"  to make it fit: {fewer}a larger slice, --mesh.data 1 --mesh.fsdp -1")
    if made.costs is not None:
        _print_costs(made.costs, count, "run")
    return fits


def _search(
    config: Experiment, place: Slice, devices: Sequence[Any], step: Compiled, quick: bool
) -> int:
    print("\nlargest batch that fits:", flush=True)

    def say(batch: int, fits: bool) -> None:
        print(f"  {batch}: {'fits' if fits else 'does not fit'}", flush=True)

    found = largest_batch(config, place, devices, step, say, quick)
    print(f"  --train.batch {found}" if found else "  none: not even one image a chip", flush=True)
    return found


def _suggestions(config: Any, mesh: jax.sharding.Mesh) -> list[str]:
    """What to change, the cheapest first."""
    found = []
    if mesh.shape["fsdp"] < mesh.size:
        found.append("--mesh.data 1 --mesh.fsdp -1 splits the networks over all chips")
    if not (getattr(config, "trains_text", True) or config.text_once):
        found.append("--text-once leaves the text encoders out of a step")
    model = getattr(config, "model", None)
    network = getattr(model, "network", "")
    if network and model.backbone.remat == "none":  # pyright: ignore[reportOptionalMemberAccess]
        found.append(f"--model.{network}.remat blocks keeps fewer activations")
    if network and model.backbone.gather_once and mesh.shape["fsdp"] > 1:  # pyright: ignore[reportOptionalMemberAccess]
        found.append(f"--model.{network}.no-gather-once keeps no whole copy of the network")
    if network and model.backbone.dtype != "bfloat16":  # pyright: ignore[reportOptionalMemberAccess]
        found.append(f"--model.{network}.dtype bfloat16 halves the activations")
    if config.train.batch > mesh.size:
        fewer = max(mesh.size, config.train.batch // 2 // mesh.size * mesh.size)
        found.append(f"--train.batch {fewer}, or --search for the largest that fits")
    return found or ["a larger slice"]


def _size(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.1f} MiB"


if __name__ == "__main__":
    main()
