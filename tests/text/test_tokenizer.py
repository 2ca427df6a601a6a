import json

import numpy as np
import pytest
import wordfreq
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from jaxgen.errors import UserError
from jaxgen.text.tokenizer import (
    END,
    PADDING,
    SPECIAL,
    START,
    UNKNOWN,
    build,
    check_prompt,
    encode,
    extended,
    has_met,
    split,
    unknown_words,
)

CAPTIONS = ["Un cœur rouge", "l'homme qui n'a rien", "a red-haired woman 🦰", "", "zzqxw " * 40]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return build(words=["a bactrian camel", "zzdromadaire"])


@pytest.fixture(scope="module")
def french() -> list[str]:
    return wordfreq.top_n_list("fr", 50_000)


def test_a_french_word_has_the_number_of_its_rank(tokenizer, french):
    assert french.index("rien") == 99
    assert tokenizer.token_to_id("rien") == 103
    assert [tokenizer.token_to_id(word) for word in french] == list(range(4, 50_004))


def test_all_but_two_hundred_french_words_are_reached_by_text(tokenizer, french):
    # Those that split or vanish: "aujourd'hui", "gmail.com", "♥".
    lost = [word for word in french if split(tokenizer, word) != [word]]
    assert len(lost) == 207
    assert all(any(not c.isalnum() for c in word) or word in "nº" for word in lost)


def test_numbers_have_no_gaps_and_no_word_is_there_twice(tokenizer):
    vocabulary = tokenizer.get_vocab()
    assert sorted(vocabulary.values()) == list(range(tokenizer.get_vocab_size()))
    assert [tokenizer.id_to_token(i) for i in range(4)] == list(SPECIAL)


def test_english_follows_french_by_frequency_and_own_words_come_last(tokenizer, french):
    known = set(french)
    new = [w for w in wordfreq.top_n_list("en", 20_000) if w.isalnum() and w not in known]
    numbers = [tokenizer.token_to_id(word) for word in new]
    assert None not in numbers
    assert min(numbers) >= 50_004
    # Parts of split words ("didn" of "didn't") stand at the whole word's place, or before.
    assert np.mean(np.diff(numbers) > 0) > 0.99
    assert tokenizer.token_to_id("zzdromadaire") == tokenizer.get_vocab_size() - 1


def test_parts_of_split_words_have_numbers(tokenizer):
    assert split(tokenizer, "Aujourd'hui") == ["aujourd", "hui"]
    assert UNKNOWN not in encode(tokenizer, ["aujourd’hui", "I didn't"], 8)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("l'homme", ["l", "homme"]),
        ("L’Œuf", ["l", "œuf"]),
        ("Red-Haired", ["red", "haired"]),
        ("e\u0301te\u0301 ÉTÉ", ["été", "été"]),
        ("ﬁn", ["fin"]),
        ("chat🐈‍⬛noir ❤️", ["chat", "noir"]),
        ("1️⃣ 2", ["1", "2"]),
        ("हिन्दी", ["हिन्दी"]),
        ("<end> <padding>", ["end", "padding"]),
        ("\t\n \u200b…", []),
    ],
)
def test_splitting(tokenizer, text, words):
    assert split(tokenizer, text) == words


def test_exact_rows(tokenizer, french):
    un, homme, le = (4 + french.index(word) for word in ("un", "homme", "l"))
    rows = encode(tokenizer, ["un homme", "L'homme", "", "un un un un un", "un zzqxw un un"], 6)
    assert rows.dtype == np.int32
    assert rows.tolist() == [
        [START, un, homme, END, PADDING, PADDING],
        [START, le, homme, END, PADDING, PADDING],
        [START, END, PADDING, PADDING, PADDING, PADDING],
        [START, un, un, un, un, END],
        [START, un, UNKNOWN, un, un, END],
    ]


@given(text=st.text(), length=st.integers(3, 20))
def test_every_row_is_start_words_end_padding(tokenizer, text, length):
    (row,) = encode(tokenizer, [text], length).tolist()
    words = min(len(split(tokenizer, text)), length - 2)
    assert row[0] == START
    assert row.index(END) == words + 1
    assert all(number > START or number == UNKNOWN for number in row[1 : words + 1])
    assert row[words + 2 :] == [PADDING] * (length - words - 2)


def test_composed_and_decomposed_accents_are_the_same_ids(tokenizer):
    rows = encode(tokenizer, ["éléphant à forêt", "e\u0301le\u0301phant a\u0300 fore\u0302t"], 8)
    assert rows[0].tolist() == rows[1].tolist()
    assert UNKNOWN not in rows


def test_no_room_for_a_word_is_refused(tokenizer):
    with pytest.raises(UserError, match="caption length 2"):
        encode(tokenizer, ["chat"], 2)


def test_round_trip_through_a_file(tokenizer, tmp_path):
    path = str(tmp_path / "tokenizer.json")
    tokenizer.save(path)
    again = Tokenizer.from_file(path)
    assert json.loads(again.to_str()) == json.loads(tokenizer.to_str())
    expected = encode(tokenizer, CAPTIONS, 16)
    np.testing.assert_array_equal(encode(again, CAPTIONS, 16), expected)

    theirs = PreTrainedTokenizerFast(tokenizer_file=path, pad_token=SPECIAL[PADDING])
    rows = theirs(CAPTIONS, padding="max_length", truncation=True, max_length=16)["input_ids"]
    np.testing.assert_array_equal(rows, expected)


def test_unknown_words_are_listed_once_in_order(tokenizer):
    assert unknown_words(tokenizer, "Zzqxw, un vvblork; zzqxw d'or") == ["zzqxw", "vvblork"]


def test_a_good_prompt_passes_in_silence(tokenizer):
    seen = set(encode(tokenizer, ["un chat noir"], 8).ravel().tolist())
    assert check_prompt(tokenizer, "Un chat noir !", 8) == []
    assert check_prompt(tokenizer, "Un chat noir !", 8, seen) == []


@pytest.mark.parametrize("prompt", ["", "  \n", "❤️ !?"])
def test_a_prompt_without_words_is_refused(tokenizer, prompt):
    with pytest.raises(UserError, match="has no words"):
        check_prompt(tokenizer, prompt, 8)


def test_a_prompt_of_broken_bytes_is_refused(tokenizer):
    with pytest.raises(UserError, match="not valid UTF-8"):
        check_prompt(tokenizer, b"caf\xe9".decode("utf-8", "surrogateescape"), 8)


def test_cut_words_are_named(tokenizer):
    (line,) = check_prompt(tokenizer, "un chat noir et blanc", 5)
    assert line == 'prompt "un chat noir": only the first 3 of 5 words fit, cut: et, blanc'


def test_unknown_and_unseen_words_are_named(tokenizer):
    seen = encode(tokenizer, ["un chat"], 8).ravel().tolist()
    (line,) = check_prompt(tokenizer, "un chat zzqxw", 8)
    assert line == 'prompt "un chat zzqxw": unknown to the model: zzqxw'
    (line,) = check_prompt(tokenizer, "un chat noir zzqxw", 8, seen)
    assert line.endswith(": unknown to the model: noir, zzqxw")
    (line,) = check_prompt(tokenizer, "vvblork zzqxw", 8)
    assert line.endswith("none of its words is known to the model: vvblork, zzqxw")


def test_a_word_that_is_known_by_another_spelling_is_told_so(tokenizer):
    seen = encode(tokenizer, ["un cœur, une étoile"], 8).ravel().tolist()
    (line,) = check_prompt(tokenizer, "un coeur, une etoile, un chat", 12, seen)
    assert line.endswith(": unknown to the model: coeur, etoile, chat (it knows cœur, étoile)")


@pytest.mark.parametrize("word", ["chat", "zzqxw", "z" * 100])
def test_ten_thousand_words_make_one_short_line(tokenizer, word):
    prompt = " ".join(f"{word}{i}" if i % 2 else word for i in range(10_000))
    (line,) = check_prompt(tokenizer, prompt, 16)
    assert "first 14 of 10000 words" in line
    assert len(line) < 500
    assert "\n" not in line


def test_new_words_come_after_the_old_ones_which_keep_their_numbers() -> None:
    old = build(["alpha zyx"], french=5, english=0)
    new = extended(old, ["Zyx Qwv alpha", "qwv mnb"])
    assert new.get_vocab().items() >= old.get_vocab().items()
    size = old.get_vocab_size()
    assert (new.token_to_id("qwv"), new.token_to_id("mnb")) == (size, size + 1)
    assert new.get_vocab_size() == size + 2
    assert unknown_words(new, "qwv mnb zyx") == []


def test_a_caption_is_met_by_one_of_its_words() -> None:
    known = build(["alpha zyx"], french=5, english=0)
    seen = {known.token_to_id("zyx")}
    assert has_met(known, "Alpha, ZYX", seen)
    assert not has_met(known, "alpha unheard", seen)
