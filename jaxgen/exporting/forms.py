"""A run in the forms that other tools open: diffusers' folder, one flat file, one program."""

import dataclasses
import json
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save_file

from jaxgen import config as configs
from jaxgen import methods
from jaxgen.errors import UserError
from jaxgen.exporting import draw
from jaxgen.stages import Loaded
from jaxgen.text import tokenizer as words
from jaxgen.weights import outward

PLATFORMS = ("cpu", "cuda", "tpu")
WEIGHTS, PROGRAM, FACTS = "weights.safetensors", "program.stablehlo", "program.json"
TOKENIZERS = ("tokenizer.json", "tokenizer_2.json")
RUNNER = Path(draw.__file__)


def diffusers(loaded: Loaded, folder: Path, dtype: str) -> list[str]:
    """Writes the folder; returns what its user should know. UserError where diffusers has no such
    networks."""
    config: Any = loaded.config
    if not hasattr(config, "pipeline"):
        raise UserError(
            f"{loaded.folder} is a run of {methods.name(config)}; diffusers opens diffusion in "
            "codes, and others go --to=safetensors"
        )
    pipeline = config.pipeline(loaded.weights)
    method = methods.of(config)
    weights = method.merged(config, loaded.weights) if hasattr(method, "merged") else loaded.weights
    outward.save(folder, pipeline, loaded.tokenizer, weights, dtype)
    sampler = next(iter(method.samplers(config).values()))
    spaced = []
    if sampler.spacing != "trailing":
        spaced = [
            f"jaxgen draws it with --spacing={sampler.spacing}, the folder says trailing: at more "
            "than one step diffusers visits other noise levels"
        ]
    # diffusers calls both 0 and 1 no guidance.
    return [
        *spaced,
        f"diffusers.DiffusionPipeline.from_pretrained, then call it with num_inference_steps="
        f"{sampler.steps}, guidance_scale={sampler.guidance}",
    ]


def safetensors(loaded: Loaded, folder: Path, dtype: str) -> list[str]:
    """Writes every tensor under its path, the config as metadata, and the tokenizer beside it."""
    _weights(loaded, folder, dtype)
    _tokenizers(loaded, folder)
    return []


def stablehlo(
    loaded: Loaded, folder: Path, dtype: str, steps: int | None, guidance: float | None
) -> list[str]:
    """Writes one program from token ids to pixels, its weights, the tokenizer, and a script which
    runs it and needs no jaxgen; returns its size, and the seconds to load it and to call it first.

    The program takes any batch, on any of `PLATFORMS`.
    """
    config, method = loaded.config, methods.of(loaded.config)
    if not hasattr(method, "sample"):
        raise UserError(
            f"{loaded.folder} is a run of {methods.name(config)}: it draws nothing; "
            "export it with --to=safetensors"
        )
    asked = {"steps": steps, "guidance": guidance}
    sampler = dataclasses.replace(
        next(iter(method.samplers(config).values())),
        **{name: value for name, value in asked.items() if value is not None},
    )
    method.check_sampler(config, sampler)

    def images(tensors: dict[str, Any], seed: Any, ids: Any) -> Any:
        weights = unflatten_dict({n: a.astype(jnp.float32) for n, a in tensors.items()}, sep=".")
        return method.sample(config, weights, jax.random.key(seed), ids, sampler)

    flat = _weights(loaded, folder, dtype)
    (batch,) = jax.export.symbolic_shape("batch")
    shapes = (
        {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in flat.items()},
        jax.ShapeDtypeStruct((), jnp.uint32),
        jax.ShapeDtypeStruct((batch, config.caption_ids), jnp.int32),
    )
    program = jax.export.export(jax.jit(images), platforms=PLATFORMS)(*shapes)
    (folder / PROGRAM).write_bytes(program.serialize())
    read_by = _tokenizers(loaded, folder)
    empty = methods.encode(config, loaded.tokenizer, [""])
    facts = {
        "length": config.caption_length,
        "tokenizers": read_by,
        "sampler": dataclasses.asdict(sampler),
        "size": config.data.size,
        "run": loaded.folder.name,
    }
    (folder / FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(RUNNER, folder / RUNNER.name)
    begun = time.monotonic()
    read = jax.export.deserialize(bytearray((folder / PROGRAM).read_bytes()))
    ready = time.monotonic()
    np.asarray(jax.jit(read.call)(flat, np.uint32(0), empty))
    size = (folder / PROGRAM).stat().st_size
    return [
        f"program: {size / 1e3:.0f} kB without weights, {ready - begun:.2f} s to load, "
        f"{time.monotonic() - ready:.1f} s for the first call, compiling among it",
        f"draw without jaxgen: python {RUNNER.name} --prompt … in that folder",
    ]


def _weights(loaded: Loaded, folder: Path, dtype: str) -> dict[str, np.ndarray]:
    flat = {
        name: np.asarray(tensor, dtype, order="C")
        for name, tensor in flatten_dict(loaded.weights, sep=".").items()
    }
    metadata = {"method": methods.name(loaded.config), "config": configs.to_json(loaded.config)}
    save_file(flat, folder / WEIGHTS, metadata)
    (folder / WEIGHTS).chmod(0o644)  # safetensors makes files that only their owner can read
    return flat


def _tokenizers(loaded: Loaded, folder: Path) -> dict[str, int]:
    """Writes those that read a caption, one for each text encoder: {file: id of its padding}."""
    every = loaded.config.tokenizers(loaded.tokenizer)
    found = dict(zip(TOKENIZERS, every, strict=False))
    for name, tokenizer in found.items():
        (folder / name).write_text(tokenizer.to_str(), encoding="utf-8")
    return {name: words.marks(tokenizer).padding for name, tokenizer in found.items()}
