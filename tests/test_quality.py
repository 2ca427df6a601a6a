"""What a speed beside a quality is: the seconds of a program that has run before."""

from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from tiny import SIZE

from jaxgen import quality


def test_the_first_run_of_a_program_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []
    clock = iter((10.0, 10.0 + 128))

    def run(weights: Any, number: int, block: jax.Array) -> jax.Array:
        happened.append("run")
        return block

    def now() -> float:
        happened.append("clock")
        return next(clock)

    compiled = SimpleNamespace(lower=lambda *_: SimpleNamespace(compile=lambda: run))
    monkeypatch.setattr(quality.jax, "jit", lambda program: compiled)
    monkeypatch.setattr(quality, "time", SimpleNamespace(monotonic=now))
    config = SimpleNamespace(data=SimpleNamespace(size=SIZE))
    loaded: Any = SimpleNamespace(config=config, weights=np.zeros(1), folder=None)
    rows = np.arange(65, dtype=np.uint8)
    images, seconds = quality._in_blocks(loaded, lambda *_: None, rows)  # pyright: ignore
    assert happened == ["run", "clock", "run", "run", "clock"]
    assert seconds == 1.0, "of two blocks of 64"
    np.testing.assert_array_equal(images, rows)
