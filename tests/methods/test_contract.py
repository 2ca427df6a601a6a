"""What a method must have is written down; each has it, and nothing else is asked of one."""

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

import jax
import pytest

import jaxgen
from benchmarks import meshes
from jaxgen import methods, optimizer
from jaxgen.config import Train

HEADS = ("Required", "sample", "reconstruct", "predict", "Optional")
METHOD = r"(?:\b_?method|methods\.of\([\w.\[\]]+\))"
ASKED = re.compile(rf'{METHOD}\.(\w+)|hasattr\({METHOD}, "(\w+)"\)')


@pytest.fixture(scope="module")
def contract() -> dict[str, set[str]]:
    """The functions of each part of the package's docstring."""
    text = methods.__doc__ or ""
    places = [text.index(head if head.istitle() else f"(`{head}`)") for head in HEADS]
    ends = [*places[1:], len(text)]
    return {
        head: set(re.findall(r"(\w+)\((?:config|weights)", text[begin:end]))
        for head, begin, end in zip(HEADS, places, ends, strict=True)
    }


@pytest.mark.parametrize("name", methods.CONFIGS)
def test_a_method_has_what_is_required_and_all_of_its_kind(name: str, contract) -> None:
    has = set(dir(methods.of(methods.kind(name)())))
    assert contract["Required"] <= has
    (kind,) = {"sample", "reconstruct", "predict"} & has
    assert contract[kind] <= has


def test_no_door_asks_a_method_for_what_is_not_written_down(contract) -> None:
    files = [f for f in Path(jaxgen.__file__).parent.rglob("*.py") if f.parent.name != "methods"]
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    asked = {name for pair in ASKED.findall(text) for name in pair if name}
    assert {"train_step", "sample", "once", "predict"} & asked, "or nothing was found"
    assert asked <= set().union(*contract.values())


@pytest.mark.parametrize("name", methods.CONFIGS)
def test_the_moving_average_is_over_updates(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By `optimizer.averaged`, which knows at which steps there is one; nothing is compiled."""
    config = meshes.CONFIGS[name]
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, accumulate=2))
    method, asked = methods.of(config), []

    def averaged(train: Train, ema: Any, params: Any, step: Any) -> Any:
        assert jax.tree.structure(ema) == jax.tree.structure(params)
        asked.append(train)
        return ema

    monkeypatch.setattr(optimizer, "averaged", averaged)
    frozen = jax.eval_shape(functools.partial(method.frozen_shapes, config))
    state = jax.eval_shape(functools.partial(method.init, config), frozen, jax.random.key(0))
    step = functools.partial(method.train_step, config)
    jax.eval_shape(step, state, frozen, meshes._batch())
    assert asked == [config.train]
