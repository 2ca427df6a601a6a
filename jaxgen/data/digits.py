"""Handwritten digits, 8 pixels square, from scikit-learn: 1 797 of them, dark ink on white.

The test half of the "Optical Recognition of Handwritten Digits" set (Alpaydin and Kaynak, UCI,
CC BY 4.0). A tenth of them, picked by a hash of their number, is the split `test`.
"""

import hashlib

import numpy as np

from jaxgen.data import grey
from jaxgen.data.source import Source
from jaxgen.errors import UserError

ENGLISH = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FRENCH = ("zéro", "un", "deux", "trois", "quatre", "cinq", "six", "sept", "huit", "neuf")
CLASSES = tuple(
    grey.Class(
        str(number), (f"the digit {english}", f"le chiffre {french}", english, french, str(number))
    )
    for number, (english, french) in enumerate(zip(ENGLISH, FRENCH, strict=True))
)
FULL = 16  # the value of full ink in the files


def read(split: str, size: int) -> Source:
    """One split of the digits, `size` pixels square; `UserError` where scikit-learn is absent."""
    grey.check_split("digits", split)
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError(
            "digits come with scikit-learn, which is not installed: pip install scikit-learn"
        ) from None
    ink, labels = load_digits(return_X_y=True)
    numbers = [n for n in range(len(ink)) if _in_a_tenth(n) == (split == "test")]
    pictures = np.rint(255 - 255 / FULL * ink[numbers]).astype(np.uint8).reshape(-1, 8, 8)
    ids = tuple(f"{n:04d}" for n in numbers)
    return grey.source(
        "digits", split, size, pictures, labels[numbers].astype(np.int32), ids, CLASSES
    )


def _in_a_tenth(number: int) -> bool:
    return int(hashlib.sha256(f"digits {number}".encode()).hexdigest(), 16) % 10 == 0
