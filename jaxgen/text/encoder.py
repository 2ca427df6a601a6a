"""CLIP's text transformer at any size (Radford et al. 2021, arXiv 2103.00020, section 2.4).

Parameters are named as in `transformers.CLIPTextModelWithProjection`, up to `clip_names`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal, NamedTuple, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from jaxgen.errors import UserError
from jaxgen.models.attention import attend
from jaxgen.models.unet import DTYPES

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Shape of a text encoder."""

    vocabulary: int = 0
    """Number of token ids; 0: the tokenizer's."""
    width: int = 128
    """Channels of a token."""
    layers: int = 2
    """Transformer blocks."""
    heads: int = 4
    """Attention heads; they divide the width."""
    length: int = 16
    """Most tokens a caption has, start and end among them."""
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    """Of the MLP: x·sigmoid(1.702x), or the exact GELU."""
    mlp: int = 4
    """Hidden width of the MLP, in widths."""
    projection: int = 0
    """Channels of the pooled vector after a linear map; 0: no map."""
    start_token: int = 2
    """Id of the token that begins a caption."""
    end_token: int = 3
    """Id of the token that ends a caption: its output is the pooled vector."""
    padding_token: int = 0
    """Id of what fills a caption up behind its end."""
    masked: bool = True
    """Whether cross-attention sees a caption from start to end only; else its padding too."""
    penultimate: bool = False
    """Whether `TextFeatures.tokens` leave before the last block, as Stable Diffusion XL wants."""
    dtype: str = "float32"
    """Type of activations: float32 or bfloat16. Parameters, normalisations and what comes out stay
    float32."""

    def __post_init__(self) -> None:
        for name in ("width", "layers", "heads", "mlp"):
            if getattr(self, name) < 1:
                raise UserError(f"text encoder: {name} is {getattr(self, name)}, needs 1 or more")
        if self.length < 3:
            raise UserError(f"text length {self.length}: start, one word and end take 3 at least")
        if self.width % self.heads:
            raise UserError(f"text width {self.width} is no multiple of its {self.heads} heads")
        if self.dtype not in DTYPES:
            known = ", ".join(DTYPES)
            raise UserError(f"text encoder: dtype must be one of {known}, not {self.dtype!r}")


# Stable Diffusion's, which attends to all 77 tokens. 1.x pads with the end token, and so does XL's
# first encoder, which is this one with penultimate=True.
CLIP_L = TextConfig(
    vocabulary=49408,
    width=768,
    layers=12,
    heads=12,
    length=77,
    start_token=49406,
    end_token=49407,
    padding_token=49407,
    masked=False,
)
# Of 2.x, which leaves out its last block, the 24th.
OPENCLIP_H = dataclasses.replace(
    CLIP_L, width=1024, layers=23, heads=16, activation="gelu", padding_token=0
)
# XL's second.
OPENCLIP_BIGG = dataclasses.replace(
    OPENCLIP_H, width=1280, layers=32, heads=20, projection=1280, penultimate=True
)


class TextFeatures(NamedTuple):
    """What a text encoder says of captions."""

    tokens: Float[Array, "b length width"]
    """Output of the last block after the final norm; where the config says `penultimate`, of the
    last block but one, not normalised."""
    pooled: Float[Array, "b channels"]
    """The last block's output at the first end token, after the final norm, projected where the
    config has a projection."""
    mask: Bool[Array, "b length"] | None
    """What cross-attention sees: True from the start token to the end token. None, which is all of
    it, where the config is not `masked`."""


class TextEncoder(nn.Module):
    """Causal pre-norm transformer over token ids.

    The token table starts at zero and only the rows of words met in training ever leave it, so a
    word that was never met says nothing: any two of them are the same to the encoder. The other
    weights start with the variances of CLIP's code.
    """

    config: TextConfig

    @nn.compact
    def __call__(self, caption: Int[Array, "b length"]) -> TextFeatures:
        """Encodes captions of at most `config.length` tokens, each with an end token.

        Raises:
            UserError: captions longer than the encoder's positions, or a vocabulary of 0.
        """
        config = self.config
        length = caption.shape[1]
        if length > config.length:
            raise UserError(
                f"captions have {length} tokens, the text encoder has {config.length} positions"
            )
        if not config.vocabulary:
            raise UserError("text vocabulary is 0: set it to the tokenizer's size")
        tokens = nn.Embed(
            config.vocabulary,
            config.width,
            embedding_init=nn.initializers.zeros,
            name="embeddings_token_embedding",
        )(caption)
        positions = nn.Embed(
            config.length,
            config.width,
            embedding_init=nn.initializers.normal(0.01),
            name="embeddings_position_embedding",
        )(jnp.arange(length))
        x = before = (tokens + positions).astype(config.dtype)
        for number in range(config.layers):
            before = x
            x = _Block(config, name=f"encoder_layers_{number}")(x)
        x = _norm("final_layer_norm")(x)
        end = jnp.argmax(caption == config.end_token, axis=1)
        pooled = jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]
        if config.projection:
            pooled = _linear("text_projection", config.projection, 1 / config.width, bias=False)(
                pooled
            )
        mask = jnp.arange(length) <= end[:, None] if config.masked else None
        tokens = before.astype(jnp.float32) if config.penultimate else x
        return TextFeatures(tokens, pooled, mask)


def clip_names(state: Mapping[str, T]) -> dict[str, T]:
    """A CLIP text model's state dict under the names that `params_from_torch` asks for here.

    transformers 5 dropped the `text_model.` before each name, and older files store the position
    indices; both kinds are read.
    """
    return {
        name.removeprefix("text_model.")
        .replace("encoder.layers.", "encoder_layers.")
        .replace("embeddings.", "embeddings_"): value
        for name, value in state.items()
        if not name.endswith("position_ids")
    }


class _Block(nn.Module):
    config: TextConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b length width"]) -> Float[Array, "b length width"]:
        y = _norm("layer_norm1")(x).astype(x.dtype)
        x = x + _Attention(self.config, name="self_attn")(y)
        y = _norm("layer_norm2")(x).astype(x.dtype)
        return x + _MLP(self.config, name="mlp")(y)


class _Attention(nn.Module):
    config: TextConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b length width"]) -> Float[Array, "b length width"]:
        width, heads = self.config.width, self.config.heads
        q, k, v = (
            rearrange(self._linear(name, 1 / width)(x), "b length (h d) -> b length h d", h=heads)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        x = attend(q, k, v, causal=True)
        x = rearrange(x, "b length h d -> b length (h d)")
        return self._linear("out_proj", 0.5 / (width * self.config.layers))(x)

    def _linear(self, name: str, variance: float) -> nn.Dense:
        return _linear(name, self.config.width, variance, dtype=self.config.dtype)


class _MLP(nn.Module):
    config: TextConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b length width"]) -> Float[Array, "b length width"]:
        width, dtype = self.config.width, self.config.dtype
        x = _linear("fc1", self.config.mlp * width, 0.5 / width, dtype=dtype)(x)
        if self.config.activation == "quick_gelu":
            x = x * jax.nn.sigmoid(1.702 * x)
        else:
            x = jax.nn.gelu(x, approximate=False)
        return _linear("fc2", width, 0.5 / (width * self.config.layers), dtype=dtype)(x)


def _linear(
    name: str, features: int, variance: float, bias: bool = True, dtype: str = "float32"
) -> nn.Dense:
    init = nn.initializers.normal(variance**0.5)
    return nn.Dense(features, use_bias=bias, dtype=jnp.dtype(dtype), kernel_init=init, name=name)


def _norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, dtype=jnp.float32, name=name)
