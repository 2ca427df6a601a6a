"""The classifier against a linear probe on ImageNet features, on OpenMoji's held-out pictures.

    python -m benchmarks.linear_probe --run=shipped:classifier

The probe is scikit-learn's logistic regression on EfficientNet-Lite0's pooled features (1.2 million
photos have taught it), its regularisation chosen by cross-validation on the training pictures. The
classifier has seen the training pictures alone. A classifier of subgroups tells groups too: a
group's probability is the sum over its subgroups.
"""

import dataclasses
import functools
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine, reports
from jaxgen import config as configs
from jaxgen import methods, stages
from jaxgen.data.sources import open_source
from jaxgen.errors import UserError, reported
from jaxgen.metrics import networks
from jaxgen.metrics.bootstrap import of_share
from jaxgen.runtime import classes
from jaxgen.runtime import mesh as meshes

PROGRAM = "python -m benchmarks.linear_probe"
FIELDS = ("label", "sublabel")  # groups, subgroups
SHIPPED = "shipped:classifier"


@dataclasses.dataclass(frozen=True)
class Options:
    run: str = SHIPPED
    """A classifier of OpenMoji's subgroups: the folder of its run."""

    def check(self) -> None:
        """Nothing can be wrong but the folder, which is read later."""


def main() -> None:
    with reported():
        options = configs.parse(Options(), sys.argv[1:], PROGRAM)
        loaded = stages.read(stages.run_folder(options.run))
        data, method = loaded.config.data, methods.of(loaded.config)
        if not hasattr(method, "predict") or data.label != "sublabel":
            raise UserError(f"--run {options.run} is no classifier of OpenMoji's subgroups")
        meshes.prepare(64)
        splits = {
            (field, split): open_source("openmoji", split, data.size, data.root, label=field)
            for field in FIELDS
            for split in ("train", "test")
        }
        if splits["sublabel", "test"].labels != loaded.labels:
            raise UserError(
                f"--run {options.run} tells other classes than OpenMoji's subgroups of this jaxgen"
            )
        images = {
            split: np.stack([s.images[n] for n in range(len(s))])
            for split in ("train", "test")
            for s in [splits["label", split]]
        }
        network = networks.open_network("efficientnet-lite0", None)
        features = {split: network.features(pixels) for split, pixels in images.items()}
        predict = functools.partial(method.predict, loaded.config)
        told = classes.probabilities(
            predict, loaded.weights, images["test"], len(images["test"]), 64, meshes.dividing(64)
        )
        groups, subgroups = splits["label", "test"], splits["sublabel", "test"]
        probe, strength = _probe(
            features["train"], splits["label", "train"].label_ids, features["test"]
        )
        right = {
            "groups, linear probe": probe == groups.label_ids,
            "groups, classifier": _groups(told, splits) == groups.label_ids,
            "subgroups, classifier": told.argmax(1) == subgroups.label_ids,
        }
        device = machine.hardware()
        found: dict[str, Any] = {
            "command": reports.command(PROGRAM, sys.argv[1:]),
            "hardware": device,
            "versions": machine.versions(),
            "run": _name(options.run),
            "size": data.size,
            "images": len(groups),
            "probe": {"C": strength},
            "accuracy": {},
            "groups, classifier against linear probe": _compared(
                right["groups, classifier"], right["groups, linear probe"]
            ),
        }
        for name, each in right.items():
            estimate = of_share(each)
            found["accuracy"][name] = estimate._asdict()
            value, low, high = (100 * v for v in estimate)
            print(f"{name:22} {value:.1f} % ({low:.1f} to {high:.1f})", flush=True)
        paired = found["groups, classifier against linear probe"]
        print(
            f"groups: {paired['classifier alone']} pictures are right by the classifier alone, "
            f"{paired['probe alone']} by the probe alone; McNemar's exact p = {paired['p']:.3f}"
        )
        path = machine.folder(device) / file(options.run)
        reports.write(found, path)
        print(f"numbers: {path}")


def file(run: str) -> str:
    """Name of the numbers of a run; the README cites those of the shipped one."""
    return (
        "linear_probe.json"
        if run == SHIPPED
        else f"linear_probe_{_name(run).replace(':', '_')}.json"
    )


def _probe(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, float]:
    """Classes of the test features by the best of several regularisations, and that one's C."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, KFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    strengths = {"logisticregression__C": [1e-3, 1e-2, 1e-1]}
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))
    folds = KFold(3, shuffle=True, random_state=0)
    search = GridSearchCV(model, strengths, cv=folds).fit(train, labels)
    return search.predict(test), search.best_params_["logisticregression__C"]


def _compared(classifier: np.ndarray, probe: np.ndarray) -> dict[str, Any]:
    """Pictures that one of the two alone tells rightly, and how likely a split as uneven is by
    chance where both are equally good (McNemar 1947, exact: a two-sided binomial test)."""
    from scipy.stats import binomtest

    ahead, behind = int((classifier & ~probe).sum()), int((probe & ~classifier).sum())
    p = float(binomtest(ahead, ahead + behind).pvalue) if ahead + behind else 1.0
    return {"classifier alone": ahead, "probe alone": behind, "p": p}


def _groups(told: np.ndarray, splits: Any) -> np.ndarray:
    """The likeliest group of each picture, from probabilities of subgroups."""
    belongs = np.zeros((told.shape[1], len(splits["label", "train"].labels)))
    for split in ("train", "test"):
        belongs[splits["sublabel", split].label_ids, splits["label", split].label_ids] = 1
    return np.argmax(told @ belongs, axis=1)


def _name(run: str) -> str:
    """A run without the folders of this machine."""
    return run if run == SHIPPED else Path(run).resolve().name


if __name__ == "__main__":
    main()
