"""A real process that is told to stop while its train step compiles, as it may for minutes."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from jaxgen.runtime import hosts

PROGRAM = """
import ctypes
import sys
import threading
from pathlib import Path
from jaxgen.config import Hosts
from runtime import test_loop
from jaxgen.runtime import hosts, loop

def program(*_):
    def step(*_):
        threading.Timer(1, print, ["now"], {"flush": True}).start()  # when the lock is waited for
        lock, taken = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
        lock(taken), lock(taken)  # for ever, and no handler of Python's runs
    return step

loop.program = program
with hosts.told_to_go():
    hosts.join(Hosts(coordinator=sys.argv[1]))
    test_loop.fit(Path("run"), 3)
"""
HANGS = 600  # seconds


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [(signal.SIGTERM, 75, "told to go"), (signal.SIGINT, 130, "interrupted")],
)
@pytest.mark.parametrize("joined", [False, True], ids=["alone", "the only one of a cluster"])
def test_a_signal_while_the_train_step_compiles_ends_the_process(
    joined: bool, number: signal.Signals, code: int, words: str, tmp_path: Path
) -> None:
    """Also where JAX has joined it to a cluster, as on a Cloud TPU host, and has taken SIGTERM."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}" if joined else ""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, coordinator],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert any(line.startswith("now") for line in process.stdout), process.communicate()
    process.send_signal(number)
    try:
        assert process.wait(HANGS) == code
    finally:
        process.kill()
        _, said = process.communicate()
    assert f"jaxgen: {words}; {hosts.GOES_ON}" in said.splitlines()


DROPPED = """
import gc
import os
import signal
import time
from jaxgen.runtime import hosts

def collected(*_):
    gc.callbacks.remove(collected)
    os.kill(os.getpid(), signal.SIGINT)  # its handler raises here, and the collector drops that

with hosts.told_to_go():
    gc.callbacks.append(collected)
    gc.collect()
    print("not heard", flush=True)
    time.sleep(30)
"""
CLEANS = """
import os
import signal
import time
from jaxgen.runtime import hosts

hosts.PATIENCE = 0.1
with hosts.told_to_go():
    try:
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        time.sleep(1)
        print("cleaned", flush=True)
"""


def test_ctrl_c_in_the_midst_of_collecting_garbage_is_heard_all_the_same() -> None:
    process = subprocess.run([sys.executable, "-c", DROPPED], capture_output=True, text=True)
    assert process.stdout == ""
    assert process.returncode == 130
    assert process.stderr.splitlines() == [f"jaxgen: interrupted; {hosts.GOES_ON}"]


def test_what_hears_ctrl_c_has_time_to_clean_up() -> None:
    process = subprocess.run([sys.executable, "-c", CLEANS], capture_output=True, text=True)
    assert process.stdout == "cleaned\n"
    assert "KeyboardInterrupt" in process.stderr
