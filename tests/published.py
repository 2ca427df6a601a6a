"""Stable Diffusion's families in miniature: folders as diffusers writes them, random weights.

Every layer kind of the full sizes is there. Nothing is at zero, where a wrong layer would not show.
And what jaxgen and diffusers draw by the same weights, from the same noise.
"""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import (
    StableDiffusionImg2ImgPipeline,
)
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
    StableDiffusionXLPipeline,
)
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_euler_ancestral_discrete import (
    EulerAncestralDiscreteScheduler,
)
from einops import rearrange
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from jaxgen import methods, stages
from jaxgen.diffusion import sampler as samplers
from jaxgen.diffusion.sampler import Sampler

LEVELS = {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
          "beta_end": 0.012, "steps_offset": 1}  # fmt: skip
TEXT = (
    "a red heart, un cœur rouge. the sleeping cat's face; trois pommes vertes and 12 lemons! yes!! "
    * 3
)

WIDTH_2, PROJECTION = 24, 12  # of XL's second text encoder


@dataclasses.dataclass(frozen=True)
class Family:
    """What the members of a family differ in."""

    act: str = "quick_gelu"
    padding: str = "<|endoftext|>"
    unet: tuple[tuple[str, Any], ...] = ()
    vae: tuple[tuple[str, Any], ...] = ()
    text: tuple[tuple[str, Any], ...] = ()
    prediction: str = "epsilon"
    pair: bool = False
    turbo: bool = False
    spread: float = 0.05
    """Of the noise on every weight."""


FAMILIES = {
    "sd15": Family(unet=(("attention_head_dim", 2), ("cross_attention_dim", 16))),
    "sd21": Family(
        act="gelu",
        padding="!",
        unet=(
            ("attention_head_dim", [2, 4]),
            ("cross_attention_dim", 16),
            ("use_linear_projection", True),
            ("upcast_attention", True),
        ),
        prediction="v_prediction",
    ),
    "sd-turbo": Family(
        act="gelu",
        padding="!",
        unet=(
            ("attention_head_dim", [2, 4]),
            ("cross_attention_dim", 16),
            ("use_linear_projection", True),
        ),
        turbo=True,
    ),
    "sdxl": Family(
        unet=(
            ("down_block_types", ("DownBlock2D", "CrossAttnDownBlock2D")),
            ("up_block_types", ("CrossAttnUpBlock2D", "UpBlock2D")),
            ("attention_head_dim", [2, 4]),
            ("cross_attention_dim", 40),
            ("use_linear_projection", True),
            ("transformer_layers_per_block", [1, 2]),
            ("addition_embed_type", "text_time"),
            ("addition_time_embed_dim", 4),
            ("projection_class_embeddings_input_dim", 6 * 4 + 12),
        ),
        pair=True,
    ),
}
FAMILIES["sdxl-turbo"] = dataclasses.replace(FAMILIES["sdxl"], turbo=True, spread=0.1)


def write(folder: Path, kind: Family) -> Any:
    """Saves a miniature of the family; its pipeline."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**{
        "sample_size": 8, "block_out_channels": (16, 32), "layers_per_block": 1,
        "norm_num_groups": 8, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), **dict(kind.unet),
    })  # fmt: skip
    vae = AutoencoderKL(**{
        "down_block_types": ("DownEncoderBlock2D",) * 2, "block_out_channels": (8, 16),
        "up_block_types": ("UpDecoderBlock2D",) * 2, "norm_num_groups": 4, "layers_per_block": 1,
        "sample_size": 16, "scaling_factor": 0.5, "latent_channels": 4, **dict(kind.vae),
    })  # fmt: skip
    tokens = tokenizer(kind.padding)
    parts: dict[str, Any] = {
        "unet": unet, "vae": vae, "tokenizer": tokens,
        "text_encoder": _text(CLIPTextModel, tokens, 16, kind.act, **dict(kind.text)),
    }  # fmt: skip
    levels = {**LEVELS, "prediction_type": kind.prediction, "timestep_spacing": "trailing"}
    if kind.turbo:
        scheduler: Any = EulerAncestralDiscreteScheduler(**levels)
    else:
        scheduler = DDIMScheduler(**levels, clip_sample=False, set_alpha_to_one=True)
    if kind.pair:
        second = _text(
            CLIPTextModelWithProjection, tokenizer("!"), WIDTH_2, "gelu", projection_dim=PROJECTION
        )
        parts |= {"text_encoder_2": second, "tokenizer_2": tokenizer("!")}
        pipeline: Any = StableDiffusionXLPipeline(**parts, scheduler=scheduler)
    else:
        pipeline = StableDiffusionPipeline(
            **parts, scheduler=scheduler, safety_checker=None, feature_extractor=None,
            requires_safety_checker=False,
        )  # fmt: skip
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
            with torch.no_grad():
                for weight in part.parameters():
                    weight += kind.spread * torch.randn(weight.shape)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder)
    return pipeline


@functools.cache
def program(run: Path) -> tuple[stages.Loaded, Any]:
    """A run, or published weights, and what draws by them: compiled once for all tests."""
    loaded = stages.read(run)
    sample = functools.partial(methods.of(loaded.config).sample, loaded.config)
    return loaded, jax.jit(sample, static_argnums=3)


def both(
    run: Path,
    theirs: Any,
    prompts: list[str],
    sampler: Sampler,
    negative: str = "",
    start: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """What jaxgen draws by a run and diffusers by a pipeline, from the same noise: shares of white.

    `start` are uint8 images to start from, of which diffusers then takes the mean codes too.
    """
    loaded, draw = program(run)
    config: Any = loaded.config
    count = len(prompts)
    more: dict[str, Any] = {} if start is None else {"start": start}
    asked: dict[str, Any] = {}
    if negative:
        asked["negative_prompt"] = [negative] * count
        more["negative"] = methods.encode(config, loaded.tokenizer, [negative] * count)
    key = jax.random.key(3)
    ids = methods.encode(config, loaded.tokenizer, prompts)
    ours = np.asarray(draw(loaded.weights, key, ids, sampler, **more))

    noise_key, sampler_key = jax.random.split(key)
    shape = (count, config.side, config.side, config.autoencoder.latent_channels)
    keys = [noise_key, *(jax.random.fold_in(sampler_key, i) for i in range(sampler.steps))]
    draws = (jax.random.normal(key, shape) for key in keys)
    noises = (torch.tensor(np.asarray(rearrange(d, "b h w c -> b c h w"))) for d in draws)
    with pytest.MonkeyPatch.context() as patch:
        for module in (
            "schedulers.scheduling_euler_ancestral_discrete",
            "pipelines.stable_diffusion.pipeline_stable_diffusion_img2img",
        ):
            patch.setattr(f"diffusers.{module}.randn_tensor", lambda *_, **__: next(noises))
        if sampler.solver == "euler_ancestral":  # of whichever the folder names
            stepping: Any = EulerAncestralDiscreteScheduler.from_config(theirs.scheduler.config)
            patch.setattr(theirs, "scheduler", stepping)
        if start is None:
            first = next(noises)
            if sampler.solver == "ddim":  # its first x is the noise itself
                first *= float(samplers.plan(sampler, config.model.schedule).sigma[0])
            asked["latents"] = first
        else:
            asked |= {"image": np.float32(start) / 255, "strength": sampler.strength}
            theirs = StableDiffusionImg2ImgPipeline(
                **theirs.components, requires_safety_checker=False
            )
            theirs.set_progress_bar_config(disable=True)
            patch.setattr(
                "diffusers.models.autoencoders.vae.randn_tensor",
                lambda shape, **_: torch.zeros(shape),
            )
        expected = theirs(
            prompts,
            num_inference_steps=sampler.steps,
            guidance_scale=sampler.guidance,
            output_type="np",
            **asked,
        ).images
    assert expected.std() > 0.02
    return ours / 255, expected


def tensors(
    theirs: Any, prompts: list[str], x: Any, t: Any, image: Any, codes: Any
) -> dict[str, np.ndarray]:
    """What the networks of a pipeline make of prompts, noisy codes, images and codes.

    All arrays have their channels last; of one text encoder, `pooled` is left out.
    """

    def first(array: Any) -> torch.Tensor:
        return torch.tensor(rearrange(array, "b h w c -> b c h w"))

    found, conditions = {}, None
    with torch.no_grad():
        tokens, _, *pooled = theirs.encode_prompt(
            prompts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        if pooled:
            found["pooled"] = pooled[0].numpy()
            side = theirs.unet.config.sample_size * 2.0
            ids = torch.tensor([[side, side, 0, 0, side, side]] * len(prompts))
            conditions = {"text_embeds": pooled[0], "time_ids": ids}
        unet = theirs.unet(first(x), torch.tensor(t), tokens, added_cond_kwargs=conditions).sample
        scale = theirs.vae.config.scaling_factor
        code = theirs.vae.encode(first(image)).latent_dist.mean * scale
        drawn = theirs.vae.decode(first(codes) / scale).sample
    found["tokens"] = tokens.numpy()
    for name, tensor in (("unet", unet), ("codes", code), ("image", drawn)):
        found[name] = rearrange(tensor.numpy(), "b c h w -> b h w c")
    return found


def tokenizer(padding: str) -> CLIPTokenizer:
    """CLIP's tokenizer with a few merges, learnt from two sentences."""
    vocabulary, merges = _learnt()
    return CLIPTokenizer(dict(vocabulary), list(merges), pad_token=padding, model_max_length=77)


@functools.cache
def _learnt() -> tuple[dict[str, int], list[Any]]:
    learnt = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learnt.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    learnt.train_from_iterator([TEXT], trainer)
    merges: Any = [tuple(pair) for pair in json.loads(learnt.to_str())["model"]["merges"]]
    words = ["!", *alphabet, *(f"{c}</w>" for c in alphabet), *(a + b for a, b in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    return {word: number for number, word in enumerate(dict.fromkeys(words))}, merges


def _text(kind: Any, tokens: CLIPTokenizer, width: int, act: str, **more: Any) -> Any:
    config = CLIPTextConfig(**{
        "vocab_size": len(tokens), "hidden_size": width, "intermediate_size": 2 * width,
        "num_hidden_layers": 3, "num_attention_heads": 2, "max_position_embeddings": 77,
        "hidden_act": act, "bos_token_id": tokens.bos_token_id,
        "eos_token_id": tokens.eos_token_id, "pad_token_id": tokens.pad_token_id, **more,
    })  # fmt: skip
    return kind(config)
