"""A stop loses no client: each is recorded or refused."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest

from logs import counted, recorded, untilWritten
from processes import (
    LOOPBACK,
    PATIENCE,
    SCRIPTS,
    Start,
    addressOf,
    familyOf,
    load,
    slow,
    tool,
    unprivileged,
    until,
)
from roundtrip import Far

TWISTD = [SCRIPTS / "twistd", "-n", "--pidfile=", "hello-listen", "-l", "log"]


@pytest.mark.parametrize("rights", [slow("own"), "none"])
@pytest.mark.parametrize("endpoint", [LOOPBACK, slow(r"tcp6:0:interface=\:\:1"), "unix:s"])
def test_sigterm_under_load(start: Start, tmp_path: Path, endpoint: str, rights: str) -> None:
    """Each accepted client is recorded, and none is left without an answer."""
    without = unprivileged() if rights == "none" else []
    server = start(*(str(part) for part in [*without, *TWISTD]), "-e", endpoint)
    ends = load(addressOf(server), 60_000, 512, after=4000, pid=server.pid)
    server.wait()
    records = len(recorded(tmp_path / "log"))
    assert ends["hangs"] == 0
    assert ends["ECONNREFUSED"] + ends["ENOENT"] > 0
    assert records >= ends["ended"] + ends["ECONNRESET"]
    assert counted("\n".join(server.lines)) == (records, records, 0)


@pytest.mark.parametrize("endpoint", [LOOPBACK, slow("unix:s"), slow(f"haproxy:{LOOPBACK}")])
def test_all_who_wait_at_the_end(limited: Start, tmp_path: Path, endpoint: str) -> None:
    """A queue that is longer than there are descriptors is served, headers and all."""
    server = limited(250, "-l", tmp_path / "log", "-e", endpoint)
    address = addressOf(server)

    def connect() -> socket.socket:
        client = socket.socket(familyOf(address))
        client.settimeout(PATIENCE)
        client.connect(address)
        if "haproxy" in endpoint:
            client.sendall(b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n")
        return client

    with connect() as first:
        assert first.recv(1) == b""
    os.kill(server.pid, signal.SIGSTOP)
    with ExitStack() as stack:
        clients = [stack.enter_context(connect()) for _ in range(500)]
        os.kill(server.pid, signal.SIGTERM)
        os.kill(server.pid, signal.SIGCONT)
        for client in clients:
            assert client.recv(1) == b""
    server.wait()
    assert counted("\n".join(server.lines)) == (501, 501, 0)
    who = Counter(record.get("client.address") for record in recorded(tmp_path / "log"))
    named = {"haproxy": "192.0.2.7", "tcp": "127.0.0.1"}.get(endpoint.partition(":")[0])
    assert who == {named: 501}


@pytest.mark.skipif(sys.platform != "linux", reason="Linux has the table of handshakes")
@pytest.mark.parametrize("count", [slow(1), 50])
@pytest.mark.slow
def test_handshakes_are_looked_up_for_all_ports(start: Start, tmp_path: Path, count: int) -> None:
    """/proc/net/tcp is read once for all ports, and not while clients are in the accept queue."""
    trace = tmp_path / "trace"
    server = start(tool("strace"), "-D", "-o", trace, "-e", "trace=accept4,openat", *TWISTD,
                   *["-e", LOOPBACK] * count)  # fmt: skip
    addresses = [("127.0.0.1", server.port()) for _ in range(count)]
    os.kill(server.pid, signal.SIGSTOP)
    with ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(socket.create_connection(addresses[-1]))
        os.kill(server.pid, signal.SIGTERM)
        os.kill(server.pid, signal.SIGCONT)
        server.wait()
    assert len(recorded(tmp_path / "log")) == 200
    until(lambda: trace.read_text().endswith("killed by SIGTERM +++\n"))
    calls = re.findall(r'"/proc/net/tcp|accept4.* = \d', trace.read_text())
    # A port without waiting clients does not wait for the others.
    readings = [number for number, call in enumerate(calls) if "proc" in call]
    assert 1 <= len(readings) < 10
    assert count > 1 or readings[0] == 200


TAC = f"""
from twisted.application.service import Application
from hello_listen import ConnectionLog, HelloFactory, HelloProtocol, HelloService

class Answering(HelloProtocol):
    def connectionMade(self):
        self.factory.established(self.transport.getPeer(), self.transport.getHost())

    def dataReceived(self, data):
        self.transport.write(data)
        self.transport.loseConnection()

application = Application("hello")
factory = HelloFactory(ConnectionLog("log"))
factory.protocol = Answering
HelloService(factory, ["{LOOPBACK}"]).setServiceParent(application)
"""


@pytest.mark.slow
def test_conversations_of_an_embedder(start: Start, tmp_path: Path) -> None:
    """At a stop, clients of an embedder's protocol can finish, and new clients are refused."""
    (tmp_path / "hello.tac").write_text(TAC)
    server = start("twistd", "-n", "--pidfile=", "-y", "hello.tac")
    address = ("127.0.0.1", server.port())
    with socket.create_connection(address) as talking, socket.create_connection(address) as silent:
        untilWritten(tmp_path / "log", 3)
        server.kill(signal.SIGTERM)
        server.expect(r"Port \d+ Closed")
        talking.sendall(b"hello")
        assert talking.recv(10) == b"hello"
        with pytest.raises(ConnectionResetError):
            silent.recv(10)
    server.wait()
    assert counted("\n".join(server.lines)) == (2, 2, 0)
    assert len(recorded(tmp_path / "log")) == 2


ENDPOINTS = [slow("tcp:0"), slow("tcp6:0"), "haproxy:tcp:0"]


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize(("roundTrip", "rate"), [slow(0.05, 1000), (0.2, 500)])
def test_handshakes_in_flight(far: Far, endpoint: str, roundTrip: float, rate: int) -> None:
    """A client whose handshake is in flight at the signal is recorded."""
    clients = far.clients(endpoint, roundTrip)
    clients.rate = rate
    clients.until(lambda: clients.ends["ended"] >= 100)
    far.server.kill(signal.SIGTERM)
    clients.until(lambda: clients.ends["refused"])
    clients.untilAllEnded()
    assert far.unrecorded(clients) == set()
    assert clients.ends["reset"] == 0


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_one_handshake_in_flight(far: Far, endpoint: str) -> None:
    """A single in-flight handshake is recorded as well."""
    clients = far.clients(endpoint, roundTrip=0.05)
    clients.begin()
    clients.until(lambda: clients.ends["ended"])
    clients.begin()
    clients.until(lambda: len(clients.answered()) == 2)
    far.server.kill(signal.SIGTERM)
    clients.untilAllEnded()
    assert far.unrecorded(clients) == set()
    assert clients.ends == {"ended": 2}
