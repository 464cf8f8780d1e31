"""An HTTP server with timeouts, and limits for requests, connections and requests per turn."""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable
from io import BytesIO
from operator import attrgetter
from typing import Any

from twisted.internet.interfaces import IProtocolNegotiationFactory, IPushProducer
from twisted.internet.protocol import connectionDone
from twisted.protocols.policies import ProtocolWrapper, TimeoutMixin, WrappingFactory
from twisted.python.failure import Failure
from twisted.web.server import Request, Site
from zope.interface import implementer

from hello_listen._addresses import addressIdentity, unmapped
from hello_listen._clock import monotonicClock

REQUEST_TIMEOUT = 10
"""Timeout for sending a request, and for taking its answer, in seconds."""

MAX_REQUEST = 2**15
"""Upper bound of a request, in bytes."""

MAX_CONNECTIONS = 64
"""Upper bound of concurrent HTTP connections."""

MAX_CONNECTIONS_PER_CLIENT = 48
"""Upper bound of concurrent HTTP connections of a client; all behind one proxy are one client."""

_answers = attrgetter("answers")


@implementer(IProtocolNegotiationFactory)
class StatusSite(WrappingFactory):
    """
    Serves a resource over HTTP, without an access log.

    It answers one request in each turn of the reactor. A client's next request waits until the
    client has received the last answer, except 64 KiB that Twisted buffers.

    >>> from twisted.internet import reactor
    >>> from twisted.internet.endpoints import serverFromString
    >>> from hello_listen.status import StatusResource, StatusSite, Tally
    >>> site = StatusSite(StatusResource(Tally()), reactor)
    >>> listening = serverFromString(reactor, "tcp:0:interface=127.0.0.1").listen(site)
    >>> stopped = listening.addCallback(lambda port: port.stopListening())
    """

    noisy = False

    def __init__(self, resource: Any, reactor: Any) -> None:
        """
        Create a site.

        @param resource: an L{twisted.web.resource.IResource} to serve.
        @param reactor: an L{twisted.internet.interfaces.IReactorTime}.
        """
        super().__init__(_Site(resource, reactor=reactor))
        self.protocol = _Client
        self.clock = monotonicClock(reactor)
        self._queue: deque[_Client] = deque()
        self._turn: Any = None

    def logPrefix(self) -> str:
        """Return the name of this factory in Twisted's log."""
        return "Status page"

    def acceptableProtocols(self) -> list[bytes]:
        """Return the protocols for ALPN: HTTP/1.1 only."""
        return [b"http/1.1"]

    def registerProtocol(self, p: _Client) -> None:
        """
        Add a connection. If there are too many, drop one of the client that has the most.

        Of that client's connections that were answered before and have a pending request, drop the
        one with the most answers. If there is none, drop the longest idle if most are idle, else
        the newest.

        @param p: the connection.
        """
        super().registerProtocol(p)
        name, count = Counter(each.name for each in self.protocols).most_common(1)[0]
        if len(self.protocols) > MAX_CONNECTIONS or count > MAX_CONNECTIONS_PER_CLIENT:
            its = [each for each in self.protocols if each.name == name]
            greedy = [each for each in its if each.process is not None and each.answers]
            idle = [each for each in its if each.process is None]
            if greedy:
                victim = max(greedy, key=_answers)
            else:
                victim = idle[0] if 2 * len(idle) > len(its) else its[-1]
            victim.timeoutConnection()

    def unregisterProtocol(self, p: _Client) -> None:
        """
        Remove a connection.

        @param p: the connection, which may be removed already.
        """
        self.protocols.pop(p, None)

    def answerInTurn(self, client: _Client) -> None:
        """
        Queue a client to be answered.

        @param client: a client whose request is complete.
        """
        self._queue.append(client)
        self._schedule()

    def _schedule(self) -> None:
        """Schedule an answer for the next turn of the reactor."""
        if self._turn is None:
            self._turn = self.clock.callLater(0, self._answerNext)

    def _answerNext(self) -> None:
        """Answer the first client in the queue that is still connected."""
        self._turn = None
        while self._queue:
            client = self._queue.popleft()
            if client.process is not None:
                client.answer(client.process)
                break
        if self._queue:
            self._schedule()


class _Client(ProtocolWrapper, TimeoutMixin):
    """
    The connection of a client, dropped after a timeout or too long a request.

    @ivar name: the L{addressIdentity} of the client.
    @ivar answers: the number of requests that were answered.
    @ivar process: the function that answers the pending request, or L{None}.
    """

    factory: StatusSite
    transport: Any

    def makeConnection(self, transport: Any) -> None:
        self.name = addressIdentity(unmapped(transport.getPeer()))
        self._received = 0
        self._takes = True
        self.answers = 0
        self.process: Callable[[], object] | None = None
        super().makeConnection(transport)
        self.setTimeout(REQUEST_TIMEOUT)

    def dataReceived(self, data: bytes) -> None:
        self._received += len(data)
        if self._received > MAX_REQUEST:
            self.timeoutConnection()
        else:
            try:
                super().dataReceived(data)
            except Exception:
                # Twisted's parser raises at some requests, such as a length of 5,000 digits: no
                # client may put a traceback into the log.
                self.timeoutConnection()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        super().registerProducer(_Answers(self, producer), streaming)

    def requestReceived(self, process: Callable[[], object]) -> None:
        """
        Answer a request when it is this client's turn.

        @param process: the function that answers it.
        """
        self.process = process
        if self._takes:
            self.factory.answerInTurn(self)

    def answer(self, process: Callable[[], object]) -> None:
        """
        Answer the pending request.

        @param process: the function that answers it.
        """
        self.process = None
        self._received = 0
        self.answers += 1
        self.resetTimeout()
        # Keep the connections in the order of their last answer.
        del self.factory.protocols[self]
        self.factory.protocols[self] = 1
        process()

    def answersTaken(self, taken: bool) -> None:
        """
        Pause the client's requests while its answers are unsent, or resume them.

        @param taken: whether less than Twisted's buffer limit is unsent.
        """
        self._takes = taken
        if taken:
            self.resetTimeout()
            if self.process is not None:
                self.factory.answerInTurn(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.setTimeout(None)
        self.process = None
        super().connectionLost(reason)

    def timeoutConnection(self) -> None:
        self.factory.unregisterProtocol(self)
        self.process = None
        self.transport.abortConnection()

    def callLater(self, period: float, func: Callable[[], object]) -> Any:
        return self.factory.clock.callLater(period, func)


@implementer(IPushProducer)
class _Answers:
    """Passes backpressure on to a client's connection and to its HTTP channel."""

    def __init__(self, client: _Client, channel: Any) -> None:
        self._client = client
        self._channel = channel

    def pauseProducing(self) -> None:
        self._client.answersTaken(False)
        self._channel.pauseProducing()

    def resumeProducing(self) -> None:
        self._client.answersTaken(True)
        self._channel.resumeProducing()

    def stopProducing(self) -> None:
        self._channel.stopProducing()


class _Request(Request):
    transport: Any

    def gotLength(self, length: int | None) -> None:
        self.content = BytesIO()  # In memory, not a temporary file: MAX_REQUEST bounds it.

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        self.requestHeaders.removeHeader(b"content-type")  # Or Twisted would parse a form.
        if absolute := re.match(rb"(?i)https?://([^/?]*)", path):  # RFC 9112, 3.2.2
            self.requestHeaders.setRawHeaders(b"host", [absolute[1]])
            path = b"/" + path[absolute.end() :].removeprefix(b"/")
        super().requestReceived(command, path, version)

    def process(self) -> None:
        if self.path == b"*":  # Or Twisted would answer, with its version.
            self.path = b"/*"
        self.transport.requestReceived(super().process)

    def processingFailed(self, reason: Failure) -> Failure:
        if self.finished:  # Twisted's parser failed at the next request.
            self.transport.timeoutConnection()
            return reason
        failed: Failure = super().processingFailed(reason)
        return failed


class _Site(Site):
    noisy = False
    requestFactory = _Request

    def log(self, request: Any) -> None:
        """No access log."""
