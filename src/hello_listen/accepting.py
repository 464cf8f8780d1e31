"""A listening port that accepts in slices, hangs up in place, and loses nobody."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Iterable
from contextlib import suppress
from itertools import islice
from typing import Any

from twisted.internet import tcp
from twisted.internet.abstract import FileDescriptor
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IAddress, IListeningPort, ITransport
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from hello_listen.connection import unmapped
from hello_listen.protocol import HelloFactory, HelloProtocol

SLICE = 32
"""Most connections that are accepted before the reactor reads from those it has."""

PAUSE = 0.05
"""Seconds without accepting when descriptors or memory have run out."""

DRAIN = 3.0
"""Most seconds that a stop waits for handshakes that are half done."""

QUIET = 0.3
"""Seconds without a client after which none is expected, where the system shows no handshakes;
also the longest wait for PROXY headers at a stop."""

LONGEST_DRAIN = 30.0
"""Most seconds that a stop takes: without descriptors, or where newcomers cannot be refused."""

WARN = 60.0
"""Least seconds between two warnings that clients have to wait."""

HANDSHAKES = "/proc/net/tcp"
"""Where Linux lists connections, those whose handshake is half done in state 3 (proc(5))."""

# Linux's ip(7) and ipv6(7).
_IP_MINTTL, _IPV6_MINHOPCOUNT = 21, 73

_log = Logger(namespace="hello_listen")


@implementer(IListeningPort)
class HelloPort(FileDescriptor):
    """
    Serves a listening TCP or UNIX socket in the place of Twisted's own port.

    Where only L{HelloProtocol} would serve a connection, it is reported and closed here, and the
    reactor never learns of it; any other is handed to the reactor. When descriptors or memory run
    out, clients wait in the accept queue.
    """

    def __init__(
        self,
        listener: socket.socket,
        factory: Any,
        hello: HelloFactory | None,
        reactor: Any,
        port: tcp.Port | None = None,
    ) -> None:
        """
        Take a listening socket; L{startListening} starts to accept.

        @param listener: the socket, which this port closes when it stops.
        @param factory: what builds the protocols of its connections.
        @param hello: records connections that could not be served, or L{None}.
        @param reactor: an L{IReactorFDSet} and L{IReactorSocket}.
        @param port: the port of Twisted's that the socket was duplicated from, and that stops
            with this one. Without it, the socket was inherited: others may serve its queue.
        """
        super().__init__(reactor)
        self._reactor = reactor
        # socket.accept makes members of enumerations each time (1.4 µs), but not of plain numbers.
        plain = {"family": listener.family, "type": listener.type, "proto": listener.proto}
        self._listener = type("Listener", (socket.socket,), plain)(fileno=listener.detach())
        self._listener.setblocking(False)
        self._factory = factory
        self._hello = hello
        self._port = port
        self._inPlace = type(factory) is HelloFactory and factory.protocol is HelloProtocol
        self._host: IAddress | None = self.getHost()
        if getattr(unmapped(self._host), "host", None) in ("0.0.0.0", "::"):  # noqa: S104
            self._host = None  # Each connection knows which address it reached.
        self._spare: socket.socket | None = None
        self._pause: Any = None
        self._evicting = 1
        self._lastClient = self._lastWarning = -WARN
        self._stopped: Deferred[None] | None = None

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

        The queue of an inherited socket is left to other processes.

        @return: a L{Deferred} that fires when the socket is closed.
        """
        if self._stopped is None:
            self.stopReading()
            self._stopped = Deferred()
            Deferred.fromCoroutine(self._stop()).chainDeferred(self._stopped)
        return self._stopped

    def doRead(self) -> None:
        """Accept a slice of the queue."""
        self._lastClient = self._reactor.seconds()
        self._accept()

    def connectionLost(self, reason: Failure) -> None:
        """
        Close the socket at once, as the reactor does with all that is open when it stops.

        @param reason: why.
        """
        super().connectionLost(reason)
        self._listener.close()
        if self._spare is not None:
            self._spare.close()
        if self._port is None:
            self._factory.doStop()
            return
        try:
            self._port.connectionLost(reason)
        except OSError:
            # Twisted could not remove a UNIX socket, and went no further.
            self._factory.doStop()
            raise

    def _accept(self) -> int:
        """Serve at most a slice of the accept queue, and return how many that were."""
        for number in range(SLICE):
            try:
                if self._spare is None and not self._inPlace:
                    self._spare = self._listener.dup()
                connection, name = self._listener.accept()
            except ConnectionAbortedError:
                continue
            except OSError as error:
                if isinstance(error, BlockingIOError) or self._isShut(error):
                    self._evicting = 1
                else:
                    self._waitForRoom(error)
                return number
            self._serve(connection, name)
            if self.disconnected:  # An observer has stopped this port.
                break
        return SLICE

    def _isShut(self, error: OSError) -> bool:
        """Say whether an error is the end of the queue of a UNIX socket that was shut down."""
        return error.errno == errno.EINVAL and self._stopped is not None

    def _serve(self, connection: socket.socket, name: Any) -> None:
        """Report a connection and close it, or hand it to the reactor."""
        known = self._hello.connections if self._hello else 0
        try:
            if self._inPlace:
                host = self._host or _address(connection.getsockname())
                self._factory.established(_address(name), host)
                return
            connection.setblocking(False)
            if _hasReset(connection):
                self._serveReset(connection, name)
                return
            # The reactor duplicates the descriptor: the spare one makes room for that.
            self._spare.close()  # type: ignore[union-attr]
            self._spare = None
            self._reactor.adoptStreamConnection(
                connection.fileno(), self._listener.family, self._factory
            )
        except Exception:
            _log.failure("Connection could not be served")
            # Whatever the reactor holds of it ends as well.
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            if self._hello and self._hello.connections == known:
                host = self._host or self.getHost()
                self._hello.established(_address(name), host, error="failed")
        finally:
            connection.close()

    def _serveReset(self, connection: socket.socket, name: Any) -> None:
        """Serve a connection that its client has reset, which the reactor would refuse."""
        peer = _address(name)
        protocol = self._factory.buildProtocol(peer)
        protocol.makeConnection(EndedTransport(peer, _address(connection.getsockname())))
        try:
            with suppress(OSError):
                protocol.dataReceived(connection.recv(65536))
        finally:
            protocol.connectionLost(Failure(ConnectionLost()))

    def _waitForRoom(self, error: OSError) -> None:
        """Let clients wait in the queue for a moment; evict silent ones if descriptors ran out."""
        self.stopReading()
        evicted = 0
        if self._hello and error.errno in (errno.EMFILE, errno.ENFILE):
            oldest = list(islice(self._hello.waiting, self._evicting))
            evicted = sum(protocol.evict() for protocol in oldest)
            self._evicting = min(2 * self._evicting, SLICE)
        self._pause = self._reactor.callLater(0 if evicted else PAUSE, self._goOn)
        now = self._reactor.seconds()
        if now - self._lastWarning >= WARN:
            self._lastWarning = now
            _log.warn("Clients wait in the accept queue: {reason}", reason=error.strerror)

    def _goOn(self) -> None:
        """Accept again, after a pause."""
        self._pause = None
        if self._stopped is None and not self.disconnected:
            self.startReading()

    async def _stop(self) -> None:
        """Serve the accept queue and unread headers, then close."""
        try:
            if self._port is not None:
                await self._drain()
            await self._readHeaders()
        finally:
            self.connectionLost(Failure(ConnectionDone()))

    async def _readHeaders(self) -> None:
        """Wait for PROXY headers that are on their way."""
        end = self._reactor.seconds() + QUIET
        while self._hello and self._hello.waiting and self._reactor.seconds() < end:
            await deferLater(self._reactor, 0.02)

    async def _drain(self) -> None:
        """
        Refuse new handshakes, and serve those that are done or half done.

        Closing a listening socket resets what waits in its queue: measured, up to 354 clients.
        """
        with suppress(OSError):  # Not every system can.
            self._refuseNew()
        start = self._reactor.seconds()
        quiet = False
        while self._reactor.seconds() < start + LONGEST_DRAIN:
            delay = 0.0
            if self._pause is None and self._accept():
                quiet = False
                self._lastClient = self._reactor.seconds()
            elif self._pause is not None:
                delay = PAUSE
            elif quiet or self._reactor.seconds() >= start + DRAIN:
                return
            else:
                # The queue is looked at once more after that, in case one has just come.
                quiet = self._isQuiet()
                delay = 0.0 if quiet else 0.02
            await deferLater(self._reactor, delay)
        _log.error("Clients in the accept queue were not served: {address}", address=self.getHost())

    def _refuseNew(self) -> None:
        """Refuse new handshakes, where the system can; it needs no privilege for either way."""
        if isinstance(self._host, UNIXAddress):
            self._listener.shutdown(socket.SHUT_RD)
        elif sys.platform == "linux":
            # A packet whose time to live is below 255 is dropped when it opens a connection (the
            # check is RFC 5082's); the last one of a handshake is not checked.
            self._listener.setsockopt(socket.IPPROTO_IP, _IP_MINTTL, 255)
            if self._listener.family == socket.AF_INET6:
                self._listener.setsockopt(socket.IPPROTO_IPV6, _IPV6_MINHOPCOUNT, 255)

    def _isQuiet(self) -> bool:
        """Say whether nobody is expected: no handshake is half done, or nobody came for a while."""
        if isinstance(self._host, UNIXAddress):
            return True
        port = f":{self._listener.getsockname()[1]:04X}"
        family = "6" if self._listener.family == socket.AF_INET6 else ""
        try:
            with open(f"{HANDSHAKES}{family}") as table:
                rows = (line.split(maxsplit=4) for line in table if " 03 " in line)
                return not any(row[1].endswith(port) and row[3] == "03" for row in rows)
        except OSError:
            return bool(self._reactor.seconds() >= self._lastClient + QUIET)


@implementer(ITransport)
class EndedTransport:
    """The transport of a connection that has ended, though what it sent can still be read."""

    disconnecting = True  # Twisted's LineReceiver looks at it.

    def __init__(self, peer: IAddress, host: IAddress) -> None:
        """Hold the addresses of both ends."""
        self._peer = peer
        self._host = host

    def getPeer(self) -> IAddress:
        """Return the address of the client."""
        return self._peer

    def getHost(self) -> IAddress:
        """Return the address that the client reached."""
        return self._host

    def write(self, data: bytes) -> None:
        """Send nothing."""

    def writeSequence(self, data: Iterable[bytes]) -> None:
        """Send nothing."""

    def loseConnection(self) -> None:
        """Do nothing: it is lost."""

    def abortConnection(self) -> None:
        """Do nothing."""


def takeOver(port: tcp.Port, hello: HelloFactory | None, reactor: Any) -> HelloPort:
    """
    Serve in the place of one of Twisted's ports.

    @param port: a TCP or UNIX port that listens.
    @param hello: records connections that could not be served, or L{None}.
    @param reactor: what it listens with.
    """
    port.stopReading()
    listener = socket.socket(fileno=os.dup(port.fileno()))
    return HelloPort(listener, port.factory, hello, reactor, port)


def _hasReset(connection: socket.socket) -> bool:
    """Say whether the client of an accepted connection has reset it."""
    try:
        connection.getpeername()
    except OSError:
        return True
    return False


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
