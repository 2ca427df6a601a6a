"""The config files of Stable Diffusion, value for value as published, open as they should.

Those of 1.5 (runwayml), 2.1 base and 2.1 (stabilityai) and XL base 1.0; what says nothing of a
network (dropout, initialisation) too, as loaders stumble over it. A field that one lacks may be
here with its default. Of the Turbos no copy was at hand: they differ as their documentation says.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from jaxgen.errors import UserError
from jaxgen.models.autoencoder import SD_AUTOENCODER
from jaxgen.models.unet import SD15_UNET, SD21_UNET, SDXL_UNET
from jaxgen.text.encoder import CLIP_L, OPENCLIP_BIGG, OPENCLIP_H
from jaxgen.weights import pipelines

UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel", "act_fn": "silu", "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280], "center_input_sample": False,
    "class_embed_type": None, "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], "downsample_padding": 1,
    "dual_cross_attention": False, "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 4,
    "layers_per_block": 2, "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn", "norm_eps": 1e-5, "norm_num_groups": 32,
    "num_class_embeds": None, "only_cross_attention": False, "out_channels": 4,
    "resnet_time_scale_shift": "default", "sample_size": 64,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3, "upcast_attention": False,
    "use_linear_projection": False,
}  # fmt: skip
UNET_21 = {
    **UNET, "attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024,
    "use_linear_projection": True,
}  # fmt: skip
UNET_XL = {
    **UNET_21, "addition_embed_type": "text_time", "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": 256, "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280], "class_embeddings_concat": False, "conv_in_kernel": 3,
    "conv_out_kernel": 3, "cross_attention_dim": 2048, "cross_attention_norm": None,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "encoder_hid_dim": None, "encoder_hid_dim_type": None, "mid_block_only_cross_attention": None,
    "num_attention_heads": None, "projection_class_embeddings_input_dim": 2816,
    "resnet_out_scale_factor": 1.0, "resnet_skip_time_act": False, "sample_size": 128,
    "time_cond_proj_dim": None, "time_embedding_act_fn": None, "time_embedding_dim": None,
    "time_embedding_type": "positional", "timestep_post_act": None,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "upcast_attention": None,
}  # fmt: skip
VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL", "act_fn": "silu", "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4, "in_channels": 3, "latent_channels": 4,
    "layers_per_block": 2, "norm_num_groups": 32, "out_channels": 3, "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}  # fmt: skip
VAE_XL = {**VAE, "force_upcast": True, "sample_size": 1024, "scaling_factor": 0.13025}
TEXT: dict[str, Any] = {
    "architectures": ["CLIPTextModel"], "attention_dropout": 0.0, "bos_token_id": 0, "dropout": 0.0,
    "eos_token_id": 2, "hidden_act": "quick_gelu", "hidden_size": 768, "initializer_factor": 1.0,
    "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-5,
    "max_position_embeddings": 77, "model_type": "clip_text_model", "num_attention_heads": 12,
    "num_hidden_layers": 12, "pad_token_id": 1, "projection_dim": 768, "torch_dtype": "float32",
    "transformers_version": "4.22.0.dev0", "vocab_size": 49408,
}  # fmt: skip
TEXT_21 = {
    **TEXT, "hidden_act": "gelu", "hidden_size": 1024, "intermediate_size": 4096,
    "num_attention_heads": 16, "num_hidden_layers": 23, "projection_dim": 512,
}  # fmt: skip
TEXT_XL_2 = {
    **TEXT_21, "architectures": ["CLIPTextModelWithProjection"], "hidden_size": 1280,
    "intermediate_size": 5120, "num_attention_heads": 20, "num_hidden_layers": 32,
    "projection_dim": 1280,
}  # fmt: skip
LEVELS = {
    "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
    "clip_sample": False, "num_train_timesteps": 1000, "set_alpha_to_one": False,
    "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None,
}  # fmt: skip
EULER = {
    **LEVELS, "_class_name": "EulerDiscreteScheduler", "interpolation_type": "linear",
    "prediction_type": "epsilon", "sample_max_value": 1.0, "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}  # fmt: skip
END, BANG = "<|endoftext|>", "!"


@dataclasses.dataclass(frozen=True)
class Published:
    """A folder's config files, and what they mean."""

    unet: dict[str, Any]
    vae: dict[str, Any]
    texts: tuple[dict[str, Any], ...]
    scheduler: dict[str, Any]
    padding: tuple[str, ...]
    networks: tuple[Any, ...]
    size: int
    prediction: str = "epsilon"
    turbo: bool = False


L, L_OF_PAIR = CLIP_L, dataclasses.replace(CLIP_L, penultimate=True)
V15 = Published(
    UNET, VAE, (TEXT,), {**LEVELS, "_class_name": "PNDMScheduler"}, (END,), (SD15_UNET, L), 512
)
V21_BASE = Published(
    UNET_21, VAE, (TEXT_21,),
    {**LEVELS, "_class_name": "PNDMScheduler", "prediction_type": "epsilon"}, (BANG,),
    (SD21_UNET, OPENCLIP_H), 512,
)  # fmt: skip
V21 = dataclasses.replace(
    V21_BASE, size=768, prediction="v",
    unet={**UNET_21, "sample_size": 96, "upcast_attention": True},
    scheduler={**LEVELS, "_class_name": "DDIMScheduler", "prediction_type": "v_prediction"},
)  # fmt: skip
XL = Published(
    UNET_XL, VAE_XL, (TEXT, TEXT_XL_2), EULER, (END, BANG),
    (SDXL_UNET, L_OF_PAIR, OPENCLIP_BIGG), 1024,
)  # fmt: skip
TURBO = dataclasses.replace(
    V21_BASE, turbo=True, scheduler={**EULER, "timestep_spacing": "trailing"}
)
XL_TURBO = dataclasses.replace(
    XL, size=512, turbo=True, unet={**UNET_XL, "sample_size": 64},
    scheduler={**EULER, "_class_name": "EulerAncestralDiscreteScheduler",
               "timestep_spacing": "trailing"},
)  # fmt: skip


@pytest.mark.parametrize(
    "published",
    [V15, V21_BASE, V21, XL, TURBO, XL_TURBO],
    ids=["1.5", "2.1 base", "2.1", "XL", "Turbo", "XL Turbo"],
)
def test_published_folders_are_described(published: Published, tmp_path: Path) -> None:
    written(tmp_path, published)
    found, tokenizer = pipelines.describe(tmp_path)
    model = found.model
    assert (model.unet, *filter(None, (model.text, model.text_2))) == published.networks
    assert found.autoencoder == SD_AUTOENCODER
    assert found.scale == published.vae.get("scaling_factor", 0.18215)
    assert (found.size, found.turbo) == (published.size, published.turbo)
    assert (model.schedule.kind, model.schedule.timesteps) == ("scaled_linear", 1000)
    assert (model.schedule.beta_start, model.schedule.beta_end) == (0.00085, 0.012)
    assert model.prediction == published.prediction
    pair = len(published.texts) > 1
    assert model.time_ids == (
        (published.size,) * 2 + (0, 0) + (published.size,) * 2 if pair else ()
    )
    assert model.zero_empty is pair
    assert tokenizer.get_vocab_size() == 49408


def test_a_pointer_of_git_lfs_is_named_as_one(tmp_path: Path) -> None:
    written(tmp_path, V15)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 492265168\n"
    (tmp_path / "text_encoder" / "model.safetensors").write_text(pointer)
    with pytest.raises(UserError, match=r"model\.safetensors is a pointer of Git LFS.*lfs pull"):
        pipelines.load(tmp_path)


def written(folder: Path, published: Published) -> None:
    """The folder without weights; its words are other ones, their number and marks the same."""
    pair = len(published.texts) > 1
    index: dict[str, Any] = {
        "_class_name": f"StableDiffusion{'XL' * pair}Pipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", published.scheduler["_class_name"]],
    }
    if pair:
        index |= {"force_zeros_for_empty_prompt": True, "add_watermarker": None}
    else:
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
    for end, text, padding in zip(("", "_2"), published.texts, published.padding, strict=False):
        index[f"text_encoder{end}"] = ["transformers", text["architectures"][0]]
        index[f"tokenizer{end}"] = ["transformers", "CLIPTokenizer"]
        put(folder / f"text_encoder{end}" / "config.json", text)
        words = [BANG, *(f"w{n}" for n in range(49405)), "<|startoftext|>", END]
        put(folder / f"tokenizer{end}" / "vocab.json", {w: n for n, w in enumerate(words)})
        put(folder / f"tokenizer{end}" / "special_tokens_map.json", {"pad_token": padding})
        (folder / f"tokenizer{end}" / "merges.txt").write_text("#version: 0.2\n")
    put(folder / "unet" / "config.json", published.unet)
    put(folder / "vae" / "config.json", published.vae)
    put(folder / "scheduler" / "scheduler_config.json", published.scheduler)
    put(folder / "model_index.json", index)


def put(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values), encoding="utf-8")
