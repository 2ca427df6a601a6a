"""A run's folder: what it is, what it learnt, what it drew."""

import contextlib
import importlib.metadata
import json
import platform
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from jaxgen import config as configs
from jaxgen import storage
from jaxgen.config import Experiment
from jaxgen.errors import UserError
from jaxgen.runtime import hosts, lease
from jaxgen.weights import files, hub, pipelines

CONFIG, TOKENIZER, WEIGHTS = "config.json", "tokenizer.json", "model.safetensors"
FILES = (CONFIG, TOKENIZER, WEIGHTS, "metrics.jsonl")
FOLDERS = ("samples", "checkpoints", "tensorboard")
PACKAGES = ("jaxgen", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")

SEEN = 60  # tries, a second apart: for so long a network's file system may show what was before

# What may change between the start of a run and its resumption, without making it another run.
FREE = ("workdir", "shown", "data.root", "mesh.", "hosts.", "train.steps", "judge.weights")
FREE += ("model.unet.gather_once", "model.dit.gather_once")
FREE += ("text_once", "train.log_every", "train.sample_every", "train.checkpoint_every")
FREE += (
    "model.text.vocabulary",
    "text.vocabulary",
    "resnet.classes",
    "vit.classes",
)  # follow from the data, which are compared too; so are the weights in files


@contextlib.contextmanager
def opened(
    config: Experiment,
    method: str,
    tokenizer: Tokenizer,
    labels: Sequence[str],
    fingerprint: str,
) -> Iterator[Path]:
    """The run's folder, made or found again, closed to a second process (see `lease.held`).

    `fingerprint` is that of the data and of the weights that the run builds on. Raises UserError
    when the folder cannot be written, is in use, or holds a run of another config or other data,
    and in all processes where one of them does not see what the first has written there.
    """
    folder = config.folder
    if not hosts.is_first():
        _check_shared(folder, "")
        yield folder
        return
    with lease.held(folder):
        if not storage.is_remote(folder):
            (folder / "samples").mkdir(exist_ok=True)
        refuse_other(config, method)
        _refuse_other_data(folder, fingerprint)
        described = _description(config, method, labels, fingerprint)
        storage.write_text(folder / TOKENIZER, tokenizer.to_str())
        storage.write_text(folder / CONFIG, described)
        _check_shared(folder, described)
        yield folder


def description(folder: Path) -> tuple[str, Any, str]:
    """(method, config as JSON values, tokenizer as JSON) of a run or weights folder."""
    sought = f"{CONFIG}, nor the {pipelines.INDEX} of published weights"
    try:
        found = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        sought = TOKENIZER
        tokenizer = (folder / TOKENIZER).read_text(encoding="utf-8")
        return found["method"], found["config"], tokenizer
    except FileNotFoundError:
        raise UserError(
            f"{folder} is no run folder: it has no {sought}; train one, or name one of jaxgen's "
            f"own, such as shipped:diffusion and shipped:classifier{hub.hint(folder)}"
        ) from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(
            f"{folder / CONFIG} cannot be read ({error}); put it back as it was, or train "
            "another run with --name"
        ) from None


def labels(folder: Path) -> tuple[str, ...]:
    """The names of the classes of a run's data, in order; none where the folder does not say."""
    return tuple(json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("labels", ()))


def finished_steps(folder: Path) -> int:
    """Steps of the training whose weights the folder holds; 0 where it holds none."""
    path = folder / WEIGHTS
    return int(files.load_metadata(path).get("step", 0)) if path.is_file() else 0


def save_weights(folder: Path, weights: Any, step: int) -> None:
    """Writes what sampling needs into the folder, which makes it a finished run."""
    if hosts.is_first():
        files.save(folder / WEIGHTS, weights, {"step": str(step)})
    hosts.barrier("weights written")


def refuse_other(config: Experiment, method: str) -> None:
    """Raises UserError where the config's folder holds a run of another config, or is no run's."""
    folder = config.folder
    _refuse_in_the_way(folder)
    if not (folder / CONFIG).is_file():
        return
    its_method, values, _ = description(folder)
    if its_method != method:
        raise UserError(f"{folder} holds a run of {its_method}, not {method}; use another --name")
    before = configs.from_json(type(config), json.dumps(values), str(folder / CONFIG))
    for field, (old, new) in configs.differences(before, config).items():
        if not field.startswith(FREE):
            raise UserError(
                f"{folder} holds a run with {field} {old!r}, not {new!r}; "
                f"start another with --name, or take up that one with its own config"
            )


def _refuse_in_the_way(folder: Path) -> None:
    """Raises UserError for a file where the run keeps a folder, or the other way round."""
    if storage.is_remote(folder):  # where both can be
        return
    folders = [folder, *(folder / name for name in FOLDERS)]
    if (checkpoints := folder / "checkpoints").is_dir():
        folders += [path for path in sorted(checkpoints.iterdir()) if path.name.isdigit()]
    for path in folders:
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file where the run keeps a folder; move it away")
    for path in (folder / name for name in FILES):
        if path.is_dir():
            raise UserError(f"{path} is a folder where the run keeps a file; move it away")


def _refuse_other_data(folder: Path, fingerprint: str) -> None:
    if (folder / CONFIG).is_file():
        before = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("data")
        if before != fingerprint:
            raise UserError(
                f"the data of {folder}, or the weights that it builds on, have changed since it "
                "began; use another --name"
            )


def _check_shared(folder: Path, described: str) -> None:
    """Called by all processes: the first gives what it has written as the folder's CONFIG."""
    written = hosts.gathered(described)[0]
    tries = 1 if hosts.is_first() else SEEN
    sees = hosts.gathered(any(_sees(folder, written, number) for number in range(tries)))
    if False in sees:
        raise UserError(
            f"process {sees.index(False)} does not see {folder}, or another one of that name; all "
            "need one --workdir"
        )


def _sees(folder: Path, written: str, tried: int) -> bool:
    time.sleep(min(tried, 1))
    with contextlib.suppress(OSError, ValueError):
        list(folder.iterdir())  # has a network's file system ask its server anew
        return (folder / CONFIG).read_text(encoding="utf-8") == written
    return False


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a run's numbers depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _description(config: Experiment, method: str, labels: Sequence[str], fingerprint: str) -> str:
    values = {
        "method": method,
        "versions": versions(),
        "config": json.loads(configs.to_json(config)),
        "labels": list(labels),
        "data": fingerprint,
    }
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"
