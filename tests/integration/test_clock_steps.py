"""Timeouts hold when the system's clock is set (with libfaketime)."""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count, islice
from pathlib import Path

import pytest

from logs import counted, recorded
from processes import (
    LOOPBACK,
    PATIENCE,
    Process,
    Start,
    addressOf,
    familyOf,
    load,
    run,
    slow,
    tool,
    until,
)

HOUR = 3600
HEADER = b"PROXY TCP4 192.0.2.7 198.51.100.1 1 443\r\n"

Clocked = tuple[Process, Callable[[int], None]]


@pytest.fixture
def clocked(start: Start, tmp_path: Path) -> Callable[..., Clocked]:
    """Start C{twistd -n hello-listen}, and return it and a function that sets its clock."""
    preload = run(tool("faketime"), "-f", "+0", "printenv", "LD_PRELOAD").stdout.strip()

    def step(seconds: int) -> None:
        (tmp_path / "new").write_text(f"{seconds:+d}\n")
        (tmp_path / "new").rename(tmp_path / "offset")

    def startClocked(reactor: str, *arguments: object) -> Clocked:
        step(0)
        environment = {
            "LD_PRELOAD": preload,
            "FAKETIME_TIMESTAMP_FILE": str(tmp_path / "offset"),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_RESET": "1",
        }
        server = start(
            "twistd", "-n", "--pidfile=", f"--reactor={reactor}", "hello-listen",
            *([] if "-l" in arguments else ["-l", "log"]), *arguments, env=os.environ | environment,
        )  # fmt: skip
        return server, step

    return startClocked


def descriptors(server: Process) -> Iterator[tuple[Path, str]]:
    """Return the descriptors of a process, and what each is."""
    for entry in Path(f"/proc/{server.pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            yield entry, os.readlink(entry)


def sockets(server: Process) -> int:
    """Return how many sockets a process has."""
    return sum(path.startswith("socket:") for _, path in descriptors(server))


def connect(address: tuple[str, int] | str) -> socket.socket:
    """Return a client that is connected."""
    client = socket.socket(familyOf(address))
    client.settimeout(PATIENCE)
    client.connect(address)
    return client


@contextmanager
def accepted(
    server: Process, address: tuple[str, int] | str, clients: int
) -> Iterator[list[socket.socket]]:
    """Connect so many clients, and give them once the server has accepted all."""
    before = sockets(server)
    with ExitStack() as stack:
        connected = [stack.enter_context(connect(address)) for _ in range(clients)]
        until(lambda: sockets(server) == before + clients)
        yield connected


def refuses(path: str) -> bool:
    """Return whether a UNIX socket refuses connections."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(path) == errno.ECONNREFUSED


REACTORS = ["epoll", slow("asyncio"), slow("poll"), slow("select")]


@pytest.mark.parametrize("reactor", REACTORS)
@pytest.mark.parametrize("seconds", [-HOUR, slow(HOUR)])
def test_stop(clocked: Callable[..., Clocked], tmp_path: Path, reactor: str, seconds: int) -> None:
    """A stop's grace period for a missing header holds if the clock is set meanwhile."""
    server, step = clocked(reactor, "-e", "haproxy:unix:s")
    address = addressOf(server)
    assert isinstance(address, str)
    with accepted(server, address, 1) as [client]:
        server.kill(signal.SIGTERM)
        until(lambda: refuses(address))
        step(seconds)
        assert client.recv(1) == b""
    server.wait()
    errors = [record.get("error.type") for record in recorded(tmp_path / "log")]
    assert "proxy_header_stopped" in errors
    assert counted("\n".join(server.lines)) == (len(errors), len(errors), 0)


@pytest.mark.parametrize("reactor", REACTORS)
def test_pause(clocked: Callable[..., Clocked], reactor: str) -> None:
    """Clients that wait for a descriptor are served once there is one."""
    server, step = clocked(reactor, "-e", f"haproxy:{LOOPBACK}")
    address = addressOf(server)
    before = sockets(server)
    with connect(address) as first:
        first.sendall(HEADER)
        assert first.recv(1) == b""
    until(lambda: sockets(server) == before)
    # One descriptor is left: too few for a client, but libfaketime opens a file to see the step.
    used = {int(entry.name) for entry, path in descriptors(server) if "offset" not in path}
    _, limit = islice((number for number in count() if number not in used), 2)
    soft, hard = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (limit, hard))
    with connect(address) as client:
        client.sendall(HEADER)
        server.expect("Clients wait in the accept queue")
        step(-HOUR)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (soft, hard))
        assert client.recv(1) == b""
    assert counted(server.stop()) == (2, 2, 0)


@pytest.mark.slow
def test_log_that_is_stuck(clocked: Callable[..., Clocked], fifo: Path, reader: int) -> None:
    """A stop waits for a blocked log until its timeout, even if the clock is set meanwhile."""
    server, step = clocked("epoll", "-e", "unix:s", "-l", fifo)
    address = addressOf(server)
    assert isinstance(address, str)
    load(address, 1000, 32)
    server.kill(signal.SIGTERM)
    until(lambda: not Path(address).exists())
    step(-HOUR)
    server.wait()
    assert counted("\n".join(server.lines))[0] == 1000
    os.close(reader)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [-HOUR, HOUR])
def test_header_that_does_not_come(
    clocked: Callable[..., Clocked], tmp_path: Path, seconds: int
) -> None:
    """A silent client times out, and a client that sends its header after the step is named."""
    server, step = clocked("epoll", "-e", f"haproxy:{LOOPBACK}")
    with accepted(server, addressOf(server), 2) as [client, silent]:
        step(seconds)
        client.sendall(HEADER)
        assert client.recv(1) == b""
        assert silent.recv(1) == b""
    server.stop()
    errors = [record.get("error.type") for record in recorded(tmp_path / "log")]
    assert errors == [None, "proxy_header_timeout"]
