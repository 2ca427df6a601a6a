"""What every experiment has: frozen dataclasses, found by name, overridden field by field.

A config file is Python and binds `config` to an instance of a method's own subclass of
`Experiment`. It says only what differs from the defaults.
"""

import contextlib
import dataclasses
import difflib
import io
import json
import re
import runpy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro
from pydantic import TypeAdapter, ValidationError
from tokenizers import Tokenizer

from jaxgen import storage
from jaxgen.errors import UserError

LONGEST_NAME = 255  # bytes, of a file system's usual limit
SHOWN = 12  # captions of the sample grids where the config names none

E = TypeVar("E", bound="Experiment")
O = TypeVar("O")  # noqa: E741


@dataclasses.dataclass(frozen=True)
class Data:
    name: str = "openmoji"
    """openmoji, openmoji:GROUP,GROUP…, digits, fashion-mnist, fashion-mnist:PATH,
    imagefolder:PATH, tfds:NAME, or tfds:FOLDER, which tensorflow-datasets has prepared."""
    label: str = ""
    """Which class field of the records is the label (openmoji: label, the groups, or sublabel,
    the subgroups); none: the set's first."""
    caption: Literal["text", "label"] = "text"
    """What is said of a picture: the set's captions, or no more than the name of its label, which
    leaves open which of the label's pictures it is."""
    root: str = "data"
    """Folder where prepared data sets are kept."""
    size: int = 32
    """Side of the square images, in pixels."""
    flip: bool = False
    """Mirror half of the images, on the device (not where left and right differ)."""


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """AdamW under a warm-up and a decay."""

    learning_rate: float = 1e-3
    """Peak learning rate."""
    warmup: int = 100
    """Steps of linear warm-up from 0."""
    decay: Literal["constant", "cosine"] = "cosine"
    """Course of the learning rate after the warm-up; cosine ends at a hundredth of the peak
    after `train.steps`, and a run that is taken up with more of them jumps to the longer curve."""
    b1: float = 0.9
    """Decay of the first moment."""
    b2: float = 0.99
    """Decay of the second moment."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    clip: float = 1.0
    """Largest global norm of the gradient."""

    def check(self, option: str) -> None:
        """Raises UserError, naming fields as --OPTION.FIELD, where one is impossible."""
        for field in ("learning_rate", "clip"):
            if not getattr(self, field) > 0:
                name = field.replace("_", "-")
                raise UserError(
                    f"--{option}.{name} is {getattr(self, field)}; give a number above 0"
                )
        for field in ("b1", "b2"):
            if not 0 <= getattr(self, field) < 1:
                raise UserError(
                    f"--{option}.{field} is {getattr(self, field)}; give a number from 0 to below 1"
                )
        if not 0 <= self.weight_decay < float("inf"):
            raise UserError(f"--{option}.weight-decay is {self.weight_decay}; give 0 or more")
        if self.warmup < 0:
            raise UserError(f"--{option}.warmup is {self.warmup}; give 0 or more steps")


@dataclasses.dataclass(frozen=True)
class Train:
    steps: int = 1000
    """Train steps in all."""
    batch: int = 64
    """Images per step, over all devices and hosts."""
    accumulate: int = 1
    """Steps whose gradients are averaged for one update of the weights, where memory holds no
    larger batch. Steps and logs still count batches, the moving average counts updates."""
    ema: float = 0.998
    """Decay of the moving average of the weights at an update of them, warmed up over the first n
    as (1 + n) / (10 + n)."""
    log_every: int = 20
    """Steps between two lines of the metrics log."""
    sample_every: int = 500
    """Steps between two sample grids; 0: none."""
    checkpoint_every: int = 250
    """Steps between two checkpoints."""


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Devices in two axes; -1 takes what is left."""

    data: int = -1
    """Devices along which the batch alone is split."""
    fsdp: int = 1
    """Devices along which parameters are split too."""
    rules: tuple[str, ...] = ()
    """Exceptions to how parameters are split over fsdp (the largest axis that divides is): each
    PATTERN=AXIS or PATTERN=whole, the pattern a regular expression that is searched for in an
    array's path, such as teacher/mid_block/. The last one that fits counts. Runs that are trained
    first, a teacher's say, follow those that are for their arrays."""


@dataclasses.dataclass(frozen=True)
class Hosts:
    """Processes that train together, one a host; on Cloud TPU slices they find each other."""

    coordinator: str = ""
    """Address of the first process, HOST:PORT; auto: ask the cluster (Slurm, MPI, Kubernetes);
    empty: alone, but on Cloud TPU as auto."""
    count: int = 1
    """How many processes there are."""
    index: int = 0
    """Which one this is, from 0."""
    wait: int = 300
    """Seconds to wait for the other processes at the start."""
    heartbeat: int = 100
    """Seconds of silence after which a process counts as lost."""


@dataclasses.dataclass(frozen=True)
class Drawing:
    """Pictures drawn by a trained network, to learn from in place of the real ones."""

    count: int = 2000
    """How many; 0: none, the real pictures are learnt from."""
    steps: int = 50
    """Steps of the sampler that draws them."""
    guidance: float = 3.0
    """Its guidance."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What every method's config starts with."""

    name: str = "unnamed"
    """Name of the run: its folder is WORKDIR/NAME."""
    workdir: str = "runs"
    """Folder of run folders, on this machine or gs://BUCKET/FOLDER."""
    seed: int = 0
    """Seed of everything random: weights, order of the data, noise."""
    data: Data = Data()
    train: Train = Train()
    optimizer: Optimizer = Optimizer()
    mesh: Mesh = Mesh()
    hosts: Hosts = Hosts()
    shown: tuple[str, ...] = ()
    """Captions of the sample grids; none: a dozen of the data's."""

    @property
    def caption_length(self) -> int:
        """Token ids of a caption, start and end among them."""
        return 16

    @property
    def caption_ids(self) -> int:
        """Numbers by which a caption goes into the networks: those of every tokenizer together."""
        return self.caption_length

    def tokenizers(self, tokenizer: Tokenizer) -> tuple[Tokenizer, ...]:
        """Those that read a caption, one for each text encoder, given the run's."""
        return (tokenizer,)

    @property
    def fewest_pictures(self) -> int:
        """Pictures below which training makes no sense."""
        return 1

    @property
    def words_of(self) -> str:
        """The role whose words are all that the run can ever know; empty: it learns its data's."""
        return ""

    @property
    def words_added_to(self) -> str:
        """The role whose words the run knows too, beside its data's; empty: none."""
        return ""

    def fitted(self, other: "Experiment") -> "Experiment":
        """The config by which the network of a role, trained by `other`, is used in this run."""
        return other

    def resolved(self, vocabulary: int, classes: int) -> "Experiment":
        """The config with what only the data and the tokenizer know filled in."""
        del vocabulary, classes
        return self

    def roles(self) -> dict[str, str]:
        """The frozen networks that the method needs, by role: each a name or path from the user."""
        return {}

    def weights_file(self, role: str) -> str:
        """The user's file of weights for a role's network that is published without them."""
        del role
        return ""

    def trains_first(self, role: str) -> bool:
        """Whether the network of a role may be one that is to be trained first."""
        del role
        return True

    def stage(self, role: str) -> "Experiment":
        """The config that trains the network of a role which is to be trained first."""
        raise UserError(f"{self.name} trains nothing for the role {role!r}")

    def accept(self, role: str, other: "Experiment", where: str) -> None:
        """Raises UserError where `other`, found at `where`, does not fit the role."""

    def drawing(self) -> tuple[str, Drawing] | None:
        """The role whose network draws the training pictures, and how; None: the real ones do."""
        return None

    def check(self) -> None:
        """Raises UserError where fields are impossible; methods add their own checks."""
        positive = {
            "data.size": self.data.size,
            "train.steps": self.train.steps,
            "train.batch": self.train.batch,
            "train.accumulate": self.train.accumulate,
            "train.log-every": self.train.log_every,
            "train.checkpoint-every": self.train.checkpoint_every,
        }
        for field, value in positive.items():
            if value <= 0:
                raise UserError(f"--{field} is {value}; give a number above 0")
        if self.train.steps % self.train.accumulate:
            raise UserError(
                f"--train.steps {self.train.steps} is not a multiple of --train.accumulate "
                f"{self.train.accumulate}: the last gradients would go into no update"
            )
        hosts = self.hosts
        if hosts.count < 1:
            raise UserError(f"--hosts.count is {hosts.count}; give the number of processes")
        if not 0 <= hosts.index < hosts.count:
            raise UserError(
                f"--hosts.index is {hosts.index}; with --hosts.count {hosts.count} give 0 to "
                f"{hosts.count - 1}"
            )
        if not re.fullmatch(r"(auto|.+:\d{1,5})?", hosts.coordinator):
            raise UserError(f"--hosts.coordinator {hosts.coordinator!r}: give HOST:PORT, or auto")
        port = hosts.coordinator.rpartition(":")[2]
        if port.isdigit() and not 0 < int(port) < 2**16:
            raise UserError(
                f"--hosts.coordinator {hosts.coordinator!r}: give a port from 1 to {2**16 - 1}"
            )
        if hosts.count > 1 and not hosts.coordinator:
            raise UserError(
                f"--hosts.count {hosts.count} needs --hosts.coordinator: HOST:PORT of the first "
                "process, the same for all, or auto"
            )
        for field in ("wait", "heartbeat"):
            if getattr(hosts, field) < 1:
                raise UserError(f"--hosts.{field} is {getattr(hosts, field)}; give seconds above 0")
        self.optimizer.check("optimizer")
        storage.check(self.workdir, "--workdir ")
        if "://" in self.data.root:
            raise UserError(f"--data.root {self.data.root}: give a folder of this machine")
        storage.check(self.data.root, "--data.root ")
        if self.train.sample_every < 0:
            raise UserError(f"--train.sample-every is {self.train.sample_every}; give 0 or more")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"--seed is {self.seed}; give 0 to {2**32 - 1}")
        if not 0.0 <= self.train.ema < 1.0:
            raise UserError(f"--train.ema is {self.train.ema}; give a number in [0, 1)")
        if not re.fullmatch(r"[\w.-]+", self.name) or set(self.name) == {"."}:
            raise UserError(
                f"--name {self.name!r} cannot name a folder; use letters, digits, - _ ."
            )
        if len(self.name.encode()) > LONGEST_NAME:
            raise UserError(
                f"--name {self.name[:20]}… has {len(self.name)} letters; a folder's name has "
                f"{LONGEST_NAME} bytes at most"
            )

    @property
    def folder(self) -> Path:
        """The run's folder; UserError where it is in a bucket that cannot be used."""
        return storage.folder(self.workdir) / self.name


def check_not_negative(options: Mapping[str, float]) -> None:
    """Raises UserError for the first option, named without its --, that is no number from 0 up."""
    for option, value in options.items():
        if not 0 <= value < float("inf"):
            raise UserError(f"--{option} is {value}; give 0 or more")


def known() -> list[str]:
    """Names of the configs that come with jaxgen."""
    return sorted(path.stem for path in _folder().glob("*.py"))


def load(name: str) -> Experiment:
    """The config called `name` in configs/, or in the file at the path `name`."""
    path = Path(name) if name.endswith(".py") else _folder() / f"{name}.py"
    if not path.is_file():
        near = difflib.get_close_matches(name, known(), n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise UserError(f"no config {name!r}{hint} Known: {', '.join(known())}, or a path to a .py")
    try:
        config = runpy.run_path(str(path)).get("config")
    except UserError:
        raise
    except Exception as error:  # the file is the user's program: whatever it raises is its fault
        raise UserError(f"config {path} does not run: {type(error).__name__}: {error}") from error
    if not isinstance(config, Experiment):
        raise UserError(f"config {path} binds no `config` to a method's config")
    return config


def parse(config: O, arguments: Sequence[str], prog: str) -> O:
    """A dataclass with overrides such as --optimizer.learning-rate 3e-4, checked by its `check`.

    Raises UserError for an unknown option (naming the nearest) or a value of the wrong type.
    """
    _refuse_unknown(config, arguments)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parsed = tyro.cli(type(config), default=config, args=list(arguments), prog=prog)
    except SystemExit as stop:
        if stop.code:
            raise UserError(_one_line(said.getvalue())) from None
        raise
    parsed.check()  # pyright: ignore[reportAttributeAccessIssue]
    return parsed


def to_json(config: Experiment) -> str:
    """The whole config as JSON, with the method's name under `method`."""
    values = dataclasses.asdict(config)
    return TypeAdapter(dict[str, Any]).dump_json(values, indent=2).decode()


def from_json(kind: type[E], text: str | bytes, where: str) -> E:
    """The config that `to_json` wrote; UserError names `where` and the field that does not fit."""
    try:
        config = TypeAdapter(kind).validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{where} is no {kind.__name__} config: {field}: {first['msg']}") from None
    if field := _unknown(json.loads(text), dataclasses.asdict(config)):
        raise UserError(
            f"{where} has the field {field}, which a {kind.__name__} config of this version has "
            "not; use the version that wrote it"
        )
    return config


def _unknown(given: dict[str, Any], own: dict[str, Any]) -> str:
    """The first field that is given and is none of the config's own; empty where all are."""
    for name, value in given.items():
        if name not in own:
            return name
        both = isinstance(value, dict) and isinstance(own[name], dict)
        if both and (deeper := _unknown(value, own[name])):
            return f"{name}.{deeper}"
    return ""


def differences(a: Any, b: Any) -> dict[str, tuple[Any, Any]]:
    """Dotted field names at which two configs differ, with both values."""
    flat_a, flat_b = dict(_flatten(a)), dict(_flatten(b))
    return {
        field: (flat_a.get(field), flat_b.get(field))
        for field in {**flat_a, **flat_b}
        if flat_a.get(field) != flat_b.get(field)
    }


def _folder() -> Path:
    inside = Path(__file__).parent / "configs"  # in an installed wheel
    return inside if inside.is_dir() else Path(__file__).parent.parent / "configs"


def _flatten(value: Any, prefix: str = ""):
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        if dataclasses.is_dataclass(item):
            yield from _flatten(item, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", item


def _refuse_unknown(config: Any, arguments: Sequence[str]) -> None:
    options = {"help", "config"}
    for field, value in _flatten(config):
        name = field.replace("_", "-")
        head, _, last = name.rpartition(".")
        options |= {name} | (
            {f"{head}.no-{last}".lstrip(".")} if isinstance(value, bool) else set()
        )
    for argument in arguments:
        if not argument.startswith("--"):
            continue
        name = argument[2:].split("=")[0].replace("_", "-")
        if name not in options:
            near = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
            hint = f"did you mean --{near[0]}?" if near else "see --help"
            raise UserError(f"unknown option --{name}; {hint}")


def _one_line(box: str) -> str:
    """What tyro says in a box, in the words of our own messages."""
    text = " ".join(re.sub(r"[╭╮╰╯│─]+", " ", box).split())
    for said, told in _TOLD:
        if found := re.search(said, text):
            return found.expand(told)
    text = re.sub(r"Parsing error|Value error|For full helptext.*", "", text).strip()
    return text or "the command line cannot be read; see --help"


_TOLD = (
    (
        r"Unrecognized options: (.+?)(?= For full|$)",
        r"unexpected \1: a value goes with its option, as in --option=VALUE, and several words in "
        "quotes",
    ),
    (r"Missing value for argument '(\S+?)'. Expected (\d+)", r"\1 needs \2 value(s)"),
    (
        r"invalid choice (\S+) for argument '(\S+?)'. Expected one of \((.+?),?\)",
        r"\2 \1 is none of \3",
    ),
    (
        r"Error parsing (\S+):.*?('.*?').*Argument helptext: \S+ \S*INT\b",
        r"\1 \2 is no whole number",
    ),
    (r"Error parsing (\S+):.*?('.*?').*Argument helptext: \S+ \S*FLOAT\b", r"\1 \2 is no number"),
)  # tyro's words, and ours
