"""Full accept queues: what the system drops is told, by a real process."""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import struct
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from logs import counted, lines, untilWritten
from processes import (
    LOOPBACK,
    SCRIPTS,
    Process,
    Start,
    connecting,
    curl,
    isStopped,
    run,
    tool,
    until,
)
from roundtrip import Far

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux tells what it drops")

BACKLOG = 3
"""One client more than this is in a full accept queue, in Linux."""


CONNECT = """
import socket, sys
clients = [socket.create_connection(("127.0.0.1", sys.argv[1])) for _ in range(int(sys.argv[2]))]
"""


def pause(server: Process) -> None:
    """Stop a server, and wait until it stands still."""
    server.kill(signal.SIGSTOP)
    until(lambda: isStopped(server.pid))


def connectAndReset(address: tuple[str, int], count: int) -> int:
    """Have clients try to connect, and reset all connections; return how many were connected."""
    connected = 0
    with ExitStack() as stack:
        clients = [stack.enter_context(connecting(address)[0]) for _ in range(count)]
        for client in clients:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connected += client.connect_ex(address) in (0, errno.EISCONN)
    return connected


def dropped(port: int, *prefix: object) -> int:
    """Return how many packets the socket of a port has dropped, as ss(8) shows it."""
    shown = run(*prefix, tool("ss"), "-Hltnm", f"sport = :{port}").stdout
    return int(re.findall(r"skmem:\(.*,d(\d+)\)", shown)[0])


def full(log: Path) -> list[dict[str, Any]]:
    """Return the lines of a log that tell of a full accept queue."""
    return [line for line in lines(log) if line["message"] == "Accept queue was full"]


def report(log: Path) -> tuple[int, str]:
    """Return the status and the text of the report."""
    pytest.importorskip("duckdb")
    done = run(SCRIPTS / "hello-listen-report", log)
    return done.returncode, done.stdout


@pytest.mark.parametrize("prefix", ["", "haproxy:"])
def test_clients_that_find_a_full_queue(hello: Start, tmp_path: Path, prefix: str) -> None:
    """Twisted's log, the connection log, the status and the report tell what the system counted."""
    endpoint = f"{prefix}{LOOPBACK}:backlog={BACKLOG}"
    server = hello("-l", "log", "--status", LOOPBACK, "-e", endpoint)
    page = server.expect(r"Status on (.*)$")[1]
    port = server.port()
    pause(server)
    connected = connectAndReset(("127.0.0.1", port), 20)
    count = dropped(port)
    server.kill(signal.SIGCONT)
    assert (connected, count) == (BACKLOG + 1, 20 - connected)
    server.expect(
        rf"The accept queue of 127\.0\.0\.1:{port} was full: up to {count} packets of clients were "
        "dropped, so clients may be missing$"
    )
    metrics = curl(f"http://{page}/metrics").stdout
    line = f'hello_listen_dropped_packets_total{{server="127.0.0.1:{port}"}} {count}.0'
    assert line in metrics.splitlines()
    assert counted(server.stop()) == (connected, connected, 0)
    [told] = full(tmp_path / "log")
    assert (told["packets"], told["server.port"]) == (count, port)
    status, text = report(tmp_path / "log")
    assert status == 3
    assert f"had a full accept queue: up to {count} packets of clients were dropped" in text


def test_queue_that_is_just_full(hello: Start, tmp_path: Path) -> None:
    """As many clients as the queue has room for are recorded, and nothing is said."""
    server = hello("-l", "log", "-e", f"{LOOPBACK}:backlog={BACKLOG}")
    port = server.port()
    for number in range(1, 4):
        pause(server)
        assert connectAndReset(("127.0.0.1", port), BACKLOG + 1) == BACKLOG + 1
        server.kill(signal.SIGCONT)
        untilWritten(tmp_path / "log", 1 + number * (BACKLOG + 1))
    assert "accept queue" not in server.stop()
    assert full(tmp_path / "log") == []
    assert report(tmp_path / "log")[0] == 0


@pytest.mark.parametrize("endpoint", [f"tcp:0:backlog={BACKLOG}"])
def test_clients_that_take_themselves_for_connected(far: Far, endpoint: str) -> None:
    """Clients whose last packet of the handshake was dropped are missing, and that is told."""
    clients = far.clients(endpoint, roundTrip=0.05)
    pause(far.server)
    for _ in range(20):
        clients.begin()
    missing = 20 - (BACKLOG + 1)
    clients.until(lambda: far.overflows() >= missing)
    far.server.kill(signal.SIGCONT)
    clients.until(lambda: clients.ends["ended"] == BACKLOG + 1)
    far.server.kill(signal.SIGTERM)
    assert len(far.unrecorded(clients)) == missing
    assert "The accept queue of 0.0.0.0" in far.server.said()
    assert sum(line["packets"] for line in full(far.server.folder / "log")) >= missing


@pytest.mark.slow
@pytest.mark.parametrize("endpoint", ["tcp:0"])
@pytest.mark.parametrize("scan", ["-sS", "-sF"])
def test_half_open_scan(far: Far, endpoint: str, scan: str) -> None:
    """A scan whose packets are dropped, though the queue has room, is no reason for a warning."""
    if os.geteuid() != 0:
        pytest.skip("nmap needs root for these scans")
    port = far.server.port()
    nmap = [tool("nmap"), scan, "-n", "-Pn", "-p", port, "127.0.0.1"]
    assert run(*far.inside, *nmap).returncode == 0
    assert dropped(port, *far.inside) > 0
    # More clients than a batch has, so that the port looks.
    pause(far.server)
    assert run(*far.inside, sys.executable, "-c", CONNECT, port, 99).returncode == 0
    far.server.kill(signal.SIGCONT)
    assert counted(far.server.stop()) == (99, 99, 0)
    assert "accept queue" not in far.server.said()
