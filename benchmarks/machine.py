"""What a measurement was made on: devices and versions, and no name or path of the host."""

import contextlib
import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any

import jax

import jaxgen
from jaxgen.errors import UserError

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("jax", "jaxlib", "flax", "numpy")


def folder(device: dict[str, Any]) -> Path:
    """Where results of this hardware lie, made if need be; UserError where it cannot be."""
    found = RESULTS / slug(device["device"], device["count"])
    try:
        found.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {found} ({error.strerror})") from None
    return found


def hardware() -> dict[str, Any]:
    """The JAX devices and the CPU beside them."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "count": jax.device_count(),
        "processor": _processor(),
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
    }


def versions() -> dict[str, str]:
    """Versions of Python, jaxgen and what it computes with."""
    found = {"python": platform.python_version(), "jaxgen": jaxgen.__version__}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def slug(device: str, count: int) -> str:
    """Folder name of the results of `count` devices of a kind.

    >>> slug("NVIDIA H100 80GB HBM3", 1)
    'nvidia-h100-1'
    """
    words = re.findall(r"[a-z0-9]+", device.lower())
    return "-".join([w for w in words if not re.fullmatch(r"\d+gb|hbm\w*", w)] + [str(count)])


def _processor() -> str:
    with contextlib.suppress(OSError):
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        if found:
            return found[1].strip()
    return platform.processor() or "unknown"
