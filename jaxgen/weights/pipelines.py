"""Folders in the layout of diffusers: Stable Diffusion 1.x, 2.x, XL and their Turbos, in and out.

A folder holds one sub-folder a network, each with a config.json and safetensors, and a
model_index.json that says what is what. What its configs ask for that the networks here do not
have is refused, field by field; nothing is ignored that would change a picture.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from einops import rearrange
from tokenizers import Tokenizer

from jaxgen import storage
from jaxgen.diffusion import codec as codecs
from jaxgen.diffusion import denoiser
from jaxgen.diffusion.denoiser import SECOND, Denoiser
from jaxgen.errors import UserError
from jaxgen.models.autoencoder import AutoencoderConfig
from jaxgen.text import clip
from jaxgen.text import tokenizer as words
from jaxgen.text.encoder import clip_names
from jaxgen.weights import hub, layouts, mapped
from jaxgen.weights.stable_diffusion import params_from_torch

INDEX = "model_index.json"
# The last is how word-level tokenizers go out.
_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast", "PreTrainedTokenizerFast")
_CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "tokenizer": _TOKENIZERS,
    "tokenizer_2": _TOKENIZERS,
    "scheduler": tuple(layouts.SCHEDULERS),
}
_PIPELINES = {  # classes of model_index.json, and the networks that each has
    "StableDiffusionPipeline": ("unet", "vae", "text_encoder", "tokenizer", "scheduler"),
    "StableDiffusionXLPipeline": tuple(_CLASSES),
}


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """What a folder says of its networks; its weights are another matter."""

    model: Denoiser
    autoencoder: AutoencoderConfig
    scale: float
    """By which codes are multiplied before they are noised."""
    size: int
    """Side of the images that it was trained for, in pixels."""
    turbo: bool
    """Whether it was distilled to few unguided steps, as far as its scheduler tells."""


def is_pipeline(folder: Path) -> bool:
    """Whether the folder is in this layout."""
    return (folder / INDEX).is_file()


def load(folder: str | Path) -> tuple[Pipeline, Tokenizer, denoiser.Weights]:
    """A folder's networks, its tokenizer, and its weights as jaxgen has them.

    The weights are views of the memory-mapped files, in the types that are stored: nothing is read
    before it is placed on a device or looked at, so that loading needs the host's memory for no
    more than the tensors under way. {"text": …, "denoiser": …, "codec": …}.

    Raises UserError where something is missing, damaged, or asks for what jaxgen does not have.
    """
    folder = hub.located(str(folder))
    if storage.is_remote(folder):
        raise UserError(f"{folder}: published weights are mapped into memory; copy them here first")
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder of published weights{hub.hint(folder)}")
    pipeline, tokenizer = describe(folder)
    model = pipeline.model
    shapes = jax.eval_shape(functools.partial(denoiser.init, model, 8), jax.random.key(0))
    codec = jax.eval_shape(functools.partial(codecs.init, pipeline.autoencoder), jax.random.key(0))
    codec = {name: tree for name, tree in codec.items() if name != "scale"}
    second = shapes["text"].pop(SECOND, None)

    def read(name: str, target: Any, renamed: Callable[[Any], Any] = dict) -> dict[str, Any]:
        state = renamed(mapped.network(folder / name))
        try:
            return params_from_torch(state, target, cast=False)
        except UserError as error:
            raise UserError(f"{folder / name}: {error}") from None

    text = read("text_encoder", shapes["text"], clip_names)
    if second is not None:
        text[SECOND] = read("text_encoder_2", second, clip_names)
    found = read("vae", codec, _new_names)
    found["scale"] = np.float32(pipeline.scale)
    unet = read("unet", shapes["denoiser"])
    return pipeline, tokenizer, {"text": text, "denoiser": unet, "codec": found}


def describe(folder: Path) -> tuple[Pipeline, Tokenizer]:
    """What the folder's configs say, and its tokenizer, without its weights; errors as `load`."""
    try:
        return _described(folder)
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
        raise UserError(
            f"{folder}: a config.json there has a value of no use ({error}); copy it again"
        ) from None


def _described(folder: Path) -> tuple[Pipeline, Tokenizer]:
    index = _index(folder)
    tokenizers = [folder / "tokenizer"]
    config: dict[str, Any] = {
        name: _json(folder / name / "config.json") for name in ("unet", "vae")
    }
    unet = layouts.unet(config["unet"], str(folder / "unet"))
    autoencoder, scale = layouts.autoencoder(config["vae"], str(folder / "vae"))
    names = ["text_encoder"]
    if "text_encoder_2" in _PIPELINES[index["_class_name"]]:
        names.append("text_encoder_2")
        tokenizers.append(folder / "tokenizer_2")
    read = [clip.read(path) for path in tokenizers]
    texts = [
        layouts.text(
            _json(folder / name / "config.json"), str(folder / name), tokenizer, len(names) > 1
        )
        for name, tokenizer in zip(names, read, strict=True)
    ]
    if len(texts) > 1 and not _differ_in_padding(*read):
        raise UserError(
            f"{folder}: its two tokenizers differ in more than their padding; copy both again"
        )
    schedule, prediction, turbo = layouts.schedule(
        _json(folder / "scheduler" / "scheduler_config.json"), str(folder / "scheduler")
    )
    side = config["unet"].get("sample_size")
    side = 64 if side is None else side
    if not isinstance(side, int) or isinstance(side, bool):
        raise UserError(f"{folder / 'unet'}: sample_size is {side}; only square images are drawn")
    if side < 1:
        raise UserError(f"{folder / 'unet'}: sample_size is {side}; codes have a side of 1 or more")
    size = side * autoencoder.factor
    model = Denoiser(
        text=texts[0],
        text_2=texts[1] if len(texts) > 1 else None,
        time_ids=(size, size, 0, 0, size, size) if unet.added_width else (),
        zero_empty=bool(index.get("force_zeros_for_empty_prompt", False)),
        unet=unet,
        schedule=schedule,
        prediction=prediction,
    )
    try:
        model.check(side)
    except UserError as error:
        raise UserError(f"{folder}: its networks do not fit each other: {error}") from None
    return Pipeline(model, autoencoder, scale, size, turbo), read[0]


def _differ_in_padding(first: Tokenizer, second: Tokenizer) -> bool:
    """Whether the second is the first but for what pads, as `words.padded` makes it.

    How marks such as <|endoftext|> are spelt in captions may differ: nobody asks for them.
    """
    ours, theirs = (
        json.loads(each.to_str())
        for each in (words.padded(first, words.marks(second).padding), second)
    )
    for found in (ours, theirs):
        found["padding"] = None
        found["added_tokens"] = {token["id"]: token["content"] for token in found["added_tokens"]}
    return ours == theirs


def files_of(folder: Path) -> list[Path]:
    """Every file that `load` reads, in order."""
    found = [folder / INDEX]
    for part in _PIPELINES[_index(folder)["_class_name"]]:
        found += sorted(
            file for file in (folder / part).iterdir() if file.suffix in (".json", ".txt")
        )
        if part.startswith(("unet", "vae", "text")):
            found += mapped.files_of(folder / part)
    return found


def _index(folder: Path) -> dict[str, Any]:
    """What model_index.json says, checked."""
    index = _json(folder / INDEX)
    kind = index.get("_class_name")
    if not isinstance(kind, str) or kind not in _PIPELINES:
        raise UserError(f"{folder / INDEX} is of a {kind}; jaxgen opens {' and '.join(_PIPELINES)}")
    for name in _PIPELINES[kind]:
        entry = index.get(name)
        found = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
        if found is None or not (folder / name).is_dir():
            raise UserError(f"{folder} has no {name}: copy the whole {kind} there")
        if found not in _CLASSES[name]:
            raise UserError(
                f"{folder / INDEX}: {name} is a {found}; jaxgen has {' or '.join(_CLASSES[name])}"
            )
    return index


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; copy the whole folder there") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); copy it again") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no object of fields; copy it again")
    return found


_OLD_VAE = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def _new_names(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """An autoencoder's tensors; old files name attention otherwise, by 1x1 convolutions even."""
    found = {}
    for name, tensor in state.items():
        if ".attentions." in name:
            for old, new in _OLD_VAE.items():
                name = name.replace(f".{old}.", f".{new}.")
            if tensor.shape[2:] == (1, 1):
                tensor = rearrange(tensor, "o i 1 1 -> o i")
        found[name] = tensor
    return found
