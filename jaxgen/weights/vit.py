"""Published vision transformers, by the names their state dicts have, as our parameters."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.errors import UserError
from jaxgen.models.vit import DINOV2_VIT_S, ViT, VitConfig
from jaxgen.weights import files
from jaxgen.weights.stable_diffusion import params_from_torch

_SOURCE = (
    "facebook/dinov2-small and timm/vit_small_patch14_dinov2.lvd142m on the Hugging Face Hub have "
    "it as model.safetensors"
)
# Patterns of published names, and what `params_from_torch` asks for, applied in turn.
_CLIP = (
    (r"^vision_model\.", ""),
    (r"^embeddings\.class_embedding$", "class_token"),
    (r"^embeddings\.patch_embedding\.", "patches."),
    (r"^embeddings\.position_embedding\.weight$", "positions"),
    (r"^pre_layrnorm\.", "norm_first."),
    (r"^post_layernorm\.", "norm."),
    (r"^visual_projection\.", "projection."),
    (r"^encoder\.layers\.(\d+)\.", r"block.\1."),
    (r"\.layer_norm([12])\.", r".norm.\1."),
    (r"\.mlp\.fc([12])\.", r".fc.\1."),
    (r"\.self_attn\.q_proj\.", ".query."),
    (r"\.self_attn\.k_proj\.", ".key."),
    (r"\.self_attn\.v_proj\.", ".value."),
    (r"\.self_attn\.out_proj\.", ".out."),
)
_DINOV2 = (
    (r"^dinov2\.", ""),
    # transformers | its authors and timm.
    (r"^(?:embeddings\.)?cls_token$", "class_token"),
    (r"^(?:embeddings\.patch_embeddings\.projection|patch_embed\.proj)\.", "patches."),
    (r"^(?:embeddings\.position_embeddings|pos_embed)$", "positions"),
    (r"^layernorm\.", "norm."),
    (r"^(?:encoder\.layer|blocks)\.(\d+)\.", r"block.\1."),
    (r"\.norm([12])\.", r".norm.\1."),
    (r"\.mlp\.fc([12])\.", r".fc.\1."),
    (r"\.(?:layer_scale([12])\.lambda1|ls([12])\.gamma)$", r".scale_\1\2"),
    (r"\.attn\.proj\.", ".out."),
    # Published files hold the first name of each pair; transformers 5 writes the second.
    (r"\.attention\.(?:attention\.query|q_proj)\.", ".query."),
    (r"\.attention\.(?:attention\.key|k_proj)\.", ".key."),
    (r"\.attention\.(?:attention\.value|v_proj)\.", ".value."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".out."),
)


def clip_params(state: Mapping[str, np.ndarray], config: VitConfig) -> dict[str, Any]:
    """Parameters of `ViT` from CLIP as transformers saves it: the whole model or its image half.

    Raises `UserError` where tensors are missing, left over or of another shape than `config`'s.
    """
    image_half = {
        name: tensor
        for name, tensor in state.items()
        if name.startswith(("vision_model.", "visual_projection."))
        and not name.endswith("position_ids")
    }
    return params_from_torch(_renamed(image_half, _CLIP), _shapes(config))


def dinov2_params(state: Mapping[str, np.ndarray], config: VitConfig) -> dict[str, Any]:
    """Parameters of `ViT` from DINOv2 as transformers saves it, or as its authors and timm do.

    Raises `UserError` where tensors are missing, left over or of another shape than `config`'s.
    """
    used = {name: tensor for name, tensor in state.items() if not name.endswith("mask_token")}
    renamed = _renamed(_unfused(used), _DINOV2)
    for name in {"class_token", "positions"} & renamed.keys():
        renamed[name] = np.squeeze(renamed[name])  # theirs have an axis for the batch
    width = renamed.get("class_token", np.zeros(config.width)).shape
    if width != (config.width,):  # before a deeper network is refused for what it has left over
        raise UserError(
            f"weights do not fit this network: class_token is {width}, the network's is "
            f"{(config.width,)}"
        )
    return params_from_torch(renamed, _shapes(config))


def load_dinov2_vits14(file: str) -> dict[str, Any]:
    """Variables of `ViT(DINOV2_VIT_S)` (`{"params": …}`, NumPy float32) from a .safetensors file.

    Raises `UserError`, saying where there is one, for no file, another kind of file, and weights of
    another network.
    """
    try:
        if not file:
            raise UserError("DINOv2 ViT-S/14 does not come with jaxgen, give a file of its own")
        if Path(file).suffix in (".pth", ".pt", ".bin"):
            # Unlike Inception's, the published name holds no digits of the file's SHA-256.
            raise UserError(
                "a pickle is not opened, as it may run any program and its authors publish no "
                "checksum to know theirs by"
            )
        return {"params": dinov2_params(files.load(Path(file))[0], DINOV2_VIT_S)}
    except UserError as error:
        raise UserError(f"--judge.weights {file}: {error}; {_SOURCE}") from None


def _unfused(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Query, key and value apart, which DINOv2's authors and timm keep one below the other."""
    apart = {}
    for name, tensor in state.items():
        if ".attn.qkv." in name and len(tensor) % 3 == 0:
            for part, rows in zip(("query", "key", "value"), np.split(tensor, 3), strict=True):
                apart[name.replace(".attn.qkv.", f".{part}.")] = rows
        else:
            apart[name] = tensor
    return apart


def _renamed(state: Mapping[str, np.ndarray], patterns) -> dict[str, np.ndarray]:
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in patterns:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def _shapes(config: VitConfig) -> dict[str, Any]:
    def init() -> Any:  # traced: a plan is read before devices may be counted
        image = jnp.zeros((1, config.size, config.size, 3))
        return ViT(config).init(jax.random.key(0), image)

    return jax.eval_shape(init)["params"]
