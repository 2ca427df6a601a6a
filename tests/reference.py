"""torch-fidelity and clean-fid, the measures as published, without the torchvision they import.

torchvision's wheel does not load beside a CPU-only PyTorch, so `conftest` hides it, and nothing
that tests call needs it: it is a stand-in while the two are imported, here and nowhere else.
"""

import importlib
import sys
from types import ModuleType
from unittest.mock import MagicMock

_STAND_INS = ("", ".datasets", ".models", ".models.utils", ".transforms", ".transforms.functional")


def _imported(*names: str) -> list[ModuleType]:
    stand_ins = {f"torchvision{name}": MagicMock() for name in _STAND_INS}
    sys.modules.update(stand_ins)
    try:
        return [importlib.import_module(name) for name in names]
    finally:
        for name in stand_ins:
            del sys.modules[name]
        sys.modules["torchvision"] = None  # pyright: ignore[reportArgumentType]


torch_fidelity, cleanfid, _ = _imported("torch_fidelity", "cleanfid", "cleanfid.fid")
