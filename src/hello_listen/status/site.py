"""An HTTP server whose slow clients keep nobody from being answered."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.interfaces import IProtocolNegotiationFactory
from twisted.internet.protocol import connectionDone
from twisted.protocols.policies import ProtocolWrapper, TimeoutMixin, WrappingFactory
from twisted.python.failure import Failure
from twisted.web.server import Request, Site
from zope.interface import implementer

from hello_listen._clock import monotonicClock

PATIENCE = 10
"""Seconds in which a client has to send a request and to take the answer."""

CLIENTS = 64
"""Clients at once. When one more comes, the one whose last answer is the oldest is dropped."""

LONGEST = 2**15
"""Bytes that a client may send for one answer."""


@implementer(IProtocolNegotiationFactory)
class StatusSite(WrappingFactory):
    """Serves a resource over HTTP, without an access log."""

    noisy = False

    def __init__(self, resource: Any, reactor: Any) -> None:
        """
        Serve a resource, to L{CLIENTS} clients at once, each for L{PATIENCE} seconds at most.

        @param resource: an L{IResource} to serve.
        @param reactor: what keeps the time.
        """
        super().__init__(_Site(resource, reactor=reactor))
        self.protocol = _Client
        self.clock = monotonicClock(reactor)

    def acceptableProtocols(self) -> list[bytes]:
        """Return what TLS clients may choose (ALPN)."""
        return [b"http/1.1"]


class _Client(ProtocolWrapper, TimeoutMixin):
    """The connection of a client, dropped if it is slow or sends too much."""

    factory: StatusSite
    transport: Any

    def makeConnection(self, transport: Any) -> None:
        self._received = 0
        super().makeConnection(transport)
        self.setTimeout(PATIENCE)
        if len(self.factory.protocols) > CLIENTS:
            next(iter(self.factory.protocols)).timeoutConnection()

    def dataReceived(self, data: bytes) -> None:
        self._received += len(data)
        if self._received > LONGEST:
            self.timeoutConnection()
        else:
            super().dataReceived(data)

    def write(self, data: bytes) -> None:
        self._answered()
        super().write(data)

    def writeSequence(self, data: Iterable[bytes]) -> None:
        self._answered()
        super().writeSequence(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.setTimeout(None)
        super().connectionLost(reason)

    def timeoutConnection(self) -> None:
        self.transport.abortConnection()

    def callLater(self, period: float, func: Callable[[], object]) -> Any:
        return self.factory.clock.callLater(period, func)

    def _answered(self) -> None:
        """Let the client have its time anew, and be the last to be dropped."""
        self._received = 0
        self.resetTimeout()
        if self in self.factory.protocols:
            self.factory.unregisterProtocol(self)
            self.factory.registerProtocol(self)


class _Request(Request):
    def process(self) -> None:
        if self.path == b"*":  # Twisted would answer itself, with its version.
            self.path = b"/*"
        super().process()


class _Site(Site):
    noisy = False
    requestFactory = _Request

    def log(self, request: Any) -> None:
        """Leave the log to connections."""
