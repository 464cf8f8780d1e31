"""The service: endpoints from descriptions, bound all together or not at all."""

import importlib
import os
import re
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from twisted.application.service import IService
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.endpoints import StandardIOEndpoint
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.logger import LogEvent, capturedLogs, formatEvent
from twisted.python.failure import Failure
from twisted.python.systemd import ListenFDs
from zope.interface import implementer

from hello_listen import HelloFactory, HelloService, ListenError
from hello_listen.endpoint import BACKLOG, Endpoint
from hello_listen.proxied import ProxiedFactory


@implementer(IListeningPort)
class FakePort:
    """A port that remembers that it was stopped."""

    stopped = False

    def __init__(self, error: Exception | None = None) -> None:
        """Stop with an error, or without."""
        self.error = error

    def startListening(self) -> None:
        """Do nothing."""

    def getHost(self) -> IPv4Address:
        """Return some address."""
        return IPv4Address("TCP", "127.0.0.1", 7878)

    def stopListening(self) -> Deferred[None] | None:
        """Stop."""
        self.stopped = True
        return fail(self.error) if self.error else None


class FakeReactor(MemoryReactorClock):
    """A reactor that answers each request to listen with the next of the results it is given."""

    def __init__(self, *results: FakePort | Exception) -> None:
        """Take the results."""
        super().__init__()
        self.results = list(results)

    def listenTCP(self, *args: object, **kwargs: object) -> Any:
        """Return or raise the next result."""
        result = self.results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    listenUNIX = listenTCP


def texts(events: list[LogEvent]) -> list[str | None]:
    """Return what the log shows."""
    return [formatEvent(event) for event in events]


def test_starts_and_stops() -> None:
    """It is an ordinary service, and says at its end how many connections there were."""
    port = FakePort()
    factory = HelloFactory()
    service = HelloService(factory, "tcp:1", reactor=FakeReactor(port))
    assert IService.providedBy(service)
    with capturedLogs() as events:
        service.privilegedStartService()
        service.startService()
    assert service.running
    assert texts(events) == ["Listening on 127.0.0.1:7878"]
    factory.connections = 3
    with capturedLogs() as events:
        assert service.stopService().called
    assert port.stopped
    assert not service.running
    assert texts(events) == ["Stopped. Connections: 3"]


def test_global_reactor() -> None:
    """Without a reactor it uses the installed one, which is imported no earlier than that."""
    from twisted.internet import reactor

    assert HelloService(HelloFactory(), "tcp:0").reactor is reactor


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            CannotListenError("127.0.0.1", 2, OSError(98, "Address already in use")),
            "Address already in use: 'tcp:2'",
        ),
        (
            CannotListenError(None, b"/run/hello", "Cannot acquire lock"),
            "Cannot acquire lock: 'tcp:2'",
        ),
        (OSError(2, "No such file or directory"), "No such file or directory: 'tcp:2'"),
        (OverflowError("bind(): port must be 0-65535."), "bind(): port must be 0-65535: 'tcp:2'"),
    ],
)
def test_all_or_nothing(error: Exception, message: str) -> None:
    """If one endpoint cannot be bound, the others are released and the reason is raised."""
    port = FakePort()
    service = HelloService(HelloFactory(), "tcp:1", "tcp:2", reactor=FakeReactor(port, error))
    with pytest.raises(ListenError) as raised:
        service.startService()
    assert str(raised.value) == message
    assert port.stopped
    assert f"{type(raised.value).__module__}.{type(raised.value).__qualname__}" == (
        "hello_listen.ListenError"
    )


@pytest.mark.unix
@pytest.mark.parametrize("owner", [os.getpid(), 1])
def test_lock_of_a_socket_that_cannot_be_bound(tmp_path: Path, owner: int) -> None:
    """Twisted's lock is removed if this process made it in vain, and kept if it is another's."""
    path = bytes(tmp_path / "s")
    os.symlink(str(owner), path + b".lock")
    error = CannotListenError(None, path, OSError(98, "Address already in use"))
    service = HelloService(HelloFactory(), "unix:s", reactor=FakeReactor(error))
    with pytest.raises(ListenError):
        service.startService()
    assert os.path.lexists(path + b".lock") == (owner != os.getpid())


def test_a_port_that_does_not_stop() -> None:
    """What cannot be released is named, and hides neither the other ports nor the count."""
    ports = FakePort(PermissionError(13, "Permission denied")), FakePort()
    service = HelloService(HelloFactory(), "unix:/run/hello", "tcp:1", reactor=FakeReactor(*ports))
    service.startService()
    with capturedLogs() as events:
        service.stopService()
    assert ports[1].stopped
    assert texts(events) == [
        "Not released: Permission denied: 'unix:/run/hello'",
        "Stopped. Connections: 0",
    ]


@pytest.fixture
def pending(later: None) -> list[Deferred[Any]]:
    """Return what C{later:} endpoints wait for."""
    path = list(sys.modules["twisted.plugins"].__path__)
    sys.modules["twisted.plugins"].__path__ = path
    deferreds = importlib.import_module("twisted.plugins.later_endpoint").pending
    deferreds.clear()
    assert isinstance(deferreds, list)
    return deferreds


def test_an_endpoint_that_takes_its_time(pending: list[Deferred[Any]]) -> None:
    """A port that comes later is stopped like any other."""
    service = HelloService(HelloFactory(), "later:", reactor=FakeReactor())
    service.startService()
    port = FakePort()
    pending[0].callback(port)
    service.stopService()
    assert port.stopped


def test_an_endpoint_that_fails_later(pending: list[Deferred[Any]]) -> None:
    """It is told, and the others are released: all or nothing, still."""
    port = FakePort()
    service = HelloService(HelloFactory(), "tcp:1", "later:", reactor=FakeReactor(port))
    service.startService()
    with capturedLogs() as events:
        pending[0].errback(OSError("no circuit"))
    assert texts(events) == ["no circuit: 'later:'"]
    assert port.stopped


def test_stopping_before_an_endpoint_listens(pending: list[Deferred[Any]]) -> None:
    """What is still on its way is cancelled, which is no failure."""
    service = HelloService(HelloFactory(), "later:", reactor=FakeReactor())
    service.startService()
    with capturedLogs() as events:
        assert service.stopService().called
    assert texts(events) == ["Stopped. Connections: 0"]


@pytest.mark.parametrize(
    ("description", "reason"),
    [
        ("", "Unknown endpoint type: ''"),
        ("foo:1", "Unknown endpoint type: 'foo'"),
        ("tcp", "missing: 'port'"),
        ("tcp6", "missing: 'port'"),
        ("tcp:notaport", "not a number: 'notaport'"),
        ("tcp:1:interfce=x", "no such argument: 'interfce'"),
        ("tcp:1:backlog=abc", "not a number: 'abc'"),
        ("tcp:1:x:2:y", "too many arguments"),
        ("tcp:1:port=2", "given twice: 'port'"),
        ("tcp:1\\", "ends in a backslash that escapes nothing"),
        ("unix:", "missing: 'address'"),
        ("unix:/run/hello:mode=999", "not a number: '999'"),
        ("ssl:1:privateKey=/no/key.pem", "No such file or directory: '/no/key.pem'"),
        ("systemd:INET:index=0", "no such socket was inherited (systemd passes them, see "),
        ("systemd:INET:name=web", "no such socket was inherited (systemd passes them, see "),
        ("haproxy", "Unknown endpoint type: ''"),
        ("haproxy:foo:1", "Unknown endpoint type: 'foo'"),
        ("haproxy:HAProxy:tcp:1", "one PROXY header is expected, not two"),
        ("systemd:INET", "Specify exactly one of descriptor index or name"),
        ("systemd:INET:index=x", "not a number: 'x'"),
    ],
)
def test_descriptions_that_cannot_be_understood(description: str, reason: str) -> None:
    """The message quotes the endpoint and says in words what is wrong."""
    with pytest.raises(ValueError, match=re.escape(f"{description!r}: {reason}")):
        Endpoint(description, MemoryReactorClock())


@pytest.mark.parametrize(
    ("description", "module", "extra"),
    [
        ("ssl:443", "OpenSSL", "tls"),
        ("tls:/etc/certificates", "OpenSSL", "tls"),
        ("haproxy:ssl:443", "OpenSSL", "tls"),
        ("haproxy:tcp:7878", "proxyprotocol", "proxy"),
    ],
)
def test_without_an_extra(
    monkeypatch: pytest.MonkeyPatch, description: str, module: str, extra: str
) -> None:
    """Whoever lacks what an endpoint needs is told what to install."""
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=re.escape(f": pip install 'hello-listen[{extra}]'")):
        Endpoint(description, MemoryReactorClock())


@pytest.mark.parametrize(
    ("description", "backlog"),
    [
        ("tcp:1", BACKLOG),
        ("tcp6:1", BACKLOG),
        ("TCP6:1", BACKLOG),
        ("haproxy:tcp:1", BACKLOG),
        ("tcp:1:backlog=50", 50),
        ("tcp6:1:backlog=50", 50),
        ("tcp:1::50", 50),
    ],
)
def test_accept_queue(description: str, backlog: int) -> None:
    """It is as long as it can be, unless the description says how long."""
    reactor = MemoryReactorClock()
    HelloService(HelloFactory(), description, reactor=reactor).startService()
    assert [server[2] for server in reactor.tcpServers] == [backlog]


def test_accept_queue_of_unix_sockets() -> None:
    """It is the same for UNIX sockets."""
    reactor = MemoryReactorClock()
    for description in ("unix:/run/hello", "haproxy:unix:/run/hello:backlog=5"):
        HelloService(HelloFactory(), description, reactor=reactor).startService()
    assert [server[2] for server in reactor.unixServers] == [BACKLOG, 5]


@pytest.mark.parametrize("description", ["haproxy:tcp:1", "HAProxy:tcp:1"])
def test_behind_a_proxy(description: str) -> None:
    """A proxied endpoint puts the reader of headers between itself and the factory."""
    reactor = MemoryReactorClock()
    factory = HelloFactory()
    HelloService(factory, description, reactor=reactor).startService()
    [(_, serving, _, _)] = reactor.tcpServers
    assert isinstance(serving, ProxiedFactory)
    assert serving.factory is factory


@pytest.mark.unix
@pytest.mark.parametrize("domain", ["INET", "INET6", "UNIX"])
@pytest.mark.parametrize("family", ["INET", "UNIX"])
def test_inherited(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, family: str, domain: str
) -> None:
    """A socket from systemd is adopted as what it is, and not drained when the service stops."""
    with socket.socket(getattr(socket, f"AF_{family}")) as owned:
        owned.bind(("127.0.0.1", 0) if family == "INET" else str(tmp_path / "s"))
        owned.listen()
        descriptor = os.dup(owned.fileno())
        monkeypatch.setattr(ListenFDs, "inheritedDescriptors", lambda self: [descriptor])
        reactor = MemoryReactorClock()
        service = HelloService(HelloFactory(), f"systemd:{domain}:index=0", reactor=reactor)
        service.startService()
        with socket.socket(owned.family) as client:
            client.connect(owned.getsockname())
            if family == "UNIX":
                stopped = service.stopService()
                reactor.advance(0)
                assert stopped.called
                assert service.factory.connections == 0
                service.startService()
                [port] = reactor.getReaders()
                port.doRead()
                assert service.factory.connections == 1
                service.stopService()
                reactor.advance(0)
                for transport in reactor.getWriters():
                    transport.connectionLost(Failure(ConnectionError()))
                os.close(descriptor)
            else:
                [(adopted, family_, factory)] = reactor.adoptedPorts
                assert (adopted, family_) == (descriptor, owned.family)
                assert factory is service.factory
                service.stopService()
                with pytest.raises(ListenError, match=f"AlreadyListened: 'systemd:{domain}:"):
                    service.startService()
                assert not service.running


def test_standard_input_without_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who had not sent it when the service stopped is recorded by then."""
    made: list[Any] = []

    def listen(self: object, factory: Any) -> Deferred[Any]:
        made.append(factory.buildProtocol(None))
        made[0].makeConnection(StringTransport())
        return succeed(object())

    monkeypatch.setattr(StandardIOEndpoint, "listen", listen)
    reactor = MemoryReactorClock()
    service = HelloService(HelloFactory(), "haproxy:stdio:", reactor=reactor)
    service.startService()
    assert service.factory.connections == 0
    service.stopService()
    assert service.factory.connections == 1
    assert made[0].transport.disconnecting
