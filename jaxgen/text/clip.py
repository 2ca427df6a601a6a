"""CLIP's byte-pair tokenizer, in and out of the `tokenizer/` folders of Stable Diffusion.

Radford et al. 2021 (CLIP), section 2.4: pairs of bytes (Sennrich et al. 2016, arXiv 1508.07909),
merged within words whose last piece ends in "</w>". The ids are those of CLIPTokenizer in
`transformers` 5, which is CLIPTokenizerFast of 4. The slow one that 4 had beside it reads plain
captions the same and odd ones not: with `ftfy` it first mends curly quotes and ligatures, without
it parts Chinese characters and drops control characters and the joiners of emoji.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from jaxgen.errors import UserError
from jaxgen.text.tokenizer import marks

_PIECE = r"<\|startoftext\|>|<\|endoftext\|>|'(?:[stmd]|re|ve|ll)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
_WHOLE, _VOCABULARY, _MERGES = "tokenizer.json", "vocab.json", "merges.txt"
_CONFIG, _MAP, _ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
_BEGIN, _END, _UNKNOWN, _PADDING = _ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")
_USUAL = dict.fromkeys(_ROLES, "<|endoftext|>") | {_BEGIN: "<|startoftext|>"}
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_REMEDY = "copy the model's tokenizer folder again"


def read(folder: Path) -> Tokenizer:
    """The tokenizer in a folder written by `diffusers`, `transformers` or `save`.

    It carries the padding that the folder asks for, up to the length that it names: Stable
    Diffusion 1.x pads with the end token, 2.x with "!", whose every mark in a caption then is this
    token too. A word-level tokenizer is what `tokenizer.json` says.

    Raises:
        UserError: a file is missing or broken, or a special token is not in the vocabulary.
    """
    try:
        whole, config = _object(folder / _WHOLE), _object(folder / _CONFIG)
        if whole and whole["model"].get("type") == "WordLevel":
            # transformers saves the length that it last cut to, and marks to be found in captions.
            return Tokenizer.from_str(json.dumps(whole | {"truncation": None, "added_tokens": []}))
        tokens, others, length = _described(folder, whole, config)
        tokenizer = _byte_pair(*_pairs(folder, whole), tokens[_UNKNOWN].content)
        _add(tokenizer, tokens, others)
    except UserError as error:
        raise UserError(f"{folder}: {error}; {_REMEDY}") from None
    except Exception as error:  # tokenizers raises no narrower kind
        raise UserError(
            f"{folder} holds no readable tokenizer ({type(error).__name__}: {error}); {_REMEDY}"
        ) from error
    vocabulary = tokenizer.get_vocab()
    begin, end, padding = (
        (tokens[role].content, vocabulary[tokens[role].content])
        for role in (_BEGIN, _END, _PADDING)
    )
    tokenizer.post_processor = processors.RobertaProcessing(
        end, begin, trim_offsets=False, add_prefix_space=False
    )
    tokenizer.enable_padding(pad_token=padding[0], pad_id=padding[1], length=length)
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path, length: int) -> None:
    """Writes a folder from which `transformers` reads the tokenizer: same ids, same padding.

    Byte pairs are for CLIPTokenizer: `vocab.json` and `merges.txt`. Words are for
    PreTrainedTokenizerFast, which is the class to name in `model_index.json`: `tokenizer.json`.

    Args:
        tokenizer: of either kind.
        folder: made where it is not there.
        length: tokens of a caption, to which `diffusers` cuts and pads.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ids = marks(tokenizer)
    tokens = {
        _BEGIN: tokenizer.id_to_token(ids.start),
        _END: tokenizer.id_to_token(ids.end),
        _UNKNOWN: tokenizer.model.unk_token,  # pyright: ignore[reportAttributeAccessIssue]
        _PADDING: tokenizer.id_to_token(ids.padding),
    }
    if isinstance(tokenizer.model, models.BPE):
        tokenizer.model.save(str(folder))
        added = tokenizer.get_added_tokens_decoder().items()
        config = {
            "tokenizer_class": "CLIPTokenizer",
            "added_tokens_decoder": {str(number): _flags(token) for number, token in added},
        }
    else:
        tokenizer.save(str(folder / _WHOLE))
        # "<end>" in a caption is the word "end", and not the token.
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "split_special_tokens": True}
    _write(folder / _MAP, tokens)
    _write(folder / _CONFIG, config | tokens | {"model_max_length": length})


def _described(
    folder: Path, whole: dict[str, Any], config: dict[str, Any]
) -> tuple[dict[str, AddedToken], dict[int, AddedToken], int | None]:
    """The tokens by role, the added ones by id, and the length to pad to."""
    named, padding = dict(_USUAL), whole.get("padding")
    processor = whole.get("post_processor") or {}
    if "cls" in processor:
        named |= {_BEGIN: processor["cls"][0], _END: processor["sep"][0]}
    if padding:
        named[_PADDING] = padding["pad_token"]
    # transformers reads no other file for the special tokens where the config has this.
    if "added_tokens_decoder" not in config:
        config = config | _object(folder / _MAP)
    tokens = {role: _token(config.get(role) or named[role]) for role in _ROLES}
    added = config.get("added_tokens_decoder")
    if added is None:
        special = {token.content for token in tokens.values()}
        added = {
            number: {"content": text, "special": text in special, "normalized": text not in special}
            for text, number in _object(folder / _ADDED).items()
        } | {token["id"]: token for token in whole.get("added_tokens", ())}
    length = config.get("model_max_length")
    if length is None and padding and isinstance(padding["strategy"], dict):
        length = padding["strategy"]["Fixed"]
    others = {int(number): _token(token) for number, token in added.items()}
    # transformers writes 1e30 for "no limit".
    return tokens, others, length if length and length < 2**20 else None


def _pairs(folder: Path, whole: dict[str, Any]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    if whole:
        model = whole["model"]
        if model.get("type", "BPE") != "BPE" or model.get("end_of_word_suffix") != "</w>":
            raise UserError(f"{_WHOLE} is not CLIP's kind of tokenizer")
        merges = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
        return model["vocab"], [(first, second) for first, second in merges]
    for name in (_VOCABULARY, _MERGES):
        if not (folder / name).is_file():
            raise UserError(f"there is neither {_WHOLE} nor {name}")
    return models.BPE.read_file(str(folder / _VOCABULARY), str(folder / _MERGES))


def _byte_pair(
    vocabulary: dict[str, int], merges: list[tuple[str, str]], unknown: str
) -> Tokenizer:
    tokenizer = Tokenizer(
        models.BPE(
            vocabulary,
            merges,
            unk_token=unknown,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECE), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _add(
    tokenizer: Tokenizer, tokens: dict[str, AddedToken], others: dict[int, AddedToken]
) -> None:
    """Lets each added token stand for itself in a caption, in the order of `transformers`.

    Of two with the same text the later one's flags hold.
    """
    tokenizer.add_tokens([others[number] for number in sorted(others)])
    for number, token in others.items():
        if (found := tokenizer.token_to_id(token.content)) != number:
            raise UserError(f"added token {token.content!r} is to be id {number}, comes as {found}")
    for role, token in tokens.items():
        if tokenizer.token_to_id(token.content) is None:
            raise UserError(f"{role} {token.content!r} is not in the vocabulary")
    there = {token.content for token in others.values()}
    tokenizer.add_tokens([token for token in tokens.values() if token.content not in there])


def _token(value: str | dict[str, Any]) -> AddedToken:
    if isinstance(value, str):
        return AddedToken(value, special=True, normalized=False)
    flags = {"special": True, "normalized": False} | value
    return AddedToken(value["content"], **{flag: flags.get(flag, False) for flag in _FLAGS})


def _flags(token: AddedToken) -> dict[str, Any]:
    return {"content": token.content} | {flag: getattr(token, flag) for flag in _FLAGS}


def _object(file: Path) -> dict[str, Any]:
    """The object in a JSON file, an empty one where there is no file."""
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file.name} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{file.name} holds no JSON object")
    return value


def _write(file: Path, value: dict[str, Any]) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False)
    file.write_text(f"{text}\n", encoding="utf-8")
