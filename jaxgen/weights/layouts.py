"""The config files of diffusers and transformers, as the configs of our networks, and back.

A field that a network here does not have must have the value which leaves it out, or be absent:
anything else is refused, since it would change the picture.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

from jaxgen.diffusion.prediction import Prediction
from jaxgen.diffusion.schedule import Schedule
from jaxgen.errors import UserError
from jaxgen.models.autoencoder import AutoencoderConfig
from jaxgen.models.unet import UNetConfig
from jaxgen.text import tokenizer as words
from jaxgen.text.encoder import TextConfig

SCHEDULERS = {  # the schedulers of diffusers whose noise levels are ours, and Turbo's among them
    "DDIMScheduler": False,
    "DDPMScheduler": False,
    "PNDMScheduler": False,
    "LMSDiscreteScheduler": False,
    "DPMSolverMultistepScheduler": False,
    "DPMSolverSinglestepScheduler": False,
    "UniPCMultistepScheduler": False,
    "DEISMultistepScheduler": False,
    "HeunDiscreteScheduler": False,
    "KDPM2DiscreteScheduler": False,
    "KDPM2AncestralDiscreteScheduler": False,
    "EulerDiscreteScheduler": True,
    "EulerAncestralDiscreteScheduler": True,
}
PREDICTIONS: dict[str, Prediction] = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}
BETAS = {"scaled_linear": "scaled_linear", "linear": "linear", "squaredcos_cap_v2": "cosine"}

_ANY = object()
# Of each class: fields that say something here, with the value they have where they are absent…
_UNET = {
    "in_channels": 4, "out_channels": 4, "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "layers_per_block": 2, "norm_num_groups": 32, "cross_attention_dim": 1280,
    "transformer_layers_per_block": 1, "attention_head_dim": 8, "num_attention_heads": None,
    "use_linear_projection": False, "addition_embed_type": None, "addition_time_embed_dim": None,
    "projection_class_embeddings_input_dim": None, "sample_size": None,
}  # fmt: skip
# … and fields whose one value is built into the network, or whose value does not matter.
_UNET_BUILT_IN = {
    "center_input_sample": False, "flip_sin_to_cos": True, "freq_shift": 0, "act_fn": "silu",
    "mid_block_type": "UNetMidBlock2DCrossAttn", "downsample_padding": 1, "norm_eps": 1e-5,
    "mid_block_scale_factor": 1, "resnet_time_scale_shift": "default", "conv_in_kernel": 3,
    "conv_out_kernel": 3, "resnet_out_scale_factor": 1.0, "time_embedding_type": "positional",
    "attention_type": "default", "upcast_attention": _ANY, "dropout": _ANY,
    "addition_embed_type_num_heads": _ANY,
}  # fmt: skip
_VAE = {
    "in_channels": 3, "out_channels": 3, "block_out_channels": (64,), "layers_per_block": 1,
    "latent_channels": 4, "norm_num_groups": 32, "scaling_factor": 0.18215,
    "use_quant_conv": True, "use_post_quant_conv": True, "mid_block_add_attention": True,
    "down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",),
}  # fmt: skip
_VAE_BUILT_IN = {"act_fn": "silu", "sample_size": _ANY, "force_upcast": _ANY, "shift_factor": 0}
_TEXT = {
    "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
    "num_attention_heads": 8, "max_position_embeddings": 77, "hidden_act": "quick_gelu",
    "projection_dim": 512, "architectures": (),
}  # fmt: skip
_TEXT_BUILT_IN = {"layer_norm_eps": 1e-5}
# Fields of a scheduler by which its noise levels, or what it makes of a prediction, would differ.
# How it goes through the levels is the sampler's choice, and so the caller's.
_LEVELS_NEUTRAL = {
    "trained_betas": None, "thresholding": False, "timestep_type": "discrete", "sigma_min": None,
    "sigma_max": None, "use_flow_sigmas": False,
}  # fmt: skip
_CLIPPING = ("DDIMScheduler", "DDPMScheduler")  # have a clip_sample


def unet(values: Mapping[str, Any], where: str) -> UNetConfig:
    """The config of a UNet2DConditionModel; UserError, naming `where`, for what ours has not."""
    v = _known(values, _UNET, _UNET_BUILT_IN, where)
    widths = tuple(v["block_out_channels"])
    attention = tuple(name.startswith("CrossAttn") for name in v["down_block_types"])
    _same(where, "down_block_types", v["down_block_types"], _blocks(attention, "Down"))
    _same(where, "up_block_types", v["up_block_types"], _blocks(attention[::-1], "Up"))
    _same(where, "out_channels", v["out_channels"], v["in_channels"])
    if v["addition_embed_type"] not in (None, "text_time"):
        raise UserError(f"{where}: addition_embed_type {v['addition_embed_type']!r} is not known")
    # Their name for the number of heads has been attention_head_dim ever since it was a mistake.
    heads = _per_level(v["num_attention_heads"] or v["attention_head_dim"], widths, where)
    depths = _per_level(v["transformer_layers_per_block"], widths, where)
    used = (*attention[:-1], True)  # the middle is as the last level, and always attends
    heads = tuple(n if uses else 1 for n, uses in zip(heads, used, strict=True))
    return _built(
        where,
        UNetConfig,
        channels=v["in_channels"],
        block_out=widths,
        layers=_one(v["layers_per_block"], where, "layers_per_block"),
        attention=attention,
        transformer_depth=depths,
        heads=heads,
        context_width=_one(v["cross_attention_dim"], where, "cross_attention_dim"),
        linear_projection=v["use_linear_projection"],
        groups=v["norm_num_groups"],
        added_width=v["projection_class_embeddings_input_dim"] or 0
        if v["addition_embed_type"]
        else 0,
    )


def autoencoder(values: Mapping[str, Any], where: str) -> tuple[AutoencoderConfig, float]:
    """The config of an AutoencoderKL and the scale of its codes; UserError as `unet`."""
    v = _known(values, _VAE, _VAE_BUILT_IN, where)
    levels = len(v["block_out_channels"])
    _same(where, "out_channels", v["out_channels"], v["in_channels"])
    _same(where, "use_post_quant_conv", v["use_post_quant_conv"], v["use_quant_conv"])
    _same(where, "down_block_types", v["down_block_types"], ("DownEncoderBlock2D",) * levels)
    _same(where, "up_block_types", v["up_block_types"], ("UpDecoderBlock2D",) * levels)
    config = _built(
        where,
        AutoencoderConfig,
        channels=v["in_channels"],
        latent_channels=v["latent_channels"],
        block_out=tuple(v["block_out_channels"]),
        layers=v["layers_per_block"],
        groups=v["norm_num_groups"],
        mid_attention=v["mid_block_add_attention"],
        quant_conv=v["use_quant_conv"],
    )
    scale = float(v["scaling_factor"])
    if not (math.isfinite(scale) and scale > 0):
        raise UserError(f"{where}: scaling_factor is {scale}; codes need one above 0")
    return config, scale


def text(values: Mapping[str, Any], where: str, tokenizer: Tokenizer, pair: bool) -> TextConfig:
    """The config of a CLIPTextModel, with or without projection; UserError as `unet`.

    `pair`: it is one of two, which hand on what their last block but one puts out.
    """
    others = {name: _ANY for name in values if name not in _TEXT | _TEXT_BUILT_IN}
    v = _known(values, _TEXT, _TEXT_BUILT_IN | others, where)  # theirs has many that do nothing
    if v["hidden_act"] not in ("quick_gelu", "gelu"):
        raise UserError(f"{where}: hidden_act {v['hidden_act']!r} is none of quick_gelu, gelu")
    mlp, rest = divmod(v["intermediate_size"], v["hidden_size"])
    if rest:
        raise UserError(f"{where}: intermediate_size is no multiple of hidden_size")
    if tokenizer.get_vocab_size() > v["vocab_size"]:
        raise UserError(
            f"{where}: vocab_size is {v['vocab_size']}, its tokenizer has "
            f"{tokenizer.get_vocab_size()} tokens; copy both again"
        )
    projected = any("Projection" in name for name in v["architectures"] or ())
    marks = words.marks(tokenizer)
    return _built(
        where,
        TextConfig,
        vocabulary=v["vocab_size"],
        width=v["hidden_size"],
        layers=v["num_hidden_layers"],
        heads=v["num_attention_heads"],
        length=v["max_position_embeddings"],
        activation=v["hidden_act"],
        mlp=mlp,
        projection=v["projection_dim"] if projected else 0,
        start_token=marks.start,
        end_token=marks.end,
        padding_token=marks.padding,
        masked=False,
        penultimate=pair,
    )


def schedule(values: Mapping[str, Any], where: str) -> tuple[Schedule, Prediction, bool]:
    """Noise levels, what is predicted, and whether it looks distilled; UserError as `unet`."""
    for name, neutral in _LEVELS_NEUTRAL.items():
        if values.get(name) not in (None, neutral):
            raise UserError(
                f"{where}: {name} is {values[name]}, which changes the noise levels; jaxgen knows "
                "nothing of it"
            )
    if values.get("_class_name") in _CLIPPING and values.get("clip_sample", True):
        raise UserError(
            f"{where}: clip_sample is True, also where it is absent: what is predicted would be "
            "cut off at 1; jaxgen cuts nothing, and published Stable Diffusion says false"
        )
    betas = values.get("beta_schedule", "linear")
    kind = values.get("prediction_type", "epsilon")
    for name, value, known in (
        ("beta_schedule", betas, BETAS),
        ("prediction_type", kind, PREDICTIONS),
        ("_class_name", values.get("_class_name"), SCHEDULERS),
    ):
        if not isinstance(value, str) or value not in known:
            raise UserError(f"{where}: {name} {value!r} is none of {', '.join(known)}")
    levels = Schedule(
        kind=BETAS[betas],  # pyright: ignore[reportArgumentType]
        timesteps=values.get("num_train_timesteps", 1000),
        zero_terminal_snr=bool(values.get("rescale_betas_zero_snr", False)),
        beta_start=values.get("beta_start", 0.0001),
        beta_end=values.get("beta_end", 0.02),
    )
    spaced = values.get("timestep_spacing") == "trailing"
    turbo = SCHEDULERS[values["_class_name"]] and spaced and not levels.zero_terminal_snr
    return levels, PREDICTIONS[kind], turbo


def _known(
    values: Mapping[str, Any], said: Mapping[str, Any], built_in: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """The fields that say something, filled up; UserError where another asks for what is not."""
    for name, value in values.items():
        if name in said or name.startswith("_") or built_in.get(name) is _ANY:
            continue
        ours = built_in.get(name)
        if value is not None and value is not False and value != ours:
            here = f"jaxgen's has {ours}" if name in built_in else "jaxgen knows nothing of it"
            raise UserError(f"{where}: {name} is {value}; {here}")
        if value is False and ours is True:
            raise UserError(f"{where}: {name} is False; jaxgen's has True")
    return {name: values.get(name, default) for name, default in said.items()}


def _blocks(attention: Sequence[bool], way: str) -> tuple[str, ...]:
    return tuple(f"{'CrossAttn' if attends else ''}{way}Block2D" for attends in attention)


def _per_level(value: Any, widths: Sequence[int], where: str) -> tuple[int, ...]:
    found = (value,) * len(widths) if isinstance(value, int) else tuple(value)
    if len(found) != len(widths) or not all(isinstance(n, int) for n in found):
        raise UserError(f"{where}: {value} is not one number a level, nor one for all")
    return found


def _one(value: Any, where: str, name: str) -> int:
    if isinstance(value, int):
        return value
    if len(set(value)) != 1:
        raise UserError(f"{where}: {name} {value} differs between levels; jaxgen has one for all")
    return value[0]


def _same(where: str, name: str, found: Any, needed: Any) -> None:
    if (tuple(found) if isinstance(found, list) else found) != needed:
        raise UserError(f"{where}: {name} is {found}; jaxgen's network has {needed}")


def _built(where: str, kind: Any, **fields: Any) -> Any:
    try:
        return kind(**fields)
    except (UserError, TypeError) as error:
        raise UserError(f"{where}: {error}") from None
