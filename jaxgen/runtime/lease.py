"""One process at a time in a run's folder."""

import contextlib
import fcntl
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorstore

from jaxgen import storage
from jaxgen.errors import EXIT_USER_ERROR, UserError, unusable
from jaxgen.runtime import hosts

REFRESH, STALE = 15.0, 60.0  # seconds between two signs of life, and of silence that is believed
LOOK = 1.0  # seconds between two looks at another's lease
PARTING = 5.0  # seconds that a bucket has to take the lease back


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keeps every other process out of the folder, which is made, while the block runs.

    On a disk by a lock that the kernel lets go with the process, however that ends.

    In a bucket by a lease, the object `.lock`: its holder writes it anew every REFRESH seconds,
    each time on condition that it is still as last written, and deletes it in the end. Who finds
    one waits up to STALE seconds for a change, and takes it over, on the same condition, where
    there is none; no clock is compared with another machine's. A holder that was killed on this
    very machine is known to be dead, and one that runs here to live, without waiting.

    So of several processes that start at once one goes on; no holder that reaches the bucket is
    displaced; one that was killed keeps nobody out for longer than STALE. What is not prevented: a
    holder that was stopped, or cut off from the bucket, for longer than that, and displaced, ends
    only when it next refreshes the lease, REFRESH seconds after it goes on. Until then it may write
    too: what the same config computes, as its successor does.

    Raises UserError where another process holds the folder, or it cannot be written or locked, and
    Outage where the bucket does not answer.
    """
    if storage.is_remote(folder):
        lease = _Lease(folder)
        try:
            yield
        finally:
            lease.release()
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise _unwritable(folder, str(error.strerror)) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _in_use(folder, "another process") from None
        except OSError as error:  # of network disks
            raise UserError(
                f"cannot lock {folder / '.lock'} ({error.strerror}); choose a --workdir on a disk "
                "that has locks"
            ) from None
        yield


class _Lease:
    def __init__(self, folder: Path):
        self._folder, self._writing, self._ended = folder, threading.Lock(), threading.Event()
        self._me = json.dumps({**_process(os.getpid()), "id": uuid.uuid4().hex}).encode()
        # Few tries: who cannot refresh now will do so the next time.
        tries = {"max_retries": 4, "initial_delay": "500ms", "max_delay": "4s"}
        context = tensorstore.Context({"gcs_request_retries": tries})
        try:
            self._object = tensorstore.KvStore.open(str(folder / ".lock"), context=context).result()
            self._take()
        except ValueError as error:
            reason = str(error).splitlines()[0][:160]
            raise unusable(error, f"cannot write to {folder} ({reason})") from None
        threading.Thread(target=self._refresh, daemon=True).start()

    def release(self) -> None:
        """Lets the next process in at once; where the bucket is not reached, a minute later."""
        self._ended.set()
        if self._writing.acquire(timeout=PARTING):  # or a refresh waits for an answer
            with contextlib.suppress(ValueError, TimeoutError):
                given_up = self._object.write("", None, if_equal=self._generation)
                given_up.result(timeout=PARTING)
            self._writing.release()

    def _take(self) -> None:
        found = self._object.read("").result()
        holder = json.loads(found.value or "{}")
        if holder and not (dead := _is_dead(holder)):
            who = f"process {holder['pid']} on {holder['host']}"
            if dead is False:
                raise _in_use(self._folder, who)
            print(f"{self._folder} was in use by {who}: is it alive?", flush=True)
            give_up = time.monotonic() + STALE
            before = found.stamp.generation
            while time.monotonic() < give_up and found.stamp.generation == before:
                time.sleep(LOOK)
                found = self._object.read("").result()
            if found.stamp.generation != before and found.state == "value":
                raise _in_use(self._folder, who)
        self._generation = found.stamp.generation
        if not self._write():
            raise _in_use(self._folder, "another process")

    def _write(self) -> bool:
        """Whether the lease, as this process last knew it, could be written anew."""
        with self._writing:
            done = self._object.write("", self._me, if_equal=self._generation).result()
            if not done.generation:
                # The answer to a first try may have been lost, and the second found it written.
                found = self._object.read("").result()
                if found.value != self._me:
                    return False
                done = found.stamp
            self._generation = done.generation
        return True

    def _refresh(self) -> None:
        while not self._ended.wait(REFRESH):
            with contextlib.suppress(ValueError):  # cut off; who came meanwhile is met then
                if not self._write() and not self._ended.is_set():
                    hosts.leave(
                        EXIT_USER_ERROR,
                        f"{self._folder} was taken over by another process while this one was "
                        "stopped or cut off; that one goes on",
                    )


def _unwritable(folder: Path, reason: str) -> UserError:
    return UserError(f"cannot write to {folder} ({reason}); choose another --workdir")


def _in_use(folder: Path, who: str) -> UserError:
    return UserError(f"{folder} is in use by {who}; wait, or use --name")


def _process(pid: int) -> dict[str, Any]:
    """What tells a process from all others there ever were: its machine, number and start."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        machine = f"{boot} {os.readlink('/proc/self/ns/pid')}"  # containers count on their own
    except OSError:
        machine = ""
    return {"host": platform.node(), "machine": machine, "pid": pid, "started": _started(pid)}


def _started(pid: int) -> str:
    """When a process of this machine started, in the kernel's ticks; empty where it has ended."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else fields[18]


def _is_dead(holder: dict[str, Any]) -> bool | None:
    """Whether a process has ended; None where it is another machine's, so nobody here can know."""
    now = _process(holder["pid"])
    if not now["machine"] or holder["machine"] != now["machine"]:
        return None
    return holder["started"] != now["started"]
