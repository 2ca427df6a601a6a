"""What OpenMoji holds, in which split, under which names, and how it is drawn."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from jaxgen import stages
from jaxgen.data import openmoji
from jaxgen.data.sources import open_source
from jaxgen.errors import UserError


@pytest.fixture(scope="module")
def splits(drawn):
    return {split: open_source("openmoji", split, 32, drawn.root) for split in openmoji.SPLITS}


def test_split_sizes(splits):
    sizes = {split: len(source) for split, source in splits.items()}
    assert sizes == {"train": 1474, "test": 165, "compositions": 161, "flags": 270}


def test_some_groups_of_it(drawn, splits):
    chosen = open_source("openmoji:food-drink,animals-nature", "train", 32, drawn.root)
    assert len(chosen) == 119 + 151
    whole = splits["train"]
    number = whole.ids.index("1F355")
    np.testing.assert_array_equal(chosen[chosen.ids.index("1F355")].image, whole[number].image)
    assert chosen.captions[chosen.ids.index("1F355")][0] == "pizza"
    for name in ("openmoji:food", "openmoji:", "openmoji:food-drink,,symbols"):
        with pytest.raises(UserError, match=r"openmoji has no group '.*Known: .*food-drink"):
            open_source(name, "train", 32, drawn.root / "never made")
    assert not (drawn.root / "never made").exists()


def test_splits_share_no_picture(splits):
    ids = [ident for source in splits.values() for ident in source.ids]
    assert len(ids) == len(set(ids))


def test_splits_do_not_depend_on_the_table_order_nor_on_variation_selectors():
    rows = {row.id: row.split for row in openmoji.catalogue()}
    assert rows["2764"] == "train"  # the red heart, which people will ask for
    assert all(
        openmoji._in_a_tenth(code) == (split == "test")
        for code, split in rows.items()
        if split in ("train", "test")
    )
    assert openmoji._in_a_tenth("1F441-FE0F") == openmoji._in_a_tenth("1F441")


def test_train_holds_each_colour_and_shape_of_the_held_out_pairs(splits):
    train = {captions[0] for captions in splits["train"].captions}
    held_out = {captions[0] for captions in splits["compositions"].captions}
    pairs = {"purple heart", "orange heart", "yellow circle", "green square", "brown circle"}
    assert pairs <= held_out
    for pair in pairs:
        colour, shape = pair.split()
        assert any(f"{colour} {other}" in train for other in ("heart", "circle", "square"))
        assert f"red {shape}" in train


def test_skin_tones_are_only_among_the_compositions(splits):
    toned = {s for s, source in splits.items() if any("skin tone" in c[0] for c in source.captions)}
    assert toned == {"compositions"}


def test_captions_in_both_languages(splits):
    train = splits["train"]
    captions = train.captions[train.ids.index("2764")]
    names = ["red heart", "cœur rouge", "a red heart", "un cœur rouge", "une cœur rouge"]
    assert captions == (*names, "red heart, love, red, emotion, heart")
    flags = {captions[1]: captions[0] for captions in splits["flags"].captions}
    assert flags["drapeau france"] == "flag of France"


def test_captions_are_plain_text(splits):
    for source in splits.values():
        for captions in source.captions:
            assert len(captions) in (5, 6)
            assert not re.search(r"[_’]|^[:,\s]|[:,\s]$", " | ".join(captions[:5]))


def test_labels_are_the_groups(splits):
    train = splits["train"]
    cat = train[train.ids.index("1F408")]
    assert cat.captions[0] == "cat"
    assert train.labels[cat.label] == "animals-nature"


def test_subgroups_as_labels(drawn, splits):
    groups = splits["train"]
    subgroups = open_source("openmoji", "train", 32, drawn.root, label="sublabel")
    cat = subgroups[subgroups.ids.index("1F408")]
    assert subgroups.labels[cat.label] == "animal-mammal"
    assert subgroups.ids == groups.ids
    assert subgroups.captions == groups.captions
    assert subgroups.fingerprint != groups.fingerprint
    named = open_source("openmoji", "train", 32, drawn.root, label="label")
    assert named.fingerprint == groups.fingerprint


def test_groups_are_chosen_whatever_the_label(drawn):
    name = "openmoji:food-drink,animals-nature"
    by_group = open_source(name, "test", 32, drawn.root)
    by_subgroup = open_source(name, "test", 32, drawn.root, label="sublabel")
    assert by_subgroup.ids == by_group.ids
    seen = {by_subgroup.labels[number] for number in by_subgroup.label_ids}
    assert all(one.startswith(("food-", "drink", "dishware", "animal-", "plant-")) for one in seen)
    with pytest.raises(UserError, match="no picture of openmoji in train is in the group flags"):
        open_source("openmoji:flags", "train", 32, drawn.root)


def test_unknown_classes_are_refused_before_anything_is_drawn(tmp_path):
    message = r"no classes 'sublbel'; did you mean sublabel\? It has: label, sublabel"
    with pytest.raises(UserError, match=message):
        open_source("openmoji", "test", 32, tmp_path, label="sublbel")
    assert not list(tmp_path.iterdir())


def test_what_runs_were_trained_on_is_still_the_same(drawn):
    shipped = json.loads((stages.shipped("diffusion") / "config.json").read_text())
    data = shipped["config"]["data"]
    assert "label" not in data  # it is older than the field
    same = open_source(data["name"], "train", data["size"], drawn.root)
    assert same.fingerprint == shipped["data"]


def test_pictures_are_coloured_ink_on_white(splits):
    train = splits["train"]
    image = train[train.ids.index("1F534")].image  # red circle
    assert image.shape == (32, 32, 3)
    assert image.dtype == np.uint8
    assert image[0, 0].tolist() == [255, 255, 255]
    red, green, blue = image[16, 16].astype(int)
    assert red > 180 > 100 > max(green, blue)


def test_the_crop_cuts_nothing_that_the_whole_square_shows():
    # A grinning face fills 2/3 of OpenMoji's square; a small square must stay small.
    face, square = openmoji.draw("1F600", 64), openmoji.draw("25AA", 64)
    assert _extent(face) >= 60
    assert _extent(square) < 40
    for row in openmoji.catalogue()[::40]:
        svg = (openmoji._svg_folder() / f"{row.id}.svg").read_text()
        whole = openmoji._render(svg, 144)[..., 3] > 0
        reach = np.abs(np.argwhere(whole) + 0.5 - 72).max() + 0.5
        assert reach <= openmoji._art_side(svg), row.captions[0]


def test_a_kill_leaves_nothing_that_is_taken_for_whole(drawn):
    assert drawn.killed == 9  # and TensorFlow had not been imported
    assert not [name for name in drawn.left if "incomplete" not in name]
    assert drawn.progress[-1] == (2070, 2070)


def test_prepared_once(drawn):
    openmoji.prepare(drawn.root, 32, lambda done, total: pytest.fail("drawn again"))


def test_reading_needs_no_tensorflow(drawn):
    script = (
        "import sys; from jaxgen.data.sources import open_source; "
        "print(open_source('openmoji', 'test', 32, sys.argv[1]).fingerprint); "
        "assert 'tensorflow' not in sys.modules"
    )
    command = [sys.executable, "-c", script, str(drawn.root)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    same = open_source("openmoji", "test", 32, drawn.root)
    assert done.stdout.strip() == same.fingerprint
    assert open_source("openmoji", "flags", 32, drawn.root).fingerprint != same.fingerprint


def test_bad_sizes_and_folders(tmp_path):
    with pytest.raises(UserError, match="image size 4: openmoji is drawn at 8 to 1024 pixels"):
        openmoji.prepare(tmp_path, 4)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write the openmoji pictures under .*file"):
        openmoji.prepare(tmp_path / "file", 32)


def _extent(image: np.ndarray) -> int:
    rows, columns = np.nonzero((image < 250).any(-1))
    return max(np.ptp(rows), np.ptp(columns)) + 1
