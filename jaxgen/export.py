"""python -m jaxgen.export --run=runs/add --to=diffusers --out=folder: a run for other tools."""

import dataclasses
import shutil
import sys
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError

from jaxgen import config as configs
from jaxgen import stages
from jaxgen.errors import UserError, remedy, reported
from jaxgen.exporting import forms
from jaxgen.runtime import mesh as meshes

DEFAULT = "runs/add"


@dataclasses.dataclass(frozen=True)
class Options:
    run: str = ""
    """Folder of a finished run, or shipped:NAME; runs/add where neither this nor --weights is
    given."""
    weights: str = ""
    """In the run's place: a folder of published weights, or hf:OWNER/NAME."""
    to: Literal["diffusers", "safetensors", "stablehlo"] = "diffusers"
    """diffusers: a folder that DiffusionPipeline.from_pretrained opens. safetensors: every tensor
    in one file. stablehlo: one program from token ids to pixels, which runs without jaxgen."""
    out: str = ""
    """Folder to make; it must not be there yet, or be empty."""
    dtype: Literal["float32", "float16"] = "float32"
    """What the weights are stored as."""
    steps: int | None = None
    """Of stablehlo: sampling steps; the method's own by default."""
    guidance: float | None = None
    """Of stablehlo: guidance; the method's own by default."""

    def check(self) -> None:
        """Raises UserError for options that are wrong whatever the run is."""
        if self.run and self.weights:
            raise UserError("--run and --weights both say what goes out; give one of them")
        if not self.out:
            raise UserError("--out is missing; name a folder to make")
        if "://" in self.out:
            raise UserError(f"--out {self.out} is no folder of this machine; copy it there after")
        out = Path(self.out).resolve()
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"--out {out} is there already; name a folder to make")
        if self.to != "stablehlo" and (self.steps, self.guidance) != (None, None):
            raise UserError("--steps and --guidance go with --to=stablehlo; others are told later")


def main() -> None:
    with reported():
        options = configs.parse(Options(), sys.argv[1:], "python -m jaxgen.export")
        folder = stages.run_folder(options.weights or options.run or DEFAULT)
        meshes.prepare(1, stages.compiled_beside(folder))
        loaded = stages.read(folder)
        out = Path(options.out).resolve()
        partial = out.with_name(f".{out.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            notes = _written(loaded, partial, options)
            if out.exists():
                out.rmdir()
            partial.rename(out)
        except (OSError, SafetensorError) as error:
            why = getattr(error, "strerror", None) or error
            raise UserError(f"cannot write --out {options.out} ({why}); {remedy(error)}") from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
        print(f"{options.out}: {size / 1e6:.1f} MB")
        for note in notes:
            print(note)


def _written(loaded: stages.Loaded, folder: Path, options: Options) -> list[str]:
    if options.to == "diffusers":
        return forms.diffusers(loaded, folder, options.dtype)
    if options.to == "safetensors":
        return forms.safetensors(loaded, folder, options.dtype)
    return forms.stablehlo(loaded, folder, options.dtype, options.steps, options.guidance)


if __name__ == "__main__":
    main()
