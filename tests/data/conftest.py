"""OpenMoji, drawn once a session at 32 pixels."""

import dataclasses
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

KILLED_IN_THE_MIDDLE = """
    import os, sys
    from jaxgen.data import openmoji

    def progress(done, total):
        if done == 40:
            assert "tensorflow" not in sys.modules
            os._exit(9)

    openmoji.prepare(sys.argv[1], 32, progress)
"""


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Where the pictures are, how the attempt before ended, and what it left under their name."""

    root: Path
    killed: int
    left: list[str]
    progress: list[tuple[int, int]]


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    from jaxgen.data import openmoji

    root = tmp_path_factory.mktemp("data")
    script = textwrap.dedent(KILLED_IN_THE_MIDDLE)
    killed = subprocess.run([sys.executable, "-c", script, str(root)], check=False)
    left = [path.name for path in (root / "openmoji" / "32px").glob("*")]
    progress = []
    openmoji.prepare(root, 32, lambda done, total: progress.append((done, total)))
    return Drawn(root, killed.returncode, left, progress)
