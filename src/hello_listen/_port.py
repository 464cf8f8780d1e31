"""A listening port that accepts in slices, hangs up in place, and loses nobody."""

from __future__ import annotations

import errno
import select
import socket
from contextlib import suppress
from traceback import extract_tb, format_exception_only
from typing import Any
from weakref import WeakSet

from twisted.internet.abstract import FileDescriptor
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IAddress, IListeningPort
from twisted.internet.protocol import connectionDone
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from hello_listen._clock import monotonicClock
from hello_listen._drain import endConnections, handshakes, localName, refuseNew
from hello_listen._proxy import ProxiedFactory, pendingHeaders
from hello_listen._transport import EndedTransport, InPlaceTransport
from hello_listen.connection import addressText, printable, unmapped
from hello_listen.protocol import HelloFactory, HelloProtocol, establish

SLICE = 32
"""Most connections that are accepted before the reactor reads from those it has, and most that are
evicted at once."""

PAUSE = 0.05
"""Seconds without accepting when descriptors or memory have run out."""

DRAIN = 3.0
"""Most seconds that a stop waits for handshakes that are half done."""

QUIET = 0.3
"""Seconds that a stop waits for PROXY headers, from its begin or the last client on; also for
another client, where half-done handshakes cannot be seen."""

LONGEST_DRAIN = 30.0
"""Seconds after which a stop leaves clients alone: descriptors have run out, or newcomers cannot be
refused."""

WARN = 60.0
"""Seconds between two warnings of a port, that clients wait or that one could not be served."""

_NO_DESCRIPTOR = errno.EMFILE, errno.ENFILE

_log = Logger(namespace="hello_listen")


@implementer(IListeningPort)
class HelloPort(FileDescriptor):
    """
    Serves a listening TCP or UNIX socket in the place of Twisted's own port.

    The factory builds a protocol for each connection. A L{HelloProtocol} itself gets an
    L{InPlaceTransport}, and mostly ends before the reactor learns of it; any other protocol, also
    of a subclass, is connected by the reactor. When descriptors or memory run
    out, clients wait in the accept queue.

    @ivar description: the description of the endpoint that it belongs to, for messages.
    """

    reactor: Any
    description = ""

    def __init__(
        self,
        fileno: int,
        factory: Any,
        hello: HelloFactory | None,
        reactor: Any,
        port: Any = None,
        proxied: ProxiedFactory | None = None,
    ) -> None:
        """
        Take a listening socket; L{startListening} starts to accept.

        @param fileno: the socket's descriptor, which its owner closes: C{port}, or whoever
            passed it on.
        @param factory: what builds the protocols of its connections.
        @param hello: records connections that could not be served, or L{None}.
        @param reactor: an L{IReactorFDSet} and L{IReactorSocket}.
        @param port: the port of Twisted's whose socket it is, which reads no more, and stops with
            this one. Without it, the socket was inherited: others may serve its queue.
        @param proxied: reads the PROXY headers of this port's connections, or L{None}.
        """
        super().__init__(reactor)
        found = socket.socket(fileno=fileno)
        # socket.accept makes members of enumerations each time (1.4 µs), but not of plain numbers.
        plain = {"family": found.family, "type": found.type, "proto": found.proto}
        self._listener = type("Listener", (socket.socket,), plain)(fileno=found.detach())
        self._listener.setblocking(False)
        self._factory = factory
        self._hello = hello
        # Whoever asks for the status page must not delay the others.
        self._slice = SLICE if hello else 1
        self._port = port
        self._proxied = proxied
        self._pending = pendingHeaders(reactor)
        self._clock = monotonicClock(reactor)
        if port is not None:
            port.stopReading()
        # Whether the reactor adopts connections, for which a spare descriptor is held.
        self._adopts = type(factory) is not HelloFactory or factory.protocol is not HelloProtocol
        self._host: IAddress | None = self.getHost()
        if getattr(unmapped(self._host), "host", None) in ("0.0.0.0", "::"):  # noqa: S104
            self._host = None  # Each connection knows which address it reached.
        self._spare: socket.socket | None = None
        self._accepts = True
        self._paused = False
        self._evicting = 1
        self._shortSince: float | None = None
        self._lastClient = self._lastWarning = self._lastFailure = -WARN
        self._built: Any = None
        self._stopped: Deferred[None] | None = None
        self._transports: WeakSet[Any] = WeakSet()

    def fileno(self) -> int:
        """Return the descriptor of the listening socket."""
        number: int = self._listener.fileno()
        return number

    def getHost(self) -> IAddress:
        """Return the address that the socket is bound to."""
        return _address(self._listener.getsockname())

    def startListening(self) -> None:
        """Start to accept."""
        if self._port is None:
            self._factory.doStart()
        self.startReading()

    def stopListening(self) -> Deferred[None]:
        """
        Refuse new connections, then serve the accept queue.

        The queue of an inherited socket is left to other processes. Connections that a protocol
        of one's own keeps open have 5 seconds to end; then they are aborted.

        @return: a L{Deferred} that fires when the socket is closed, and these connections are.
        """
        if self._stopped is None:
            self._stopped = Deferred()
            stopping = Deferred.fromCoroutine(self._stop())
            stopping.addBoth(self._endConnections).chainDeferred(self._stopped)
        return self._stopped

    def doRead(self) -> ConnectionLost | None:
        """
        Accept a slice of the queue.

        @return: an error where the socket listens no more: the reactor then closes this port.
        """
        try:
            for number in range(self._slice):
                try:
                    if self._spare is None and self._adopts:
                        self._spare = self._listener.dup()
                    connection, name = self._listener.accept()
                except OSError as error:
                    return self._endSlice(error, number)
                if number == 0:
                    self._lastClient = self._clock.seconds()
                self._serve(connection, name)
                if not self._accepts:  # An observer has stopped or closed it.
                    break
        finally:
            self._closeSpare()
        return None

    def _closeSpare(self) -> None:
        """Free the spare descriptor."""
        if self._spare is not None:
            self._spare.close()
            self._spare = None

    def _endSlice(self, error: OSError, number: int) -> ConnectionLost | None:
        """Wait for clients or descriptors; return an error where the socket listens no more."""
        isEmpty = isinstance(error, (BlockingIOError, ConnectionAbortedError))
        if not isEmpty or number == 0:
            poll = select.poll()
            poll.register(self._listener, select.POLLIN | getattr(select, "POLLRDHUP", 0))
            events = sum(event for _, event in poll.poll(0))
            # Another process has shut the socket down, which it then shares no more.
            if events & ~select.POLLIN and not self._stopped:
                return ConnectionLost()
            # Out of descriptors, accept(2) fails even if nobody waits.
            if events & select.POLLIN and not isEmpty:
                self._pauseFor(error)
                return None
        self._evicting = 1
        self._shortSince = None
        if self._stopped and isinstance(self._host, UNIXAddress):
            self.stopReading()  # A UNIX socket that was shut down stays readable.
        return None

    def buildProtocol(self, address: IAddress) -> Any:
        """
        Return the protocol that was built for the connection that the reactor adopts.

        @param address: who connected.
        """
        protocol, self._built = self._built, None
        return protocol

    def connectionLost(self, reason: Failure) -> None:
        """
        Close the socket at once, as the reactor does with all that is open when it stops.

        @param reason: why.
        """
        if self.disconnected:
            return
        super().connectionLost(reason)
        if self._stopped is None and self.reactor.running:
            _log.error("Not listening any more: {address}", address=addressText(self.getHost()))
        self._accepts = False
        self._listener.detach()
        if self._port is None:
            self._factory.doStop()
            return
        try:
            self._port.connectionLost(reason)
        except OSError:
            # Twisted could not remove a UNIX socket, and went no further.
            self._factory.doStop()
            raise

    def _serve(self, connection: socket.socket, name: Any) -> None:
        """Connect a connection to its protocol, in place or by the reactor. This does not raise."""
        known = self._hello.connections if self._hello else 0
        peer = _address(name)
        try:
            protocol = self._factory.buildProtocol(peer)
            if type(protocol) is HelloProtocol:
                host = self._host or _address(connection.getsockname())
                transport = InPlaceTransport(protocol, connection, peer, host, self._adopt)
                protocol.makeConnection(transport)
                if transport.disconnecting:
                    transport.protocol = None  # Left in a cycle, both would wait for the collector.
                    protocol.connectionLost(connectionDone)
                else:
                    transport.handOver()
            elif protocol is not None:
                self._adopt(protocol, connection, peer)
        except BaseException as error:
            self._logFailure(error)
            # Whatever the reactor holds of it ends as well.
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            if self._hello and self._hello.connections == known:
                host = self._host or _address(connection.getsockname())
                establish(self._hello, peer, host, error="failed")
        finally:
            connection.close()

    def _adopt(self, protocol: Any, connection: socket.socket, peer: IAddress) -> None:
        """Have the reactor connect a protocol, or do so here if the client has reset."""
        connection.setblocking(False)
        try:
            connection.getpeername()
        except OSError:  # The reactor would refuse it.
            self._serveReset(protocol, connection, peer)
            return
        self._adopts = True
        # The reactor duplicates the descriptor: the spare one makes room for that.
        self._closeSpare()
        self._built = protocol
        try:
            transport = self.reactor.adoptStreamConnection(
                connection.fileno(), self._listener.family, self
            )
        except OSError as error:
            if self._built is None or error.errno in _NO_DESCRIPTOR:
                raise
            self._serveReset(protocol, connection, peer)  # The reset came between both.
        else:
            if self._hello:
                self._transports.add(transport)

    def _serveReset(self, protocol: Any, connection: socket.socket, peer: IAddress) -> None:
        """Connect a protocol to what is left of a connection that its client has reset."""
        host = self._host or _address(connection.getsockname())
        protocol.makeConnection(EndedTransport(peer, host))
        data = b""
        with suppress(OSError):
            data = connection.recv(65536)
        try:
            if data:
                protocol.dataReceived(data)
        finally:
            protocol.connectionLost(Failure(ConnectionLost()))

    def _logFailure(self, error: BaseException) -> None:
        """Log why a connection could not be served, in one line, and not for every client."""
        now = self._clock.seconds()
        if now - self._lastFailure >= WARN:
            self._lastFailure = now
            place = extract_tb(error.__traceback__)[-1]
            _log.error(
                "Connection could not be served: {reason} ({file}:{line})",
                reason=printable("".join(format_exception_only(error)).strip()),
                file=place.filename,
                line=place.lineno,
            )

    def _pauseFor(self, error: OSError) -> None:
        """Stop accepting for a moment."""
        Deferred.fromCoroutine(self._pause(error)).addErrback(
            lambda failure: _log.failure("Pause ended early", failure)
        )

    async def _pause(self, error: OSError) -> None:
        """Let clients wait in the queue until there may be a descriptor, or memory."""
        self._paused = True
        try:
            self.stopReading()
            now = self._clock.seconds()
            if now - self._lastWarning >= WARN:
                self._lastWarning = now
                _log.warn("Clients wait in the accept queue: {reason}", reason=error.strerror)
            if self._pending and error.errno in _NO_DESCRIPTOR:
                if self._shortSince is None:
                    self._shortSince = now
                lasts = now - self._shortSince
                if evicted := await self._pending.evict(self._evicting, lasts):
                    self._evicting = min(2 * evicted, SLICE)
            else:
                await deferLater(self._clock, PAUSE)
        finally:
            self._paused = False
            self._lastClient = self._clock.seconds()  # Not read since: treat as active.
            if self._accepts:
                try:
                    self.startReading()
                except OSError as again:  # epoll(7) needs memory.
                    self._pauseFor(again)

    async def _stop(self) -> None:
        """
        Serve the queue, in-flight handshakes, and PROXY headers on their way; then close.

        Closing a listening socket resets the clients in its queue: measured, up to 354.
        """
        start = self._clock.seconds()
        isTCP = not isinstance(self._host, UNIXAddress)
        try:
            if self._port is not None:
                with suppress(OSError):  # Not every system can.
                    refuseNew(self._listener)
            else:
                self._accepts = False
                self.stopReading()
            inFlight = None if self._accepts and isTCP else False
            while self._clock.seconds() < start + LONGEST_DRAIN:
                last = self._lastClient
                expects = inFlight or self._awaitsHeader(start)
                await deferLater(self._clock, 0.02 if expects or self._paused else 0.0)
                if self._accepts and (self._paused or self._lastClient != last):
                    continue  # The queue still gives clients.
                if inFlight is not False:
                    inFlight = await self._hasInFlight(start)
                elif not expects:
                    return
            _log.error("Clients in the queue were not served: {address}", address=self.getHost())
        finally:
            self.connectionLost(Failure(ConnectionDone()))

    def _endConnections(self, result: Any) -> Deferred[Any]:
        """Wait for open connections, and pass on a result."""
        ending = Deferred.fromCoroutine(endConnections(self._transports, self._clock))
        return ending.addCallback(lambda _: result)

    def _isQuiet(self, start: float) -> bool:
        """Say whether a stop and the last client are L{QUIET} seconds ago."""
        now: float = self._clock.seconds()
        return now >= max(start, self._lastClient) + QUIET

    def _awaitsHeader(self, start: float) -> bool:
        """Say whether a stop waits for a PROXY header."""
        return bool(self._proxied and self._proxied.waiting) and not self._isQuiet(start)

    async def _hasInFlight(self, start: float) -> bool:
        """Say whether a stop waits for an in-flight handshake."""
        if not self._accepts or self._clock.seconds() >= start + DRAIN:
            return False
        host, port = self._listener.getsockname()[:2]
        name = localName(self._listener.family, host if self._host else None, port)
        found = await handshakes(self._clock, self._listener.family).look()
        return not self._isQuiet(start) if found is None else name in found


def _address(name: Any) -> IAddress:
    """Return a socket's name as an address, with an IPv6 scope in the host as Twisted has it."""
    if not isinstance(name, tuple):
        return UNIXAddress(name or None)
    if len(name) == 2:
        return IPv4Address("TCP", *name)
    host, port, flow, scope = name
    if scope:
        with suppress(OSError):
            host = f"{host}%{socket.if_indextoname(scope)}"
    return IPv6Address("TCP", host, port, flow, scope)
