"""Real images, two halves of one kind, which share no picture."""

import numpy as np
import pytest

from jaxgen.data import openmoji


@pytest.fixture(scope="session")
def halves():
    """Twice 200 emoji at 32 px, and the group of each: uint8 [200, 32, 32, 3]."""
    rows = [row for row in openmoji.catalogue() if row.split == "train"]
    chosen = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))[:400]]
    images = np.stack([openmoji.draw(row.id, 32) for row in chosen])
    groups = np.array([row.group for row in chosen])
    return images[:200], images[200:], groups[200:]
