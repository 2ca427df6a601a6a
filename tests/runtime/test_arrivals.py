"""Processes that wait for each other: together, or one line that says who is missing."""

import contextlib
import dataclasses
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO

import pytest

from jaxgen.config import Hosts
from jaxgen.errors import UserError
from jaxgen.runtime import arrivals


@pytest.fixture
def config() -> Hosts:
    """Of three processes, at a port that is free."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return Hosts(coordinator=f"localhost:{port}", count=3, wait=60)


def started(config: Hosts, *indices: int) -> list[Future]:
    """Threads in place of processes; returned when all have ended."""
    with ThreadPoolExecutor() as pool:
        each = (dataclasses.replace(config, index=index) for index in indices)
        return [pool.submit(arrivals.meet, one) for one in each]


def test_all_go_on_when_the_last_has_come_and_the_port_is_free_again(config: Hosts) -> None:
    """And strangers who knock are nobody."""
    host, port = config.coordinator.split(":")

    def knock() -> None:
        for said in (b"GET / HTTP/1.1\r\n", b"7\n", b"GET 1 2\n", b"\xff 1 3\n", b""):
            while True:
                try:
                    with socket.create_connection((host, int(port))) as line:
                        line.sendall(said)
                    break
                except ConnectionRefusedError:
                    continue

    with ThreadPoolExecutor() as pool:
        first = pool.submit(arrivals.meet, config)
        pool.submit(knock).result()
        assert not first.done(), "nobody has come yet"
        others = started(config, 2, 1)
    assert [process.exception() for process in (first, *others)] == [None] * 3
    with socket.create_server((host, int(port))):
        pass


def test_those_who_never_come_are_named(config: Hosts) -> None:
    first, second = started(dataclasses.replace(config, wait=1), 0, 1)
    with pytest.raises(UserError, match=rf"process 2 of 3 did not come to {config.coordinator} wi"):
        first.result()
    with pytest.raises(UserError, match=rf"{config.coordinator} was not reached within 1 s \(\w"):
        second.result()


@contextlib.contextmanager
def come(config: Hosts, index: int) -> Iterator[BinaryIO]:
    """A process that has come; what it is told can be read."""
    address = arrivals._address(config)
    while True:
        try:
            line = socket.create_connection(address)
            break
        except ConnectionRefusedError:
            continue
    with line, line.makefile("rb") as told:
        line.sendall(f"jaxgen {index} {config.count}\n".encode())
        yield told


def test_another_count_is_told_to_all_at_once(config: Hosts) -> None:
    with ThreadPoolExecutor() as pool:
        first = pool.submit(arrivals.meet, config)
        with come(config, 1) as told:
            (third,) = started(dataclasses.replace(config, count=4), 2)
            words = "the processes differ in hosts.count: 3 in process 0, 4 in process 2; start all"
            assert told.read().decode().startswith(f"refused: {words}")
    for process in (first, third):
        with pytest.raises(UserError, match=words):
            process.result()


def refused(config: Hosts, index: int) -> None:
    (again,) = started(config, index)
    with pytest.raises(UserError, match=rf"process {index} of 3 has come already; give each its"):
        again.result()


def test_a_number_that_has_come_is_refused_until_its_process_has_gone(config: Hosts) -> None:
    """And one that has gone is not counted when all others have come."""
    with ThreadPoolExecutor() as pool:
        first = pool.submit(arrivals.meet, config)
        with come(config, 1):
            refused(config, 1)
        with come(config, 2) as told:
            refused(config, 2)
            assert not first.done(), "process 1 has gone"
            (anew,) = started(config, 1)
            assert told.readline() == b"all here\n"
    assert [process.exception() for process in (first, anew)] == [None] * 2


@pytest.mark.parametrize("said", [b"SSH-2.0-OpenSSH_9.6\r\n", b"\xff\xfe\x00\n"])
def test_somebody_else_at_the_coordinators_address_is_one_line(config: Hosts, said: bytes) -> None:
    host, port = config.coordinator.split(":")
    with socket.create_server((host, int(port))) as door, ThreadPoolExecutor() as pool:
        other = pool.submit(arrivals.meet, dataclasses.replace(config, index=1))
        with door.accept()[0] as line:
            line.sendall(said)
            with pytest.raises(UserError, match=f"at {config.coordinator} answers what is no proc"):
                other.result()


def test_a_port_in_use_is_said_at_once(config: Hosts) -> None:
    port = int(config.coordinator.split(":")[1])
    with (
        socket.create_server(("", port)),
        pytest.raises(UserError, match=f"port {port} of --hosts.coordinator .* is in use; give"),
    ):
        arrivals.meet(config)
