"""The UNet's train step by jaxgen and by diffusers: same weights, same batch, in one run.

Network, mean squared error of its output, gradients of all weights, AdamW; no text encoder, no
average. Weights are float32 on both sides; with bfloat16, activations are that: by the network's
dtype in JAX, by autocast in PyTorch. There, cuDNN's algorithms are chosen by trying them; CUDA gets
channels last, a CPU the faster order of both. The losses are compared before anything is timed, and
all take turns. Where PyTorch or diffusers is missing, jaxgen's step is timed alone.
"""

import copy
import dataclasses
import gc
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import machine, timing, training_step
from benchmarks import subject as subjects
from benchmarks.vs_diffusers import SHAPES
from jaxgen.errors import UserError
from jaxgen.models.unet import UNet
from jaxgen.runtime import costs
from jaxgen.runtime import mesh as meshes
from jaxgen.weights import layouts
from jaxgen.weights.stable_diffusion import params_from_torch

TOKENS = 77
BATCHES = {"tiny": 16, "sd21": 8}
CLOSE = {"float32": 1e-3, "bfloat16": 3e-2}  # of a loss, relative
ADAMW = {"lr": 1e-5, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}
GOALS = {"cpu": ("eager", 1.2)}  # who is to be beaten by how much; else
GOAL = ("compile", 1.0)
OF_PEAK = ("sd21", "bfloat16")  # which are to reach training_step.GOAL_OF_PEAK
TRIED = 3  # steps in each order of axes, the fastest of which counts

Run = Callable[[], float]


class Rivals(NamedTuple):
    """PyTorch's part of the comparison."""

    steps: dict[str, Run]
    """A step each, on weights of its own."""
    losses: dict[str, float]
    """Of the first step."""
    peaks: dict[str, int | None]
    """The most device memory of a later step, the other's and the batch left out."""
    layout: str
    """The order of axes in memory."""
    state: dict[str, np.ndarray] | None
    """The weights that all begin with; none: small noise."""


def measured(shape: str, dtype: str, repeats: int) -> dict[str, Any]:
    """Images per second of each; the batch is halved until all fit. UserError where none does."""
    # Both libraries allocate on one device, and JAX would take most of it at its start.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    batch = BATCHES[shape]
    meshes.prepare(batch)
    while True:
        try:
            row = _measured(shape, dtype, batch, repeats)
            break
        except (RuntimeError, MemoryError) as error:  # JAX's and PyTorch's are among them
            reason = timing.exhausted(error)
        _free()
        if batch == 1:
            raise UserError(f"{reason}, even for a single image")
        batch //= 2
    if batch < BATCHES[shape]:
        row["memory"]["device_peak"] = None  # JAX's is that of the batch that did not fit
    _free()
    taken = row["seconds_per_step"]["jaxgen"]["median"]
    return row | training_step.reached(row, dtype, taken, (shape, dtype) == OF_PEAK)


def _measured(shape: str, dtype: str, batch: int, repeats: int) -> dict[str, Any]:
    values = _batch(SHAPES[shape]["unet"], batch)
    missing = machine.missing("torch", "diffusers.models.unets.unet_2d_condition")
    rivals = Rivals({}, {}, {}, "", None) if missing else _torch(shape, dtype, values)
    ours, first, facts = _jaxgen(shape, rivals.state, dtype, values)
    losses = rivals.losses | {"jaxgen": first}
    expected = losses.get("eager", first)
    if any(abs(loss - expected) > CLOSE[dtype] * abs(expected) for loss in losses.values()):
        raise UserError(
            f"the losses differ by more than {CLOSE[dtype]:g} of {expected:g}: {losses}"
        )
    runs = {"jaxgen": ours} | rivals.steps
    for run in runs.values():
        run()
    times = timing.interleaved({name: _timed(run) for name, run in runs.items()}, repeats)
    spreads = {name: timing.spread(found) for name, found in times.items()}
    rival, factor = GOALS.get(jax.default_backend(), GOAL)
    seconds = {name: found["median"] for name, found in spreads.items()}
    memory = facts.pop("memory") | {"torch_peaks": rivals.peaks}
    return {
        "shape": shape,
        "dtype": dtype,
        "batch": batch,
        "torch_layout": rivals.layout,
        "images_per_second": {name: batch / taken for name, taken in seconds.items()},
        "seconds_per_step": spreads,
        "times_faster": {name: seconds[name] / seconds["jaxgen"] for name in rivals.steps},
        "goal": {"than": rival, "times": factor},
        "goal_met": seconds[rival] / seconds["jaxgen"] >= factor if rival in seconds else None,
        "rivals_missing": missing,
        "losses": losses,
        "memory": memory,
        **facts,
    }


def _batch(unet: dict[str, Any], batch: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    side, width = unet["sample_size"], unet["cross_attention_dim"]
    image = (batch, side, side, 4)
    shapes = {"x": image, "target": image, "context": (batch, TOKENS, width)}
    drawn = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    return drawn | {"t": rng.integers(0, 1000, batch).astype(np.float32)}


def _jaxgen(
    shape: str,
    state: dict[str, np.ndarray] | None,
    dtype: str,
    values: dict[str, np.ndarray],
) -> tuple[Callable[[], float], float, dict[str, Any]]:
    """One step when called, which returns its loss; the first loss; what the program costs."""
    config = dataclasses.replace(layouts.unet(SHAPES[shape]["unet"], shape), dtype=dtype)
    network = UNet(config)
    batch = len(values["x"])
    shapes = jax.eval_shape(
        lambda key: network.init(key, values["x"][:1], values["t"][:1], values["context"][:1]),
        jax.random.key(0),
    )["params"]
    mesh = meshes.dividing(batch)
    everywhere = meshes.replicated(mesh)
    made = subjects.noisy(shapes) if state is None else params_from_torch(state, shapes)
    params = meshes.put(made, everywhere)
    adamw = optax.adamw(
        ADAMW["lr"], *ADAMW["betas"], eps=ADAMW["eps"], weight_decay=ADAMW["weight_decay"]
    )
    moments = jax.jit(adamw.init, out_shardings=everywhere)(params)
    placed = jax.device_put(values, meshes.over_batch(mesh))

    def step(params: Any, moments: Any, batch: dict[str, jax.Array]) -> Any:
        def loss_of(params: Any) -> jax.Array:
            made: Any = network.apply({"params": params}, batch["x"], batch["t"], batch["context"])
            return jnp.mean((made.astype(jnp.float32) - batch["target"]) ** 2)

        loss, gradient = jax.value_and_grad(loss_of)(params)
        updates, moments = adamw.update(gradient, moments, params)
        return optax.apply_updates(params, updates), moments, loss

    flops = subjects.flops_of(step, params, moments, placed)
    begun = time.perf_counter()
    program = jax.jit(meshes.known(mesh, step), donate_argnums=(0, 1))
    compiled = program.lower(params, moments, placed).compile()
    compile_seconds = time.perf_counter() - begun
    parts = {"parameters": params, "moments": moments, "batch": placed}
    memory = costs.memory(compiled, parts)
    held = [params, moments]

    def run() -> float:
        *held[:], loss = compiled(*held, placed)
        return float(loss)

    first = run()
    return run, first, {
        "devices": mesh.size,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(shapes)),
        "flops": flops,
        "bytes": timing.bytes_of(compiled),
        "compile_seconds": compile_seconds,
        "memory": {
            "program": memory.total,
            "device_peak": training_step.peaks()["device_peak"],
        },
    }  # fmt: skip


def _torch(shape: str, dtype: str, values: dict[str, np.ndarray]) -> Rivals:
    """Steps by diffusers' network, eager and compiled where that can be."""
    import torch
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")  # as XLA on a GPU by default
    torch.backends.cudnn.benchmark = True
    cuda = torch.cuda.is_available()
    device = "cuda" if cuda else "cpu"
    unet: Any = UNet2DConditionModel(**SHAPES[shape]["unet"])
    state = {name: tensor.numpy().copy() for name, tensor in unet.state_dict().items()}
    placed = {name: torch.from_numpy(value).to(device) for name, value in values.items()}

    def stepping(layout: Any, compiled: bool) -> Run:
        network = copy.deepcopy(unet).to(device, memory_format=layout).train()
        x, target = (placed[n].permute(0, 3, 1, 2).contiguous(memory_format=layout)
                     for n in ("x", "target"))  # fmt: skip
        adamw = torch.optim.AdamW(network.parameters(), **ADAMW, fused=True)
        called = torch.compile(network) if compiled else network

        def step() -> float:
            adamw.zero_grad(set_to_none=True)
            with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
                made = called(x, placed["t"], placed["context"]).sample
            loss = torch.nn.functional.mse_loss(made.float(), target)
            loss.backward()
            adamw.step()
            return loss.item()

        return step

    def tried(layout: Any, compiled: bool) -> tuple[Run, float, int | None]:
        """A step that has begun, its first loss, its peak of device memory."""
        before = torch.cuda.memory_allocated() if cuda else 0
        step = stepping(layout, compiled)
        loss = step()
        if not cuda:
            return step, loss, None
        torch.cuda.reset_peak_memory_stats()  # algorithms were tried, and there were no moments
        step()
        return step, loss, torch.cuda.max_memory_allocated() - before

    layouts = [torch.channels_last] + [torch.contiguous_format] * (not cuda)
    found = {layout: tried(layout, False) for layout in layouts}
    layout = min(layouts, key=lambda layout: _pace(found[layout][0]))
    trials = {"eager": found.pop(layout)}
    found.clear()
    try:
        trials["compile"] = tried(layout, True)
    except RuntimeError as error:  # all of its kinds: without a C++ compiler or Triton, say
        if timing.out_of_memory(error):
            raise
        print(f"torch.compile is left out: {' '.join(str(error).split())[:200]}", flush=True)
    if cuda:
        torch.cuda.empty_cache()  # trying algorithms took more than the steps will
    steps, losses, peaks = ({name: trial[n] for name, trial in trials.items()} for n in range(3))
    return Rivals(steps, losses, peaks, str(layout).removeprefix("torch."), state)  # pyright: ignore[reportArgumentType]


def _free() -> None:
    """Gives back what neither library uses any more: each keeps it from the other."""
    gc.collect()
    try:
        import torch
    except (ImportError, OSError):
        return
    torch.compiler.reset()  # else the next batch's size is compiled for as one of many
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _pace(step: Run) -> float:
    return min(_timed(step)() for _ in range(TRIED))


def _timed(step: Callable[[], float]) -> Run:
    def run() -> float:
        begun = time.perf_counter()
        step()
        return time.perf_counter() - begun

    return run
