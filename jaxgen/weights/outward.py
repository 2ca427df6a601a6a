"""What jaxgen trained, as a folder in diffusers' layout, which that library opens and samples.

The configs are the inverse of `layouts`. What its classes cannot express is refused: a folder that
opened and drew something else would be worse than none.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models

from jaxgen.diffusion.denoiser import SECOND, Denoiser, Weights
from jaxgen.diffusion.schedule import VARIANCE_PRESERVING
from jaxgen.errors import UserError
from jaxgen.models.autoencoder import AutoencoderConfig
from jaxgen.text import clip
from jaxgen.text import tokenizer as words
from jaxgen.text.encoder import TextConfig
from jaxgen.weights.layouts import BETAS, PREDICTIONS
from jaxgen.weights.pipelines import INDEX, Pipeline
from jaxgen.weights.stable_diffusion import params_to_torch

UNET_FILE, TEXT_FILE = "diffusion_pytorch_model.safetensors", "model.safetensors"


def check(pipeline: Pipeline) -> None:
    """Raises UserError where diffusers has no class for one of the networks, naming the field."""
    model, codec = pipeline.model, pipeline.autoencoder
    unlike = {
        "model.network": (model.network, model.network == "unet"),
        "model.unet.patch": (model.unet.patch, model.unet.patch == 1),
        "autoencoder.patch": (codec.patch, codec.patch == 1),
        "model.text.masked": (model.text.masked, not model.text.masked),
        "model.schedule.kind": (model.schedule.kind, model.schedule.kind in VARIANCE_PRESERVING),
        "model.prediction": (model.prediction, model.prediction in PREDICTIONS.values()),
        "model.unet.added-width": (
            model.unet.added_width,
            bool(model.unet.added_width) == bool(model.time_ids) == bool(model.text_2),
        ),
        "model.text.penultimate": (
            model.text.penultimate,
            model.text.penultimate == bool(model.text_2),
        ),
    }
    wrong = [f"--{name} {value}" for name, (value, fits) in unlike.items() if not fits]
    if wrong:
        raise UserError(
            f"diffusers' Stable Diffusion has no {', no '.join(wrong)}: train with others, or "
            "export --to=stablehlo"
        )


def save(
    folder: Path, pipeline: Pipeline, tokenizer: Tokenizer, weights: Weights, dtype: str
) -> None:
    """Writes the folder; `dtype`, float32 or float16, is what the files hold.

    Raises UserError where `check` does.
    """
    check(pipeline)
    model = pipeline.model
    levels = scheduler(model, pipeline.turbo)
    kind = "StableDiffusionXLPipeline" if model.text_2 else "StableDiffusionPipeline"
    length = model.text.length
    clip.save(tokenizer, folder / "tokenizer", length)
    pieces = isinstance(tokenizer.model, models.BPE)
    tokens = "CLIPTokenizer" if pieces else "PreTrainedTokenizerFast"
    parts: dict[str, tuple[str | None, str | None]] = {
        "unet": ("diffusers", "UNet2DConditionModel"),
        "vae": ("diffusers", "AutoencoderKL"),
        "scheduler": ("diffusers", levels["_class_name"]),
        "text_encoder": ("transformers", "CLIPTextModel"),
        "tokenizer": ("transformers", tokens),
    }
    side = pipeline.size // pipeline.autoencoder.factor
    text = {name: tree for name, tree in weights["text"].items() if name != SECOND}
    codec = {name: tree for name, tree in weights["codec"].items() if name != "scale"}
    scale = float(weights["codec"]["scale"])
    _network(folder / "unet", UNET_FILE, unet(model, side), weights["denoiser"], dtype)
    _network(
        folder / "vae", UNET_FILE, autoencoder(pipeline.autoencoder, scale, pipeline.size), codec,
        dtype,
    )  # fmt: skip
    _network(folder / "text_encoder", TEXT_FILE, text_model(model.text), text, dtype, _clip_names)
    index: dict[str, Any] = {"_class_name": kind}
    if model.text_2:
        parts["text_encoder_2"] = ("transformers", "CLIPTextModelWithProjection")
        parts["tokenizer_2"] = ("transformers", tokens)
        second = words.padded(tokenizer, model.text_2.padding_token)
        clip.save(second, folder / "tokenizer_2", length)
        _network(
            folder / "text_encoder_2", TEXT_FILE, text_model(model.text_2), weights["text"][SECOND],
            dtype, _clip_names,
        )  # fmt: skip
        index["force_zeros_for_empty_prompt"] = model.zero_empty
    else:
        parts |= {"safety_checker": (None, None), "feature_extractor": (None, None)}
        index["requires_safety_checker"] = False
    _write(folder / "scheduler" / "scheduler_config.json", levels)
    _write(folder / INDEX, index | {name: list(part) for name, part in parts.items()})


def unet(model: Denoiser, side: int) -> dict[str, Any]:
    """The config.json of a UNet2DConditionModel for images, or codes, of side `side`."""
    config = model.unet
    names = ["CrossAttn" if attends else "" for attends in config.attention]
    added = {}
    if config.added_width:
        added = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": (config.added_width - model.pooled_width)
            // len(model.time_ids),
            "projection_class_embeddings_input_dim": config.added_width,
        }
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": side,
        "in_channels": config.channels,
        "out_channels": config.channels,
        "block_out_channels": list(config.block_out),
        "layers_per_block": config.layers,
        "down_block_types": [f"{name}DownBlock2D" for name in names],
        "up_block_types": [f"{name}UpBlock2D" for name in names[::-1]],
        "transformer_layers_per_block": list(config.transformer_depth),
        "attention_head_dim": list(config.heads),
        "cross_attention_dim": config.context_width,
        "use_linear_projection": config.linear_projection,
        "norm_num_groups": config.groups,
        "upcast_attention": True,  # as ours, whatever it computes in
        **added,
    }


def autoencoder(config: AutoencoderConfig, scale: float, size: int) -> dict[str, Any]:
    """The config.json of an AutoencoderKL for images of side `size`."""
    levels = len(config.block_out)
    return {
        "_class_name": "AutoencoderKL",
        "sample_size": size,
        "in_channels": config.channels,
        "out_channels": config.channels,
        "latent_channels": config.latent_channels,
        "block_out_channels": list(config.block_out),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": config.layers,
        "norm_num_groups": config.groups,
        "scaling_factor": scale,
        "use_quant_conv": config.quant_conv,
        "use_post_quant_conv": config.quant_conv,
        "mid_block_add_attention": config.mid_attention,
    }


def text_model(config: TextConfig) -> dict[str, Any]:
    """The config.json of a CLIPTextModel, with projection where the config has one."""
    kind = "CLIPTextModelWithProjection" if config.projection else "CLIPTextModel"
    return {
        "architectures": [kind],
        "model_type": "clip_text_model",
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "intermediate_size": config.mlp * config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "max_position_embeddings": config.length,
        "hidden_act": config.activation,
        "projection_dim": config.projection or config.width,
        "bos_token_id": config.start_token,
        "eos_token_id": config.end_token,
        "pad_token_id": config.padding_token,
    }


def scheduler(model: Denoiser, turbo: bool) -> dict[str, Any]:
    """The scheduler_config.json of the noise levels, sampled as jaxgen does by default."""
    levels = model.schedule
    found: dict[str, Any] = {
        "num_train_timesteps": levels.timesteps,
        "beta_schedule": {ours: theirs for theirs, ours in BETAS.items()}[levels.kind],
        "beta_start": levels.beta_start,
        "beta_end": levels.beta_end,
        "rescale_betas_zero_snr": levels.zero_terminal_snr,
        "prediction_type": {ours: theirs for theirs, ours in PREDICTIONS.items()}[model.prediction],
        "timestep_spacing": "trailing",
        "steps_offset": 1,
    }
    if turbo and model.prediction != "x0":  # which theirs does not know
        return {"_class_name": "EulerAncestralDiscreteScheduler", **found}
    return {"_class_name": "DDIMScheduler", **found, "clip_sample": False, "set_alpha_to_one": True}


def _network(
    folder: Path,
    file: str,
    config: dict[str, Any],
    params: Weights,
    dtype: str,
    renamed: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] = dict,
) -> None:
    _write(folder / "config.json", config)
    tensors = renamed(params_to_torch(params))
    tensors = {name: np.asarray(tensor, dtype, order="C") for name, tensor in tensors.items()}
    save_file(tensors, folder / file, {"format": "pt"})
    (folder / file).chmod(0o644)  # safetensors makes files that only their owner can read


def _clip_names(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `clip_names`, by the names that published files have."""
    found = {}
    for name, tensor in state.items():
        whole = name.replace("encoder_layers.", "encoder.layers.")
        whole = whole.replace("embeddings_", "embeddings.")
        found[whole if whole.startswith("text_projection.") else f"text_model.{whole}"] = tensor
    return found


def _write(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
