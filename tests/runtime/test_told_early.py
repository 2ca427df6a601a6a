"""A real process that is told to go while its train step compiles, which may take many minutes."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import ctypes
import sys
from pathlib import Path
from jaxgen.config import Hosts
from runtime import test_loop
from jaxgen.runtime import hosts, loop

def program(*_):
    def step(*_):
        print("now", flush=True)
        ctypes.CDLL(None).system(b"cat")  # no handler of Python's runs until it ends
    return step

loop.program = program
with hosts.told_to_go():
    hosts.join(Hosts(coordinator=sys.argv[1]))
    test_loop.fit(Path("run"), 3)
"""
HANGS = 600  # seconds


@pytest.mark.parametrize("joined", [False, True], ids=["alone", "the only one of a cluster"])
def test_sigterm_while_the_train_step_compiles_ends_the_process(
    joined: bool, tmp_path: Path
) -> None:
    """Also where JAX has joined it to a cluster, as on a Cloud TPU host, and has taken SIGTERM."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}" if joined else ""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, coordinator],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert any(line.startswith("now") for line in process.stdout), process.communicate()
    process.terminate()
    try:
        assert process.wait(HANGS) == 75
    finally:
        process.kill()
        _, said = process.communicate()
    assert "jaxgen: told to go; the same command goes on from what is saved" in said.splitlines()
