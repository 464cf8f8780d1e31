"""The protocol that hangs up at once, and the factory that says who it was."""

from __future__ import annotations

from collections.abc import Callable
from time import time

from twisted.internet.interfaces import IAddress, ITransport
from twisted.internet.protocol import Protocol, ServerFactory
from twisted.logger import Logger

from hello_listen.connection import Connection, unmapped

_log = Logger(namespace="hello_listen")


def logConnection(connection: Connection) -> None:
    """Log a connection at info: its line as the text, its fields beside it in the event."""
    _log.info("{text}", text=str(connection), **connection.fields())


class HelloProtocol(Protocol):
    """Tell the factory who connected, then drop the connection."""

    factory: HelloFactory
    transport: ITransport

    def connectionMade(self) -> None:
        """Report both ends of the connection, and hang up whatever comes of that."""
        try:
            self.factory.established(self.transport.getPeer(), self.transport.getHost())
        finally:
            self.transport.loseConnection()


class HelloFactory(ServerFactory):
    """
    Hand each connection to an observer. One factory may serve several endpoints at once.

    @ivar connections: how many there were so far.
    """

    protocol = HelloProtocol  # type: ignore[assignment] # Twisted's own example; its type is off
    noisy = False

    def __init__(self, observer: Callable[[Connection], object] = logConnection) -> None:
        """
        Count from 0.

        @param observer: called in the reactor's thread with each L{Connection}; by default they
            are logged through L{twisted.logger}. What it raises is logged, and goes no further.
        """
        self.observer = observer
        self.connections = 0

    def established(
        self,
        client: IAddress,
        server: IAddress,
        proxy: IAddress | None = None,
        error: str | None = None,
    ) -> None:
        """
        Number a connection and hand it to the observer.

        @param client: who connected.
        @param server: the address it reached.
        @param proxy: who said so, where that is not the client itself.
        @param error: what was wrong with a PROXY header that was expected.
        """
        self.connections += 1
        connection = Connection(
            time(),
            self.connections,
            unmapped(client),
            unmapped(server),
            proxy and unmapped(proxy),
            error,
        )
        try:
            self.observer(connection)
        except Exception:
            _log.failure("Observer failed for: {connection}", connection=str(connection))
