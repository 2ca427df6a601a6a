"""CLIP's tokenizer against `transformers`, on a small vocabulary learnt here."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wordfreq
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizerFast, PreTrainedTokenizerFast

from jaxgen.errors import UserError
from jaxgen.text import clip
from jaxgen.text import tokenizer as words

START, END = "<|startoftext|>", "<|endoftext|>"
TOKENS = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
PIECES = (
    *(
        "a photo of the cat",
        "un éléphant",
        "e\u0301le\u0301phant",
        "Œuf",
        "ﬁn",
        "İstanbul",
        "ẖ H\u0331",
    ),
    *(
        "l'homme",
        "l’homme",
        "I'd've",
        "it'S",
        "'ll",
        "“quoted”",
        "don''t",
        "2024",
        "8k",
        "½",
        "３",
        "³",
    ),
    *(
        "🐈‍⬛",
        "❤️",
        "👩🏽‍🚀",
        "🇫🇷",
        "1️⃣",
        "你好，世界",
        "東京タワー",
        "한국어",
        "हिन्दी",
        "العربية",
        "ﷺ",
    ),
    *("!", "!!!", "wow!", "?!?", "...", "a,b;c", "</w>", "masterpiece, best quality, (8k:1.2)"),
    *(
        START,
        END,
        "<|ENDOFTEXT|>",
        "x<|endoftext|>y",
        "<|pad|>",
        "Ã©",
        "\ufffd",
        "\ufeff",
        "z" * 300,
    ),
    *(
        "\x00",
        "\x01\x1b[31m",
        "\x7f",
        "\u200b",
        "\u200d",
        "\u202e",
        "\U0010ffff",
        "\ue000",
        "\u0301",
    ),
)
GAPS = (" ", " ", " ", "", "  ", "\t", "\r\n", "\n", "\u00a0", "\u2003", "\u3000", "\u2028", "\x85")


def flagged(text: str, **flags: Any) -> dict[str, Any]:
    """An added token as the files hold it."""
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False} | flags
    return {"content": text} | flags


def captions(count: int) -> list[str]:
    """Odd texts, long ones among them, from a fixed seed."""
    rng = np.random.default_rng(0)
    common = wordfreq.top_n_list("en", 2000) + wordfreq.top_n_list("fr", 1000)

    def some() -> str:
        ranges = [(0x20, 0x7F), (0xA0, 0x250), (0x300, 0x370), (0x2000, 0x3100), (0x1F000, 0x1FA00)]
        low, high = ranges[rng.integers(len(ranges))]
        return "".join(chr(c) for c in rng.integers(low, high, rng.integers(1, 8)))

    return [
        "".join(
            (common[rng.integers(3000)], PIECES[rng.integers(len(PIECES))], some())[rng.integers(3)]
            + GAPS[rng.integers(len(GAPS))]
            for _ in range(rng.integers(1, 60) if n % 10 == 0 else rng.integers(0, 12))
        )
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def learnt() -> tuple[dict[str, int], list[str]]:
    """Vocabulary and merges in the order of CLIP's: bytes, last bytes, merged ones, marks."""
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    corpus = wordfreq.top_n_list("en", 2000) + wordfreq.top_n_list("fr", 1000)
    learner.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=900, end_of_word_suffix="</w>", show_progress=False)
    )
    merges = [" ".join(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    assert letters[0] == "!"
    names = [*letters, *(f"{c}</w>" for c in letters), *(m.replace(" ", "") for m in merges)]
    names += [START, END]
    return {name: number for number, name in enumerate(dict.fromkeys(names))}, merges


def write(folder: Path, learnt: tuple[dict[str, int], list[str]], **files: Any) -> Path:
    vocabulary, merges = learnt
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    lines = "\n".join(["#version: 0.2", *merges, ""])
    (folder / "merges.txt").write_text(lines, encoding="utf-8")
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def folders(learnt, tmp_path_factory) -> dict[str, Path]:
    """As they were published."""
    root, last = tmp_path_factory.mktemp("tokenizers"), len(learnt[0]) - 1
    dictionaries = {role: flagged(text, __type="AddedToken") for role, text in TOKENS.items()} | {
        "pad_token": END
    }
    bare = {role: flagged(text) for role, text in TOKENS.items()} | {"pad_token": END}
    decoder = {
        "0": flagged("!", normalized=False, special=True),
        str(last - 1): flagged(START, special=False),
        str(last): flagged(END, normalized=False, special=False),
    }
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    sd2 = {
        "tokenizer_config": config | dictionaries,
        "special_tokens_map": bare | {"pad_token": "!"},
    }
    found = {
        "files only": write(root / "files", learnt),
        "Stable Diffusion 1": write(
            root / "sd1", learnt, tokenizer_config=config | dictionaries, special_tokens_map=bare
        ),
        "Stable Diffusion 2": write(root / "sd2", learnt, **sd2),
        "XL, second": write(
            root / "xl",
            learnt,
            tokenizer_config=config
            | TOKENS
            | {"pad_token": "!", "added_tokens_decoder": decoder, "additional_special_tokens": []},
            special_tokens_map=TOKENS | {"pad_token": "!"},
            added_tokens={"!": 0, START: last - 1, END: last},
        ),
        "normalized marks": write(
            root / "normalized",
            learnt,
            special_tokens_map={role: flagged(text) for role, text in TOKENS.items()},
            added_tokens={"<Cat-Toy>": last + 1, "photo of": last + 2},
        ),
        "tokenizer.json": root / "json",
        "tokenizer.json and marks": root / "json_marks",
    }
    CLIPTokenizerFast.from_pretrained(root / "sd2").save_pretrained(root / "json")
    CLIPTokenizerFast.from_pretrained(root / "normalized").save_pretrained(root / "json_marks")
    assert not (root / "json" / "vocab.json").exists()
    return found


KINDS = (
    *("files only", "Stable Diffusion 1", "Stable Diffusion 2", "XL, second", "normalized marks"),
    *("tokenizer.json", "tokenizer.json and marks"),
)
TEXTS = captions(1000)


@pytest.fixture(scope="module")
def sd2(folders) -> Tokenizer:
    return clip.read(folders["Stable Diffusion 2"])


@pytest.fixture(scope="module")
def theirs(folders) -> Any:
    return CLIPTokenizerFast.from_pretrained(folders["Stable Diffusion 2"])


def rows_of(theirs: Any, texts: list[str]) -> np.ndarray:
    return np.array(
        theirs(texts, padding="max_length", truncation=True, max_length=77)["input_ids"]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_captions_are_those_of_transformers(folders, kind):
    ours, theirs = clip.read(folders[kind]), CLIPTokenizerFast.from_pretrained(folders[kind])
    assert ours.get_vocab_size() == len(theirs)
    rows = words.encode(ours, TEXTS, 77)
    np.testing.assert_array_equal(rows, rows_of(theirs, TEXTS))
    # Some fill their length and many do not; the merged tokens are used, not the bytes alone.
    full = (rows[:, -2] != words.marks(ours).padding).mean()
    assert 0.05 < full < 0.5
    assert len(np.unique(rows)) > 800


@given(text=st.text(), length=st.integers(3, 90))
def test_any_text_is_as_transformers_reads_it(sd2, theirs, text, length):
    row = theirs(text, padding="max_length", truncation=True, max_length=length)["input_ids"]
    assert words.encode(sd2, [text], length)[0].tolist() == row


def test_a_mark_that_pads_is_read_as_the_second_tokenizer_of_xl_reads_it(folders):
    """Of the first's words; where padding is the end token, nothing changes."""
    first = clip.read(folders["Stable Diffusion 1"])
    theirs = CLIPTokenizerFast.from_pretrained(folders["XL, second"])
    second = words.padded(first, 0)
    texts = ["a red heart!", "wow!! yes!", "!", *TEXTS]
    rows = words.encode(second, texts, 77)
    np.testing.assert_array_equal(rows, rows_of(theirs, texts))
    assert rows[0].tolist().index(0) < rows[0].tolist().index(words.marks(first).end)
    same = words.padded(first, words.marks(first).padding)
    assert same.to_str() == first.to_str()


def test_padding_is_as_the_files_say(folders):
    found = {kind: clip.read(folder) for kind, folder in folders.items()}
    padding = {
        kind: tokenizer.id_to_token(words.marks(tokenizer).padding)
        for kind, tokenizer in found.items()
    }
    assert padding == {
        "files only": END,
        "Stable Diffusion 1": END,
        "Stable Diffusion 2": "!",
        "XL, second": "!",
        "normalized marks": END,
        "tokenizer.json": "!",
        "tokenizer.json and marks": END,
    }
    sd1 = found["Stable Diffusion 1"]
    start, end, unused = words.marks(sd1)
    assert (sd1.id_to_token(start), sd1.id_to_token(end), unused) == (START, END, end)
    # What any tool gets that opens a run's tokenizer.json.
    assert len(Tokenizer.from_str(sd1.to_str()).encode("a cat").ids) == 77
    assert found["files only"].encode("").ids == [start, end]


def test_a_runs_own_file_keeps_ids_and_padding(sd2, tmp_path):
    sd2.save(str(tmp_path / "tokenizer.json"))
    again = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    np.testing.assert_array_equal(words.encode(again, TEXTS, 77), words.encode(sd2, TEXTS, 77))
    # Even without the files beside it.
    assert clip.read(tmp_path).to_str() == sd2.to_str()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_opens_in_transformers(folders, kind, tmp_path):
    ours = clip.read(folders[kind])
    clip.save(ours, tmp_path / "new" / "tokenizer", 77)
    theirs = CLIPTokenizerFast.from_pretrained(tmp_path / "new" / "tokenizer")
    some = TEXTS[:200]
    np.testing.assert_array_equal(rows_of(theirs, some), words.encode(ours, some, 77))
    start, end, padding = words.marks(ours)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (start, end, padding)
    assert theirs.model_max_length == 77
    assert len(theirs) == ours.get_vocab_size()

    again = clip.read(tmp_path / "new" / "tokenizer")
    np.testing.assert_array_equal(words.encode(again, some, 77), words.encode(ours, some, 77))
    assert words.marks(again) == words.marks(ours)


def test_whole_words_are_saved_for_transformers_too(tmp_path):
    ours = words.build(["a bactrian camel"], french=300, english=300)
    texts = [*TEXTS, "<end> <padding>", "the camel"]
    clip.save(ours, tmp_path, 16)
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    rows = theirs(texts, padding="max_length", truncation=True)["input_ids"]
    np.testing.assert_array_equal(rows, words.encode(ours, texts, 16))
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (2, 3, 0)
    assert clip.read(tmp_path).to_str() == ours.to_str()

    theirs.save_pretrained(tmp_path / "again")
    again = clip.read(tmp_path / "again")
    np.testing.assert_array_equal(words.encode(again, texts, 16), rows)
    assert words.check_prompt(again, "a the " * 20, 16) == words.check_prompt(
        ours, "a the " * 20, 16
    )


def test_shorter_lengths_than_the_padding_cut_before_the_end(sd2):
    start, end, padding = words.marks(sd2)
    a, cat = (sd2.token_to_id(f"{word}</w>") for word in ("a", "be"))
    rows = words.encode(sd2, ["a be", "", "A be a", "be!"], 4)
    expected = [[start, a, cat, end], [start, end, 0, 0], [start, a, cat, end]]
    assert rows.tolist() == [*expected, [start, cat, 0, end]]
    assert padding == 0
    with pytest.raises(UserError, match="caption length 2"):
        words.encode(sd2, ["a"], 2)


def test_no_word_is_unknown(sd2):
    assert words.unknown_words(sd2, "zzqxw 你好 🐈‍⬛ <|endoftext|>") == []
    assert words.extended(sd2, ["zzqxw"]) is sd2
    assert words.check_prompt(sd2, "Un zzqxw, 8k 🐈!", 77) == []


def test_words_are_what_is_merged_apart(sd2):
    assert words.split(sd2, "L'Œuf  e\u0301tait, it's 8k 你好!") == [
        *("l", "'", "œuf", "était", ",", "it", "'s", "8", "k", "你好", "!")
    ]


def test_a_caption_is_met_by_one_of_its_tokens(sd2):
    seen = set(words.encode(sd2, ["be"], 5).ravel().tolist())
    assert words.has_met(sd2, "zzq Be", seen)
    assert not words.has_met(sd2, "a", seen)
    (line,) = words.check_prompt(sd2, "be a", 77, seen)
    assert line == 'prompt "be a": unknown to the model: a'


def test_the_text_that_is_cut_is_named(sd2):
    assert words.check_prompt(sd2, "be " * 75, 77) == []
    (line,) = words.check_prompt(sd2, "be " * 75 + "The  CAT,\n8k\x1b[31m", 77)
    count = len(sd2.encode("be " * 75 + "The CAT, 8k\x1b[31m", add_special_tokens=False))
    assert line.startswith('prompt "be be be')
    assert line.endswith(f'only the first 75 of {count} tokens fit, cut: "The CAT, 8k[31m"')
    (line,) = words.check_prompt(sd2, "be a 8k be!!", 5)
    assert line == 'prompt "be a 8": only the first 3 of 7 tokens fit, cut: "k be!!"'
    (line,) = words.check_prompt(sd2, "be a be, a", 6)
    assert line == 'prompt "be a be ,": only the first 4 of 5 words fit, cut: a'
    (line,) = words.check_prompt(sd2, "你好世界" * 1000, 77)
    assert len(line) < 300
    assert "好世界你好" in line.split("cut: ")[1]


def test_a_prompt_of_nothing_is_refused(sd2):
    with pytest.raises(UserError, match="has no words"):
        words.check_prompt(sd2, " \n\u3000", 77)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("vocab.json", None, "neither tokenizer.json nor vocab.json"),
        ("merges.txt", None, "neither tokenizer.json nor merges.txt"),
        ("vocab.json", '{"a": 0,', "holds no readable tokenizer"),
        ("vocab.json", '["a"]', "holds no readable tokenizer"),
        ("merges.txt", "#version: 0.2\na b\nc\n", "holds no readable tokenizer"),
        ("merges.txt", "#version: 0.2\nqqqq zzzz\n", "holds no readable tokenizer"),
        ("tokenizer_config.json", "{", "tokenizer_config.json is not JSON"),
        ("tokenizer_config.json", "[]", "tokenizer_config.json holds no JSON object"),
        ("tokenizer_config.json", '{"pad_token": 3}', "holds no readable tokenizer"),
        ("special_tokens_map.json", '{"pad_token": "<pad>"}', "pad_token '<pad>' is not in the"),
        ("special_tokens_map.json", '{"bos_token": {"content": "<s>"}}', "bos_token '<s>' is not"),
        ("added_tokens.json", '{"<cat>": 5}', "'<cat>' is to be id 5, comes as"),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {', "tokenizer.json is not JSON"),
        ("tokenizer.json", '{"model": {"type": "Unigram"}}', "not CLIP's kind of tokenizer"),
        ("tokenizer.json", '{"model": {"type": "WordLevel"}}', "holds no readable tokenizer"),
        ("tokenizer.json", '{"version": "1.0"}', "holds no readable tokenizer"),
    ],
)
def test_broken_folders_are_refused_in_one_line(learnt, tmp_path, name, text, message):
    write(tmp_path, learnt)
    if text is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        clip.read(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "copy the model's tokenizer folder again" in str(caught.value)
