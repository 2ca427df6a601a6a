"""python draw.py --prompt "un cœur rouge": draws by the program.stablehlo beside it.

This file is copied into what `jaxgen.export --to=stablehlo` writes, and imports nothing of jaxgen.
It needs: pip install jax flatbuffers numpy safetensors tokenizers pillow
"""

import argparse
import json
from pathlib import Path

import jax
import jax.export
import numpy as np
from PIL import Image
from safetensors.numpy import load_file
from tokenizers import Tokenizer


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompt", action="append", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="drawn", help="pictures are OUT_0.png, OUT_1.png, …")
    arguments = parser.parse_args()
    folder = Path(__file__).parent
    program = jax.export.deserialize(bytearray((folder / "program.stablehlo").read_bytes()))
    weights = load_file(folder / "weights.safetensors")
    ids = encode(folder, arguments.prompt)
    images = jax.jit(program.call)(weights, np.uint32(arguments.seed), ids)
    for number, image in enumerate(np.asarray(images)):
        Image.fromarray(image).save(f"{arguments.out}_{number}.png")
        print(f"{arguments.out}_{number}.png")


def encode(folder: Path, prompts: list[str]) -> np.ndarray:
    """Token ids int32 [n, length]: what does not fit is cut before the end token."""
    facts = json.loads((folder / "program.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    _, end, *padding = facts["empty"]
    ids = np.tile(np.array(padding[-1:], np.int32), (len(prompts), facts["length"]))
    for row, prompt in zip(ids, prompts, strict=True):
        tokens = tokenizer.encode(prompt).ids[:-1][: len(row) - 1]
        row[: len(tokens) + 1] = [*tokens, end]
    return ids


if __name__ == "__main__":
    main()
