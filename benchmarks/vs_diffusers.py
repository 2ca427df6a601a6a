"""From token ids to pixels by jaxgen and by diffusers: same weights and noise, in one run.

    python -m benchmarks.vs_diffusers --shape=tiny            (CPU)
    python -m benchmarks.vs_diffusers --shape=sd21 --dtype=bfloat16     (a GPU)
    python -m benchmarks.vs_diffusers --shape=sdxl --dtype=bfloat16     (a GPU)

A pipeline of random weights is made by diffusers and saved, and jaxgen opens the folder. Each side
then does the same work: text encoders, one network call at the last timestep, decoder, uint8. In
PyTorch without the pipeline's Python around it, eagerly and by torch.compile; in JAX as one
program. The pictures are compared before anything is timed, and all take turns. torch.compile is
the slowest to begin: it comes when the others have been timed and their rows written, and then all
are timed again. Where it cannot compile it is left out.
"""

import dataclasses
import functools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import machine, reports, timing
from jaxgen import config as configs
from jaxgen import methods, stages
from jaxgen.diffusion.sampler import Sampler
from jaxgen.errors import UserError, reported
from jaxgen.runtime import mesh as meshes

PROGRAM = "python -m benchmarks.vs_diffusers"
LEVELS = {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
          "beta_end": 0.012, "timestep_spacing": "trailing", "steps_offset": 1}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "unet": {"sample_size": 16, "block_out_channels": (64, 128), "layers_per_block": 1,
                 "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
                 "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
                 "attention_head_dim": [2, 4], "cross_attention_dim": 128},
        "vae": {"block_out_channels": (32, 64), "layers_per_block": 1},
        "text": {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
                 "intermediate_size": 512, "vocab_size": 49408},
    },
    "sd21": {
        "unet": {"sample_size": 64, "attention_head_dim": [5, 10, 20, 20],
                 "cross_attention_dim": 1024, "use_linear_projection": True},
        "vae": {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2},
        "text": {"hidden_size": 1024, "num_hidden_layers": 23, "num_attention_heads": 16,
                 "intermediate_size": 4096, "vocab_size": 49408, "hidden_act": "gelu"},
    },
    "sdxl": {
        "unet": {"sample_size": 64, "block_out_channels": (320, 640, 1280),
                 "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
                 "up_block_types": ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
                 "attention_head_dim": [5, 10, 20], "transformer_layers_per_block": [1, 2, 10],
                 "cross_attention_dim": 2048, "use_linear_projection": True,
                 "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
                 "projection_class_embeddings_input_dim": 2816},
        "vae": {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2},
        "text": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
                 "intermediate_size": 3072, "vocab_size": 49408},
        "text_2": {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 20,
                   "intermediate_size": 5120, "vocab_size": 49408, "hidden_act": "gelu",
                   "projection_dim": 1280},
    },
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Options:
    shape: Literal["tiny", "sd21", "sdxl"] = "tiny"
    """Networks to compare: small ones for a CPU, or Stable Diffusion 2.1's or XL's at 512 px."""
    batches: tuple[int, ...] = (1, 8)
    """Numbers of images drawn at once."""
    repeats: int = 15
    """Counted runs of each."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What all compute in."""

    def check(self) -> None:
        """Raises UserError for what cannot be measured."""
        if not self.batches or min(self.batches) < 1 or self.repeats < 1:
            raise UserError("--batches and --repeats must be numbers above 0")


def main() -> None:
    with reported():
        options = configs.parse(Options(), sys.argv[1:], PROGRAM)
        if missing := machine.missing("torch", "diffusers", "transformers"):
            raise UserError(f"{missing}; pip install torch diffusers transformers")
        # Both libraries allocate on one device, and JAX would take most of it at its start.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        meshes.prepare(max(options.batches), Path("runs") / ".compiled")
        print(f"numbers: {measure(options)}")


def measure(options: Options) -> Path:
    """The report's path, which is written again after each batch."""
    device = machine.hardware()
    report = {
        "command": reports.command(PROGRAM, sys.argv[1:]),
        "hardware": device,
        "versions": machine.versions(),
        "shape": options.shape,
        "dtype": options.dtype,
        "rows": [],
    }
    path = machine.folder(device) / f"vs_diffusers_{options.shape}_{options.dtype}.json"
    with tempfile.TemporaryDirectory() as folder:
        draws = _torch(Path(folder), options)
        loaded = stages.read(Path(folder))
        for batch in options.batches:
            earlier = report["rows"]
            for rows in _rows(loaded, draws, batch, options):
                report["rows"] = earlier + rows
                reports.write(report, path)
    return path


Draw = Callable[[np.ndarray, np.ndarray], Any]


def _rows(
    loaded: stages.Loaded, torch_draws: dict[str, Draw], batch: int, options: Options
) -> Iterator[list[dict[str, Any]]]:
    """A batch's rows, first without torch.compile's."""
    ids = np.random.default_rng(0).integers(1, 49000, (batch, 77)).astype(np.int32)
    ids[:, 0], ids[:, -1] = 49406, 49407
    ids = np.tile(ids, 1 + ("text_2" in SHAPES[options.shape]))  # those of each text encoder
    begun = time.perf_counter()
    ours, noise = _jaxgen(loaded, ids, options)
    draws = {"jaxgen": lambda: np.asarray(ours())}
    for name, draw in torch_draws.items():
        draws[name] = lambda draw=draw: draw(ids, noise)
    first: dict[str, float] = {}
    pictures: dict[str, np.ndarray] = {}
    for name, draw in draws.items():
        try:
            pictures[name] = draw()
        except RuntimeError as error:  # all of its kinds: without a C++ compiler or Triton, say
            if name != "compile" or timing.out_of_memory(error):
                raise
            print(f"torch.compile is left out: {' '.join(str(error).split())[:200]}", flush=True)
            return
        first[name] = time.perf_counter() - begun
        print(f"batch {batch:3}  {name:8} first call {first[name]:.1f} s", flush=True)
        draw()
        if name != "jaxgen":
            there = {name: draws[name] for name in first}
            yield _timed(batch, there, pictures, first, options)
        begun = time.perf_counter()


def _timed(
    batch: int,
    draws: dict[str, Callable[[], np.ndarray]],
    pictures: dict[str, np.ndarray],
    first: dict[str, float],
    options: Options,
) -> list[dict[str, Any]]:
    """The rows of those that have drawn. Raises UserError where their pictures differ."""
    worst = {name: int(np.abs(p.astype(int) - pictures["eager"].astype(int)).max())
             for name, p in pictures.items()}  # fmt: skip
    most = {"float32": 2, "bfloat16": 32}[options.dtype]
    if max(worst.values()) > most:
        raise UserError(f"the pictures differ by {max(worst.values())}/255, above {most}: {worst}")
    times: dict[str, list[float]] = {name: [] for name in draws}
    for _ in range(options.repeats):
        for name, draw in draws.items():
            begun = time.perf_counter()
            draw()
            times[name].append(time.perf_counter() - begun)
    eager = statistics.median(times["eager"])
    rows = []
    for name, runs in times.items():
        median = statistics.median(runs)
        rows.append({
            "batch": batch, "who": name, "seconds_per_image": median / batch,
            "times_eager": eager / median, "first_call": first[name],
            "largest_difference": worst[name], "runs": runs,
        })  # fmt: skip
        print(f"batch {batch:3}  {name:8} {median / batch:.4f} s/image, "
              f"{eager / median:.2f} x eager, differs by {worst[name]}/255 at most",
              flush=True)  # fmt: skip
    return rows


def _jaxgen(
    loaded: stages.Loaded, ids: np.ndarray, options: Options
) -> tuple[Callable[[], Any], np.ndarray]:
    """One program that draws, its arguments placed, and the noise that it starts from."""
    config: Any = loaded.config
    config = config.computed_in(options.dtype)
    codec = dataclasses.replace(config.autoencoder, dtype=options.dtype)
    config = dataclasses.replace(config, autoencoder=codec)
    sampler = Sampler(steps=1)
    mesh = meshes.dividing(len(ids))
    weights = meshes.put(loaded.weights, meshes.replicated(mesh), jnp.dtype(options.dtype))
    placed = jax.device_put(ids, meshes.over_batch(mesh))
    key = jax.random.key(0)
    sample = meshes.known(mesh, functools.partial(methods.of(config).sample, config))
    program = jax.jit(sample, static_argnums=3)
    compiled = program.lower(weights, key, placed, sampler).compile()
    shape = (len(ids), config.side, config.side, config.model.unet.channels)
    # A copy, as PyTorch warns of what cannot be written to.
    noise = np.array(jax.random.normal(jax.random.split(key)[0], shape))
    return lambda: compiled(weights, key, placed), noise


def _torch(folder: Path, options: Options) -> dict[str, Draw]:
    """The folder, written; what draws by diffusers' networks, eagerly and compiled."""
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, options.dtype)
    shape = SHAPES[options.shape]
    unet: Any = UNet2DConditionModel(**shape["unet"])
    levels = len(shape["vae"]["block_out_channels"])
    blocks: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
    }
    vae: Any = AutoencoderKL(**shape["vae"], **blocks, scaling_factor=0.5)
    marks: dict[str, Any] = {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}
    texts: list[Any] = [
        kind(CLIPTextConfig(**shape[name], **marks))
        for name, kind in (("text", CLIPTextModel), ("text_2", CLIPTextModelWithProjection))
        if name in shape
    ]
    _save(folder, unet, vae, texts)
    networks = [part.to(device, dtype).eval() for part in (unet, vae, *texts)]
    side = float(shape["unet"]["sample_size"] * 2 ** (levels - 1))
    betas = torch.linspace(LEVELS["beta_start"] ** 0.5, LEVELS["beta_end"] ** 0.5, 1000) ** 2
    kept = torch.cumprod(1 - betas, 0)[-1]
    alpha, sigma = kept.sqrt().item(), (1 - kept).sqrt().item()

    def said(texts: list[Any], ids: Any) -> tuple[Any, dict[str, Any] | None]:
        """What the UNet is told: of two text encoders more than tokens, as XL's pipeline has it."""
        if len(texts) == 1:
            return texts[0](ids).last_hidden_state, None
        each = [
            text(part, output_hidden_states=True)
            for text, part in zip(texts, ids.chunk(2, dim=1), strict=True)
        ]
        tokens = torch.cat([one.hidden_states[-2] for one in each], dim=-1)
        times = torch.tensor([[side, side, 0, 0, side, side]] * len(ids), device=device)
        return tokens, {"text_embeds": each[1].text_embeds, "time_ids": times}

    def draw(networks: list[Any], ids: np.ndarray, noise: np.ndarray) -> np.ndarray:
        unet, vae, *texts = networks
        with torch.inference_mode():
            tokens, more = said(texts, torch.from_numpy(ids).long().to(device))
            x = torch.from_numpy(noise).permute(0, 3, 1, 2).to(device, dtype) * sigma
            t = torch.tensor(999, device=device)
            eps = unet(x, t, tokens, added_cond_kwargs=more).sample
            x0 = (x.float() - sigma * eps.float()) / alpha
            image = vae.decode((x0 / vae.config.scaling_factor).to(dtype)).sample.float()
            image = ((image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
            return image.permute(0, 2, 3, 1).cpu().numpy()

    compiled = [torch.compile(part) for part in networks]
    return {
        "eager": lambda ids, noise: draw(networks, ids, noise),
        "compile": lambda ids, noise: draw(compiled, ids, noise),
    }


def _save(folder: Path, unet: Any, vae: Any, texts: list[Any]) -> None:
    """What `stages.read` needs, with tokenizers of bytes alone: ids are drawn, not words."""
    index: dict[str, Any] = {
        "_class_name": f"StableDiffusion{'XL' if len(texts) > 1 else ''}Pipeline",
        "scheduler": ["diffusers", "EulerAncestralDiscreteScheduler"],
    }
    named = {"unet": unet, "vae": vae}
    named |= {f"text_encoder{'_2' * n}": text for n, text in enumerate(texts)}
    for name, part in named.items():
        part.save_pretrained(folder / name)
        library = "transformers" if name.startswith("text") else "diffusers"
        index[name] = [library, type(part).__name__]
    _write(folder / "scheduler" / "scheduler_config.json",
           {"_class_name": "EulerAncestralDiscreteScheduler", **LEVELS})  # fmt: skip
    words = [f"w{n}" for n in range(49406)]
    vocabulary = {w: n for n, w in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    for name in (f"tokenizer{'_2' * n}" for n in range(len(texts))):
        index[name] = ["transformers", "CLIPTokenizer"]
        _write(folder / name / "vocab.json", vocabulary)
        (folder / name / "merges.txt").write_text("#version: 0.2\n")
    _write(folder / "model_index.json", index)


def _write(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values), encoding="utf-8")


if __name__ == "__main__":
    main()
