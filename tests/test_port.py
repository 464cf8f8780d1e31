"""Real sockets on a reactor in memory: hanging up in place, draining, inheriting."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import tcp
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import ITransport
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from zope.interface.verify import verifyClass

from hello_listen import Connection, HelloFactory, HelloProtocol
from hello_listen import port as module
from hello_listen.port import AT_ONCE, InPlaceTransport, drain, hangUpInPlace


class Reactor(MemoryReactorClock):
    """A reactor that does nothing by itself, and counts how often it was asked for a turn."""

    turns = 0

    def callLater(self, when: float, what: Callable[..., object], *a: Any, **kw: Any) -> Any:
        """Count."""
        self.turns += 1
        return super().callLater(when, what, *a, **kw)

    def drain(self, port: object) -> int:
        """Let a port drain, and return how many turns that took."""
        self.turns = 0
        drained = Deferred.fromCoroutine(drain(port))
        self.advance(0)
        assert drained.called
        return self.turns


class Listener:
    """A port with a factory, on a reactor that does nothing by itself."""

    def __init__(self, interface: str = "127.0.0.1", factory: Factory | None = None) -> None:
        """Listen."""
        self.seen: list[Connection] = []
        self.reactor = Reactor()
        self.port: Any = tcp.Port(
            0, factory or HelloFactory(observer=self.seen.append), 50, interface, self.reactor
        )
        self.port.startListening()

    def connect(self, host: str = "127.0.0.1") -> socket.socket:
        """Connect a client, which waits in the accept queue."""
        return socket.create_connection((host, self.port.getHost().port), timeout=5)

    def close(self) -> None:
        """Stop listening."""
        self.port.stopListening()
        self.reactor.advance(0)


@pytest.mark.parametrize(
    ("interface", "host"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("", "127.0.0.1"),
        ("::1", "::1"),
        ("::", "::1"),
        ("::ffff:0.0.0.0", "127.0.0.1"),
    ],
)
def test_in_place(interface: str, host: str) -> None:
    """A connection is over when the port has read, cleanly, and both its ends are known."""
    listener = Listener(interface)
    hangUpInPlace(listener.port)
    kind = IPv6Address if ":" in host else IPv4Address
    with listener.connect(host) as client:
        listener.port.doRead()
        assert client.recv(1) == b""
        [connection] = listener.seen
        client_, server = connection.client, connection.server
        assert isinstance(client_, kind)
        assert isinstance(server, kind)
        assert (client_.host, client_.port) == client.getsockname()[:2]
        assert (server.host, server.port) == client.getpeername()[:2]
    assert set(listener.reactor.getReaders()) == {listener.port}
    listener.close()


def test_in_place_after_an_observer_failed() -> None:
    """An observer's error does not keep the descriptor."""

    def observer(connection: Connection) -> None:
        raise RuntimeError

    listener = Listener(factory=HelloFactory(observer=observer))
    hangUpInPlace(listener.port)
    with listener.connect() as client:
        listener.port.doRead()
        assert client.recv(1) == b""
    listener.close()


def test_in_place_transport() -> None:
    """It is a transport, and sends nothing."""
    assert verifyClass(ITransport, InPlaceTransport)
    ours, theirs = socket.socketpair()
    with theirs:
        transport = InPlaceTransport(None, ours, Protocol(), ("127.0.0.1", 1))
        transport.write(b"hello")
        transport.writeSequence([b"hello"])
        transport.loseConnection()
        assert theirs.recv(1) == b""


def test_not_in_place() -> None:
    """Whoever brings another factory or protocol gets the transport that Twisted gives."""

    class Subclass(HelloFactory):
        pass

    class OtherProtocol(HelloProtocol):
        pass

    other = HelloFactory()
    other.protocol = OtherProtocol  # type: ignore[assignment]
    for factory in (Subclass(), other, Factory.forProtocol(Protocol)):
        listener = Listener(factory=factory)
        hangUpInPlace(listener.port)
        assert listener.port.transport is tcp.Server
        listener.close()
    hangUpInPlace(object())


@pytest.mark.parametrize("platform", [sys.platform, "another"])
def test_drain(monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    """Everyone in the queue is served before the port closes."""
    monkeypatch.setattr(sys, "platform", platform)
    listener = Listener()
    hangUpInPlace(listener.port)
    clients = [listener.connect() for _ in range(50)]
    assert listener.reactor.drain(listener.port) > 50 / AT_ONCE
    for client in clients:
        with client:
            assert client.recv(1) == b""
    listener.close()
    assert len(listener.seen) == 50


def test_drain_comes_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where new clients cannot be kept out, the port closes all the same."""
    monkeypatch.setattr(module, "MOST_TURNS", 2)
    listener = Listener()
    hangUpInPlace(listener.port)
    clients = [listener.connect() for _ in range(2 * AT_ONCE + 1)]
    assert listener.reactor.drain(listener.port) == 2
    assert len(listener.seen) == 2 * AT_ONCE
    listener.close()
    for client in clients:
        client.close()


@pytest.mark.skipif(sys.platform != "linux", reason="the filter is Linux's")
def test_nobody_comes_in_while_it_drains() -> None:
    """After the queue was served, a new client is not let in to be reset."""
    listener = Listener()
    listener.reactor.drain(listener.port)
    with socket.socket() as client:
        client.setblocking(False)
        assert client.connect_ex(listener.port.socket.getsockname()) == errno.EINPROGRESS
        with pytest.raises(OSError, match="not connected"):
            client.getpeername()
    listener.close()


@pytest.mark.unix
def test_drain_unix(tmp_path: Path) -> None:
    """A UNIX socket serves its queue, and refuses everyone else."""
    from twisted.internet import unix

    seen: list[Connection] = []
    reactor = Reactor()
    path = str(tmp_path / "s")
    port: Any = unix.Port(path.encode(), HelloFactory(observer=seen.append), reactor=reactor)
    port.startListening()
    clients = [socket.socket(socket.AF_UNIX) for _ in range(50)]
    for client in clients:
        client.connect(path)
    assert reactor.drain(port) > 50 / AT_ONCE
    with socket.socket(socket.AF_UNIX) as late, pytest.raises(ConnectionRefusedError):
        late.connect(path)
    assert len(seen) == 50
    for transport in reactor.getWriters():
        transport.connectionLost(Failure(ConnectionError()))
    for client in clients:
        with client:
            assert client.recv(1) == b""
    port.stopListening()
    reactor.advance(0)


def test_drain_something_else() -> None:
    """Ports of other kinds are left to themselves."""
    assert Reactor().drain(object()) == 0


@pytest.mark.unix
def test_inherited_unix_socket(tmp_path: Path) -> None:
    """It is served, and afterwards is as it was: there, listening, its mode unchanged."""
    from hello_listen.inherited import InheritedUNIXPort

    seen: list[Connection] = []
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as owned:
        owned.bind(path)
        os.chmod(path, 0o600)
        owned.listen(200)
        reactor = MemoryReactorClock()
        factory = HelloFactory(observer=seen.append)
        ours = socket.socket(fileno=os.dup(owned.fileno()))
        port: Any = InheritedUNIXPort(ours, factory, reactor)
        assert port.getHost().name == path.encode()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            port.doRead()
        assert len(seen) == 1
        for transport in reactor.getWriters():
            transport.connectionLost(Failure(ConnectionError()))
        port.stopListening()
        reactor.advance(0)
        assert factory.numPorts == 0
        assert not reactor.getReaders()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
        assert os.stat(path).st_mode & 0o777 == 0o600
