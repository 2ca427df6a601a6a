"""Grids of images, and confusion matrices, with words beside them, as PNG files."""

import bisect
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from einops import repeat
from font_roboto import Roboto  # pyright: ignore[reportAttributeAccessIssue]
from jaxtyping import Int, UInt8
from PIL import Image, ImageDraw, ImageFont

from jaxgen import storage
from jaxgen.metrics import classification

Images = UInt8[np.ndarray, "n h w 3"]
MARGIN, TEXT = 6, 12
INK, PAPER = (40, 40, 40), (255, 255, 255)
RIGHT, WRONG, EMPTY = (30, 90, 180), (205, 50, 40), (240, 240, 240)  # cells of a confusion matrix
COLOURS = "blue: right, red: wrong"
NAMED, LONGEST = 20, 200  # classes named beside a confusion matrix, and pixels of a name


def grid(
    columns: Sequence[tuple[str, Images]], captions: Sequence[str], scale: int, blocks: int = 4
) -> Image.Image:
    """One row a caption, one column a way of drawing it, captions under the images.

    Args:
      columns: title (lines separated by newlines) and images, one a caption, of one size.
      captions: what was asked for.
      scale: whole factor by which images are enlarged, without smoothing.
      blocks: captions beside each other.
    """
    font = ImageFont.truetype(Roboto, TEXT)
    side = columns[0][1].shape[1] * scale
    across = max(1, min(blocks, len(captions)))  # captions stand in this many blocks across
    down = -(-len(captions) // across)
    lines = [line for title, _ in columns for line in title.split("\n")]
    column = max(side, *(int(font.getlength(line)) + 1 for line in lines)) + MARGIN
    top = (1 + max(title.count("\n") + 1 for title, _ in columns)) * (TEXT + 2)
    block = (len(columns) * column + 2 * MARGIN, side + TEXT + 2 * MARGIN)
    page = Image.new("RGB", (across * block[0], top + down * block[1]), PAPER)
    pen = ImageDraw.Draw(page)
    for b in range(across):
        for i, (title, _) in enumerate(columns):
            x = b * block[0] + MARGIN + i * column
            pen.multiline_text((x, MARGIN), title, INK, font, spacing=2)
    for n, caption in enumerate(captions):
        x, y = n % across * block[0] + MARGIN, top + n // across * block[1]
        for i, (_, images) in enumerate(columns):
            picture = Image.fromarray(np.asarray(images[n]))
            picture = picture.resize((side, side), Image.Resampling.NEAREST)
            page.paste(picture, (x + i * column, y))
        pen.text((x, y + side + 2), _fitted(caption, font, block[0] - MARGIN), INK, font)
    return page


def confusion(counts: Int[np.ndarray, "c c"], labels: Sequence[str]) -> Image.Image:
    """A confusion matrix: rows the true class, columns what it was taken for.

    A cell is the darker the larger its share of its row, blue where right and red where wrong. Up
    to `NAMED` classes are named, with the counts in the cells and each class's share told rightly
    at the end of its row; of more, cells shrink and the most frequent mistakes are listed beside
    them. Classes without a picture that nothing was taken for are left out.
    """
    present = np.flatnonzero(counts.sum(0) + counts.sum(1))
    font = ImageFont.truetype(Roboto, TEXT)
    labels = [_fitted(labels[int(n)], font, LONGEST) for n in present]
    counts = counts[np.ix_(present, present)]
    return (_named if len(labels) <= NAMED else _listed)(counts, labels, font)


def save(picture: Image.Image, path: Path) -> None:
    """Writes a PNG, atomically."""
    with storage.written(path) as partial:
        picture.save(partial, format="PNG")


def _named(
    counts: Int[np.ndarray, "c c"], labels: Sequence[str], font: ImageFont.FreeTypeFont
) -> Image.Image:
    cell, line = 36, TEXT + 4
    title = f"true class (rows, {counts.sum()} images) taken for (columns); {COLOURS}"
    names = max(int(font.getlength(label)) + 1 for label in labels)
    left, top = names + 2 * MARGIN, names + line + 3 * MARGIN
    width = max(left + (len(labels) + 1) * cell, int(font.getlength(title))) + 2 * MARGIN
    page = Image.new("RGB", (width, top + len(labels) * cell + MARGIN), PAPER)
    pen = ImageDraw.Draw(page)
    pen.text((MARGIN, MARGIN), title, INK, font)
    page.paste(_cells(counts, cell), (left, top))
    for n, (label, right) in enumerate(zip(labels, classification.recall(counts), strict=True)):
        middle = n * cell + cell // 2
        pen.text((left - MARGIN, top + middle), label, INK, font, anchor="rm")
        upright = Image.new("RGB", (names, line), PAPER)
        ImageDraw.Draw(upright).text((0, line // 2), label, INK, font, anchor="lm")
        page.paste(upright.rotate(90, expand=True), (left + middle - line // 2, line + 2 * MARGIN))
        share = "" if np.isnan(right) else f"{100 * right:.0f} %"
        end = left + len(labels) * cell + MARGIN
        pen.text((end, top + middle), share, INK, font, anchor="lm")
        for m, count in enumerate(counts[n]):
            if count:
                light = 4 * count > counts[n].sum()
                place = (left + m * cell + cell // 2, top + middle)
                pen.text(place, str(count), PAPER if light else INK, font, anchor="mm")
    return page


def _listed(
    counts: Int[np.ndarray, "c c"], labels: Sequence[str], font: ImageFont.FreeTypeFont
) -> Image.Image:
    cell, line = max(3, 800 // len(labels)), TEXT + 4
    side, top = len(labels) * cell, line + 2 * MARGIN
    right = 100 * np.trace(counts) / max(counts.sum(), 1)
    rows = [f"{counts.sum()} images of {len(labels)} classes, {right:.1f} % right; mistakes:", ""]
    for count, true, taken in classification.mistakes(counts)[: side // line - len(rows)]:
        rows.append(f"{count} of {counts[true].sum()}  {labels[true]}  as  {labels[taken]}")
    width = max(int(font.getlength(row)) + 1 for row in rows)
    page = Image.new("RGB", (side + 4 * MARGIN + width, top + side + MARGIN), PAPER)
    pen = ImageDraw.Draw(page)
    pen.text((MARGIN, MARGIN), "true class (rows) taken for (columns); " + COLOURS, INK, font)
    page.paste(_cells(counts, cell), (MARGIN, top))
    for n, row in enumerate(rows):
        pen.text((side + 3 * MARGIN, top + n * line), row, INK, font)
    return page


def _cells(counts: Int[np.ndarray, "c c"], cell: int) -> Image.Image:
    # The root lifts single mistakes above the paper.
    shades = np.sqrt(counts / np.maximum(counts.sum(1, keepdims=True), 1))[..., None]
    ink = np.where(np.eye(len(counts), dtype=bool)[..., None], RIGHT, WRONG)
    colours = np.rint((1 - shades) * EMPTY + shades * ink).astype(np.uint8)
    picture = repeat(colours, "row column rgb -> (row h) (column w) rgb", h=cell, w=cell)
    picture[cell - 1 :: cell] = picture[:, cell - 1 :: cell] = PAPER
    return Image.fromarray(picture)


def _fitted(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    lengths = range(1, len(text))
    kept = bisect.bisect(lengths, width, key=lambda n: font.getlength(text[:n] + "…"))
    return text[:kept] + "…"
