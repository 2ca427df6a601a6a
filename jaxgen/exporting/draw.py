"""python draw.py --prompt "un cœur rouge": draws by the program.stablehlo beside it.

This file is copied into what `jaxgen.export --to=stablehlo` writes, and imports nothing of jaxgen.
It needs: pip install jax flatbuffers numpy safetensors tokenizers pillow
"""

import argparse
import json
import sys
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
    """Token ids int32 [n, ids], those of each tokenizer in turn.

    What does not fit is cut before the end token, and said.
    """
    facts = json.loads((folder / "program.json").read_text(encoding="utf-8"))
    length, rows, said = facts["length"], [], {}
    for name, padding in facts["tokenizers"].items():
        tokenizer = Tokenizer.from_file(str(folder / name))
        tokenizer.no_padding()
        ids = np.full((len(prompts), length), padding, np.int32)
        for row, prompt in zip(ids, prompts, strict=True):
            found = tokenizer.encode(prompt)
            if len(found.ids) > length:
                cut = " ".join(prompt[found.offsets[length - 1][0] :].split())
                said[f'only the first {length - 2} tokens of a prompt fit, cut: "{cut}"'] = None
            kept = [*found.ids[:-1][: length - 1], found.ids[-1]]
            row[: len(kept)] = kept
        rows.append(ids)
    for line in said:
        print(line, file=sys.stderr)
    return np.concatenate(rows, axis=1)


if __name__ == "__main__":
    main()
