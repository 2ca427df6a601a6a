"""Captions as word numbers: a word's id is its rank among the most frequent words.

A tokenizer is a `tokenizers.Tokenizer`: it saves as a `tokenizer.json` which other tools open.
Text is brought to NFKC and lower case; a word is a run of letters, digits and the marks on them,
and everything else only separates words: "l'homme" is two words, and so is "red-haired".
"""

import itertools
from collections.abc import Collection, Iterable, Sequence

import numpy as np
import wordfreq
from jaxtyping import Int32
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

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
    vocabulary = {name: number for number, name in enumerate(SPECIAL)}
    ranked = wordfreq.top_n_list("fr", french)
    vocabulary |= {word: number for number, word in enumerate(ranked, len(SPECIAL))}
    tokenizer = _word_level(vocabulary)
    for text in itertools.chain(ranked, wordfreq.top_n_list("en", english), words):
        for word in split(tokenizer, text):
            vocabulary.setdefault(word, len(vocabulary))
    return _word_level(vocabulary)


def extended(tokenizer: Tokenizer, captions: Sequence[str]) -> Tokenizer:
    """The tokenizer with the captions' unknown words added after its own, whose ids stay."""
    vocabulary = tokenizer.get_vocab()
    for text in captions:
        for word in unknown_words(tokenizer, text):
            vocabulary.setdefault(word, len(vocabulary))
    return _word_level(vocabulary)


def split(tokenizer: Tokenizer, text: str) -> list[str]:
    """The words of a text, normalised, in order, known or not."""
    normal = tokenizer.normalizer.normalize_str(text)
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal)]


def encode(
    tokenizer: Tokenizer, captions: Sequence[str], length: int
) -> Int32[np.ndarray, "n length"]:
    """Captions as rows of start, words, end, padding; what does not fit is cut before the end.

    Raises:
        UserError: `length` leaves no room for a word.
    """
    if length < 3:
        raise UserError(f"caption length {length}: start, one word and end take 3 at least")
    rows = np.full((len(captions), length), PADDING, np.int32)
    for row, encoding in zip(rows, tokenizer.encode_batch_fast(list(captions)), strict=True):
        ids = encoding.ids[:length]
        row[: len(ids)] = ids
        if len(ids) == length:
            row[-1] = END
    return rows


def unknown_words(tokenizer: Tokenizer, caption: str) -> list[str]:
    """The distinct words of a caption that have no number of their own, in order."""
    return _unknown(tokenizer, split(tokenizer, caption), None)


def has_met(tokenizer: Tokenizer, caption: str, seen: Collection[int]) -> bool:
    """Whether any word of the caption is among the ids `seen`, those met in training."""
    return any(tokenizer.token_to_id(word) in seen for word in split(tokenizer, caption))


def check_prompt(
    tokenizer: Tokenizer, prompt: str, length: int, seen: Collection[int] | None = None
) -> list[str]:
    """What the user should know of a prompt before it is drawn: no line, or one.

    The line names the words that are cut, for want of room, and among the rest those that are not
    in the vocabulary or, where `seen` holds the ids that the model met in training, not in `seen`.

    Raises:
        UserError: the prompt has no word, or is not valid Unicode.
    """
    if any("\ud800" <= character <= "\udfff" for character in prompt):
        raise UserError(f"prompt {_short(ascii(prompt))} is not valid UTF-8: type it again")
    words = split(tokenizer, prompt)
    if not words:
        raise UserError(f"prompt {_short(ascii(prompt))} has no words: say what to draw")
    room = length - 2
    kept, cut = words[:room], words[room:]
    notes = []
    if cut:
        notes.append(f"only the first {room} of {len(words)} words fit, cut: {_listed(cut)}")
    unknown = _unknown(tokenizer, kept, seen)
    if unknown:
        which = "none of its words is known" if len(unknown) == len(set(kept)) else "unknown"
        notes.append(f"{which} to the model: {_listed(unknown)}")
    return [f'prompt "{_short(" ".join(kept))}": {"; ".join(notes)}'] if notes else []


def _word_level(vocabulary: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL[UNKNOWN]))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_WORD), "removed", invert=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[START]} $A {SPECIAL[END]}",
        special_tokens=[(SPECIAL[START], START), (SPECIAL[END], END)],
    )
    return tokenizer


def _unknown(tokenizer: Tokenizer, words: list[str], seen: Collection[int] | None) -> list[str]:
    numbers = {word: tokenizer.token_to_id(word) for word in words}
    return [
        word
        for word, number in numbers.items()
        if number is None or (seen is not None and number not in seen)
    ]


def _listed(words: list[str]) -> str:
    words = list(dict.fromkeys(words))
    shown = ", ".join(_short(word) for word in words[:5])
    return f"{shown}, …" if len(words) > 5 else shown


def _short(text: str, limit: int = 30) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
