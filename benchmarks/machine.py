"""What a measurement was made on: devices and versions, and no name or path of the host.

    python -m benchmarks.machine 64

prints that as JSON, with as many CPU devices as there are for 64 images at once.
"""

import contextlib
import importlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

import jaxgen
from jaxgen.errors import UserError
from jaxgen.runtime import mesh as meshes

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "torch", "diffusers")


def asked(batch: int) -> dict[str, Any]:
    """`hardware` for batches of `batch`, from a process of its own: this one's JAX stays unused.

    A GPU's memory belongs to whoever uses it first, and children may want it.
    """
    command = [sys.executable, "-m", "benchmarks.machine", str(batch)]
    told = subprocess.run(command, stdout=subprocess.PIPE, check=False, text=True)
    if told.returncode:
        raise UserError("JAX finds no device: its message is above")
    return json.loads(told.stdout.splitlines()[-1])


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


def commit() -> str:
    """That of the checkout, `+` where more than results was changed since; none outside one."""
    root = str(RESULTS.parent.parent)
    others = [":/", ":(exclude,top)benchmarks/results"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        found, changed = (
            subprocess.run(
                ["git", "-C", root, *asked], capture_output=True, check=True, text=True
            ).stdout.strip()
            for asked in (
                ["rev-parse", "--short", "HEAD"],
                ["status", "--porcelain", "--untracked-files=no", "--", *others],
            )
        )
        return found + "+" * bool(changed)
    return ""


def without_broken_torchvision() -> None:
    """Before transformers is imported, which takes torchvision where it finds it.

    The wheel that other packages bring does not load beside a PyTorch for the CPU alone.
    """
    try:
        importlib.import_module("torchvision")
    except (ImportError, OSError, RuntimeError):
        sys.modules["torchvision"] = None  # pyright: ignore[reportArgumentType]


def missing(*modules: str) -> str:
    """Why PyTorch's side of a comparison cannot be had; empty where all modules are imported."""
    without_broken_torchvision()
    try:
        for module in modules:
            importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:  # as diffusers words what it lacks
        return f"no PyTorch rival: {' '.join(str(error).split())[:200]}"
    return ""


def slug(device: str, count: int) -> str:
    """Folder name of the results of `count` devices of a kind.

    >>> slug("NVIDIA H100 80GB HBM3", 1)
    'nvidia-h100-1'
    """
    words = re.findall(r"[a-z0-9]+", device.lower())
    return "-".join([w for w in words if not re.fullmatch(r"\d+gb|hbm\w*", w)] + [str(count)])


def memory_left() -> float:
    """Bytes of this machine's memory that are free or can be freed; infinite where unknown."""
    with contextlib.suppress(OSError):
        found = re.search(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text())
        if found:
            return 1024.0 * int(found[1])
    return float("inf")


def _processor() -> str:
    with contextlib.suppress(OSError):
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        if found:
            return found[1].strip()
    return platform.processor() or "unknown"


if __name__ == "__main__":
    meshes.prepare(int(sys.argv[1]))
    print(json.dumps(hardware()))
