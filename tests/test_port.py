"""The port, on real sockets and the real reactor, a turn at a time."""

from __future__ import annotations

import errno
import os
import re
import select
import shutil
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import tcp
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IListeningPort, ITransport
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure
from zope.interface.verify import verifyClass, verifyObject

from events import texts
from hello_listen import Connection, HelloEndpoint, HelloFactory, HelloProtocol
from hello_listen import _drain as drainModule
from hello_listen import _proxy as proxyModule
from hello_listen._addresses import addressText
from hello_listen._drain import refuseNew
from hello_listen._inherited import InheritedSocket
from hello_listen._port import MAX_ACCEPTS, PAUSE, HelloPort
from hello_listen._proxy import ProxiedFactory, pendingHeaders
from hello_listen._transport import EndedTransport
from hello_listen._unix import UNIXReactor
from processes import silent
from reactors import TIMEOUT
from turns import reactor, turnFor, until

HEADER = b"PROXY TCP4 192.0.2.7 192.0.2.1 1 2\r\n"


class Server:
    """A port with its factory, and the records of its connections."""

    def __init__(
        self,
        interface: str | Path = "127.0.0.1",
        make: Callable[[HelloFactory], Any] = lambda hello: hello,
        hello: HelloFactory | None = None,
        owned: socket.socket | None = None,
        through: Any = reactor,
        backlog: int = 4096,
    ) -> None:
        """Listen; C{make} returns the factory to serve, and C{through} is the port's reactor."""
        self.seen: list[Connection] = []
        self.hello = hello or HelloFactory(self.seen.append)
        factory = make(self.hello)
        proxied = factory if isinstance(factory, ProxiedFactory) else None
        told = self.hello if make(self.hello) is not None else None
        if owned is not None:
            owner: Any = InheritedSocket(owned.fileno(), factory)
        elif isinstance(interface, Path):
            owner = UNIXReactor().listenUNIX(str(interface), factory, 4096, wantPID=1)
        else:
            owner = tcp.Port(0, factory, backlog, interface, reactor)
            owner.startListening()
        self.port = HelloPort(owner, told, through, proxied, isInherited=owned is not None)
        self.factory = factory
        self.port.startListening()

    def connect(self, host: str = "127.0.0.1", data: bytes = b"") -> socket.socket:
        """Connect a client, which waits in the accept queue."""
        address: Any = self.port.getHost()
        if isinstance(address, (IPv4Address, IPv6Address)):
            client = socket.create_connection((host, address.port), timeout=TIMEOUT)
        else:
            client = socket.socket(socket.AF_UNIX)
            client.settimeout(TIMEOUT)
            client.connect(address.name)
        client.sendall(data)
        return client

    def stop(self) -> None:
        """Stop listening, and wait for that."""
        stopped = self.port.stopListening()
        until(lambda: stopped.called)
        stopped.addErrback(lambda failure: pytest.fail(str(failure)))


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Return a function that makes servers, which are stopped at the end of the test."""
    servers: list[Server] = []

    def makeServer(*arguments: Any, **options: Any) -> Server:
        servers.append(Server(*arguments, **options))
        return servers[-1]

    yield makeServer
    for server in servers:
        server.stop()
    reactor.iterate(0)


Serve = Callable[..., Server]


def ended(client: socket.socket) -> bool:
    """Wait for the clean end of a connection, and close it."""
    with client:
        until(lambda: select.select([client], [], [], 0)[0])
        return client.recv(1) == b""


def proxied(hello: HelloFactory) -> ProxiedFactory:
    """Return a factory that reads PROXY headers for another."""
    return ProxiedFactory(hello, pendingHeaders(reactor))


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
def test_in_place(serve: Serve, interface: str, host: str) -> None:
    """A connection is recorded with both addresses, and closed cleanly, in the port's C{doRead}."""
    server = serve(interface)
    assert verifyObject(IListeningPort, server.port)
    kind = IPv6Address if ":" in host else IPv4Address
    with server.connect(host) as client:
        server.port.doRead()
        assert client.recv(1) == b""
        [connection] = server.seen
        assert isinstance(connection.client, kind)
        assert (connection.clientAddress, connection.clientPort) == client.getsockname()[:2]
        assert (connection.serverAddress, connection.serverPort) == client.getpeername()[:2]


def test_in_place_after_an_observer_failed(serve: Serve) -> None:
    """After an observer's error, the connection is closed and the next observer called."""
    seen: list[Connection] = []

    def observer(connection: Connection) -> None:
        raise RuntimeError

    server = serve(hello=HelloFactory(observer, seen.append))
    client = server.connect()
    server.port.doRead()
    assert ended(client)
    assert len(seen) == 1


def test_slices(serve: Serve) -> None:
    """The reactor reads from accepted clients before the port has accepted the whole queue."""
    server = serve(make=proxied)
    clients = [server.connect(data=HEADER) for _ in range(MAX_ACCEPTS + 1)]
    server.port.doRead()
    assert server.factory.waiting == MAX_ACCEPTS
    until(lambda: len(server.seen) == MAX_ACCEPTS + 1)
    assert {connection.clientAddress for connection in server.seen} == {"192.0.2.7"}
    assert all(map(ended, clients))


def test_page_one_at_a_time() -> None:
    """Of the clients of another factory, such as the page's, one is accepted in each turn."""
    built: list[Any] = []

    class Recording(Protocol):
        """A protocol that is remembered."""

        def connectionMade(self) -> None:
            built.append(self)

    factory = Factory.forProtocol(Recording)
    twisted = tcp.Port(0, factory, 50, "127.0.0.1", reactor)
    twisted.startListening()
    port = HelloPort(twisted, None, reactor)
    address: Any = port.getHost()
    clients = [socket.create_connection(("127.0.0.1", address.port)) for _ in range(3)]
    for number in range(1, 4):
        port.doRead()
        assert len(built) == number
    for client, protocol in zip(clients, built, strict=True):
        protocol.transport.abortConnection()
        client.close()
    stopped = port.stopListening()
    until(lambda: stopped.called)


def test_not_in_place(serve: Serve, tmp_path: Path) -> None:
    """A subclass of the factory, and another protocol, are connected by the reactor."""

    class Subclass(HelloFactory):
        pass

    class OtherProtocol(HelloProtocol):
        pass

    seen: list[Connection] = []
    other = HelloFactory(seen.append)
    other.protocol = OtherProtocol
    for hello, interface in ((Subclass(seen.append), tmp_path / "s"), (other, "127.0.0.1")):
        server = serve(interface, hello=hello)
        client = server.connect()
        until(lambda: seen)
        seen.clear()
        assert ended(client)


class FailingProtocol(Protocol):
    """A protocol that cannot be connected."""

    def connectionMade(self) -> None:
        """Fail, in a way that the reactor would take for the end of the port."""
        raise SystemExit("no context")


@pytest.mark.parametrize("records", [True, False])
def test_what_cannot_be_served(serve: Serve, records: bool) -> None:
    """A connection that fails is closed, and recorded with an error if there is a HelloFactory."""
    server = serve()
    server.port._factory = Factory.forProtocol(FailingProtocol)
    server.port._hello = server.hello if records else None
    client = server.connect()
    with capturedLogs() as events:
        until(lambda: events)
    assert ended(client)
    line = formatEvent(events[0])
    assert re.fullmatch(
        r"Connection could not be served: \S*SystemExit: no context \(.*\.py:\d+\)", line
    )
    assert [connection.error for connection in server.seen] == ["failed"] * records


def test_failures_do_not_fill_the_log(serve: Serve) -> None:
    """An error that each client causes, as a bad TLS context does, is logged once."""
    server = serve()
    server.port._factory = Factory.forProtocol(FailingProtocol)
    clients = [server.connect() for _ in range(5)]
    with capturedLogs() as events:
        until(lambda: len(server.seen) == 5)
    assert all(map(ended, clients))
    assert len(events) == 1
    assert "log_failure" not in events[0]


def test_recorded_once_though_it_failed(serve: Serve) -> None:
    """An error after the connection was reported does not report it again."""

    class LateProtocol(HelloProtocol):
        def connectionMade(self) -> None:
            super().connectionMade()
            raise RuntimeError

    server = serve(make=lambda hello: hello)
    server.hello.protocol = LateProtocol
    client = server.connect()
    with capturedLogs():
        until(lambda: server.seen)
    assert ended(client)
    assert [connection.error for connection in server.seen] == [None]


@pytest.mark.parametrize("data", [HEADER, b""])
def test_reset_in_the_queue(serve: Serve, data: bytes) -> None:
    """A client that has reset its connection is recorded, and its data is read."""
    server = serve(make=proxied)
    with server.connect(data=data) as client:
        port = client.getsockname()[1]
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with capturedLogs() as events:
        until(lambda: server.seen)
    [connection] = server.seen
    assert connection.error == (None if data else "proxy_header_incomplete")
    assert connection.clientPort == (1 if data else port)
    assert connection.serverPort == (2 if data else server.port.getHost().port)  # type: ignore[attr-defined]
    assert not events
    assert not server.factory.waiting


class Between:
    """The reactor, with a function that is called before one of its methods."""

    def __init__(self, name: str, happen: Callable[[], object]) -> None:
        """Call a function before each call of the method with a name."""
        self._name, self._happen = name, happen

    def __getattr__(self, name: str) -> object:
        """Return the reactor's attribute."""
        if name == self._name:
            self._happen()
        return getattr(reactor, name)


# Twisted leaves the socket of a connection that it cannot adopt to the garbage collector.
leavesSocket = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


@leavesSocket
@pytest.mark.parametrize("make", [lambda hello: hello, proxied], ids=["subclass", "haproxy"])
@pytest.mark.parametrize("data", [HEADER, b""])
def test_reset_while_it_is_handed_over(serve: Serve, make: Any, data: bytes) -> None:
    """A client that resets while the reactor adopts it is recorded like one that did so before."""

    class Subclass(HelloProtocol):
        pass

    def reset() -> None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()

    seen: list[Connection] = []
    hello = HelloFactory(seen.append)
    hello.protocol = Subclass
    through = Between("adoptStreamConnection", reset)
    server = serve(make=make, hello=hello, through=through)
    client = server.connect(data=data)
    name = client.getsockname()[1]
    with capturedLogs() as events:
        until(lambda: seen)
    assert not events
    assert client.fileno() == -1
    named = make is proxied and data
    assert [connection.clientPort for connection in seen] == [1 if named else name]
    why = "proxy_header_incomplete" if make is proxied and not data else None
    assert [connection.error for connection in seen] == [why]


@leavesSocket
def test_protocol_that_fails_as_a_reset_would(serve: Serve) -> None:
    """A protocol that was built and raises an OSError is not built again."""
    built: list[object] = []

    class Failing(Factory):
        def buildProtocol(self, address: object) -> Any:
            built.append(address)
            raise OSError(errno.ENOTCONN, "not connected")

    server = serve(make=lambda hello: Failing())
    client = server.connect()
    with capturedLogs() as events:
        until(lambda: events)
    assert ended(client)
    assert len(built) == 1


def test_connection_that_fails_as_a_reset_would(serve: Serve) -> None:
    """A protocol whose connectionMade raises an OSError is not connected again."""
    made: list[object] = []

    class Failing(Protocol):
        def connectionMade(self) -> None:
            made.append(self)
            raise OSError(errno.ENOTCONN, "not connected")

    server = serve(make=lambda hello: Factory.forProtocol(Failing))
    client = server.connect()
    with capturedLogs() as events:
        until(lambda: events)
    assert ended(client)
    assert len(made) == 1


def test_other_factory() -> None:
    """Another factory than a HelloFactory is served; its connections do not delay a stop."""
    ports: list[Any] = []
    endpoint = HelloEndpoint(reactor, "tcp:0:interface=127.0.0.1")
    endpoint.listen(Factory.forProtocol(Protocol)).addCallback(ports.append)
    with socket.create_connection(("127.0.0.1", ports[0].getHost().port)) as client:
        until(lambda: any(isinstance(each, tcp.Server) for each in reactor.getReaders()))
        stopped = ports[0].stopListening()
        until(lambda: stopped.called)
        assert not select.select([client], [], [], 0)[0]
    until(lambda: not any(isinstance(each, tcp.Server) for each in reactor.getReaders()))


@pytest.mark.parametrize("error", [RuntimeError, OSError])
def test_reset_before_another_protocol_looks(serve: Serve, error: type[Exception]) -> None:
    """An embedder's protocol learns that its connection was lost, even if it raises an error."""
    lost: list[Failure] = []

    class Raising(Protocol):
        def dataReceived(self, data: bytes) -> None:
            raise error

        def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
            lost.append(reason)

    server = serve(make=lambda hello: Factory.forProtocol(Raising))
    with server.connect(data=b"hello") as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with capturedLogs() as events:
        until(lambda: lost)
    [line] = texts(events)
    assert line.startswith(f"Connection could not be served: {error.__name__}")


@pytest.mark.parametrize("reset", [True, False])
def test_factory_that_refuses(serve: Serve, reset: bool) -> None:
    """A connection for which a factory builds no protocol is closed, and nothing is logged."""

    class Refusing(Factory):
        def buildProtocol(self, address: object) -> None:
            return None

    server = serve(make=lambda hello: Refusing())
    with server.connect() as client, capturedLogs() as events:
        if reset:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
        server.port.doRead()
        assert reset or client.recv(1) == b""
    assert not events
    assert not server.seen


class OwnFactory(HelloFactory):
    """A factory of an application, which a port does not serve in place."""


@pytest.mark.parametrize(("makeHello", "served"), [(HelloFactory, 2), (OwnFactory, 1)])
def test_observer_that_stops_the_port(makeHello: type[HelloFactory], served: int) -> None:
    """An inherited socket's port serves who waits as it stops, if in place; it leaves others."""
    with socket.create_server(("127.0.0.1", 0)) as owned:
        stopping: list[Any] = []
        hello = makeHello(lambda connection: stopping[0].stopListening())
        server = Server(hello=hello, owned=owned)
        stopping.append(server.port)
        clients = [server.connect() for _ in range(2)]
        with capturedLogs() as events:
            server.port.doRead()
        assert not events
        server.stop()
        assert hello.connections == served
        again = Server(owned=owned)
        assert all(map(ended, clients))
        again.stop()
        assert len(again.seen) == 2 - served


def test_system_that_cannot_refuse(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where new clients cannot be refused, the port closes all the same."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOPROTOOPT, "not available")

    server = serve()
    client = server.connect()
    monkeypatch.setattr(socket.socket, "setsockopt", refuse)
    server.stop()
    assert ended(client)
    assert server.port.fileno() == -1


@pytest.mark.parametrize("drain", [0, 3])
def test_header_on_its_way_at_a_stop(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, drain: float
) -> None:
    """At a stop, an accepted client has the grace period to send its header."""
    monkeypatch.setattr(drainModule, "HEADER_GRACE", 0.1)
    monkeypatch.setattr(drainModule, "HANDSHAKE_TIMEOUT", drain)
    server = serve(make=proxied)
    client = server.connect()
    until(lambda: server.factory.waiting)
    turnFor(0.1)
    stopped = server.port.stopListening()
    reactor.iterate(0)
    client.sendall(HEADER)
    until(lambda: stopped.called)
    assert [c.clientAddress for c in server.seen] == ["192.0.2.7"]
    client.close()


def test_transport_of_what_has_ended() -> None:
    """The transport of a connection that was reset is complete, and sends nothing."""
    assert verifyClass(ITransport, EndedTransport)
    address = IPv4Address("TCP", "192.0.2.7", 1)
    transport = EndedTransport(address, address)
    transport.write(b"hello")
    transport.writeSequence([b"hello"])
    transport.abortConnection()


class Hog:
    """Holds all descriptors that this process may have, until it is told to release some."""

    def __init__(self) -> None:
        """Lower the limit, and take the descriptors that are left."""
        import resource

        self._limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._set = resource.setrlimit
        self._which = resource.RLIMIT_NOFILE
        self._set(self._which, (min(400, self._limits[0]), self._limits[1]))
        self._held: list[int] = []
        self.take()

    def take(self) -> None:
        """Take every descriptor."""
        with suppress(OSError):
            while True:
                self._held.append(os.open(os.devnull, os.O_RDONLY))

    def release(self, count: int) -> None:
        """Release a number of descriptors."""
        for _ in range(count):
            os.close(self._held.pop())

    def __enter__(self) -> Hog:
        """Return it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Release all descriptors, and restore the limit."""
        self.release(len(self._held))
        self._held = []
        self._set(self._which, self._limits)


@pytest.mark.parametrize("make", [lambda hello: hello, proxied], ids=["in place", "handed over"])
def test_out_of_descriptors(serve: Serve, make: Any) -> None:
    """Clients wait in the accept queue, with one warning, and are served after the shortage."""
    server = serve(make=make)
    if make is proxied:
        first = server.connect(data=HEADER)
        until(lambda: server.seen)
        assert ended(first)
    data = HEADER if make is proxied else b""
    clients = [server.connect(data=data) for _ in range(3)]
    before = len(server.seen)
    with capturedLogs() as events, Hog() as hog:
        turnFor(3 * PAUSE)
        assert len(server.seen) == before
        hog.release(3)
        until(lambda: len(server.seen) == before + 3)
    assert all(map(ended, clients))
    assert texts(events) == ["Clients wait in the accept queue: Too many open files"]


Silent = tuple[list[Connection], Server, Server, list[socket.socket]]


@pytest.fixture
def besideSilent(serve: Serve) -> Silent:
    """Return a plain port, and a proxied one with four clients that have sent no header."""
    seen: list[Connection] = []
    hello = HelloFactory(seen.append)
    behind, plain = serve(make=proxied, hello=hello), serve(hello=hello)
    silent = [behind.connect() for _ in range(4)]
    until(lambda: behind.factory.waiting == 4)
    return seen, behind, plain, silent


def test_making_room(besideSilent: Silent) -> None:
    """When descriptors run out, a new client evicts the oldest client without a header, only."""
    seen, behind, plain, silent = besideSilent
    client = plain.connect()
    with Hog():
        silent[1].sendall(b"PROXY")
        until(lambda: any(connection.error is None for connection in seen))
    evicted, served = seen
    assert evicted.clientPort == silent[0].getsockname()[1]
    assert evicted.error == "proxy_header_evicted"
    assert served.clientPort == client.getsockname()[1]
    assert ended(client)
    for socket_ in silent:
        socket_.close()
    until(lambda: not behind.factory.waiting)


@pytest.mark.parametrize("late", [False, True])
def test_header_makes_room(
    besideSilent: Silent, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """If a header has arrived, or arrives in time, nobody is evicted."""
    monkeypatch.setattr(proxyModule, "EVICTION_AGE", 20 if late else 0)
    seen, behind, plain, silent = besideSilent
    client = plain.connect()
    with Hog():
        plain.port.doRead()
        if late:
            turnFor(0.1)
        silent[2].sendall(HEADER)
        assert not seen
        until(lambda: len(seen) == 2)
    named, served = seen
    assert named.clientAddress == "192.0.2.7"
    assert served.clientPort == client.getsockname()[1]
    assert ended(client)
    for socket_ in silent:
        socket_.close()
    until(lambda: not behind.factory.waiting)


def test_shortage_that_lasts(besideSilent: Silent, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a shortage lasts, silent clients are evicted earlier, so that others wait less."""
    monkeypatch.setattr(proxyModule, "EVICTION_AGE", 0.1)
    monkeypatch.setattr(proxyModule, "SHORTAGE_EVICTION_AGE", 0)
    seen, behind, _, silent = besideSilent
    clients = [behind.connect() for _ in range(40)]
    with Hog():
        until(lambda: len(seen) >= 40)
        # The accept queue is empty now.
        turnFor(0.2)
    silents = [each.getsockname()[1] for each in silent + clients]
    assert [connection.clientPort for connection in seen] == silents[: len(seen)]
    assert len(seen) < len(silents)
    for each in silent + clients:
        each.close()
    until(lambda: not behind.factory.waiting)


def test_subclass_that_fails_at_an_eviction(serve: Serve) -> None:
    """After a subclass failed, the port accepts on, all are counted, and the stop is prompt."""

    class Failing(HelloFactory):
        def established(self, *arguments: Any, **facts: Any) -> None:
            if facts.get("error") == "proxy_header_evicted":
                raise RuntimeError
            super().established(*arguments, **facts)

    seen: list[Connection] = []
    hello = Failing(seen.append)
    server = serve(make=proxied, hello=hello)
    silent = [server.connect() for _ in range(4)]
    until(lambda: server.factory.waiting == 4)
    client = server.connect(data=HEADER)
    with capturedLogs() as events, Hog():
        until(lambda: any(connection.error is None for connection in seen))
    assert ended(client)
    assert "Connection could not be reported" in texts(events)
    server.stop()
    assert hello.connections == len(seen) == 5
    for each in silent:
        with each, suppress(ConnectionResetError):
            assert each.recv(1) == b""


def test_transport_that_fails_at_an_eviction(serve: Serve) -> None:
    """If one connection cannot be aborted, the port evicts others, and accepts on."""

    class Broken(StringTransport):
        def abortConnection(self) -> None:
            raise RuntimeError

    server = serve(make=proxied)
    broken = server.factory.buildProtocol(None)
    broken.makeConnection(Broken())
    silent = [server.connect() for _ in range(2)]
    until(lambda: server.factory.waiting == 3)
    client = server.connect(data=HEADER)
    with capturedLogs() as events, Hog():
        until(lambda: any(connection.error is None for connection in server.seen))
    assert ended(client)
    assert "Pause ended early" in texts(events)
    assert len(server.seen) == 4
    for each in silent:
        each.close()


def test_reactor_without_memory(serve: Serve) -> None:
    """A port that epoll(7) refuses after a pause reads again after another pause."""
    refusals = [OSError(errno.ENOMEM, "Cannot allocate memory")]

    def refuse() -> None:
        if paused and refusals:
            raise refusals.pop()

    paused: list[bool] = []
    server = serve(through=Between("addReader", refuse))
    client = server.connect()
    with capturedLogs(), Hog():
        server.port.doRead()
        paused.append(True)
    until(lambda: server.seen)
    assert ended(client)
    assert not refusals


def test_nobody_makes_room_for_nobody(besideSilent: Silent) -> None:
    """With an empty accept queue, a lack of descriptors evicts nobody, and is no warning."""
    seen, behind, _, silent = besideSilent
    client = behind.connect(data=HEADER)
    with Hog() as hog, capturedLogs() as events:
        hog.release(2)
        until(lambda: seen)
        turnFor(0.3)
    assert [connection.error for connection in seen] == [None]
    assert not events
    assert ended(client)
    for each in silent:
        each.close()
    until(lambda: not behind.factory.waiting)


def test_stop_waits_for_its_own_headers_only(besideSilent: Silent) -> None:
    """A port's stop does not wait for PROXY headers of another port."""
    _, behind, plain, silent = besideSilent
    plain.stop()
    assert behind.factory.waiting == 4
    for each in silent:
        each.close()
    until(lambda: not behind.factory.waiting)


def test_aborted_before_it_was_accepted(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """If accept(2) fails with ECONNABORTED, the next client is served without a pause."""
    server = serve()
    client = server.connect()
    accept = socket.socket.accept

    def abort(listener: socket.socket) -> Any:
        monkeypatch.setattr(socket.socket, "accept", accept)
        raise ConnectionAbortedError(errno.ECONNABORTED, "aborted")

    monkeypatch.setattr(socket.socket, "accept", abort)
    server.port.doRead()
    assert not server.port.isPaused
    server.port.doRead()
    assert ended(client)


@pytest.mark.parametrize("platform", [sys.platform, "another"])
@pytest.mark.parametrize("interface", ["127.0.0.1", "::"])
def test_drain(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, platform: str, interface: str
) -> None:
    """All clients in the accept queue are served before the port closes."""
    monkeypatch.setattr(sys, "platform", platform)
    server = serve(interface)
    clients = [server.connect() for _ in range(MAX_ACCEPTS + 8)]
    server.stop()
    assert all(map(ended, clients))
    assert len(server.seen) == MAX_ACCEPTS + 8
    assert server.port.stopListening().called


def test_stopping_out_of_descriptors(serve: Serve) -> None:
    """A stop serves the accept queue once there is a descriptor, for any factory."""
    server = serve()
    server.port._hello = None
    clients = [server.connect() for _ in range(3)]
    with Hog():
        server.port.doRead()
        end = reactor.seconds() + PAUSE

        def untilThePauseEnds() -> None:
            while reactor.seconds() <= end:
                pass

        # The reactor is busy until the pause ends, so that the drain looks before and after it.
        reactor.callLater(0, untilThePauseEnds)
        stopped = server.port.stopListening()
        for _ in range(20):
            reactor.iterate(0)
        assert not stopped.called
    until(lambda: stopped.called)
    assert all(map(ended, clients))
    assert len(server.seen) == 3


def test_stop_while_clients_come(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where new clients cannot be refused, a stop ends as soon as the accept queue is empty."""
    monkeypatch.setattr(sys, "platform", "another")
    server = serve()
    clients = [server.connect()]
    stopped = server.port.stopListening()
    while not stopped.called:
        assert len(clients) < 500
        clients.append(server.connect())
        for _ in range(5):
            reactor.iterate(0.001)
    assert all(map(ended, clients))
    assert len(server.seen) == len(clients)


def test_stop_takes_its_longest(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop that reaches its upper bound logs that clients were not served."""
    monkeypatch.setattr(drainModule, "DRAIN_TIMEOUT", 0)
    server = serve()
    with server.connect(), capturedLogs() as events:
        server.stop()
    assert any(text.startswith("Clients in the queue were not served") for text in texts(events))


needsLinux = pytest.mark.skipif(sys.platform != "linux", reason="IP_MINTTL is Linux's")


@needsLinux
def test_nobody_comes_in_while_it_drains(serve: Serve) -> None:
    """While a port drains, a new client's handshake does not complete."""
    server = serve()
    address = server.port._listener.getsockname()
    refuseNew(server.port._listener)
    with socket.socket() as client:
        client.setblocking(False)
        assert client.connect_ex(address) == errno.EINPROGRESS
        with pytest.raises(OSError, match="not connected"):
            client.getpeername()


class InFlight:
    """A client that ignores the answer to its SYN until it is told to complete the handshake."""

    def __init__(self, host: str, port: int) -> None:
        """Begin a handshake."""
        isIPv6 = ":" in host
        self.client = socket.socket(socket.AF_INET6 if isIPv6 else socket.AF_INET)
        # IPV6_MINHOPCOUNT or IP_MINTTL.
        self._option = (socket.IPPROTO_IPV6, 73) if isIPv6 else (socket.IPPROTO_IP, 21)
        self.client.setblocking(False)
        self.client.setsockopt(*self._option, 255)
        assert self.client.connect_ex((host, port)) == errno.EINPROGRESS

    def end(self) -> None:
        """Complete the handshake, and wait for the end of the connection."""
        self.client.setsockopt(*self._option, 0)
        assert ended(self.client)


@needsLinux
@pytest.mark.parametrize(
    ("interface", "host"),
    [
        ("127.0.0.1", "127.0.0.1"),
        pytest.param("", "127.0.0.2", marks=pytest.mark.slow),
        pytest.param("::1", "::1", marks=pytest.mark.slow),
        pytest.param("::", "::1", marks=pytest.mark.slow),
        ("::", "127.0.0.1"),
        pytest.param("::ffff:127.0.0.1", "127.0.0.1", marks=pytest.mark.slow),
    ],
)
def test_handshake_that_is_half_done(serve: Serve, interface: str, host: str) -> None:
    """A stop waits for an in-flight handshake, and records the client."""
    server = serve(interface)
    port = server.port._listener.getsockname()[1]
    inFlight = InFlight(host, port)
    name = inFlight.client.getsockname()
    stopped = server.port.stopListening()
    turnFor(0.1)
    assert not stopped.called
    inFlight.end()
    until(lambda: stopped.called)
    assert [c.clientPort for c in server.seen] == [name[1]]


@needsLinux
@pytest.mark.parametrize("other", ["127.0.0.2", "::1"])
def test_handshake_with_another_address(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    """A stop does not wait for an in-flight handshake with the same port of another address."""
    monkeypatch.setattr(drainModule, "HANDSHAKE_TIMEOUT", 60.0)
    monkeypatch.setattr(drainModule, "DRAIN_TIMEOUT", 60.0)
    server = serve()
    port = server.port._listener.getsockname()[1]
    family = socket.AF_INET6 if ":" in other else socket.AF_INET
    with socket.create_server((other, port), family=family), InFlight(other, port).client:
        server.stop()


@needsLinux
def test_handshake_that_stays_half_done(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop waits for an in-flight handshake until its timeout."""
    monkeypatch.setattr(drainModule, "HANDSHAKE_TIMEOUT", 0.05)
    server = serve()
    with InFlight(*server.port._listener.getsockname()).client:
        server.stop()
    assert not server.seen


def test_where_no_handshakes_are_shown(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system lists no handshakes, a stop waits for a grace period without a client."""
    monkeypatch.setattr(drainModule, "TABLE", "/no/such/file")
    monkeypatch.setattr(drainModule, "HIDDEN_HANDSHAKE_GRACE", 0.05)
    server = serve()
    client = server.connect()
    server.port.doRead()
    assert ended(client)
    stopped = server.port.stopListening()
    assert not stopped.called
    late = server.connect() if sys.platform != "linux" else None
    until(lambda: stopped.called)
    assert len(server.seen) == (2 if late else 1)


class Lingering(HelloProtocol):
    """A protocol that closes the connection when the client sends, and reports it then."""

    def connectionMade(self) -> None:
        """Read nothing yet."""
        self.transport.pauseProducing()  # type: ignore[attr-defined]
        self.ends = self.transport.getPeer(), self.transport.getHost()

    def dataReceived(self, data: bytes) -> None:
        """Answer, and close the connection."""
        self.transport.write(b"bye")
        self.transport.loseConnection()

    def connectionLost(self, reason: Failure | None = None) -> None:
        """Report it."""
        self.factory.established(*self.ends)


Lingerers = tuple[Server, list[Lingering]]


@pytest.fixture(params=["tcp", "unix", "inherited"])
def lingering(serve: Serve, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Lingerers]:
    """Return a port with another protocol, and the protocols that it builds."""
    protocols: list[Lingering] = []

    class LingeringFactory(HelloFactory):
        def buildProtocol(self, addr: object) -> Lingering:  # type: ignore[override]
            protocols.append(Lingering())
            protocols[-1].factory = self
            return protocols[-1]

    seen: list[Connection] = []
    hello = LingeringFactory(seen.append)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        owned = listener if request.param == "inherited" else None
        server = serve(tmp_path / "s" if request.param == "unix" else "127.0.0.1",
                       hello=hello, owned=owned)  # fmt: skip
        server.seen = seen
        yield server, protocols
        server.stop()


def test_connections_that_are_open_at_a_stop(lingering: Lingerers) -> None:
    """A stop waits for open connections after the socket is closed, also for paused ones."""
    server, protocols = lingering
    client = server.connect(data=b"hello")
    until(lambda: protocols)
    stopped = server.port.stopListening()
    until(lambda: server.port.disconnected)
    turnFor(0.1)
    assert not stopped.called
    protocols[0].transport.resumeProducing()  # type: ignore[attr-defined]
    until(lambda: stopped.called)
    assert client.recv(10) == b"bye"
    assert ended(client)
    assert len(server.seen) == 1


def test_connections_that_stay_open(lingering: Lingerers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that stay open are aborted, and their protocols know before the stop is over."""
    monkeypatch.setattr(drainModule, "CONNECTION_TIMEOUT", 0.05)
    server, protocols = lingering
    clients = [server.connect() for _ in range(2)]
    until(lambda: len(protocols) == 2)
    with capturedLogs() as events:
        server.stop()
    assert len(server.seen) == 2
    assert "Connections aborted, still open 5 s after the stop: 2" in texts(events)
    for client in clients:
        client.close()


def test_unix_socket(serve: Serve, tmp_path: Path) -> None:
    """At a stop of a UNIX socket, its accept queue is served, and new clients are refused."""
    server = serve(tmp_path / "s")
    clients = [server.connect() for _ in range(MAX_ACCEPTS + 8)]
    server.port.doRead()
    assert len(server.seen) == MAX_ACCEPTS
    stopped = server.port.stopListening()
    with socket.socket(socket.AF_UNIX) as late, pytest.raises(ConnectionRefusedError):
        late.connect(str(tmp_path / "s"))
    until(lambda: stopped.called)
    assert all(map(ended, clients))
    assert {connection.serverAddress for connection in server.seen} == {f"{tmp_path}/s"}
    assert len(server.seen) == MAX_ACCEPTS + 8
    assert not list(tmp_path.iterdir())


def test_stopped_unix_socket_does_not_spin(serve: Serve, tmp_path: Path) -> None:
    """A UNIX socket whose queue is served is read no more while a stop waits for a header."""
    server = serve(tmp_path / "s", make=proxied)
    client = server.connect()
    until(lambda: server.factory.waiting)
    stopped = server.port.stopListening()
    until(lambda: server.port not in reactor.getReaders())
    assert not stopped.called
    client.sendall(HEADER)
    until(lambda: stopped.called)
    assert [connection.clientAddress for connection in server.seen] == ["192.0.2.7"]
    client.close()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
@pytest.mark.parametrize("make", [lambda hello: hello, proxied], ids=["in place", "handed over"])
def test_socket_that_another_process_shuts_down(
    tmp_path: Path, make: Any, family: socket.AddressFamily
) -> None:
    """A port whose socket another process has shut down closes, and logs that once."""
    with socket.socket(family) as owned:
        owned.bind(("127.0.0.1", 0) if family == socket.AF_INET else f"{tmp_path}/s")
        owned.listen()
        memory = MemoryReactorClock()
        inherited = InheritedSocket(owned.fileno(), make(HelloFactory()))
        port = HelloPort(inherited, None, memory, isInherited=True)
        port.startListening()
        host = port.getHost()
        assert port.doRead() is None
        owned.shutdown(socket.SHUT_RD)
        closed = port.doRead()
        assert isinstance(closed, ConnectionLost)
        memory.callWhenRunning(port.connectionLost, Failure(closed))
        with capturedLogs() as events:
            memory.run()
            port.connectionLost(Failure(closed))
        assert texts(events) == [f"Not listening any more: {addressText(host)}"]
        assert not memory.getReaders()
        stopped = port.stopListening()
        memory.pump([0, 0, 0])
        assert stopped.called


def test_last_descriptor(serve: Serve) -> None:
    """One descriptor is enough to listen; without any, the error says why."""
    serve().stop()  # Twisted reserves a descriptor for all of its ports.
    endpoint = HelloEndpoint(reactor, "tcp:0:interface=127.0.0.1")
    results: list[Any] = []
    with Hog() as hog:
        endpoint.listen(HelloFactory()).addErrback(results.append)
        hog.release(1)
        endpoint.listen(HelloFactory()).addBoth(results.append)
    failure, port = results
    assert failure.getErrorMessage() == f"Too many open files: '{endpoint.description}'"
    stopped = port.stopListening()
    until(lambda: stopped.called)


class Observer:
    """An observer that is told of drops as well."""

    def __init__(self) -> None:
        """Start without any."""
        self.seen: list[Connection] = []
        self.drops: list[tuple[object, int]] = []

    def __call__(self, connection: Connection) -> None:
        """Keep a connection."""
        self.seen.append(connection)

    def dropped(self, server: object, packets: int) -> None:
        """Keep the server and the number."""
        self.drops.append((server, packets))


FULL = (
    "The accept queue of {} was full: up to {} packets of clients were dropped, "
    "so clients may be missing"
)


def come(address: Any, count: int) -> None:
    """Have so many clients try to connect at once, and leave before they try again."""
    with ExitStack() as stack:
        silent(stack, address, count)


linuxDrops = pytest.mark.skipif(sys.platform != "linux", reason="Linux tells what it drops")


@linuxDrops
@pytest.mark.parametrize("make", [lambda hello: hello, proxied], ids=["in place", "handed over"])
@pytest.mark.parametrize("interface", ["127.0.0.1", "::"])
def test_full_accept_queue(serve: Serve, interface: str, make: Any) -> None:
    """A full queue is logged and told to observers: at the first batch, and again at the stop."""
    observer = Observer()
    server = serve(interface, make=make, hello=HelloFactory(observer), backlog=3)
    host: Any = server.port.getHost()
    with capturedLogs() as events:
        for _ in range(2):
            come(("::1" if ":" in interface else "127.0.0.1", host.port), 10)
            server.port.doRead()
        assert observer.drops == [(host, 6)]
        assert texts(events) == [FULL.format(addressText(host), 6)]
        server.stop()
    assert observer.drops == [(host, 6)] * 2
    assert texts(events).count(FULL.format(addressText(host), 6)) == 2
    assert len(observer.seen) == 8


@linuxDrops
def test_full_accept_queue_of_a_page() -> None:
    """A full queue of another factory, such as the status page's, is logged."""
    twisted = tcp.Port(0, Factory.forProtocol(Protocol), 3, "127.0.0.1", reactor)
    twisted.startListening()
    port = HelloPort(twisted, None, reactor)
    host: Any = port.getHost()
    come(("127.0.0.1", host.port), 10)
    with capturedLogs() as events:
        port.doRead()
    assert texts(events) == [FULL.format(addressText(host), 6)]
    stopped = port.stopListening()
    until(lambda: stopped.called)


@linuxDrops
@pytest.mark.parametrize("make", [lambda hello: hello, proxied], ids=["in place", "handed over"])
def test_full_accept_queue_without_descriptors(serve: Serve, make: Any) -> None:
    """A queue that is full because descriptors are short is told before the shortage ends."""
    observer = Observer()
    server = serve(make=make, hello=HelloFactory(observer), backlog=3)
    host: Any = server.port.getHost()
    come(("127.0.0.1", host.port), 10)
    with Hog(), capturedLogs():
        server.port.doRead()
        assert observer.drops == [(host, 6)]
    until(lambda: len(observer.seen) == 4)


@linuxDrops
def test_inherited_full_accept_queue() -> None:
    """A queue that is full at the start, or at the end, of a process is told by that process."""
    with socket.create_server(("127.0.0.1", 0), backlog=3) as owned:
        observer = Observer()
        come(owned.getsockname(), 10)
        with capturedLogs() as events:
            server = Server(owned=owned, hello=HelloFactory(observer))
        host = server.port.getHost()
        assert texts(events) == [
            f"The accept queue of {addressText(host)} is full: before this process, up to 6 "
            "packets of clients were dropped, so clients may be missing"
        ]
        server.port.doRead()
        assert len(observer.seen) == 4
        assert observer.drops == []
        server.port.stopReading()
        come(owned.getsockname(), 7)
        server.stop()
        assert observer.drops == [(host, 3)]


@linuxDrops
def test_full_accept_queue_that_another_process_serves_as_well() -> None:
    """A full queue is told although another process has accepted clients since, too."""
    with socket.create_server(("127.0.0.1", 0), backlog=60) as owned:
        observer = Observer()
        server = Server(owned=owned, hello=HelloFactory(observer))
        come(owned.getsockname(), 66)
        owned.setblocking(False)
        for _ in range(20):
            owned.accept()[0].close()
        with capturedLogs():
            server.port.doRead()
        assert observer.drops == [(server.port.getHost(), 5)]
        server.stop()


@linuxDrops
def test_clients_refused_at_a_stop_are_not_dropped(serve: Serve) -> None:
    """A client that a stop refuses is no reason for a warning."""
    observer = Observer()
    server = serve(make=proxied, hello=HelloFactory(observer))
    host: Any = server.port.getHost()
    client = server.connect()
    until(lambda: server.factory.waiting)
    with capturedLogs() as events:
        stopped = server.port.stopListening()
        come(("127.0.0.1", host.port), 3)
        client.sendall(HEADER)
        until(lambda: stopped.called)
    assert "full" not in " ".join(texts(events))
    assert observer.drops == []
    assert ended(client)


def test_single_connection_needs_no_look(serve: Serve) -> None:
    """A connection that comes alone asks the system nothing about the accept queue."""
    calls: list[str] = []

    def note(frame: object, event: str, function: Any) -> None:
        if event == "c_call":
            calls.append(function.__name__)

    server = serve()
    client = server.connect()
    sys.setprofile(note)
    try:
        server.port.doRead()
    finally:
        sys.setprofile(None)
    assert ended(client)
    assert "_accept" in calls
    assert "getsockopt" not in calls


@pytest.mark.parametrize("make", [lambda hello: hello, proxied], ids=["in place", "handed over"])
@pytest.mark.parametrize("kind", ["tcp", "unix", "inherited"])
def test_descriptors_of_a_port(serve: Serve, tmp_path: Path, kind: str, make: Any) -> None:
    """An idle port takes one descriptor: the one that an inherited socket has already."""
    serve().stop()  # Twisted reserves a descriptor for all of its ports.
    with ExitStack() as stack:
        owned = None
        if kind == "inherited":
            owned = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        before = len(os.listdir("/dev/fd"))
        server = serve(tmp_path / "s" if kind == "unix" else "127.0.0.1", make=make, owned=owned)
        count = 0 if owned else 1
        assert len(os.listdir("/dev/fd")) == before + count
        client = server.connect(data=HEADER if make is proxied else b"")
        until(lambda: server.seen)
        assert ended(client)
        assert len(os.listdir("/dev/fd")) == before + count
        server.stop()
        assert len(os.listdir("/dev/fd")) == before


def test_unix_socket_that_cannot_be_removed(tmp_path: Path) -> None:
    """If the file cannot be removed, the factory stops, and records its connections."""
    folder = tmp_path / "folder"
    folder.mkdir()
    server = Server(folder / "s", make=proxied)
    client = server.connect()
    until(lambda: server.factory.waiting)
    shutil.rmtree(folder)
    folder.touch()
    failures: list[Failure] = []
    stopped = server.port.stopListening().addErrback(failures.append)
    until(lambda: stopped.called)
    assert failures[0].check(NotADirectoryError)
    assert [connection.error for connection in server.seen] == ["proxy_header_stopped"]
    assert ended(client)


@pytest.mark.parametrize("family", ["AF_UNIX", "AF_INET"])
def test_inherited_socket(tmp_path: Path, family: str) -> None:
    """An inherited socket stays open after the stop, which serves who waits, with its mode."""
    path = str(tmp_path / "s")
    with socket.socket(getattr(socket, family)) as owned, ExitStack() as stack:
        owned.bind(path if family == "AF_UNIX" else ("127.0.0.1", 0))
        if family == "AF_UNIX":
            os.chmod(path, 0o600)
        owned.listen(200)
        server = Server(owned=owned)
        assert server.hello.numPorts == 1
        first = server.connect()
        until(lambda: server.seen)
        assert ended(first)
        server.port.stopReading()
        waiting = [stack.enter_context(server.connect()) for _ in range(MAX_ACCEPTS + 1)]
        server.stop()
        assert server.hello.numPorts == 0
        assert len(server.seen) == len(waiting) + 1
        assert [client.recv(1) for client in waiting] == [b""] * len(waiting)
        later = socket.socket(getattr(socket, family))
        stack.enter_context(later).connect(owned.getsockname())
        again = Server(owned=owned)
        until(lambda: again.seen)
        again.stop()
        if family == "AF_UNIX":
            assert os.stat(path).st_mode & 0o777 == 0o600


def test_inherited_socket_without_descriptors() -> None:
    """A stop that runs out of descriptors leaves the rest of the queue to other processes."""
    with socket.create_server(("127.0.0.1", 0)) as owned:
        server = Server(owned=owned)
        server.port.stopReading()
        client = server.connect()
        with Hog():
            server.stop()
        assert server.seen == []
        again = Server(owned=owned)
        assert ended(client)
        again.stop()


def test_inherited_socket_that_the_reactor_closes() -> None:
    """A port that the reactor closes as its stop serves who waits accepts nobody more."""
    with socket.create_server(("127.0.0.1", 0)) as owned:
        server = Server(owned=owned)
        server.port.stopReading()
        with server.connect():
            stopped = server.port.stopListening()
            server.port.connectionLost(Failure(ConnectionError()))
            until(lambda: stopped.called)
        assert server.seen == []
        assert server.hello.numPorts == 0


def test_inherited_socket_behind_a_proxy() -> None:
    """Of the clients accepted before a stop, only those whose header follows soon are named."""
    with socket.create_server(("127.0.0.1", 0)) as owned, ExitStack() as stack:
        server = Server(owned=owned, make=proxied)
        clients = [stack.enter_context(server.connect()) for _ in range(2)]
        until(lambda: server.factory.waiting == 2)
        stopped = server.port.stopListening()
        later = stack.enter_context(server.connect(data=HEADER))
        clients[0].sendall(HEADER)
        until(lambda: stopped.called)
        assert [connection.error for connection in server.seen] == [None, "proxy_header_stopped"]
        again = Server(owned=owned, make=proxied)
        assert ended(later)
        assert again.seen[0].clientAddress == "192.0.2.7"
        again.stop()


def test_reactor_that_stops() -> None:
    """A port that the reactor closes is closed at once, even during a pause."""
    server = Server(make=proxied)
    client = server.connect(data=HEADER)
    until(lambda: server.seen)
    assert ended(client)
    client = server.connect()
    with Hog():
        server.port.doRead()
    assert server.port.isPaused
    server.port.connectionLost(Failure(ConnectionError()))
    until(lambda: not server.port.isPaused)
    assert server.port not in reactor.getReaders()
    server.port.connectionLost(Failure(ConnectionError()))
    assert server.factory.numPorts == 0
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    client.close()
