"""From the command to a picture on the host, in processes that begin with nothing compiled.

    python -m benchmarks.starts --config=add --cache=FOLDER

draws one picture in one step as `jaxgen.sample` would, with the compile cache in the folder, and
prints as JSON where the seconds went. `latency` does so twice: into an empty folder, and again.
"""

import time

BEGUN = time.monotonic()

import dataclasses  # noqa: E402
import json  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any, Literal  # noqa: E402

import jax  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks import latency_programs as programs  # noqa: E402
from benchmarks import subject as subjects  # noqa: E402
from jaxgen import config as configs  # noqa: E402
from jaxgen.errors import UserError, reported  # noqa: E402
from jaxgen.methods import text_to_image  # noqa: E402
from jaxgen.runtime import mesh as meshes  # noqa: E402

PROGRAM = "python -m benchmarks.starts"


@dataclasses.dataclass(frozen=True)
class Options:
    run: str = ""
    """Folder of a finished run."""
    config: str = ""
    """In its place: a config whose shapes get random weights."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the activations."""
    cache: str = ""
    """Folder of compiled programs."""

    def check(self) -> None:
        """Raises UserError where there is nothing to draw with."""
        if bool(self.run) == bool(self.config) or not self.cache:
            raise UserError("give --run or --config, and --cache")


def main() -> None:
    with reported():
        options = configs.parse(Options(), sys.argv[1:], PROGRAM)
        imported = time.monotonic()
        meshes.prepare(1, Path(options.cache))
        found = subjects.of_run(options.run) if options.run else subjects.of_config(options.config)
        subject = found.computed_in(options.dtype)
        place = programs.placing(subject)(1)
        jax.block_until_ready(place.weights)
        loaded = time.monotonic()
        _, how = programs.compared(subject, 2, (1,)).values()
        ids = subjects.captions(subject.model.text, 1)

        def whole(weights, key, caption):
            return text_to_image.sample(subject.config, weights, key, caption, how)

        arguments = place.weights, place.key, jax.device_put(ids, place.over_batch)
        compiled = jax.jit(whole).lower(*arguments).compile()
        ready = time.monotonic()
        np.asarray(compiled(*arguments))
        drawn = time.monotonic()
        print(json.dumps({
            "imports": imported - BEGUN, "weights": loaded - imported,
            "compile": ready - loaded, "draw": drawn - ready,
        }))  # fmt: skip


def first_and_second(arguments: list[str]) -> dict[str, dict[str, float]]:
    """What a start with an empty compile cache took, and the next one, in seconds.

    `total` is the process's own time from its start to its end.
    """
    with tempfile.TemporaryDirectory() as cache:
        return {name: _timed([*arguments, f"--cache={cache}"]) for name in ("first", "second")}


def _timed(arguments: list[str]) -> dict[str, Any]:
    begun = time.monotonic()
    command = [sys.executable, "-m", "benchmarks.starts", *arguments]
    told = subprocess.run(command, stdout=subprocess.PIPE, check=False, text=True)
    total = time.monotonic() - begun
    if told.returncode:
        raise UserError(f"{PROGRAM} {' '.join(arguments)} failed; its message is above")
    return {"total": total, **json.loads(told.stdout.splitlines()[-1])}


if __name__ == "__main__":
    main()
