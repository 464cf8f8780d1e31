"""The protocol and its factory, on Twisted's own test doubles."""

from collections.abc import Callable

import pytest
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Protocol
from twisted.internet.testing import StringTransport
from twisted.logger import LogLevel, capturedLogs, eventAsJSON, formatEvent
from twisted.python.failure import Failure

from hello_listen import Connection, HelloFactory, HelloProtocol

CLIENT = IPv4Address("TCP", "192.0.2.7", 51974)
SERVER = IPv4Address("TCP", "192.0.2.1", 7878)


def connect(factory: HelloFactory, client: object = CLIENT) -> StringTransport:
    """Connect a client to the factory, and return the server's side of the connection."""
    transport = StringTransport(hostAddress=SERVER, peerAddress=client)
    protocol = factory.buildProtocol(CLIENT)
    assert isinstance(protocol, Protocol)
    protocol.makeConnection(transport)
    return transport


def test_logs_and_hangs_up() -> None:
    """Without an observer, a connection is logged in one line at info; nothing is sent."""
    with capturedLogs() as events:
        transport = connect(HelloFactory())
    assert [(formatEvent(event), event["log_level"]) for event in events] == [
        ("Connection established! 192.0.2.7:51974 -> 192.0.2.1:7878", LogLevel.info)
    ]
    assert transport.disconnecting
    assert transport.value() == b""


def test_event_carries_plain_fields() -> None:
    """The log event carries each field of the record, and the connection itself."""
    with capturedLogs() as events:
        connect(HelloFactory())
    assert isinstance(events[0]["connection"], Connection)
    assert events[0]["connection"].clientAddress == "192.0.2.7"
    assert '"client.address": "192.0.2.7", "client.port": 51974' in eventAsJSON(events[0])
    assert "unpersistable" not in eventAsJSON({k: events[0][k] for k in events[0] if "." in k})


def test_observer_gets_connections_instead() -> None:
    """An observer is called with each connection, and nothing is logged."""
    seen: list[Connection] = []
    factory = HelloFactory(seen.append)
    with capturedLogs() as events:
        connect(factory)
        connect(factory, IPv6Address("TCP", "::ffff:192.0.2.8", 1))
    assert [(c.client, c.server) for c in seen] == [
        (CLIENT, SERVER),
        (IPv4Address("TCP", "192.0.2.8", 1), SERVER),
    ]
    assert seen[0].time <= seen[1].time
    assert factory.connections == 2
    assert not events


@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
def test_observer_that_raises(error: type[BaseException]) -> None:
    """An observer's error is logged; the next observer is called, and the connection is closed."""

    def observer(connection: Connection) -> None:
        raise error("no room")

    seen: list[Connection] = []
    with capturedLogs() as events:
        transport = connect(HelloFactory(observer, seen.append))
    assert transport.disconnecting
    assert len(seen) == 1
    [event] = events
    assert formatEvent(event).startswith("Observer failed for: Connection established! 192.0.2.7")
    failure = event["log_failure"]
    assert isinstance(failure, Failure)
    assert isinstance(failure.value, error)


class Watching:
    """An observer that is told of drops as well, and answers by a function."""

    def __init__(self, answer: Callable[[], object] = lambda: None) -> None:
        self.drops: list[tuple[IAddress, int]] = []
        self._answer = answer

    def __call__(self, connection: Connection) -> None:
        """Ignore connections."""

    def dropped(self, server: IAddress, packets: int) -> object:
        """Keep the server and the number, and answer."""
        self.drops.append((server, packets))
        return self._answer()


def test_observers_of_drops() -> None:
    """Observers with C{dropped} are told in order, also after an error; coroutines are run."""
    ran: list[str] = []

    async def run() -> None:
        ran.append("ran")

    def fail() -> None:
        raise SystemExit

    watching = [Watching(), Watching(fail), Watching(run)]
    factory = HelloFactory(watching[0], lambda connection: None, *watching[1:])
    with capturedLogs() as events:
        factory.dropped(IPv6Address("TCP", "::ffff:192.0.2.1", 7878), 23)
    assert [each.drops for each in watching] == [[(SERVER, 23)]] * 3
    assert ran == ["ran"]
    assert [formatEvent(event).partition("\n")[0] for event in events] == [
        "Observer failed for: 23 dropped packets at 192.0.2.1:7878"
    ]
    assert factory.connections == 0


def test_transport_without_addresses() -> None:
    """If the transport does not know its peer, the connection is closed."""

    class Nameless(StringTransport):
        def getPeer(self) -> None:
            raise OSError("transport endpoint is not connected")

    protocol = HelloProtocol()
    protocol.factory = HelloFactory()
    transport = Nameless()
    with pytest.raises(OSError, match="not connected"):
        protocol.makeConnection(transport)
    assert transport.disconnecting
