"""Behind a proxy: no connection is reported before its PROXY header has named the client."""

from __future__ import annotations

import re
from socket import SOCK_DGRAM
from typing import Any, Literal

from proxyprotocol import ProxyProtocolIncompleteError
from proxyprotocol.detect import ProxyProtocolDetect
from proxyprotocol.result import is_ipv4, is_ipv6, is_unix
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress, ISSLTransport, ITransport
from twisted.internet.protocol import Protocol, ServerFactory
from twisted.python.failure import Failure

from hello_listen.protocol import HelloFactory

TIMEOUT = 5.0
"""Seconds that a client or proxy has for its whole header."""

WAITING = 256
"""How many connections may be without their whole header at once; beyond, the oldest is let go."""

# The specification's limits: 107 bytes for a line of version 1 (2.1), and for version 2 what every
# receiver has to take at once (2.2).
_LONGEST = {1: 107, 2: 536}

# The library takes any text that int() takes for a port, and any scope in an IPv6 address.
_V1 = re.compile(rb"PROXY (UNKNOWN( .*)?|TCP[46]( [0-9a-fA-F:.]+){2}( (0|[1-9][0-9]*)){2})\r\n")

# Byte 14 of version 2, family and transport, and the length of their addresses. The library takes
# every other value for UNSPEC (0); a receiver must drop them.
_V2_FAMILIES = {0x00: 0, 0x11: 12, 0x12: 12, 0x21: 36, 0x22: 36, 0x31: 216, 0x32: 216}

# What a proxy begins with when it connects for itself, in version 2.
_V2_LOCAL = b"\r\n\r\n\0\r\nQUIT\n\x20"

_detect = ProxyProtocolDetect()


class ProxiedProtocol(Protocol):
    """Read the PROXY header, report who it names, and drop the connection."""

    factory: ProxiedFactory
    transport: ITransport

    def connectionMade(self) -> None:
        """Wait for the header, but not for ever, and not among too many."""
        # They cannot be asked for once the connection is lost.
        self._ends = self.transport.getPeer(), self.transport.getHost()
        self._data = b""
        self._length = 8
        self.factory.waiting[self] = self.factory.reactor.callLater(TIMEOUT, self.fail, "timeout")
        if len(self.factory.waiting) > WAITING:
            next(iter(self.factory.waiting)).fail("evicted")

    def dataReceived(self, data: bytes) -> None:
        """Hand the parser as many bytes as it asks for: it takes no more than the header itself."""
        self._data += data
        while self in self.factory.waiting and len(self._data) >= self._length:
            header = self._data[: self._length]
            try:
                addresses = parse(header)
            except ProxyProtocolIncompleteError as incomplete:
                self._want(incomplete.want_read.want_bytes)
            except Exception:  # The library raises ValueError, struct.error, and more.
                self.fail("invalid")
            else:
                self._report(*addresses)

    def connectionLost(self, reason: Failure | None = None) -> None:
        """Report a client that hung up before its header was whole."""
        self.fail("incomplete")

    def fail(self, why: str) -> None:
        """
        Report the connection with the socket's own addresses, unless it was reported already.

        @param why: what was wrong with the header, for C{error.type}.
        """
        if self in self.factory.waiting:
            self._report(error=f"proxy_header_{why}")

    def _want(self, more: int | None) -> None:
        """Wait for so many bytes more, or to the line's end, unless that were too many."""
        if more is None:
            end = self._data.find(b"\n", self._length)
            self._length = len(self._data) + 1 if end < 0 else end + 1
        else:
            self._length += more
        if self._length > _LONGEST[2 if more else 1]:
            self.fail("too_long")

    def _report(
        self,
        client: IAddress | None = None,
        server: IAddress | None = None,
        error: str | None = None,
    ) -> None:
        """Report the connection that the header names, or the socket's own, and hang up."""
        limit = self.factory.waiting.pop(self)
        if limit.active():
            limit.cancel()
        self._data = b""
        peer, host = self._ends
        established = self.factory.factory.established
        try:
            if client is None or server is None:
                established(peer, host, error=error)
            else:
                established(client, server, proxy=peer)
        finally:
            # TLS would wait for the peer to agree that the connection is closed.
            if ISSLTransport.providedBy(self.transport):
                self.transport.abortConnection()
            else:
                self.transport.loseConnection()


class ProxiedFactory(ServerFactory):
    """
    Stands between an endpoint and a L{HelloFactory}.

    @ivar waiting: the connections without their whole header, oldest first, and their time limits.
    """

    protocol = ProxiedProtocol  # type: ignore[assignment]
    noisy = False

    def __init__(self, factory: HelloFactory, reactor: Any) -> None:
        """
        Report to a factory.

        @param factory: what is told of each connection.
        @param reactor: what keeps the time.
        """
        self.factory = factory
        self.reactor = reactor
        self.waiting: dict[ProxiedProtocol, Any] = {}

    def stopFactory(self) -> None:
        """Report those whose header was on its way when the service stopped."""
        for protocol in list(self.waiting):
            protocol.fail("stopped")


def parse(header: bytes) -> tuple[IAddress, IAddress] | tuple[()]:
    """
    Return the client and the server that a PROXY header names, or nothing where it names none.

    @param header: the header from its first byte; no more than its last.

    @raise ProxyProtocolIncompleteError: bytes are missing; C{want_read} says how many.
    @raise Exception: it is no header by
        U{the specification<https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>}.
    """
    if header[:13] == _V2_LOCAL and len(header) == 16 + int.from_bytes(header[14:16], "big"):
        return ()  # Whatever else is in it has to be ignored.
    try:
        result = _detect.unpack(header)
    except UnicodeDecodeError:
        # The library reads UNIX paths as ASCII, where the specification has any bytes. A line of
        # version 1 is ASCII.
        result = None
    if header[0] == ord("P"):
        if not _V1.fullmatch(header):
            raise ValueError("not a line of version 1")
    else:
        length = _V2_FAMILIES[header[13]]
        _checkExtensions(header[16 + length :] if length else b"")
    if result is None or is_unix(result):
        return _unixAddress(header[16:124]), _unixAddress(header[124:232])
    if is_ipv4(result) or is_ipv6(result):
        make = IPv4Address if is_ipv4(result) else IPv6Address
        transport: Literal["TCP", "UDP"] = "UDP" if result.protocol == SOCK_DGRAM else "TCP"
        client, server = (
            make(transport, str(host), port) for host, port in (result.source, result.dest)
        )
        return client, server
    return ()


def _checkExtensions(data: bytes) -> None:
    """Raise an error unless the extensions (2.2, TLV) fill what follows the addresses."""
    while data:
        length = 3 + int.from_bytes(data[1:3], "big")
        if len(data) < max(3, length):
            raise ValueError("an extension that does not fit")
        data = data[length:]


def _unixAddress(path: bytes) -> UNIXAddress:
    """Return what the 108 bytes of a C{sun_path} name: a path up to NUL, or an abstract name."""
    name = path.rstrip(b"\0") if path[:1] == b"\0" else path.partition(b"\0")[0]
    return UNIXAddress(name or None)
