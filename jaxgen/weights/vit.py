"""Published vision transformers, by the names their state dicts have, as our parameters."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.models.vit import ViT, VitConfig
from jaxgen.weights.stable_diffusion import params_from_torch

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
    (r"^embeddings\.cls_token$", "class_token"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patches."),
    (r"^embeddings\.position_embeddings$", "positions"),
    (r"^layernorm\.", "norm."),
    (r"^encoder\.layer\.(\d+)\.", r"block.\1."),
    (r"\.norm([12])\.", r".norm.\1."),
    (r"\.mlp\.fc([12])\.", r".fc.\1."),
    (r"\.layer_scale([12])\.lambda1$", r".scale_\1"),
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
    """Parameters of `ViT` from DINOv2 as transformers saves it.

    Raises `UserError` where tensors are missing, left over or of another shape than `config`'s.
    """
    used = {name: tensor for name, tensor in state.items() if not name.endswith("mask_token")}
    renamed = _renamed(used, _DINOV2)
    for name in {"class_token", "positions"} & renamed.keys():
        renamed[name] = np.squeeze(renamed[name])  # theirs have an axis for the batch
    return params_from_torch(renamed, _shapes(config))


def _renamed(state: Mapping[str, np.ndarray], patterns) -> dict[str, np.ndarray]:
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in patterns:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def _shapes(config: VitConfig) -> dict[str, Any]:
    image = jnp.zeros((1, config.size, config.size, 3))
    return jax.eval_shape(ViT(config).init, jax.random.key(0), image)["params"]
