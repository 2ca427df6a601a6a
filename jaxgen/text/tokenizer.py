"""Captions as token ids, by words or by byte pairs.

A tokenizer is a `tokenizers.Tokenizer`: it saves as a `tokenizer.json` which other tools open. What
stands here works on either kind: the one of whole words, which `build` makes, and CLIP's of byte
pairs (`jaxgen.text.clip`), which spells what it does not know and so has no unknown words.

Of whole words: a word's id is its rank among the most frequent words. Text is brought to NFKC and
lower case; a word is a run of letters, digits and the marks on them, and everything else only
separates words: "l'homme" is two words, and so is "red-haired".
"""

import functools
import itertools
import types
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import wordfreq
from jaxtyping import Int32
from tokenizers import (
    AddedToken,
    Encoding,
    Regex,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from jaxgen.errors import UserError

PADDING, UNKNOWN, START, END = range(4)
SPECIAL = ("<padding>", "<unknown>", "<start>", "<end>")

# Variation selectors are marks too, but they follow emoji: "1\ufe0f" is the word "1".
_WORD = r"[\p{L}\p{N}][\p{L}\p{N}\p{M}&&[^\x{FE00}-\x{FE0F}\x{20E3}]]*"


def build(words: Iterable[str] = (), french: int = 50_000, english: int = 20_000) -> Tokenizer:
    """Word-level tokenizer over French, then English, then the data set's own words.

    The French word of rank r (from 0, `wordfreq`'s order) has id 4 + r, without exception. Of
    50 000 words about 200 are no single word of text: "aujourd'hui" reads as "aujourd", "hui", and
    "♥" as nothing. These keep their number, which no text is ever given, and their parts are
    numbered as words of their own after the French ones. English words that are not there yet
    follow by frequency, then `words` (any text: a caption is as good as a word) in order.

    The ids 0 to 3 are padding, unknown, start and end; text that looks like one of these
    ("<end>") is read as plain words.
    """
    vocabulary = dict(_frequent(french, english))
    tokenizer = _word_level(vocabulary)
    for text in words:
        for word in split(tokenizer, text):
            vocabulary.setdefault(word, len(vocabulary))
    return _word_level(vocabulary)


class Marks(NamedTuple):
    """Ids of the tokens that are no part of a text."""

    start: int
    end: int
    padding: int


def marks(tokenizer: Tokenizer) -> Marks:
    """The ids that `encode` puts around a caption."""
    start, end = tokenizer.encode("").ids[:2]
    padding = tokenizer.padding
    return Marks(start, end, padding["pad_id"] if padding else PADDING)


def extended(tokenizer: Tokenizer, captions: Sequence[str]) -> Tokenizer:
    """The tokenizer with the captions' unknown words added after its own, whose ids stay.

    It is returned as it is where no word is unknown.
    """
    unknown = [word for text in captions for word in unknown_words(tokenizer, text)]
    if not unknown:
        return tokenizer
    vocabulary = tokenizer.get_vocab()
    for word in unknown:
        vocabulary.setdefault(word, len(vocabulary))
    return _word_level(vocabulary)


def padded(tokenizer: Tokenizer, padding: int) -> Tokenizer:
    """The same tokenizer with the token of id `padding` for padding.

    Of byte pairs every mark of it in a caption then is this token too, as in `transformers`: where
    that is "!", a caption's ids are other ones, and may be more.
    """
    other = Tokenizer.from_str(tokenizer.to_str())
    token = tokenizer.id_to_token(padding)
    length = (tokenizer.padding or {}).get("length")
    other.enable_padding(pad_id=padding, pad_token=token, length=length)
    if isinstance(tokenizer.model, models.BPE):
        other.add_tokens([AddedToken(token, special=True, normalized=False)])
    return other


def split(tokenizer: Tokenizer, text: str) -> list[str]:
    """The words of a text, normalised, in order, known or not.

    Of byte pairs the pieces that are merged apart: punctuation and each digit are words too.
    """
    return [word for word, _ in _pieces(tokenizer, text)]


def encode(
    tokenizer: Tokenizer, captions: Sequence[str], length: int
) -> Int32[np.ndarray, "n length"]:
    """Captions as rows of start, tokens, end, padding; what does not fit is cut before the end.

    Raises:
        UserError: `length` leaves no room for a word.
    """
    if length < 3:
        raise UserError(f"caption length {length}: start, one word and end take 3 at least")
    _, end, padding = marks(tokenizer)
    rows = np.full((len(captions), length), padding, np.int32)
    for row, encoding in zip(rows, tokenizer.encode_batch_fast(list(captions)), strict=True):
        ids = encoding.ids[: min(length, _count(encoding))]
        row[: len(ids)] = ids
        if len(ids) == length:
            row[-1] = end
    return rows


def unknown_words(tokenizer: Tokenizer, caption: str) -> list[str]:
    """The distinct words of a caption that have no number of their own, in order."""
    return _unknown(tokenizer, _words(tokenizer, caption), None)


def has_met(tokenizer: Tokenizer, caption: str, seen: Collection[int]) -> bool:
    """Whether any word of the caption, or piece of one, is among the ids met in training."""
    unknown = _unknown_id(tokenizer)
    ids = (number for _, ids in _words(tokenizer, caption) for number in ids)
    return any(number in seen for number in ids if number != unknown)


def check_prompt(
    tokenizer: Tokenizer, prompt: str, length: int, seen: Collection[int] | None = None
) -> list[str]:
    """What the user should know of a prompt before it is drawn: no line, or one.

    The line names what is cut, for want of room, and among the rest the words that are not in the
    vocabulary or, where `seen` holds the ids that the model met in training, not in `seen`.

    Raises:
        UserError: the prompt has no word, or is not valid Unicode.
    """
    if any("\ud800" <= character <= "\udfff" for character in prompt):
        raise UserError(f"prompt {_short(ascii(prompt))} is not valid UTF-8: type it again")
    words = _words(tokenizer, prompt)
    if not words:
        raise UserError(f"prompt {_short(ascii(prompt))} has no words: say what to draw")
    encoding = tokenizer.encode(prompt, add_special_tokens=False)
    count, room = _count(encoding), length - 2
    kept, notes = words, []
    if count > room and count == len(words):
        kept, cut = words[:room], _listed([word for word, _ in words[room:]])
        notes.append(f"only the first {room} of {count} words fit, cut: {cut}")
    elif count > room:
        start, _ = encoding.offsets[room]
        kept, cut = _words(tokenizer, prompt[:start]), " ".join(prompt[start:].split())
        notes.append(f'only the first {room} of {count} tokens fit, cut: "{_short(cut, 60)}"')
    unknown = _unknown(tokenizer, kept, seen)
    if unknown:
        every = len(unknown) == len(dict(kept))
        which = "none of its words is known" if every else "unknown"
        alike = _alike(tokenizer, unknown, seen)
        notes.append(f"{which} to the model: {_listed(unknown)}" + (alike and f" ({alike})"))
    said = _short(" ".join(word for word, _ in kept))
    return [f'prompt "{said}": {"; ".join(notes)}'] if notes else []


@functools.cache
def _frequent(french: int, english: int) -> Mapping[str, int]:
    """The vocabulary before any data; every run of a plan begins with the same."""
    vocabulary = {name: number for number, name in enumerate(SPECIAL)}
    ranked = wordfreq.top_n_list("fr", french)
    vocabulary |= {word: number for number, word in enumerate(ranked, len(SPECIAL))}
    tokenizer = _word_level(vocabulary)
    for text in itertools.chain(ranked, wordfreq.top_n_list("en", english)):
        for word in split(tokenizer, text):
            vocabulary.setdefault(word, len(vocabulary))
    return types.MappingProxyType(vocabulary)


def _word_level(vocabulary: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL[UNKNOWN]))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_WORD), "removed", invert=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[START]} $A {SPECIAL[END]}",
        special_tokens=[(SPECIAL[START], START), (SPECIAL[END], END)],
    )
    return tokenizer


def _words(tokenizer: Tokenizer, text: str) -> list[tuple[str, list[int]]]:
    """The words of a text, normalised, each with its ids."""
    return [
        (word, [token.id for token in tokenizer.model.tokenize(piece)])
        for word, piece in _pieces(tokenizer, text)
    ]


def _pieces(tokenizer: Tokenizer, text: str) -> list[tuple[str, str]]:
    """The words of a text, normalised, each with what stands for it in the vocabulary."""
    normal = tokenizer.normalizer.normalize_str(text)
    # Byte pairs come as stand-ins for bytes, so that the word is read from the text.
    pieces = tokenizer.pre_tokenizer.pre_tokenize_str(normal)
    return [(normal[start:end], piece) for piece, (start, end) in pieces]


def _count(encoding: Encoding) -> int:
    """How many of the ids are no padding."""
    return sum(encoding.attention_mask)


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    """What stands for every unknown word; None where words are spelt by byte pairs."""
    return UNKNOWN if isinstance(tokenizer.model, models.WordLevel) else None


def _unknown(
    tokenizer: Tokenizer, words: list[tuple[str, list[int]]], seen: Collection[int] | None
) -> list[str]:
    unknown = _unknown_id(tokenizer)
    return [
        word
        for word, ids in dict(words).items()
        if unknown in ids or (seen is not None and any(number not in seen for number in ids))
    ]


def _alike(tokenizer: Tokenizer, unknown: list[str], seen: Collection[int] | None) -> str:
    """Known words that are unknown ones but for accents and ligatures, as in coeur and cœur."""
    if not isinstance(tokenizer.model, models.WordLevel):
        return ""
    known = tokenizer.get_vocab().items()
    spelt = {_plain(word): word for word, number in known if seen is None or number in seen}
    found = [spelt[plain] for plain in map(_plain, unknown) if plain in spelt]
    return f"it knows {_listed(found)}" if found else ""


def _plain(word: str) -> str:
    parts = unicodedata.normalize("NFKD", word.replace("œ", "oe").replace("æ", "ae"))
    return "".join(part for part in parts if not unicodedata.combining(part))


def _listed(words: list[str]) -> str:
    words = list(dict.fromkeys(words))
    shown = ", ".join(_short(word) for word in words[:5])
    return f"{shown}, …" if len(words) > 5 else shown


def _short(text: str, limit: int = 30) -> str:
    text = "".join(character for character in text if character.isprintable())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
