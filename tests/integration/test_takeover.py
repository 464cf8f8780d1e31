"""UNIX sockets that killed processes left: a restart takes them over, one of two starts wins."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections import Counter
from pathlib import Path

import pytest

from processes import PATIENCE, SCRIPTS, Start, children, until, untilEnd

ENDPOINTS = ["-e", "unix:s", "-e", "haproxy:unix:h", "--status", "unix:st"]


def connect(path: Path) -> None:
    """Connect, and be recorded."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(str(path))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may be process 1")
def test_restart_of_a_container(start: Start, tmp_path: Path) -> None:
    """Where each run is process 1, and the last was killed, the next serves the same paths."""
    for number in range(3):
        server = start(
            "unshare", "--pid", "--fork", "--kill-child", SCRIPTS / "twistd", "-n", "--pidfile=",
            "hello-listen", "-l", "log", *ENDPOINTS,
        )  # fmt: skip
        server.expect("Status on unix:st")
        server.expect("Listening on unix:h")
        for name in ("s", "h", "st"):
            connect(tmp_path / name)
        until(lambda n=number: (tmp_path / "log").read_text().count('"sequence"') == 2 * n + 2)
        if number < 2:
            server.stop(signal.SIGKILL)
    [child] = children(server.pid)
    os.kill(child, signal.SIGTERM)
    assert server.wait() == 0
    assert "Traceback" not in server.said()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log"]
    records = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [each["process.pid"] for each in records if "process.pid" in each] == [1, 1, 1]
    assert [each.get("server.address") for each in records if "sequence" in each] == ["s", "h"] * 3


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may change the user")
def test_restart_after_a_change_of_user(start: Start, tmp_path: Path) -> None:
    """A socket that the process had no right to remove is taken over by the next start."""
    for _ in range(2):
        server = start(
            "twistd", "-n", "--pidfile=", "--uid=65534", "hello-listen", "-e", f"unix:{tmp_path}/s"
        )
        server.expect("set uid/gid 65534")
        untilEnd(f"{tmp_path}/s")
        server.connections(1)
        assert "Not released: Permission denied" in server.stop()


TWISTED = """
import sys
from twisted.internet import endpoints, reactor
from twisted.internet.protocol import Factory

def show(result):
    print(getattr(result, "value", result))

endpoints.serverFromString(reactor, sys.argv[1]).listen(Factory()).addBoth(show)
"""
"""Listens once on Twisted's own endpoint, and prints the result."""


@pytest.mark.slow
@pytest.mark.parametrize("options", ["", ":lockfile=0"])
def test_another_program_that_uses_twisted(
    hello: Start, start: Start, tmp_path: Path, options: str
) -> None:
    """Another program's Twisted endpoint takes over no path in use, however often it starts."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(f"{tmp_path}/s")
    server = hello("-e", "unix:s")
    server.expect("Listening on unix:s")
    for _ in range(3):
        other = start("python", "-c", TWISTED, f"unix:s{options}")
        other.expect("Couldn't listen on any:.*s'?: .*(Cannot acquire lock|already in use)")
        assert other.wait() == 0
        untilEnd(f"{tmp_path}/s")
        server.connections(1)
    server.stop()
    assert not os.listdir(tmp_path)


@pytest.mark.slow
def test_two_servers_at_once(hello: Start, tmp_path: Path) -> None:
    """Of two servers that start at once, one serves the paths, the other ends with the reason."""
    server = hello(*ENDPOINTS)
    server.expect("Listening on unix:h")
    for _ in range(10):
        server.stop(signal.SIGKILL)
        servers = [hello(*ENDPOINTS) for _ in range(2)]
        ready = "Listening on unix:(h)|hello-listen: (.*)"
        said = [each.expect(ready).groups() for each in servers]
        assert sorted(said, key=str) == [("h", None), (None, "Address already in use: 'unix:st'")]
        server, loser = servers if said[0][0] else reversed(servers)
        assert loser.wait() == 1
        for name in ("s", "h", "st"):
            connect(tmp_path / name)
        server.connections(2)
    server.stop()
    assert not os.listdir(tmp_path)


STARTER = """
import sys
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory
from hello_listen._unix import UNIXReactor

for line in sys.stdin:
    try:
        port = UNIXReactor().listenUNIX(line.strip(), Factory(), wantPID=int(sys.argv[1]))
    except CannotListenError as error:
        print(error.socketError.strerror, flush=True)
        sys.stdin.readline()
    else:
        print("listens", flush=True)
        sys.stdin.readline()
        port.release()
"""
"""Listens on the path of each odd line until the next line."""


@pytest.mark.slow
@pytest.mark.parametrize("wantPID", [0, 1])
def test_starts_at_once(start: Start, tmp_path: Path, wantPID: int) -> None:
    """Of four processes that find a dead socket at once, one serves it, again and again."""
    starters, pipes = [], []
    for _ in range(4):
        reads, writes = os.pipe()
        starters.append(start("python", "-c", STARTER, wantPID, stdin=reads))
        os.close(reads)
        pipes.append(writes)

    def tell(line: str) -> None:
        for pipe in pipes:
            os.write(pipe, f"{line}\n".encode())

    for number in range(200):
        path = tmp_path / str(number)
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        if wantPID:
            os.symlink("1", f"{path}.lock")
        tell(str(path))
        answers = Counter(starter.expect("(.+)")[1] for starter in starters)
        assert answers == {"listens": 1, "Address already in use": 3}, number
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        tell("")
    for pipe, starter in zip(pipes, starters, strict=True):
        os.close(pipe)
        assert starter.wait() == 0
    assert not os.listdir(tmp_path)
