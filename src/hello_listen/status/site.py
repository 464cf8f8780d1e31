"""An HTTP server that bounds what each of its clients may take: time, bytes, places and turns."""

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
"""Seconds a client has to send a request, and again to take the answer."""

MAX_REQUEST = 2**15
"""Bytes a client may send for one answer."""

MAX_CONNECTIONS = 64
"""HTTP connections at once."""

MAX_CONNECTIONS_PER_CLIENT = 48
"""HTTP connections of one client at once. Whoever comes through the same proxy is one client."""

_answers = attrgetter("answers")


@implementer(IProtocolNegotiationFactory)
class StatusSite(WrappingFactory):
    """
    Serves a resource over HTTP, without an access log.

    In a turn of the reactor, one request of all clients is answered. A client is answered again
    when it has taken the last answer, but for 64 KiB that Twisted buffers.
    """

    noisy = False

    def __init__(self, resource: Any, reactor: Any) -> None:
        """
        Serve a resource, to L{MAX_CONNECTIONS} connections at once.

        @param resource: an L{IResource} to serve.
        @param reactor: an L{IReactorTime}.
        """
        super().__init__(_Site(resource, reactor=reactor))
        self.protocol = _Client
        self.clock = monotonicClock(reactor)
        self._queue: deque[_Client] = deque()
        self._turn: Any = None

    def logPrefix(self) -> str:
        """Return what Twisted's log calls this factory."""
        return "Status page"

    def acceptableProtocols(self) -> list[bytes]:
        """Return what TLS clients may choose (ALPN)."""
        return [b"http/1.1"]

    def registerProtocol(self, p: _Client) -> None:
        """
        Add a connection, and drop one if there are too many, of the client that has the most.

        That is one that was answered and asks for more, most of all; or else the newest, or where
        most ask for nothing, the one of them that was connected or answered longest ago.

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
        Remove a client.

        @param p: the client's connection, which may have been removed when it was dropped.
        """
        self.protocols.pop(p, None)

    def answerInTurn(self, client: _Client) -> None:
        """
        Have a client answered when those before it have been.

        @param client: a client whose request is complete.
        """
        self._queue.append(client)
        self._schedule()

    def _schedule(self) -> None:
        """Answer somebody in the next turn of the reactor."""
        if self._turn is None:
            self._turn = self.clock.callLater(0, self._answerNext)

    def _answerNext(self) -> None:
        """Answer one request, of the first client that is still there."""
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
    The connection of a client, dropped if it is slow or sends too much.

    @ivar name: the L{addressIdentity} of the client.
    @ivar answers: how many of its requests were answered.
    @ivar process: answers the request that waits, or L{None}.
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
                # Twisted's parser fails at some requests, such as one of 10**5000 bytes. No client
                # may put a traceback into the log.
                self.timeoutConnection()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        super().registerProducer(_Answers(self, producer), streaming)

    def requestReceived(self, process: Callable[[], object]) -> None:
        """
        Answer a request when it is this client's turn.

        @param process: answers it.
        """
        self.process = process
        if self._takes:
            self.factory.answerInTurn(self)

    def answer(self, process: Callable[[], object]) -> None:
        """
        Answer the request that waits.

        @param process: answers it.
        """
        self.process = None
        self._received = 0
        self.answers += 1
        self.resetTimeout()
        # Those that were answered longest ago come first.
        del self.factory.protocols[self]
        self.factory.protocols[self] = 1
        process()

    def answersTaken(self, taken: bool) -> None:
        """
        Wait until the client has taken what it was sent, or go on.

        @param taken: C{False} if more than a little is still to be sent.
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
    """Tells a client's connection and its HTTP channel whether the client takes the answers."""

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
        self.content = BytesIO()  # Not a temporary file: MAX_REQUEST bounds it.

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        self.requestHeaders.removeHeader(b"content-type")  # Twisted would parse a form.
        if absolute := re.match(rb"(?i)https?://([^/?]*)", path):  # RFC 9112, 3.2.2
            self.requestHeaders.setRawHeaders(b"host", [absolute[1]])
            path = b"/" + path[absolute.end() :].removeprefix(b"/")
        super().requestReceived(command, path, version)

    def process(self) -> None:
        if self.path == b"*":  # Twisted would answer itself, with its version.
            self.path = b"/*"
        self.transport.requestReceived(super().process)

    def processingFailed(self, reason: Failure) -> Failure:
        if self.finished:  # It was the next request, at which Twisted's parser failed.
            self.transport.timeoutConnection()
            return reason
        failed: Failure = super().processingFailed(reason)
        return failed


class _Site(Site):
    noisy = False
    requestFactory = _Request

    def log(self, request: Any) -> None:
        """No access log."""
