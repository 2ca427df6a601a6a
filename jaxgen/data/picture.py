"""Any picture file as a square of 8-bit RGB."""

import io
import struct
import warnings
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from jaxgen.errors import UserError

FORMATS = ("PNG", "JPEG", "WEBP")


class UnreadableError(Exception):
    """A picture that cannot be used. Its text is the reason, in a few words."""


def decode(file: Path | bytes, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """The largest centred square of a PNG, JPEG or WebP picture, resized with antialiasing.

    Turned upright by its EXIF orientation. Palettes, greys and CMYK become RGB, 16 bits a channel
    become 8, and what is transparent becomes white. Raises `UnreadableError` for a picture that is
    empty, cut short, corrupt, animated, or of another format.
    """
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, "r", FORMATS) as raw:
            # A phone's JPEG may carry a preview or a depth map as a second frame (MPO).
            if getattr(raw, "n_frames", 1) > 1 and raw.format != "MPO":
                raise UnreadableError("animated")
            # A large JPEG is cheaper to decode at a fraction of its size.
            raw.draft(None, (2 * size, 2 * size))
            return _square(_rgb(ImageOps.exif_transpose(raw)), size)
    except UnidentifiedImageError as error:
        empty = not (file if isinstance(file, bytes) else file.stat().st_size)
        raise UnreadableError("empty" if empty else "no PNG, JPEG or WebP picture") from error
    # What Pillow raises for corrupt data differs from one format to another.
    except (
        OSError,
        SyntaxError,
        ValueError,
        TypeError,
        IndexError,
        EOFError,
        struct.error,
        Image.DecompressionBombError,
    ) as error:
        raise UnreadableError(" ".join(str(error).split()) or type(error).__name__) from error


def open_picture(file: str, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """The picture that a user names, as `decode` makes it; `UserError` where it cannot be used."""
    if Path(file).is_dir():
        raise UserError(f"{file} is a folder; name the pictures in it, such as {file}/*.png")
    if not Path(file).is_file():
        raise UserError(f"{file} is no file; check the path")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata that does not matter
            return decode(Path(file), size)
    except UnreadableError as error:
        raise UserError(f"{file} cannot be read as a picture: {error}") from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit greys at 255 instead of scaling them.
        scaled = np.rint(np.asarray(image).astype(np.float64) / 257)
        return Image.fromarray(scaled.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _square(image: Image.Image, size: int) -> UInt8[np.ndarray, "size size 3"]:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    # A box filter to three times the size first: as faithful to the eye, and much faster.
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS, box, reducing_gap=3.0))
