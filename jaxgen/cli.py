"""What the command lines share: --config=NAME, then overrides of its fields."""

import sys
from collections.abc import Sequence

from jaxgen import config as configs
from jaxgen.config import Experiment
from jaxgen.errors import UserError

DEFAULT = "add"


def configured(arguments: Sequence[str], prog: str) -> Experiment:
    """The config named by --config (NAME or PATH.py), with the other arguments as overrides.

    With --help prints every option of that config and exits 0. Raises UserError for bad input.
    """
    name, rest = taken("--config", DEFAULT, arguments)
    if not name:
        raise UserError(f"--config needs a name: {', '.join(configs.known())}")
    config = configs.load(name)
    if "--help" in rest or "-h" in rest:
        print(f"usage: {prog} --config=NAME [OPTIONS]   the options below are those of {name}")
        print(f"--config: {', '.join(configs.known())}, or a path to a .py (default: {DEFAULT})\n")
        sys.stdout.flush()
    return configs.parse(config, rest, f"{prog} --config={name}")


def taken(option: str, value: str, arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The last value of a door's own option, or `value`, and the arguments without it."""
    rest: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        if argument == option:
            value = next(waiting, "")
        elif argument.startswith(f"{option}="):
            value = argument.partition("=")[2]
        else:
            rest.append(argument)
    return value, rest
