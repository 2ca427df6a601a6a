"""Classes of many pictures by any method that predicts them, and how often that is right."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from jaxgen import storage
from jaxgen.data.source import Images, Source
from jaxgen.errors import UserError
from jaxgen.metrics import classification
from jaxgen.runtime import mesh as meshes
from jaxgen.runtime import pictures

EVALUATION = "evaluation.json"

Predict = Callable[[Any, jax.Array], jax.Array]
"""From weights and uint8 images [b, h, w, 3] to probabilities [b, classes]."""


def probabilities(
    predict: Predict, weights: Any, images: Images, count: int, batch: int, mesh: jax.sharding.Mesh
) -> Float[np.ndarray, "count classes"]:
    """Of the first `count` images, `batch` at a time through one compiled program."""
    program = jax.jit(meshes.known(mesh, predict), out_shardings=meshes.replicated(mesh))
    placed = jax.device_put(weights, meshes.replicated(mesh))
    found = []
    for start in range(0, count, batch):
        numbers = range(start, min(start + batch, count))
        block = np.stack([images[n] for n in numbers])
        found.append(program(placed, meshes.put_padded(mesh, block, batch)))
    return np.concatenate([np.asarray(block) for block in found])[:count]


def grade(
    predict: Predict,
    weights: Any,
    source: Source,
    batch: int,
    mesh: jax.sharding.Mesh,
    folder: Path,
) -> str:
    """Tells the classes of a source's pictures and says in two lines how often that is right.

    Writes evaluation.json (accuracy, recall by class, confusion matrix) and samples/confusion.png
    into the run's folder. Raises `UserError` where no picture has a label.
    """
    told = source.label_ids >= 0  # the TFDS catalogue marks pictures without a label by -1
    if not told.any():
        raise UserError(f"{source.name} holds no labelled pictures out")
    found = probabilities(predict, weights, source.images, len(source), batch, mesh)
    counts = classification.confusion(
        source.label_ids[told], found.argmax(1)[told], len(source.labels)
    )
    accuracy = classification.accuracy(counts)
    picture = folder / "samples" / "confusion.png"
    recall = [None if np.isnan(r) else float(r) for r in classification.recall(counts)]
    values = {
        "split": source.split,
        "images": int(counts.sum()),
        "accuracy": accuracy._asdict(),
        "recall": dict(zip(source.labels, recall, strict=True)),
        "confusion": counts.tolist(),
    }
    storage.write_text(folder / EVALUATION, json.dumps(values, ensure_ascii=False) + "\n")
    pictures.save(pictures.confusion(counts, source.labels), picture)
    value, low, high = (100 * share for share in accuracy)
    return (
        f"held-out accuracy {value:.1f} % ({low:.1f} to {high:.1f}), {counts.sum()} images\n"
        f"confusion matrix: {picture}"
    )
