"""The n-th batch is the same however it is reached and whoever shares it."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgen.data.pipeline import Shared, batches, iterate
from jaxgen.data.source import Source, picked
from jaxgen.errors import UserError


def make_source(count: int, captions: int = 3) -> Source:
    """Picture i is filled with i, its label is i % 5, its captions are "i k"."""
    images = np.arange(count, dtype=np.uint8)[:, None, None, None] + np.zeros((4, 4, 3), np.uint8)
    return Source(
        name="numbers",
        split="train",
        size=4,
        images=images,
        captions=tuple(tuple(f"{i} {k}" for k in range(captions)) for i in range(count)),
        label_ids=np.arange(count, dtype=np.int32) % 5,
        labels=tuple("abcde"),
        ids=tuple(map(str, range(count))),
        content="",
    )


def encode(captions):
    return np.array([[int(word) for word in text.split()] for text in captions], np.int32)


def rows(batch):
    return batch["image"][:, 0, 0, 0].tolist()


def test_a_batch_holds_what_the_records_say():
    batch = batches(make_source(20), encode, batch=6, seed=0)[0]
    assert {key: (value.shape, str(value.dtype)) for key, value in batch.items()} == {
        "image": ((6, 4, 4, 3), "uint8"),
        "caption": ((6, 2), "int32"),
        "label": ((6,), "int32"),
        "row": ((6,), "int32"),
    }
    assert batch["caption"][:, 0].tolist() == rows(batch) == batch["row"].tolist()
    assert batch["label"].tolist() == [row % 5 for row in rows(batch)]


def test_what_is_told_of_a_caption_goes_with_it():
    """Of captions "i k" here 10·i + k, equal ones kept once: all captions of pictures 0 to 3."""
    source = make_source(20)
    said = np.array([10 * i + k for i in range(20) for k in range(3)])
    kept, which = np.unique(np.where(said < 40, 7, said), return_inverse=True)
    batch = batches(source, encode, batch=20, seed=0, told={"said": Shared(kept, which)})[0]
    expected = batch["caption"] @ [10, 1]
    assert batch["said"].tolist() == np.where(expected < 40, 7, expected).tolist()
    assert len(set(batch["caption"][:, 1])) > 1


def test_only_some_of_the_pictures():
    source = picked(make_source(20), (1, 3, 6, 8, 11, 13, 16, 18))
    assert source.ids == ("1", "3", "6", "8", "11", "13", "16", "18")
    batch = batches(source, encode, batch=8, seed=0)[0]
    assert sorted(rows(batch)) == [1, 3, 6, 8, 11, 13, 16, 18]
    assert batch["caption"][:, 0].tolist() == rows(batch)
    assert batch["label"].tolist() == [row % 5 for row in rows(batch)]
    assert source.fingerprint != make_source(20).fingerprint


def test_same_seed_and_number_same_batch_and_only_then():
    source = make_source(50)
    first, again, other = (batches(source, encode, batch=8, seed=seed) for seed in (7, 7, 8))
    for n in (5, 0, 99):  # in any order
        for key, value in first[n].items():
            np.testing.assert_array_equal(value, again[n][key])
    assert rows(first[0]) != rows(other[0])


def test_each_epoch_has_every_picture_once_in_its_own_order():
    dataset = batches(make_source(30), encode, batch=10, seed=1)
    epochs = np.reshape([rows(dataset[n]) for n in range(12)], (4, 30))
    assert (np.sort(epochs) == np.arange(30)).all()
    assert len(np.unique(epochs, axis=0)) == 4


def test_every_caption_is_drawn_about_as_often():
    dataset = batches(make_source(40, captions=4), encode, batch=40, seed=2)
    drawn = np.stack([dataset[n]["caption"] for n in range(50)])
    counts = np.bincount(drawn[..., 1].ravel(), minlength=4)
    assert counts.sum() == 2000
    assert (np.abs(counts - 500) < 100).all()  # 5 standard deviations


@settings(max_examples=25)
@given(
    count=st.integers(1, 40),
    local=st.integers(1, 6),
    processes=st.integers(1, 5),
    number=st.integers(0, 30),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_parts_of_all_processes_are_the_batch_of_one(count, local, processes, number, seed):
    source, batch = make_source(count), local * processes
    whole = batches(source, encode, batch=batch, seed=seed)[number]
    parts = [
        batches(source, encode, batch=batch, seed=seed, process_index=p, process_count=processes)
        for p in range(processes)
    ]
    for key in whole:
        joined = np.concatenate([part[number][key] for part in parts])
        np.testing.assert_array_equal(joined, whole[key])


def test_the_iterator_goes_on_where_it_was_saved():
    dataset = batches(make_source(33), encode, batch=8, seed=3)
    iterator = iterate(dataset)
    for _ in range(5):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = [next(iterator) for _ in range(6)]
    restored = iterate(dataset)
    restored.set_state(state)
    from_step = iterate(dataset, start=5)
    for n, batch in enumerate(expected):
        for other in (next(restored), next(from_step), dataset[5 + n]):
            for key in batch:
                np.testing.assert_array_equal(batch[key], other[key])
    assert restored.get_state() == iterator.get_state() == from_step.get_state()


def test_bad_input():
    source = make_source(3)
    with pytest.raises(UserError, match="10 pictures cannot be shared equally by 4 processes"):
        batches(source, encode, batch=10, seed=0, process_count=4)
    with pytest.raises(UserError, match="use a positive multiple of 1"):
        batches(source, encode, batch=0, seed=0)
    with pytest.raises(UserError, match="seed -1: use 0 to 4294967295"):
        batches(source, encode, batch=1, seed=-1)
    with pytest.raises(UserError, match="numbers has no pictures in its split 'train'"):
        batches(make_source(0), encode, batch=1, seed=0)
