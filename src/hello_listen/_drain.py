"""The end of a port: refuses new clients, serves those on their way, and ends connections."""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress
from twisted.internet.task import deferLater
from twisted.logger import Logger

_log = Logger(namespace="hello_listen")

TABLE = "/proc/net/tcp"
"""Linux's list of connections, in which state 3 is an in-flight handshake (proc(5))."""

DRAIN_TIMEOUT = 30.0
"""Upper bound of a drain, in seconds; it ends that late only if descriptors remain short or clients
keep coming."""

HANDSHAKE_TIMEOUT = 3.0
"""Seconds that a drain waits for in-flight handshakes."""

HEADER_GRACE = 0.3
"""Grace period for PROXY headers, in seconds, after the stop and the last accept."""

HIDDEN_HANDSHAKE_GRACE = 0.3
"""Grace period for handshakes, in seconds, if the system does not list those in flight."""

CONNECTION_TIMEOUT = 5.0
"""Seconds that a stop waits for open connections of an embedder's protocol."""

POLL_INTERVAL = 0.02
"""Seconds between two checks whether a drain is over, or the open connections have ended."""

# Linux's ip(7) and ipv6(7).
_IP_MINTTL, _IPV6_MINHOPCOUNT = 21, 73


def refuseNew(listener: socket.socket) -> None:
    """
    Refuse new clients, but not those in the accept queue or in an in-flight handshake.

    No privilege is needed.

    @param listener: a listening socket.

    @raise OSError: the system does not support this.
    """
    if listener.family == socket.AF_UNIX:
        listener.shutdown(socket.SHUT_RD)
    elif sys.platform == "linux":
        # Linux drops a SYN whose time to live is below 255 (RFC 5082), but checks no later packet
        # of a handshake that is in flight.
        listener.setsockopt(socket.IPPROTO_IP, _IP_MINTTL, 255)
        if listener.family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, _IPV6_MINHOPCOUNT, 255)


class DrainedPort(Protocol):
    """
    The port that a L{Drain} watches.

    @ivar host: the address that it is bound to, or L{None} for a wildcard address.
    @ivar isPaused: whether it waits for a descriptor or memory before it accepts again.
    @ivar lastAccept: when it last accepted a connection or began to accept again, by its clock.
    """

    host: IAddress | None
    isPaused: bool
    lastAccept: float

    def accepts(self) -> bool:
        """Return whether it still accepts connections from its accept queue."""

    def headersWaiting(self) -> int:
        """Return the number of its connections whose PROXY header is not whole."""


class Drain:
    """
    Waits until a port that stops has served its clients.

    Closing a listening socket resets the clients in its accept queue. So the port first serves
    that queue, the in-flight handshakes, and the PROXY headers that are on their way.
    """

    def __init__(self, port: DrainedPort, listener: socket.socket, clock: Any) -> None:
        """
        Begin to drain a port.

        @param port: the port, which takes no new clients any more.
        @param listener: its listening socket.
        @param clock: an L{twisted.internet.interfaces.IReactorTime}.
        """
        self._port = port
        self._clock = clock
        self._start = clock.seconds()
        self._handshakes: Handshakes | None = None
        if port.accepts() and listener.family != socket.AF_UNIX:
            host, number = listener.getsockname()[:2]
            self._handshakes = handshakes(clock, listener.family)
            self._name = localName(listener.family, host if port.host else None, number)

    async def finish(self) -> bool:
        """
        Wait until all clients are served, L{DRAIN_TIMEOUT} seconds at most.

        @return: whether they are.
        """
        port = self._port
        hasInFlight = False
        while self._clock.seconds() < self._start + DRAIN_TIMEOUT:
            lastAccept = port.lastAccept
            waits = hasInFlight or self._awaitsHeader()
            await deferLater(self._clock, POLL_INTERVAL if waits or port.isPaused else 0.0)
            if port.accepts() and (port.isPaused or port.lastAccept != lastAccept):
                continue  # The accept queue may hold more clients.
            if self._handshakes:
                hasInFlight = await self._hasInFlight(self._handshakes)
                if not hasInFlight:
                    self._handshakes = None  # No new ones can begin.
            elif not waits:
                return True
        return False

    def _isWithin(self, grace: float) -> bool:
        """Return whether a grace period after the stop and the last accept still runs."""
        isWithin: bool = self._clock.seconds() < max(self._start, self._port.lastAccept) + grace
        return isWithin

    def _awaitsHeader(self) -> bool:
        """Return whether to wait for a PROXY header."""
        return self._port.headersWaiting() > 0 and self._isWithin(HEADER_GRACE)

    async def _hasInFlight(self, handshakes: Handshakes) -> bool:
        """Return whether to wait for an in-flight handshake."""
        if not self._port.accepts() or self._clock.seconds() >= self._start + HANDSHAKE_TIMEOUT:
            return False
        names = await handshakes.look()
        return self._isWithin(HIDDEN_HANDSHAKE_GRACE) if names is None else self._name in names


class Handshakes:
    """The in-flight handshakes of one address family, read once per reactor turn for all ports."""

    def __init__(self, reactor: Any, family: int) -> None:
        """
        Read nothing yet.

        @param reactor: an L{twisted.internet.interfaces.IReactorTime}.
        @param family: the address family.
        """
        self._reactor = reactor
        self._suffix = "6" if family == socket.AF_INET6 else ""
        self._looks: list[Deferred[set[bytes] | None]] = []

    def look(self) -> Deferred[set[bytes] | None]:
        """
        Look them up in the next turn of the reactor.

        @return: a L{Deferred} that fires with the L{localName} of each handshake, with and without
            the host, or with L{None} where the system does not list them.
        """
        if not self._looks:
            self._reactor.callLater(0, self._read)
        self._looks.append(Deferred())
        return self._looks[-1]

    def _read(self) -> None:
        """Read the table, and fire the Deferreds."""
        looks, self._looks = self._looks, []
        found: set[bytes] | None = None
        with suppress(OSError), open(TABLE + self._suffix, "rb") as table:
            names = [row.split(maxsplit=2)[1] for row in table if b" 03 " in row]
            found = {each for name in names for each in (name, name[-5:])}
        for look in looks:
            look.callback(found)


@cache
def handshakes(reactor: Any, family: int) -> Handshakes:
    """Return the L{Handshakes} of a reactor and an address family."""
    return Handshakes(reactor, family)


def localName(family: int, host: str | None, port: int) -> bytes:
    """
    Return an address as written in L{TABLE}: 32-bit words in the machine's byte order, in hex.

    @param family: the socket's address family.
    @param host: the IP address, or L{None} for the port alone.
    @param port: the port.
    """
    packed = socket.inet_pton(family, host) if host else b""
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return b"".join(b"%08X" % word for word in words) + b":%04X" % port


async def endConnections(transports: Iterable[Any], reactor: Any) -> None:
    """
    Wait for connections to end; abort those still open after L{CONNECTION_TIMEOUT} seconds.

    @param transports: the transports of the connections.
    @param reactor: an L{twisted.internet.interfaces.IReactorTime}.
    """
    start = reactor.seconds()
    while remaining := [each for each in transports if not each.disconnected]:
        if reactor.seconds() >= start + CONNECTION_TIMEOUT:
            _log.warn(
                "Connections aborted, still open 5 s after the stop: {count}", count=len(remaining)
            )
            for transport in remaining:
                transport.abortConnection()
            await deferLater(reactor, 0)  # Their protocols learn of it in the next turn.
            return
        await deferLater(reactor, POLL_INTERVAL)
