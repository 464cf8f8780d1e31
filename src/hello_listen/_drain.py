"""The end of a port: refuses new clients, sees who is on the way, and ends what is still open."""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

_log = Logger(namespace="hello_listen")

TABLE = "/proc/net/tcp"
"""Where Linux lists connections, those of an in-flight handshake in state 3 (proc(5))."""

CONNECTION_TIMEOUT = 5.0
"""Seconds that a stop waits for open connections of an embedder's protocol."""

# Linux's ip(7) and ipv6(7).
_IP_MINTTL, _IPV6_MINHOPCOUNT = 21, 73


def refuseNew(listener: socket.socket) -> None:
    """
    Refuse new clients, but neither those in the accept queue nor in-flight handshakes.

    It needs no privilege.

    @param listener: a listening socket.

    @raise OSError: the system cannot.
    """
    if listener.family == socket.AF_UNIX:
        listener.shutdown(socket.SHUT_RD)
    elif sys.platform == "linux":
        # A packet whose time to live is below 255 is dropped when it opens a connection (the
        # check is RFC 5082's); the last one of a handshake is not checked.
        listener.setsockopt(socket.IPPROTO_IP, _IP_MINTTL, 255)
        if listener.family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, _IPV6_MINHOPCOUNT, 255)


class Handshakes:
    """The in-flight handshakes of one address family, looked up once a turn for all ports."""

    def __init__(self, reactor: Any, family: int) -> None:
        """
        Look nothing up yet.

        @param reactor: an L{IReactorTime}, whose turns are meant.
        @param family: the address family.
        """
        self._reactor = reactor
        self._suffix = "6" if family == socket.AF_INET6 else ""
        self._looks: list[Deferred[set[bytes] | None]] = []

    def look(self) -> Deferred[set[bytes] | None]:
        """
        Look them up in the next turn of the reactor.

        @return: a L{Deferred} that fires with the L{localName} of each, its port alone as well, or
            with L{None} where the system does not tell.
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
    Return an address as L{TABLE} has it: 32 bits at a time, in the machine's byte order.

    @param family: the socket's address family.
    @param host: the address, or L{None} for a port alone.
    @param port: the port.
    """
    packed = socket.inet_pton(family, host) if host else b""
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return b"".join(b"%08X" % word for word in words) + b":%04X" % port


async def endConnections(transports: Iterable[Any], reactor: Any) -> None:
    """
    Wait for connections to end, and abort those that are open after L{CONNECTION_TIMEOUT}.

    @param transports: the connections.
    @param reactor: an L{IReactorTime}.
    """
    start = reactor.seconds()
    while remaining := [each for each in transports if not each.disconnected]:
        if reactor.seconds() >= start + CONNECTION_TIMEOUT:
            _log.warn(
                "Connections aborted, still open 5 s after the stop: {count}", count=len(remaining)
            )
            for transport in remaining:
                transport.abortConnection()
            await deferLater(reactor, 0)  # Their protocols know by now.
            return
        await deferLater(reactor, 0.02)
