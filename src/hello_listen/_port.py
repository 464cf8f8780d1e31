"""A listening port: accepts connections in batches, and serves its accept queue when it stops."""

from __future__ import annotations

import math
import select
import socket
from contextlib import suppress
from enum import Enum
from typing import Any

from twisted.internet.abstract import FileDescriptor
from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IAddress, IListeningPort
from twisted.internet.protocol import connectionDone
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from hello_listen._addresses import addressText, socketAddress, unmapped
from hello_listen._adopter import NO_DESCRIPTOR, Adopter
from hello_listen._clock import monotonicClock
from hello_listen._drain import Drain, endConnections, refuseNew
from hello_listen._drops import DropWatch, queueState
from hello_listen._failures import WARNING_INTERVAL, FailureLog
from hello_listen._proxy import PendingHeaders, ProxiedFactory, pendingHeaders
from hello_listen._redirect import RedirectedProtocol, originalAddress
from hello_listen._transport import InPlaceTransport
from hello_listen.protocol import HelloFactory, HelloProtocol, reportSafely

MAX_ACCEPTS = 32
"""Connections that a port accepts at most before the reactor reads from others."""

SHARING_PROCESSES = 8
"""Processes that may share an inherited socket: each accepts a batch meanwhile, at most."""

MAX_WAITING = 4096
"""Connections of an inherited socket that a stop accepts where the system tells no length."""

MAX_EVICTIONS = 32
"""Connections that a port evicts at most at once."""

PAUSE = 0.05
"""Seconds that a port does not accept after descriptors or memory have run out."""

_log = Logger(namespace="hello_listen")


class State(Enum):
    """The life of a port, which only goes forward. A port may pause while it accepts."""

    LISTENING = "accepts connections"
    DRAINING = "stops; refuses new clients, and accepts those in its accept queue"
    SERVING = "stops; accepts who waits in the accept queue of an inherited socket"
    LEAVING = "stops; leaves the accept queue of an inherited socket to other processes"
    CLOSED = "serves its socket no more"


_ACCEPTING = State.LISTENING, State.DRAINING, State.SERVING


@implementer(IListeningPort)
class HelloPort(FileDescriptor):
    """
    Accepts the connections of a listening TCP or UNIX socket, in the place of Twisted's own port.

    The factory builds a protocol for each connection. A L{HelloProtocol}, but not a subclass, gets
    an L{InPlaceTransport}, and mostly closes the connection before the reactor learns of it. The
    reactor connects any other protocol. When descriptors or memory run out, the port pauses, and
    clients wait in the accept queue.

    @ivar description: the description of the port's endpoint, for messages.
    @ivar host: the address that all clients call, or L{None} if each connection is to be asked.
    @ivar isPaused: whether the port waits for a descriptor or memory before it accepts again.
    @ivar lastAccept: when it last accepted a connection or began to accept again, by its clock.
    """

    reactor: Any
    description = ""

    def __init__(
        self,
        port: Any,
        hello: HelloFactory | None,
        reactor: Any,
        proxied: ProxiedFactory | None = None,
        isInherited: bool = False,
        isRedirected: bool = False,
    ) -> None:
        """
        Take over the reading of a port; L{startListening} starts to accept.

        @param port: the owner of the listening socket and of its factory: Twisted's own port, a
            C{UNIXSocket} or an C{InheritedSocket}. It has started the factory. Its
            C{connectionLost}, which this port calls at its end, stops the factory, and closes the
            socket unless it is inherited.
        @param hello: the L{HelloFactory} that is, or is wrapped by, the port's factory; L{None} for
            any other factory, whose connections are not recorded.
        @param reactor: an L{twisted.internet.interfaces.IReactorFDSet} and
            L{twisted.internet.interfaces.IReactorSocket}.
        @param proxied: reads the PROXY headers of the port's connections, or L{None}.
        @param isInherited: whether other processes may serve the accept queue as well.
        @param isRedirected: whether a firewall redirects connections to the socket.
        """
        super().__init__(reactor)
        self._port = port
        port.stopReading()
        self._listener = _takeSocket(port.fileno())
        self._factory = port.factory
        self._hello = hello
        self._proxied = proxied
        self._isInherited = isInherited
        self._accept = self._acceptInherited if isInherited else self._listener.accept
        self._poll = select.poll()
        self._poll.register(self._listener, select.POLLIN | getattr(select, "POLLRDHUP", 0))
        self._clock = monotonicClock(reactor)
        self._drops = DropWatch(self._listener, self._clock, self._reportDrops)
        # Clients that are not recorded, as those of the status page, must not delay the others.
        self._maxAccepts = MAX_ACCEPTS if hello else 1
        if self._drops.limit is not None:
            # No smaller batch empties a full queue, so only a whole one needs a look at the drops.
            self._maxAccepts = min(self._maxAccepts, self._drops.limit + 1)
        self._shortage = _Shortage(pendingHeaders(reactor), self._clock)
        self._isInPlace = (
            type(port.factory) is HelloFactory and port.factory.protocol is HelloProtocol
        )
        self._adopter = Adopter(self._listener, reactor, not self._isInPlace, bool(hello))
        self._adopt = self._adopter.adopt
        self.host: IAddress | None = self.getHost()
        self._isRedirected = isRedirected
        if isRedirected or getattr(unmapped(self.host), "host", None) in ("0.0.0.0", "::"):  # noqa: S104
            self.host = None
        self.isPaused = False
        self.lastAccept = -math.inf
        self._failures = FailureLog()
        self._state = State.LISTENING
        self._stopped: Deferred[None] | None = None

    def fileno(self) -> int:
        """Return the descriptor of the listening socket."""
        number: int = self._listener.fileno()
        return number

    def getHost(self) -> IAddress:
        """Return the address that the socket is bound to."""
        return socketAddress(self._listener.getsockname())

    def accepts(self) -> bool:
        """Return whether the port accepts connections, now or after a pause."""
        return self._state in _ACCEPTING

    def headersWaiting(self) -> int:
        """Return the number of the port's connections whose PROXY header is not whole."""
        return self._proxied.waiting if self._proxied else 0

    def startListening(self) -> None:
        """Start to accept."""
        if before := self._drops.droppedBefore:
            _log.warn(
                "The accept queue of {address} is full: before this process, up to {packets} "
                "packets of clients were dropped, so clients may be missing",
                address=addressText(self.getHost()),
                packets=before,
            )
        self.startReading()

    def stopListening(self) -> Deferred[None]:
        """
        Refuse new connections, then serve the accept queue.

        Of the queue of an inherited socket, it serves who waits now, unless a header or another
        protocol takes time; the rest is left to other processes. Connections that another
        protocol of the L{HelloFactory} keeps open have 5 seconds to end; then they are aborted.

        @return: a L{Deferred} that fires when the socket and these connections are closed.
        """
        if self._stopped is None:
            self._stopped = Deferred()
            stopping = Deferred.fromCoroutine(self._stop())
            stopping.addBoth(self._endConnections).chainDeferred(self._stopped)
        return self._stopped

    def doRead(self) -> ConnectionLost | None:
        """
        Accept a batch of connections.

        @return: an error if the socket no longer listens: the reactor then closes this port.
        """
        adopter = self._adopter
        for number in range(self._maxAccepts):
            try:
                if adopter.isUsed:
                    adopter.reserve()
                connection, name = self._accept()
            except OSError as error:
                adopter.release()
                return self._endBatch(error, number)
            if number == 0:
                self.lastAccept = self._clock.seconds()
            self._serve(connection, name)
            if self._state not in _ACCEPTING:  # An observer has stopped or closed the port.
                break
        else:
            self._lookForDrops(self._maxAccepts)
        adopter.release()
        return None

    def connectionLost(self, reason: Failure) -> None:
        """
        Close the socket at once, as the reactor does with all that is open when it stops.

        @param reason: the reason that the reactor gives.
        """
        if self.disconnected:
            return
        super().connectionLost(reason)
        if self._state is State.LISTENING and self.reactor.running:
            _log.error("Not listening any more: {address}", address=addressText(self.getHost()))
        self._state = State.CLOSED
        self._drops.end()
        self._listener.detach()
        self._port.connectionLost(reason)

    def _acceptInherited(self) -> tuple[socket.socket, Any]:
        """
        Accept a connection, without waiting for one.

        Who shares the socket may make it block at any time: systemd does, at each start of a
        service without C{NonBlocking=}.
        """
        self._listener.setblocking(False)
        if not self._poll.poll(0):
            raise BlockingIOError
        return self._listener.accept()

    def _endBatch(self, error: OSError, number: int) -> ConnectionLost | None:
        """
        Handle the error of accept(2) that ended a batch; pause if descriptors or memory are short.

        @param error: the error.
        @param number: how many connections the batch has.

        @return: an error if the socket no longer listens.
        """
        isEmpty = isinstance(error, (BlockingIOError, ConnectionAbortedError))
        if not isEmpty or number == 0:
            events = sum(event for _, event in self._poll.poll(0))
            # Another process that shares the socket has shut it down.
            if events & ~select.POLLIN and self._state is State.LISTENING:
                return ConnectionLost()
            # Out of descriptors, accept(2) fails even if the queue is empty.
            if events & select.POLLIN and not isEmpty:
                self._lookForDrops(number)
                self._pauseFor(error)
                return None
        self._shortage.end()
        if self._state is State.DRAINING and isinstance(self.host, UNIXAddress):
            self.stopReading()  # A UNIX socket that was shut down stays readable.
        return None

    def _lookForDrops(self, accepted: int) -> None:
        """Find out whether clients were dropped, after a batch of connections was accepted."""
        self._drops.look(accepted * (SHARING_PROCESSES if self._isInherited else 1))

    def _reportDrops(self, packets: int) -> None:
        """Log that a full accept queue has dropped packets, and tell the factory."""
        address = self.getHost()
        _log.warn(
            "The accept queue of {address} was full: up to {packets} packets of clients were "
            "dropped, so clients may be missing",
            address=addressText(address),
            packets=packets,
        )
        if self._hello:
            self._hello.dropped(address, packets)

    def _serve(self, connection: socket.socket, name: Any) -> None:
        """Connect a protocol to a connection, in place or by the reactor; log a failure."""
        countBefore = self._hello.connections if self._hello else 0
        peer = socketAddress(name)
        try:
            protocol = self._factory.buildProtocol(peer)
            if type(protocol) is HelloProtocol:
                host = self.host or self._hostOf(connection)
                transport = InPlaceTransport(protocol, connection, peer, host, self._adopt)
                protocol.makeConnection(transport)
                if transport.disconnecting:
                    transport.protocol = None  # A cycle would leave both to the garbage collector.
                    protocol.connectionLost(connectionDone)
                else:
                    transport.handOver()
            elif protocol is not None:
                if self._isRedirected:
                    protocol = RedirectedProtocol(protocol, self._hostOf(connection))
                self._adopt(protocol, connection, peer)
        except BaseException as error:
            self._failures.log(error)
            # The reactor may hold a duplicate of the socket, which ends as well.
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            if self._hello and self._hello.connections == countBefore:
                host = self.host or self._hostOf(connection)
                reportSafely(self._hello, peer, host, error="failed")
        finally:
            connection.close()

    def _hostOf(self, connection: socket.socket) -> IAddress:
        """Return the address that the client of a connection has called."""
        if self._isRedirected:
            return originalAddress(connection)
        return socketAddress(connection.getsockname())

    def _pauseFor(self, error: OSError) -> None:
        """Stop accepting until the shortage that an error tells of may be over."""
        Deferred.fromCoroutine(self._pause(error)).addErrback(
            lambda failure: _log.failure("Pause ended early", failure)
        )

    async def _pause(self, error: OSError) -> None:
        """Stop accepting until the shortage that an error tells of may be over."""
        self.isPaused = True
        try:
            self.stopReading()
            await self._shortage.wait(error)
        finally:
            self.isPaused = False
            self.lastAccept = self._clock.seconds()  # Not read since: treat as active.
            if self.accepts():
                try:
                    self.startReading()
                except OSError as again:  # epoll(7) needs memory.
                    self._pauseFor(again)

    async def _stop(self) -> None:
        """Refuse new clients, serve those in the accept queue, and close."""
        if self._state is State.CLOSED:
            return
        try:
            if self._isInherited:
                self.stopReading()
                if self._isInPlace:
                    self._state = State.SERVING
                    await self._serveWaiting()
                    if self._state is State.CLOSED:
                        return
                self._state = State.LEAVING
            else:
                self._state = State.DRAINING
                with suppress(OSError):  # Not every system supports this.
                    refuseNew(self._listener)
            if not await Drain(self, self._listener, self._clock).finish():
                address = addressText(self.getHost())
                _log.error("Clients in the queue were not served: {address}", address=address)
        finally:
            self.connectionLost(Failure(ConnectionDone()))

    async def _serveWaiting(self) -> None:
        """Accept who waits in the queue of an inherited socket, which may be closed next."""
        queue = queueState(self._listener)
        length = queue.length if queue else MAX_WAITING
        for _ in range(math.ceil(length / self._maxAccepts)):
            if not self._poll.poll(0):
                break
            await deferLater(self._clock, 0)
            if self.isPaused or self._state is not State.SERVING:
                break
            self.doRead()

    def _endConnections(self, result: Any) -> Deferred[Any]:
        """End the connections that are still open, and pass on a result."""
        ending = Deferred.fromCoroutine(endConnections(self._adopter.transports, self._clock))
        return ending.addCallback(lambda _: result)


class _Shortage:
    """A lack of descriptors or memory, and the connections to evict because of it."""

    def __init__(self, pending: PendingHeaders, clock: Any) -> None:
        """
        Begin without a shortage.

        @param pending: the connections that may be evicted.
        @param clock: an L{twisted.internet.interfaces.IReactorTime}.
        """
        self._pending = pending
        self._clock = clock
        self._since: float | None = None
        self._evictions = 1
        self._lastWarning = -WARNING_INTERVAL

    def end(self) -> None:
        """End the shortage: the accept queue is empty."""
        self._since = None
        self._evictions = 1

    async def wait(self, error: OSError) -> None:
        """
        Evict connections if descriptors are short, and wait until an accept may succeed.

        @param error: the error of accept(2).
        """
        now = self._clock.seconds()
        if now - self._lastWarning >= WARNING_INTERVAL:
            self._lastWarning = now
            _log.warn("Clients wait in the accept queue: {reason}", reason=error.strerror)
        if not self._pending or error.errno not in NO_DESCRIPTOR:
            await deferLater(self._clock, PAUSE)
            return
        if self._since is None:
            self._since = now
        if evicted := await self._pending.evict(self._evictions, now - self._since):
            self._evictions = min(2 * evicted, MAX_EVICTIONS)


def _takeSocket(descriptor: int) -> socket.socket:
    """Return a socket object for a descriptor, whose C{accept} is fast."""
    found = socket.socket(fileno=descriptor)
    # socket.accept() reads these properties, each of which looks up an enumeration's member.
    members = {"family": found.family, "type": found.type, "proto": found.proto}
    listener: socket.socket = type("Listener", (socket.socket,), members)(fileno=found.detach())
    listener.setblocking(False)
    return listener
