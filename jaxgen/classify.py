"""python -m jaxgen.classify --run=runs/classifier image.png …: what do these pictures show?"""

import dataclasses
import functools
import sys

import numpy as np
import tyro

from jaxgen import config as configs
from jaxgen import methods, stages
from jaxgen.data.picture import open_picture
from jaxgen.errors import UserError, reported
from jaxgen.runtime import classes
from jaxgen.runtime import mesh as meshes

TOP = 5  # classes named for each picture
AT_ONCE = 64  # pictures in one call of the network


@dataclasses.dataclass(frozen=True)
class Options:
    images: tyro.conf.Positional[tuple[str, ...]] = ()
    """PNG, JPEG or WebP pictures of any size; of an oblong one the middle square is seen."""
    run: str = "runs/classifier"
    """Folder of a classifier's run, finished or not, or shipped:NAME: one that comes with
    jaxgen."""

    def check(self) -> None:
        """Raises UserError where there is nothing to classify."""
        if not self.images:
            raise UserError("name at least one picture: python -m jaxgen.classify image.png")


def main() -> None:
    with reported():
        options = configs.parse(Options(), sys.argv[1:], "python -m jaxgen.classify")
        folder = stages.run_folder(options.run)
        batch = min(len(options.images), AT_ONCE)
        meshes.prepare(batch, stages.compiled_beside(folder))
        loaded = stages.read_unfinished(folder, _say)
        method = methods.of(loaded.config)
        if not hasattr(method, "predict"):
            raise UserError(
                f"{options.run} is a {methods.name(loaded.config)} run, which tells no classes; "
                "give the --run of a classifier"
            )
        images = np.stack([open_picture(file, loaded.config.data.size) for file in options.images])
        predict = functools.partial(method.predict, loaded.config)
        mesh = meshes.dividing(batch)
        with stages.fitting(loaded):
            found = classes.probabilities(predict, loaded.weights, images, len(images), batch, mesh)
        if found.shape[1] != len(loaded.labels):
            raise UserError(
                f"{folder}/config.json names {len(loaded.labels)} labels, and its weights tell "
                f"{found.shape[1]} classes; copy both from one run"
            )
        for file, shares in zip(options.images, found, strict=True):
            print(file)
            for number in np.argsort(-shares, kind="stable")[:TOP]:
                print(f"{100 * shares[number]:6.1f} %  {loaded.labels[number]}")


def _say(line: str) -> None:
    print(f"jaxgen: {line}", file=sys.stderr)


if __name__ == "__main__":
    main()
