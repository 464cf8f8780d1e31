"""The protocol that closes each connection at once, and the factory that notifies observers."""

from __future__ import annotations

from time import time
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.interfaces import IAddress, ITransport
from twisted.internet.protocol import Protocol, ServerFactory
from twisted.logger import Logger

from hello_listen._addresses import addressText, unmapped
from hello_listen._observing import Observer, ObserverCalls, checkObserver
from hello_listen.connection import NO_EXTENSIONS, Connection, Extensions, Summary

_log = Logger(namespace="hello_listen")


def logConnection(connection: Connection | Summary) -> None:
    """
    Log the text of a connection, or of a L{Summary}, at info; the event carries its fields.

    This needs Twisted's logging: twistd and twist start it, C{task.react} does not.

    >>> from twisted.internet.address import IPv4Address
    >>> from twisted.logger import capturedLogs
    >>> from hello_listen import Connection, logConnection
    >>> client = IPv4Address("TCP", "203.0.113.7", 51974)
    >>> connection = Connection(1795348800.0, client, IPv4Address("TCP", "192.0.2.1", 7878))
    >>> with capturedLogs() as events:
    ...     logConnection(connection)
    >>> events[0]["client.address"]
    '203.0.113.7'
    """
    _log.info("{text}", text=str(connection), connection=connection, **connection.fields())


class HelloProtocol(Protocol):
    """
    Reports a connection to the factory, then closes it.

    L{HelloFactory} makes one for each connection. Behind C{haproxy:}, it does so once the PROXY
    header is whole, and C{transport.getPeer()} is the client that the header names.
    Over plain TCP and UNIX sockets, L{HelloEndpoint} connects this class to an
    L{InPlaceTransport}, which hands the connection over to the reactor for all that it cannot do
    itself. Subclasses, and any class over TLS, get the reactor's own transport; behind
    C{haproxy:}, a wrapper of it.

    >>> from twisted.internet.testing import StringTransport
    >>> from hello_listen import HelloFactory, HelloProtocol
    >>> class Greeter(HelloProtocol):
    ...     def connectionMade(self):
    ...         self.transport.write(b"Hello")
    ...         super().connectionMade()
    >>> factory, transport = HelloFactory(), StringTransport()
    >>> factory.protocol = Greeter
    >>> factory.buildProtocol(transport.getPeer()).makeConnection(transport)
    >>> transport.value()
    b'Hello'
    """

    factory: HelloFactory
    transport: ITransport

    def connectionMade(self) -> None:
        """Report both addresses of the connection, and close it even if that fails."""
        transport = self.transport
        try:
            peer, host = transport.getPeer(), transport.getHost()
            details = getattr(transport, "details", None)
            if details is None:
                self.factory.established(peer, host)
            else:
                self.factory.established(peer, host, **details)
        finally:
            transport.loseConnection()


class HelloFactory(ServerFactory):
    """
    Notifies observers of each connection, in order.

    Any of Twisted's endpoints serves it; L{HelloEndpoint} adds to them.

    >>> from twisted.internet import reactor
    >>> from twisted.internet.endpoints import serverFromString
    >>> from hello_listen import HelloFactory
    >>> endpoint = serverFromString(reactor, "tcp:0:interface=127.0.0.1")
    >>> listening = endpoint.listen(HelloFactory(print))
    >>> stopped = listening.addCallback(lambda port: port.stopListening())

    One factory may serve several endpoints. An observer is called with each L{Connection}, in the
    reactor's thread: no other client is served until it returns. It may be an C{async def}
    function, which is run, or return a L{twisted.internet.defer.Deferred}. While 1,000 coroutines
    and Deferreds are unfinished, no other coroutine is run, and the log says for how many
    connections. An observer's error is logged with the connection, and has no other effect. The
    factory closes nothing: L{HelloService} waits for the coroutines and Deferreds, then closes the
    observers that have C{close}. An observer that has C{dropped} is called as L{dropped} is.

    @ivar observers: the observers, in the order in which they are called.
    @ivar calls: the calls of observers, finished or not.
    @ivar connections: the number of connections so far.
    """

    protocol = HelloProtocol  # type: ignore[assignment] # Twisted types this as a Callable
    noisy = False

    def __init__(self, *observers: Observer) -> None:
        """
        Make a factory with observers.

        @param observers: called in this order; by default, L{logConnection}.

        @raise TypeError: an observer is not callable, or is a class.
        """
        for observer in observers:
            checkObserver(observer)
        self.observers: tuple[Observer, ...] = observers or (logConnection,)
        self.calls = ObserverCalls()
        self.connections = 0

    def logPrefix(self) -> str:
        """Return the name of this factory in Twisted's log."""
        return "hello-listen"

    def established(
        self,
        client: IAddress,
        server: IAddress,
        proxy: IAddress | None = None,
        error: str | None = None,
        extensions: Extensions = NO_EXTENSIONS,
        silent: bool = False,
        accepted: float | None = None,
    ) -> None:
        """
        Count a connection, and call the observers with it.

        @param client: the client's address.
        @param server: the address that the client reached.
        @param proxy: the address of the proxy that sent a PROXY header, also for its health checks.
        @param error: what was wrong with the connection, for C{error.type}.
        @param extensions: the extensions of the PROXY header.
        @param silent: whether a PROXY header was expected and no byte was received.
        @param accepted: when it was accepted, in seconds since the epoch; by default, now.
        """
        self.connections += 1
        connection = Connection(
            time() if accepted is None else accepted,
            client if type(client) is IPv4Address else unmapped(client),
            server if type(server) is IPv4Address else unmapped(server),
            proxy and unmapped(proxy),
            error,
            extensions,
            silent,
        )
        for observer in self.observers:
            # As ObserverCalls.call does, but inline: this runs for each connection.
            try:
                result = observer(connection)
                if result is not None:
                    self.calls.follow(result, connection)
            except BaseException:
                self.calls.fail(connection)

    def dropped(self, server: IAddress, packets: int) -> None:
        """
        Tell the observers that have C{dropped} that clients may be missing.

        @param server: the address of a port whose accept queue was full.
        @param packets: the upper bound of the packets of clients that the system dropped since the
            previous call for this port.
        """
        server = unmapped(server)
        subject = f"{packets} dropped packets at {addressText(server)}"
        for observer in self.observers:
            tell = getattr(observer, "dropped", None)
            if tell is not None:
                try:
                    self.calls.follow(tell(server, packets), subject)
                except BaseException:
                    self.calls.fail(subject)


def reportSafely(factory: HelloFactory, client: IAddress, server: IAddress, **details: Any) -> None:
    """
    Report a connection to a factory. It is counted and recorded even if a subclass fails.

    @param factory: the factory.
    @param client: the client's address.
    @param server: the address that the client reached.
    @param details: the other arguments of L{HelloFactory.established}.
    """
    countBefore = factory.connections
    try:
        factory.established(client, server, **details)
    except BaseException:
        _log.failure("Connection could not be reported")
        if factory.connections == countBefore:
            details["error"] = details.get("error") or "failed"
            HelloFactory.established(factory, client, server, **details)
