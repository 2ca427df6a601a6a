"""python -m benchmarks.ship --run=runs/diffusion: makes a finished run part of the package.

Writes jaxgen/pretrained/NAME/: the weights in float16, the config, the tokenizer and the log.
"""

import dataclasses
import shutil
import sys
from pathlib import Path

import jaxgen
from jaxgen import config as configs
from jaxgen import stages
from jaxgen.errors import UserError, reported
from jaxgen.runtime import run
from jaxgen.weights import files

LARGEST = 12_000_000  # bytes of weights that a package may carry


@dataclasses.dataclass(frozen=True)
class Options:
    run: str = "runs/diffusion"
    """Folder of a finished run."""

    def check(self) -> None:
        """Nothing can be wrong but the folder, which is read later."""


def main() -> None:
    with reported():
        options = configs.parse(Options(), sys.argv[1:], "python -m benchmarks.ship")
        loaded = stages.read(Path(options.run))
        folder = Path(jaxgen.__file__).parent / "pretrained" / loaded.config.name
        folder.mkdir(parents=True, exist_ok=True)
        for name in (run.CONFIG, run.TOKENIZER, "metrics.jsonl"):
            shutil.copy(loaded.folder / name, folder / name)
        weights = folder / run.WEIGHTS
        files.save(weights, loaded.weights, {"step": str(loaded.step)}, dtype="float16")
        size = weights.stat().st_size
        if size > LARGEST:
            weights.unlink()
            raise UserError(f"{size} bytes of weights; a package may carry {LARGEST}")
        print(f"{folder}: {size / 1e6:.1f} MB of weights after {loaded.step} steps")


if __name__ == "__main__":
    main()
