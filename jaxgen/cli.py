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
    name, rest = _config_name(list(arguments))
    config = configs.load(name)
    if "--help" in rest or "-h" in rest:
        print(f"usage: {prog} --config=NAME [OPTIONS]   the options below are those of {name}")
        print(f"--config: {', '.join(configs.known())}, or a path to a .py (default: {DEFAULT})\n")
        sys.stdout.flush()
    return configs.parse(config, rest, f"{prog} --config={name}")


def _config_name(arguments: list[str]) -> tuple[str, list[str]]:
    name, rest = DEFAULT, []
    waiting = iter(arguments)
    for argument in waiting:
        if argument == "--config":
            name = next(waiting, "")
        elif argument.startswith("--config="):
            name = argument.removeprefix("--config=")
        else:
            rest.append(argument)
    if not name:
        raise UserError(f"--config needs a name: {', '.join(configs.known())}")
    return name, rest
