"""The protocol that a connection gets, and its transport, on every kind of endpoint."""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from twisted.internet.interfaces import ITransport
from twisted.internet.protocol import Protocol
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure
from zope.interface.verify import verifyObject

from hello_listen import Connection, HelloEndpoint, HelloFactory, HelloProtocol
from hello_listen._transport import InPlaceTransport
from turns import reactor, until

TCP = "tcp:0:interface=127.0.0.1"
HEADER = b"PROXY TCP4 192.0.2.7 198.51.100.1 51512 443\r\n"


class Served:
    """A factory on an endpoint, and the records of its connections."""

    def __init__(self, description: str, make: Callable[..., HelloFactory]) -> None:
        """Listen."""
        self.seen: list[Connection] = []
        self.factory = make(self.seen.append)
        ports: list[Any] = []
        HelloEndpoint(reactor, description).listen(self.factory).addBoth(ports.append)
        self.port = ports[0]
        self.header = HEADER if description.startswith("haproxy:") else b""

    def connect(self, data: bytes = b"") -> socket.socket:
        """Connect a client, which sends the PROXY header if one is expected, and data."""
        host = self.port.getHost()
        client = socket.socket(socket.AF_INET if hasattr(host, "port") else socket.AF_UNIX)
        client.connect(("127.0.0.1", host.port) if hasattr(host, "port") else host.name)
        client.sendall(self.header + data)
        return client

    def ask(self, data: bytes = b"") -> bytes:
        """Connect a client, and return what it receives until the end."""
        with self.connect(data) as client:
            return received(client)


def received(client: socket.socket) -> bytes:
    """Return what a client receives until the end."""
    data, ends = b"", False
    while not ends:
        until(lambda: select.select([client], [], [], 0)[0])
        piece = client.recv(100_000)
        data, ends = data + piece, not piece
    return data


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """Return a function that serves a factory until the end of the test."""
    served: list[Served] = []

    def start(description: str = TCP, make: Callable[..., HelloFactory] = HelloFactory) -> Served:
        served.append(Served(description, make))
        return served[-1]

    yield start
    for each in served:
        stopped = each.port.stopListening()
        until(lambda stopped=stopped: stopped.called)


Serve = Callable[..., Served]


@pytest.fixture(params=["tcp", "unix", "haproxy:tcp", "haproxy:unix"])
def description(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return an endpoint of each kind."""
    kind = str(request.param)
    return f"{kind}:{tmp_path}/socket" if kind.endswith("unix") else kind + TCP.removeprefix("tcp")


def edit(monkeypatch: pytest.MonkeyPatch, change: Callable[[HelloProtocol], object]) -> None:
    """Insert a function at the start of L{HelloProtocol.connectionMade}, as an edit does."""
    before = HelloProtocol.connectionMade

    def connectionMade(self: HelloProtocol) -> None:
        change(self)
        before(self)

    monkeypatch.setattr(HelloProtocol, "connectionMade", connectionMade)


def named(served: Served) -> list[str | None]:
    """Return the clients that were recorded."""
    return [each.clientAddress for each in served.seen]


def test_edited_protocol(serve: Serve, description: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that was added to C{connectionMade} runs for each connection, on every endpoint."""
    edit(monkeypatch, lambda protocol: protocol.transport.write(b"Hello\r\n"))
    served = serve(description)
    assert [served.ask(), served.ask()] == [b"Hello\r\n"] * 2
    assert len(served.seen) == 2


def test_large_write(serve: Serve, description: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data that does not fit into the socket's buffer is sent in order before the end."""
    large = bytes(range(256)) * 40_000
    edit(monkeypatch, lambda protocol: protocol.transport.writeSequence([b"<", large]))
    edit(monkeypatch, lambda protocol: protocol.transport.write(b"first "))
    assert serve(description).ask() == b"first <" + large


def test_protocol_that_stays(
    serve: Serve, description: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A protocol that does not close the connection receives the data, and C{connectionLost}."""
    reasons: list[str] = []

    def answer(self: HelloProtocol, data: bytes) -> None:
        self.transport.write(data.upper())
        self.transport.loseConnection()

    def connectionLost(self: HelloProtocol, reason: Failure) -> None:
        reasons.append(type(reason.value).__name__)

    monkeypatch.setattr(HelloProtocol, "connectionMade", lambda self: None)
    monkeypatch.setattr(HelloProtocol, "dataReceived", answer)
    monkeypatch.setattr(HelloProtocol, "connectionLost", connectionLost)
    assert serve(description).ask(b"hello") == b"HELLO"
    until(lambda: reasons)
    assert reasons == ["ConnectionDone"]


def test_end_in_place(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """C{connectionLost} is called once; nothing is sent after C{loseConnection}."""
    reasons: list[str] = []

    def connectionMade(self: HelloProtocol) -> None:
        assert verifyObject(ITransport, self.transport)
        self.transport.loseConnection()
        self.transport.write(b"too late")

    def connectionLost(self: HelloProtocol, reason: Failure) -> None:
        reasons.append(type(reason.value).__name__)

    monkeypatch.setattr(HelloProtocol, "connectionMade", connectionMade)
    monkeypatch.setattr(HelloProtocol, "connectionLost", connectionLost)
    assert serve().ask() == b""
    assert reasons == ["ConnectionDone"]


def test_more_of_the_transport(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """All other attributes of a transport exist, and work."""
    quick: list[int] = []

    def ask(protocol: HelloProtocol) -> None:
        transport = cast(Any, protocol.transport)
        transport.setTcpNoDelay(1)
        quick.append(transport.getTcpNoDelay())
        assert not hasattr(transport, "noSuchThing")
        assert not hasattr(transport, "_noSuchThing")

    edit(monkeypatch, ask)
    edit(monkeypatch, lambda protocol: protocol.transport.write(b"Hello"))
    served = serve()
    assert served.ask() == b"Hello"
    assert quick == [1]
    assert named(served) == ["127.0.0.1"]


@pytest.mark.parametrize("size", [3, 10_000_000])
def test_client_that_has_reset(serve: Serve, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Writing to a client that has reset does not raise an error; the client is recorded."""
    served = serve()
    edit(monkeypatch, lambda protocol: protocol.transport.write(bytes(size)))
    client = served.connect()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    with capturedLogs() as events:
        until(lambda: served.seen)
    assert (named(served), events) == (["127.0.0.1"], [])


def test_buffer_that_is_full() -> None:
    """Data that is written to a full buffer is handed to the reactor, complete."""
    written: list[bytes] = []

    class Full:
        def send(self, data: bytes, flags: int) -> int:
            raise BlockingIOError

    class Reactors:
        write = written.append

    def adopt(protocol: Protocol, connection: Any, peer: Any) -> None:
        protocol.transport = cast(Any, Reactors())

    full, nobody = cast(Any, Full()), cast(Any, None)
    InPlaceTransport(HelloProtocol(), full, nobody, nobody, adopt).write(b"Hello")
    assert written == [b"Hello"]


class Banner(HelloProtocol):
    """Sends a greeting, then answers with the addresses of the connection."""

    lost: Any = None

    def connectionMade(self) -> None:
        """Record the client without closing the connection."""
        details = getattr(self.transport, "details", {})
        client, server = self.transport.getPeer(), self.transport.getHost()
        self.factory.established(client, server, **details)
        self.transport.write(b"220 hello\r\n")

    def dataReceived(self, data: bytes) -> None:
        """Answer, and close the connection."""
        self.transport.writeSequence([data, b" from ", str(self.transport.getPeer()).encode()])
        cast(Any, self.transport).registerProducer(self, True)
        cast(Any, self.transport).unregisterProducer()
        self.transport.loseConnection()

    def connectionLost(self, reason: Failure = None) -> None:  # type: ignore[assignment]
        """Keep the reason."""
        Banner.lost = type(reason.value).__name__

    def pauseProducing(self) -> None:
        """Do nothing."""

    resumeProducing = stopProducing = pauseProducing


def bannered(*observers: Any) -> HelloFactory:
    """Return a factory whose instance has another protocol."""
    factory = HelloFactory(*observers)
    factory.protocol = Banner
    return factory


def built(*observers: Any) -> HelloFactory:
    """Return a factory whose instance builds protocols in its own way."""
    factory = HelloFactory(*observers)

    def buildProtocol(address: object) -> Banner:
        protocol = Banner()
        protocol.factory = factory
        return protocol

    factory.buildProtocol = buildProtocol  # type: ignore[assignment, method-assign]
    return factory


class Subclass(HelloFactory):
    """Has a protocol of its own."""

    protocol = Banner


@pytest.mark.parametrize("make", [bannered, built, Subclass])
@pytest.mark.parametrize("together", [True, False])
def test_own_protocol(
    serve: Serve, description: str, make: Callable[..., HelloFactory], together: bool
) -> None:
    """However a factory sets its protocol, that serves, and gets the client's data."""
    Banner.lost = None
    served = serve(description, make)
    with served.connect(b"hello" if together else b"") as client:
        if not together:
            until(lambda: served.seen)
            client.sendall(b"hello")
        answer = received(client)
    [connection] = served.seen
    assert answer == b"220 hello\r\nhello from " + str(connection.client).encode()
    assert connection.clientAddress == ("192.0.2.7" if served.header else connection.clientAddress)
    assert (connection.proxy is None) == (not served.header)
    until(lambda: Banner.lost)
    assert Banner.lost == "ConnectionDone"


def test_protocol_that_is_given_later(serve: Serve, description: str) -> None:
    """A protocol that is set after C{listen} serves all connections that are accepted later."""
    served = serve(description)
    assert served.ask() == b""
    served.factory.protocol = Banner
    assert served.ask(b"x").startswith(b"220 hello\r\nx from ")
    served.factory.protocol = HelloProtocol
    assert served.ask() == b""
    assert len(served.seen) == 3


def test_factory_that_builds_nothing(
    serve: Serve, description: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the factory builds no protocol, the connection is closed without a record."""
    served = serve(description)
    monkeypatch.setattr(served.factory, "buildProtocol", lambda address: None)
    assert served.ask() == b""
    assert served.seen == []


class Failing(HelloProtocol):
    """Fails before or after the connection was recorded."""

    first = True

    def connectionMade(self) -> None:
        """Fail."""
        if not self.first:
            super().connectionMade()
        raise RuntimeError("no banner")


def test_protocol_that_always_fails(serve: Serve, description: str) -> None:
    """Several failures in a row are one line, without a traceback."""
    served = serve(description)
    served.factory.protocol = Failing
    with capturedLogs() as events:
        for _ in range(3):
            with served.connect() as client:
                until(lambda client=client: select.select([client], [], [], 0)[0])
    assert [each.error for each in served.seen] == ["failed"] * 3
    assert len(events) == 1
    assert "log_failure" not in events[0]


@pytest.mark.parametrize("first", [True, False])
def test_protocol_that_fails(
    serve: Serve, description: str, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    """The connection of a failing protocol is recorded once and closed, and the log says why."""
    monkeypatch.setattr(Failing, "first", first)
    served = serve(description)
    served.factory.protocol = Failing
    with capturedLogs() as events, served.connect() as client:
        until(lambda: select.select([client], [], [], 0)[0])
    assert [each.error for each in served.seen] == ["failed" if first else None]
    assert [each.clientAddress for each in served.seen] == (
        ["192.0.2.7"] if served.header else named(served)
    )
    [event] = events
    assert (formatEvent(event) or "").startswith("Connection could not be served")
