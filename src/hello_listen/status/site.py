"""An HTTP server whose slow clients keep nobody from being answered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IProtocolNegotiationFactory, IPushProducer
from twisted.internet.protocol import connectionDone
from twisted.protocols.policies import ProtocolWrapper, TimeoutMixin, WrappingFactory
from twisted.python.failure import Failure
from twisted.web.server import Request, Site
from zope.interface import implementer

from hello_listen._clock import monotonicClock

PATIENCE = 10
"""Seconds that a client has for a request, and for taking its answer."""

MAX_CONNECTIONS = 64
"""Most HTTP connections. For one more, the one that was answered least recently is dropped."""

MAX_CONNECTIONS_PER_ADDRESS = 48
"""The same for one address, so that no other client needs more than a free place."""

MAX_REQUEST = 2**15
"""Bytes that a client may send for one answer."""


@implementer(IProtocolNegotiationFactory)
class StatusSite(WrappingFactory):
    """
    Serves a resource over HTTP, with timeouts and a client limit, and without an access log.

    A connection gets at most one answer in a turn of the reactor, and none while the one before
    does not fit into its buffers: for a client that reads nothing, 64 kB and one answer are kept.
    """

    noisy = False

    def __init__(self, resource: Any, reactor: Any) -> None:
        """
        Serve a resource.

        @param resource: an L{IResource} to serve.
        @param reactor: an L{IReactorTime}.
        """
        super().__init__(_Site(resource, reactor=reactor))
        self.protocol = _Client
        self.clock = monotonicClock(reactor)

    def logPrefix(self) -> str:
        """Return what Twisted's log calls this factory."""
        return "Status page"

    def acceptableProtocols(self) -> list[bytes]:
        """Return what TLS clients may choose (ALPN)."""
        return [b"http/1.1"]


class _Client(ProtocolWrapper, TimeoutMixin):
    """The connection of a client, dropped if it is slow or sends too much."""

    factory: StatusSite
    transport: Any
    isFull = False
    _request: _Request | None = None
    _received = 0

    def makeConnection(self, transport: Any) -> None:
        self.host = getattr(transport.getPeer(), "host", None)
        super().makeConnection(transport)
        self.setTimeout(PATIENCE)
        clients = list(self.factory.protocols)
        neighbours = [client for client in clients if client.host == self.host]
        if len(neighbours) > MAX_CONNECTIONS_PER_ADDRESS:
            neighbours[0].timeoutConnection()
        elif len(clients) > MAX_CONNECTIONS:
            clients[0].timeoutConnection()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        super().registerProducer(_Flow(self, producer), streaming)

    def dataReceived(self, data: bytes) -> None:
        self._received += len(data)
        if self._received > MAX_REQUEST:
            self.timeoutConnection()
        else:
            super().dataReceived(data)

    def answerLater(self, request: _Request | None) -> None:
        """Answer a request in a turn of its own, and once the client has taken what was before."""
        self._request = request
        if request is not None and not self.isFull:
            self.factory.clock.callLater(0, self._answer)

    def resume(self) -> None:
        """Go on, now that the client has taken what it was sent."""
        self.isFull = False
        self._renew()
        self.answerLater(self._request)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.setTimeout(None)
        self._request = None
        super().connectionLost(reason)

    def timeoutConnection(self) -> None:
        self._request = None
        self.transport.abortConnection()

    def callLater(self, period: float, func: Callable[[], object]) -> Any:
        return self.factory.clock.callLater(period, func)

    def _answer(self) -> None:
        """Answer, unless the connection is lost by now."""
        request, self._request = self._request, None
        if request is not None:
            request.answer()
            if not self.isFull:
                self._renew()

    def _renew(self) -> None:
        """Let the client have its time anew, and be the last to be dropped."""
        self._received = 0
        self.resetTimeout()
        self.factory.unregisterProtocol(self)
        self.factory.registerProtocol(self)


@implementer(IPushProducer)
class _Flow:
    """Stands between a transport and what writes to it, so that the client knows if it is full."""

    def __init__(self, client: _Client, producer: IPushProducer) -> None:
        self._client = client
        self._producer = producer

    def pauseProducing(self) -> None:
        self._client.isFull = True
        self._producer.pauseProducing()

    def resumeProducing(self) -> None:
        self._producer.resumeProducing()
        self._client.resume()

    def stopProducing(self) -> None:
        self._producer.stopProducing()


class _Request(Request):
    transport: Any

    def process(self) -> None:
        if self.path == b"*":  # Twisted would answer itself, with its version.
            self.path = b"/*"
        self.transport.answerLater(self)

    def answer(self) -> None:
        """Answer now."""
        super().process()


class _Site(Site):
    noisy = False
    requestFactory = _Request

    def log(self, request: Any) -> None:
        """Leave the log to connections."""
