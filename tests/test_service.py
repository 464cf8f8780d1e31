"""The service: endpoints from descriptions, bound all together or not at all."""

import importlib
import re
import sys
from typing import Any

import pytest
from twisted.application.service import IService
from twisted.internet.defer import Deferred, fail
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.error import CannotListenError, ConnectionDone
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs
from twisted.python.failure import Failure

from events import texts
from hello_listen import Connection, HelloEndpoint, HelloFactory, HelloService, ListenError
from hello_listen._proxy import ProxiedFactory, pendingHeaders
from reactors import FakePort, ListeningReactor


def test_starts_and_stops() -> None:
    """The service starts and stops like any other, and at the stop logs its connections."""
    port = FakePort()
    factory = HelloFactory()
    service = HelloService(factory, ["tcp:1"], reactor=ListeningReactor(port))
    assert IService.providedBy(service)
    with capturedLogs() as events:
        service.privilegedStartService()
        service.startService()
    assert service.running
    assert texts(events) == ["Listening on 127.0.0.1:7878"]
    assert service.listening == [("tcp:1", port.getHost())]
    factory.connections = 3
    with capturedLogs() as events:
        assert service.stopService().called
    assert port.stopped
    assert service.listening == [("tcp:1", None)]
    assert not service.running
    assert texts(events) == ["Stopped. Connections: 3"]


class ClosingObserver:
    """An observer whose close takes time, as a log's does."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.closing: Deferred[None] = Deferred()

    def __call__(self, connection: Connection) -> None:
        """Take a connection."""

    def close(self) -> Deferred[None]:
        """Close, or fail."""
        if self.error:
            raise self.error
        return self.closing


def test_closes_its_observers() -> None:
    """A stop closes the ports, then the observers, and waits; an observer's error is logged."""
    port, slow = FakePort(), ClosingObserver()
    factory = HelloFactory(slow, ClosingObserver(OSError("no disk")), lambda connection: None)
    service = HelloService(
        factory, [TCP4ServerEndpoint(ListeningReactor(port), 1)], ListeningReactor()
    )
    service.startService()
    assert "TCP4ServerEndpoint" in service.listening[0][0]
    with capturedLogs() as failed:
        stopped = service.stopService()
    assert port.stopped
    assert texts(failed) == ["Observer could not be closed"]
    done: list[object] = []
    stopped.addCallback(done.append)
    assert not done
    with capturedLogs() as events:
        slow.closing.callback(None)
    assert done
    assert texts(events) == ["Stopped. Connections: 0"]


def test_an_endpoint_that_is_given_twice() -> None:
    """An endpoint given twice is bound twice, and both ports are stopped."""
    ports = FakePort(), FakePort()
    endpoint = HelloEndpoint(ListeningReactor(*ports), "tcp:1")
    service = HelloService(HelloFactory(), [endpoint, endpoint], ListeningReactor())
    service.startService()
    assert service.listening == [("tcp:1", ports[0].getHost())] * 2
    service.stopService()
    assert all(port.stopped for port in ports)


def test_starting_while_it_stops() -> None:
    """A stop that is not finished leaves the ports of the next start alone."""
    observer = ClosingObserver()
    before, after = [FakePort(), FakePort()], [FakePort(), FakePort()]
    reactor = ListeningReactor(*before, *after)
    status = HelloEndpoint(reactor, "tcp:2")
    service = HelloService(
        HelloFactory(observer), ["tcp:1"], reactor, (status, lambda service: HelloFactory())
    )
    service.startService()
    stopped = service.stopService()
    service.startService()
    observer.closing.callback(None)
    assert stopped.called
    assert all(port.stopped for port in before)
    assert not any(port.stopped for port in after)


def test_endpoint_that_fails_otherwise() -> None:
    """The error of an endpoint from another package is raised unchanged."""

    class Endpoint:
        def listen(self, factory: object) -> Deferred[IListeningPort]:
            return fail(ZeroDivisionError("why"))

    service = HelloService(HelloFactory(), [Endpoint()], ListeningReactor())  # type: ignore[list-item]
    with pytest.raises(ZeroDivisionError, match="why"):
        service.privilegedStartService()


def test_endpoints_are_a_list() -> None:
    """A single description instead of a list is refused."""
    with pytest.raises(TypeError, match=re.escape("endpoints are a list: ['tcp:1']")):
        HelloService(HelloFactory(), "tcp:1")


@pytest.mark.parametrize("factory", [HelloFactory, None, Factory()])
def test_factory_is_a_hello_factory(factory: Any) -> None:
    """The class HelloFactory, or a factory of another class, is refused at once."""
    with pytest.raises(TypeError, match="not a HelloFactory: "):
        HelloService(factory, ["tcp:1"])


def test_global_reactor() -> None:
    """Without a reactor, the service uses the global one."""
    from twisted.internet import reactor

    assert HelloService(HelloFactory(), ["tcp:0"]).reactor is reactor


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            CannotListenError("127.0.0.1", 2, OSError(98, "Address already in use")),
            "Address already in use: 'tcp:2'",
        ),
        (OSError(2, "No such file or directory"), "No such file or directory: 'tcp:2'"),
        (OverflowError("bind(): port must be 0-65535."), "bind(): port must be 0-65535: 'tcp:2'"),
    ],
)
def test_all_or_nothing(error: Exception, message: str) -> None:
    """If one endpoint cannot be bound, the others are released and the reason is raised."""
    port = FakePort()
    service = HelloService(
        HelloFactory(), ["tcp:1", "tcp:2"], reactor=ListeningReactor(port, error)
    )
    with pytest.raises(ListenError) as raised:
        service.startService()
    assert str(raised.value) == message
    assert isinstance(raised.value, CannotListenError)
    assert port.stopped
    assert service.released.called
    assert f"{type(raised.value).__module__}.{type(raised.value).__qualname__}" == (
        "hello_listen.ListenError"
    )


def test_a_port_that_does_not_stop() -> None:
    """The log names a port that cannot be stopped; the others stop, and connections are counted."""
    ports = FakePort(PermissionError(13, "Permission denied")), FakePort()
    service = HelloService(HelloFactory(), ["tcp:1", "tcp:2"], reactor=ListeningReactor(*ports))
    service.startService()
    with capturedLogs() as events:
        service.stopService()
    assert ports[1].stopped
    assert texts(events) == [
        "Not released: Permission denied: 'tcp:1'",
        "Stopped. Connections: 0",
    ]


@pytest.fixture
def pending(later: None) -> list[Deferred[Any]]:
    """Return the pending Deferreds of C{later:} endpoints."""
    path = list(sys.modules["twisted.plugins"].__path__)
    sys.modules["twisted.plugins"].__path__ = path
    deferreds = importlib.import_module("twisted.plugins.later_endpoint").pending
    deferreds.clear()
    assert isinstance(deferreds, list)
    return deferreds


def test_an_endpoint_that_takes_its_time(pending: list[Deferred[Any]]) -> None:
    """A port that is bound after the start is stopped like any other."""
    service = HelloService(HelloFactory(), ["later:"], reactor=ListeningReactor())
    service.startService()
    port = FakePort()
    pending[0].callback(port)
    service.stopService()
    assert port.stopped


def test_an_endpoint_that_fails_later(pending: list[Deferred[Any]]) -> None:
    """An endpoint that fails after the start is logged, and the others are released."""
    port = FakePort()
    service = HelloService(HelloFactory(), ["tcp:1", "later:"], reactor=ListeningReactor(port))
    service.startService()
    with capturedLogs() as events:
        pending[0].errback(OSError("no circuit"))
    assert texts(events) == ["no circuit: 'later:'"]
    assert port.stopped
    assert service.listening == [("tcp:1", None), ("later:", None)]


def test_stopping_after_an_endpoint_has_failed(pending: list[Deferred[Any]]) -> None:
    """Observers are closed only after the other ports have drained."""
    port, observer = FakePort(), ClosingObserver()
    stopping: Deferred[None] = Deferred()
    port.stopListening = lambda: stopping  # type: ignore[method-assign]
    factory = HelloFactory(observer, ClosingObserver(OSError("no disk")))
    service = HelloService(factory, ["tcp:1", "later:"], reactor=ListeningReactor(port))
    service.startService()
    with capturedLogs() as events:
        pending[0].errback(OSError("no circuit"))
        stopped = service.stopService()
        assert texts(events) == ["no circuit: 'later:'"]
        stopping.callback(None)
    assert "Observer could not be closed" in texts(events)
    observer.closing.callback(None)
    assert stopped.called


def test_an_endpoint_that_fails_between_the_two_starts(pending: list[Deferred[Any]]) -> None:
    """C{startService} does not retry an endpoint that failed after C{privilegedStartService}."""
    port = FakePort()
    service = HelloService(HelloFactory(), ["tcp:1", "later:"], reactor=ListeningReactor(port))
    service.privilegedStartService()
    with capturedLogs():
        pending[0].errback(OSError("no circuit"))
    service.startService()
    assert len(pending) == 1
    assert port.stopped


def test_stopping_before_an_endpoint_listens(pending: list[Deferred[Any]]) -> None:
    """A stop cancels an unfinished attempt to listen, and logs no failure."""
    service = HelloService(HelloFactory(), ["later:"], reactor=ListeningReactor())
    service.startService()
    with capturedLogs() as events:
        assert service.stopService().called
    assert texts(events) == ["Stopped. Connections: 0"]


def test_headers_waiting() -> None:
    """A service counts the connections of its own factory that wait for a PROXY header."""
    reactor = ListeningReactor()
    one, other = (HelloService(HelloFactory(), [], reactor) for _ in range(2))
    protocol = ProxiedFactory(one.factory, pendingHeaders(reactor)).buildProtocol(None)
    protocol.makeConnection(StringTransport())
    assert (one.headersWaiting, other.headersWaiting) == (1, 0)
    protocol.connectionLost(Failure(ConnectionDone()))
    assert one.headersWaiting == 0
