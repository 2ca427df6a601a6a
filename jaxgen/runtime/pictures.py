"""Grids of images with words beside them, as PNG files."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from font_roboto import Roboto  # pyright: ignore[reportAttributeAccessIssue]
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

Images = UInt8[np.ndarray, "n h w 3"]
MARGIN, TEXT = 6, 12
INK, PAPER = (40, 40, 40), (255, 255, 255)


def grid(columns: Sequence[tuple[str, Images]], captions: Sequence[str], scale: int) -> Image.Image:
    """One row a caption, one column a way of drawing it, captions under the images.

    Args:
      columns: title (lines separated by newlines) and images, one a caption, of one size.
      captions: what was asked for.
      scale: whole factor by which images are enlarged, without smoothing.
    """
    font = ImageFont.truetype(Roboto, TEXT)
    side = columns[0][1].shape[1] * scale
    across = max(1, min(4, len(captions)))  # captions stand in this many blocks across
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


def save(picture: Image.Image, path: Path) -> None:
    """Writes a PNG, atomically."""
    partial = path.with_name(f".{path.name}.partial")
    picture.save(partial, format="PNG")
    os.replace(partial, path)


def _fitted(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
