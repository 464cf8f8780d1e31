"""Behind a proxy: no connection is reported before its PROXY header has named the client."""

from __future__ import annotations

import re
import socket
import struct
from typing import Any, Literal

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress, ISSLTransport, ITransport
from twisted.internet.protocol import Protocol, ServerFactory
from twisted.python.failure import Failure

from hello_listen.protocol import HelloFactory

TIMEOUT = 5.0
"""Seconds that a client or proxy has for its whole header."""

LONGEST_V1 = 107
"""Most bytes of a version 1 header (the specification, 2.1)."""

LONGEST_V2 = 536
"""Most bytes of a version 2 header, which every receiver must take at once (2.2)."""

_V1 = b"PROXY "
_V2 = b"\r\n\r\n\0\r\nQUIT\n"

_LINE = re.compile(
    rb"PROXY (UNKNOWN( .*)?|TCP(?P<family>[46]) (?P<client>[^ ]+) (?P<server>[^ ]+)"
    rb" (?P<clientPort>0|[1-9]\d{0,4}) (?P<serverPort>0|[1-9]\d{0,4}))\r\n"
)

_LOCAL, _PROXY = 0x20, 0x21

# Byte 14 of version 2, family and transport (2.2), and the addresses and ports that follow.
_IPV4, _IPV6, _UNIX = "!4s4sHH", "!16s16sHH", "!108s108s"
_V2_FAMILIES = {
    0x00: "", 0x11: _IPV4, 0x12: _IPV4, 0x21: _IPV6, 0x22: _IPV6, 0x31: _UNIX, 0x32: _UNIX,
}  # fmt: skip

Named = tuple[IAddress, IAddress]


class ProxiedProtocol(Protocol):
    """Read the PROXY header, report who it names, and drop the connection."""

    factory: ProxiedFactory
    transport: ITransport

    def connectionMade(self) -> None:
        """Wait for the header, for L{TIMEOUT} seconds."""
        # They cannot be asked for once the connection is lost.
        self._ends = self.transport.getPeer(), self.transport.getHost()
        self._data = b""
        self.factory.hello.waiting[self] = self.factory.reactor.callLater(
            TIMEOUT, self.fail, "timeout"
        )

    def dataReceived(self, data: bytes) -> None:
        """Report the connection once the header is complete or invalid."""
        if self not in self.factory.hello.waiting:
            return
        self._data += data
        try:
            named = parse(self._data)
        except ValueError as error:
            self.fail(str(error))
        else:
            if named is not None:
                self._report(named or self._ends, proxy=self._ends[0])

    def connectionLost(self, reason: Failure | None = None) -> None:
        """Report a client that hung up before its header was whole."""
        self.fail("incomplete")

    def fail(self, why: str) -> None:
        """
        Report the connection with the socket's own addresses, unless it was reported already.

        @param why: what was wrong with the header, for C{error.type}.
        """
        if self in self.factory.hello.waiting:
            self._report(self._ends, error=f"proxy_header_{why}")

    def _report(self, ends: Named, proxy: IAddress | None = None, error: str | None = None) -> None:
        """Report the connection, and hang up."""
        limit = self.factory.hello.waiting.pop(self)
        if limit.active():
            limit.cancel()
        self._data = b""
        try:
            self.factory.hello.established(*ends, proxy, error)
        finally:
            transport: Any = self.transport
            # TLS would wait for the peer to agree that the connection is closed, and a
            # descriptor that is to make room is wanted at once; stdio: has no way to do so.
            if ISSLTransport.providedBy(transport) or error == "proxy_header_evicted":
                getattr(transport, "abortConnection", transport.loseConnection)()
            else:
                transport.loseConnection()


class ProxiedFactory(ServerFactory):
    """
    Stands between an endpoint and a L{HelloFactory}.

    @ivar hello: what is told of each connection.
    @ivar reactor: what keeps the time.
    """

    protocol = ProxiedProtocol  # type: ignore[assignment]
    noisy = False

    def __init__(self, hello: HelloFactory, reactor: Any) -> None:
        """
        Read headers for a factory.

        @param hello: what is told of each connection.
        @param reactor: what keeps the time.
        """
        self.hello = hello
        self.reactor = reactor

    def startFactory(self) -> None:
        """Start the factory behind."""
        self.hello.doStart()

    def stopFactory(self) -> None:
        """Report those whose header was on its way when the port stopped."""
        for protocol in [p for p in self.hello.waiting if p.factory is self]:
            protocol.fail("stopped")
        self.hello.doStop()


def parse(data: bytes) -> Named | tuple[()] | None:
    """
    Read the PROXY header that data begins with.

    It has to be one by
    U{the specification<https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>}, whose
    sections are named below.

    @param data: what a connection began with.

    @return: the client and the server that the header names; C{()} where it names none; L{None}
        while it is not whole.

    @raise ValueError: C{invalid} or C{too_long}.
    """
    if data.startswith(_V1):
        return _parseV1(data)
    if data.startswith(_V2):
        return _parseV2(data)
    if _V1.startswith(data) or _V2.startswith(data):
        return None
    raise ValueError("invalid")


def _parseV1(data: bytes) -> Named | tuple[()] | None:
    """Read a header of version 1: a line of text (2.1)."""
    end = data.find(b"\n", 0, LONGEST_V1) + 1
    if not end:
        if len(data) >= LONGEST_V1:
            raise ValueError("too_long")
        return None
    line = _LINE.fullmatch(data[:end])
    if line is None:
        raise ValueError("invalid")
    if line["family"] is None:
        return ()
    v4 = line["family"] == b"4"
    family, layout = (socket.AF_INET, _IPV4) if v4 else (socket.AF_INET6, _IPV6)
    try:
        hosts = [socket.inet_pton(family, line[name].decode()) for name in ("client", "server")]
        ports = int(line["clientPort"]), int(line["serverPort"])
        return _named("TCP", layout, struct.pack(layout, *hosts, *ports))
    except (OSError, ValueError, struct.error):
        raise ValueError("invalid") from None


def _parseV2(data: bytes) -> Named | tuple[()] | None:
    """Read a header of version 2: binary (2.2)."""
    if len(data) < 16:
        return None
    command, family, length = struct.unpack("!BBH", data[12:16])
    if command not in (_LOCAL, _PROXY) or (command == _PROXY and family not in _V2_FAMILIES):
        raise ValueError("invalid")
    if 16 + length > LONGEST_V2:
        raise ValueError("too_long")
    if len(data) < 16 + length:
        return None
    if command == _LOCAL or family == 0:
        return ()  # Whatever else is in it has to be ignored.
    layout = _V2_FAMILIES[family]
    size = struct.calcsize(layout)
    if length < size:
        raise ValueError("invalid")
    _checkExtensions(data[16 + size : 16 + length])
    return _named("UDP" if family & 0x0F == 2 else "TCP", layout, data[16 : 16 + size])


def _checkExtensions(data: bytes) -> None:
    """Raise an error unless the extensions (2.2, TLV) fill what follows the addresses."""
    while data:
        length = 3 + int.from_bytes(data[1:3], "big")
        if len(data) < max(3, length):
            raise ValueError("invalid")
        data = data[length:]


def _named(kind: Literal["TCP", "UDP"], layout: str, packed: bytes) -> Named:
    """Return the client and the server that are packed as in a header of version 2."""
    client, server, *ports = struct.unpack(layout, packed)
    if layout == _UNIX:
        return _unixAddress(client), _unixAddress(server)
    v4 = layout == _IPV4
    make, family = (IPv4Address, socket.AF_INET) if v4 else (IPv6Address, socket.AF_INET6)
    client, server = (socket.inet_ntop(family, host) for host in (client, server))
    return make(kind, client, ports[0]), make(kind, server, ports[1])


def _unixAddress(path: bytes) -> UNIXAddress:
    """Return what the 108 bytes of a C{sun_path} name: a path up to NUL, or an abstract name."""
    name = path.rstrip(b"\0") if path[:1] == b"\0" else path.partition(b"\0")[0]
    return UNIXAddress(name or None)
