"""Start programs for a test, and end them with it."""

from __future__ import annotations

import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from processes import INHERIT, SCRIPTS, Process, Start, tool


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a program, by its name beside this Python or on the PATH, with its arguments."""
    processes: list[Process] = []

    def startProcess(program: str, *arguments: object, **options: object) -> Process:
        beside = SCRIPTS / program
        path = str(beside) if beside.exists() else tool(program)
        command = [path, *map(str, arguments)]
        processes.append(Process(command, tmp_path, **options))
        return processes[-1]

    yield startProcess
    for process in reversed(processes):
        process.end()


@pytest.fixture
def hello(start: Start) -> Start:
    """Start C{twistd -n hello-listen} with arguments."""
    return lambda *arguments, **options: start(
        "twistd", "-n", "--pidfile=", "hello-listen", *arguments, **options
    )


@pytest.fixture
def inherit(start: Start) -> Start:
    """Start C{twistd -n hello-listen} with a socket that it inherits, and arguments."""

    def startHeir(listener: socket.socket, *arguments: object) -> Process:
        return start(
            "python", "-c", INHERIT, listener.fileno(), SCRIPTS / "twistd", "-n", "--pidfile=",
            "hello-listen", *arguments, pass_fds=[listener.fileno()],
        )  # fmt: skip

    return startHeir


@pytest.fixture
def descriptors() -> Iterator[int]:
    """Let this process have as many descriptors as it may, and return how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def limited(hello: Start) -> Start:
    """Start C{twistd -n hello-listen} that may have so many descriptors, with arguments."""

    def startLimited(count: int, *arguments: object) -> Process:
        server = hello(*arguments)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (count, count))
        return server

    return startLimited
