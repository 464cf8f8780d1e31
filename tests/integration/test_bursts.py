"""Bursts: each client is recorded, with its own address if it is behind a proxy."""

from __future__ import annotations

import os
import re
import signal
import socket
import struct
import threading
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import pytest

from crowd import Crowd
from hello_listen._proxy import HEADER_TIMEOUT
from logs import counted, recorded
from processes import (
    LOOPBACK,
    PATIENCE,
    Start,
    addressOf,
    familyOf,
    freePort,
    header,
    isStopped,
    listens,
    load,
    run,
    silent,
    tool,
    until,
)

HAPROXY = """
global
    maxconn {most}
defaults
    mode tcp
    timeout connect 30s
    timeout client 30s
    timeout server 30s
listen front
    bind 127.0.0.1:{front}
    server hello 127.0.0.1:{port} send-proxy-v2
"""

NGINX = """
stream {{
    server {{
        listen 127.0.0.1:{front} backlog={most};
        proxy_pass 127.0.0.1:{port};
        proxy_protocol on;
        proxy_connect_timeout 30s;
    }}
}}
"""


def named(log: Path) -> set[int]:
    """Return the ports of the clients that PROXY headers named, in a log without errors."""
    records = recorded(log)
    assert [record for record in records if "error.type" in record] == []
    return {record["client.port"] for record in records}


def backlog(port: int) -> int:
    """Return the accept queue's length that ss(8) shows for a port."""
    [line] = run(tool("ss"), "-Hltn", f"sport = :{port}").stdout.splitlines()
    return int(line.split()[2])


def test_accept_queue(hello: Start) -> None:
    """The accept queue has the system's maximum length, or the endpoint's backlog."""
    server = hello("-e", LOOPBACK, "-e", f"haproxy:{LOOPBACK}", "-e", f"{LOOPBACK}:backlog=7")
    longest = int(Path("/proc/sys/net/core/somaxconn").read_text())
    assert [backlog(server.port()) for _ in range(3)] == [longest, longest, 7]


@pytest.mark.slow
@pytest.mark.parametrize("reactor", ["epoll", "poll", "asyncio"])
@pytest.mark.parametrize("paused", [True, False], ids=["lying there", "following"])
def test_headers_at_once(
    start: Start, tmp_path: Path, descriptors: int, reactor: str, paused: bool
) -> None:
    """Clients are recorded by name, whether their headers arrive before or after accept."""
    server = start(
        "twistd", "-n", "--pidfile=", f"--reactor={reactor}", "hello-listen",
        "-l", "log", "-e", f"haproxy:{LOOPBACK}",
    )  # fmt: skip
    address, total = ("127.0.0.1", server.port()), 0
    for wanted in (300, 1000, 4000):
        clients = min(wanted, descriptors - 100)
        first, total = total + 1, total + clients
        ends = load(
            address, clients, clients, data=partial(header, first=first),
            paused=server.pid if paused else 0,
        )  # fmt: skip
        assert ends == {"ended": clients}
    assert counted(server.stop()) == (total, total, 0)
    assert named(tmp_path / "log") == set(range(1, total + 1))


@pytest.mark.parametrize("proxy", ["haproxy", "nginx"])
def test_clients_of_a_proxy_at_once(
    start: Start, nginx: Start, hello: Start, tmp_path: Path, descriptors: int, proxy: str
) -> None:
    """A proxy's 1,000 clients are recorded, each by its own name."""
    tool(proxy)
    clients = min(1000, descriptors // 4)
    server = hello("-l", "log", "-e", f"haproxy:{LOOPBACK}")
    front, text = freePort(), HAPROXY if proxy == "haproxy" else NGINX
    text = text.format(front=front, port=server.port(), most=clients + 100)
    if proxy == "nginx":
        nginx(front, stream=text)
    else:
        (tmp_path / "haproxy.cfg").write_text(text)
        start("haproxy", "-db", "-f", "haproxy.cfg")
        until(lambda: listens(front))
    ends = load(("127.0.0.1", front), clients, clients)
    assert ends == {"ended": clients}
    server.stop()
    records = recorded(tmp_path / "log")
    assert [record for record in records if "error.type" in record] == []
    # There may be one more, which asked whether the proxy listens.
    assert len({record["client.port"] for record in records}) == len(records) >= clients
    assert {record["server.port"] for record in records} == {front}


@pytest.mark.parametrize("endpoint", [f"haproxy:{LOOPBACK}", "haproxy:unix:s"])
def test_headers_before_a_reset(hello: Start, tmp_path: Path, endpoint: str) -> None:
    """A client that sends a header and resets the connection is recorded by name."""
    server = hello("-l", "log", "-e", endpoint)
    address = addressOf(server)
    assert load(address, 1, 1, data=header) == {"ended": 1}
    os.kill(server.pid, signal.SIGSTOP)
    for number in range(2, 101):
        with socket.socket(familyOf(address)) as client:
            client.connect(address)
            client.sendall(header(number))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    os.kill(server.pid, signal.SIGCONT)
    assert counted(server.stop()) == (100, 100, 0)
    assert named(tmp_path / "log") == set(range(1, 101))


def test_headers_beside_silent_clients(hello: Start, tmp_path: Path, descriptors: int) -> None:
    """Beside 700 silent clients, 300 others are recorded by name, and the 700 are recorded too."""
    count = min(700, descriptors - 400)
    server = hello("-l", "log", "-e", f"haproxy:{LOOPBACK}")
    address = ("127.0.0.1", server.port())
    with ExitStack() as stack:
        silent(stack, address, count)
        assert load(address, 300, 300, data=header, paused=server.pid) == {"ended": 300}
        output = server.stop()
    records = recorded(tmp_path / "log")
    names = {record["client.port"] for record in records if "error.type" not in record}
    assert names == set(range(1, 301))
    assert counted(output) == (count + 300, count + 300, 0)


@pytest.mark.slow
def test_header_after_more_silent_clients_than_descriptors(
    limited: Start, tmp_path: Path, descriptors: int
) -> None:
    """Many more silent clients than descriptors neither keep a client out nor take memory."""
    count = min(10_000, descriptors - 100)
    server = limited(count // 10, "-l", "log", "-e", f"haproxy:{LOOPBACK}")
    address = ("127.0.0.1", server.port())
    before = peak(server.pid)
    with ExitStack() as stack:
        silent(stack, address, count)
        assert load(address, 1, 1, data=header) == {"ended": 1}
        assert peak(server.pid) - before < 32 * 1024
    server.stop()
    records = recorded(tmp_path / "log")
    [position] = [n for n, record in enumerate(records) if "error.type" not in record]
    assert records[position]["client.port"] == 1
    # The client has not waited for others' time limits.
    assert {record["error.type"] for record in records[:position]} == {"proxy_header_evicted"}


@pytest.mark.slow
def test_few_descriptors_for_many_headers(limited: Start, tmp_path: Path, descriptors: int) -> None:
    """Of 4,000 clients at once, 3,996 are named, though a fourth of them takes all descriptors."""
    clients = min(4000, descriptors - 100)
    server = limited(clients // 4, "-l", "log", "-e", f"haproxy:{LOOPBACK}")
    load(("127.0.0.1", server.port()), clients, clients, data=header)
    assert counted(server.stop()) == (clients, clients, 0)
    names = [r for r in recorded(tmp_path / "log") if "error.type" not in r]
    assert len({record["client.port"] for record in names}) >= clients * 0.999


@pytest.mark.slow
def test_header_beside_silent_clients_that_return(
    limited: Start, tmp_path: Path, descriptors: int
) -> None:
    """Silent clients that reconnect after eviction leave others time for a header."""
    server = limited(200, "-l", "log", "-e", f"haproxy:{LOOPBACK}")
    address = ("127.0.0.1", server.port())
    crowd = Crowd(address, width=min(600, descriptors - 100))
    crowd.start()
    crowd.untilEnded(600)
    for number in range(1, 41):
        with socket.create_connection(address, timeout=PATIENCE) as client:
            # A slow proxy; at full speed, twice as many silent clients come as there is room for.
            threading.Event().wait(0.1)
            with suppress(ConnectionError):
                client.sendall(header(number))
                client.recv(1)
    crowd.finish()
    server.stop()
    names = {r["client.port"] for r in recorded(tmp_path / "log") if "error.type" not in r}
    assert len(names & set(range(1, 41))) >= 36


@pytest.mark.slow
@pytest.mark.parametrize("reactor", ["epoll", "poll", "select", "asyncio"])
def test_headers_that_came_while_the_process_stood_still(
    start: Start, tmp_path: Path, reactor: str
) -> None:
    """If the process is paused for longer than the header timeout, all clients are still named."""
    server = start(
        "twistd", "-n", "--pidfile=", f"--reactor={reactor}", "hello-listen",
        "-l", "log", "-e", f"haproxy:{LOOPBACK}",
    )  # fmt: skip
    address = ("127.0.0.1", server.port())
    before = len(os.listdir(f"/proc/{server.pid}/fd"))
    with ExitStack() as stack:
        clients = [
            stack.enter_context(socket.create_connection(address, PATIENCE)) for _ in range(60)
        ]
        until(lambda: len(os.listdir(f"/proc/{server.pid}/fd")) >= before + 60)
        server.kill(signal.SIGSTOP)
        until(lambda: isStopped(server.pid))
        for number, client in enumerate(clients[:50], 1):
            client.sendall(header(number))
        threading.Event().wait(HEADER_TIMEOUT + 0.2)
        server.kill(signal.SIGCONT)
        for client in clients:
            assert client.recv(1) == b""
    server.stop()
    records = recorded(tmp_path / "log")
    names = {record["client.port"] for record in records if "error.type" not in record}
    assert names == set(range(1, 51))
    errors = [record["error.type"] for record in records if "error.type" in record]
    assert errors == ["proxy_header_timeout"] * 10


def peak(pid: int) -> int:
    """Return the most memory that a process has had so far, in KiB."""
    return int(re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())[0])
