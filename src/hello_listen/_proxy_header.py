"""Parses the PROXY header, versions 1 and 2, without any I/O."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct
from typing import Literal

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress

from hello_listen._addresses import printable
from hello_listen.connection import NO_EXTENSIONS, Extensions

# Numbers in brackets are sections of the specification:
# https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt

MAX_V1 = 107
"""Upper bound of a version 1 header, in bytes (2.1)."""

MAX_V2 = 4096
"""Upper bound of a version 2 header after its first 16 bytes, in bytes; nginx has the same."""

MAX_TEXT = 255
"""Upper bound of an extension's text, in characters before escaping; the rest is truncated."""

_V1 = b"PROXY "
_V2 = b"\r\n\r\n\0\r\nQUIT\n"

_LINE = re.compile(
    rb"PROXY (UNKNOWN( .*)?|TCP(?P<family>[46]) (?P<client>[^ ]+) (?P<server>[^ ]+)"
    rb" (?P<clientPort>0|[1-9]\d{0,4}) (?P<serverPort>0|[1-9]\d{0,4}))\r\n"
)

# After the signature: command, family and transport, length of the rest (2.2).
_FIXED = Struct("!12xBBH")
_LOCAL, _PROXY = 0x20, 0x21
_UNSPECIFIED = 0x00

# Client, server and their ports, by family and transport (2.2).
_IPV4, _IPV6, _UNIX = Struct("!4s4sHH"), Struct("!16s16sHH"), Struct("!108s108s")
_LAYOUTS = {0x11: _IPV4, 0x12: _IPV4, 0x21: _IPV6, 0x22: _IPV6, 0x31: _UNIX, 0x32: _UNIX}

# Type and length of an extension (2.2).
_TLV = Struct("!BH")
_CRC32C = 0x03


class HeaderError(ValueError):
    """Raised for data that is not a valid PROXY header; the text is the end of C{error.type}."""


@dataclass(slots=True)
class Header:
    """
    A PROXY header.

    @ivar size: its length, in bytes.
    @ivar client: the client's address; L{None} for the proxy's health checks, or if unknown.
    @ivar server: the address that the client reached; L{None} if C{client} is.
    @ivar extensions: its extensions (TLVs) that are recorded.
    """

    size: int
    client: IAddress | None = None
    server: IAddress | None = None
    extensions: Extensions = NO_EXTENSIONS


def parse(data: bytes) -> Header | None:
    """
    Parse the PROXY header, of version 1 or 2, at the beginning of a connection.

    @param data: all bytes that were received so far.

    @return: the header, or L{None} while it is incomplete.

    @raise HeaderError: C{invalid} or C{too_long}.
    """
    if data.startswith(_V1):
        return _parseLine(data)
    if data.startswith(_V2):
        return _parseBinary(data)
    if _V1.startswith(data) or _V2.startswith(data):
        return None
    raise HeaderError("invalid")


def _parseLine(data: bytes) -> Header | None:
    """Parse a header of version 1 (2.1)."""
    end = data.find(b"\n", 0, MAX_V1) + 1
    if not end:
        if len(data) >= MAX_V1:
            raise HeaderError("too_long")
        return None
    line = _LINE.fullmatch(data, 0, end)
    if line is None:
        raise HeaderError("invalid")
    if line["family"] is None:
        return Header(end)
    v6 = line["family"] == b"6"
    return Header(
        end,
        _parseAddress(line["client"], line["clientPort"], v6),
        _parseAddress(line["server"], line["serverPort"], v6),
    )


def _parseAddress(host: bytes, port: bytes, v6: bool) -> IAddress:
    """Parse an address of version 1, and its port."""
    # nginx writes TCP6 for an IPv6 client even if its own listener is IPv4.
    v6 = v6 and b":" in host
    make, family = (IPv6Address, socket.AF_INET6) if v6 else (IPv4Address, socket.AF_INET)
    if int(port) > 65535:
        raise HeaderError("invalid")
    try:
        text = socket.inet_ntop(family, socket.inet_pton(family, host.decode("ascii")))
    except (OSError, ValueError):
        raise HeaderError("invalid") from None
    return make("TCP", text, int(port))


def _parseBinary(data: bytes) -> Header | None:
    """Parse a header of version 2 (2.2)."""
    if len(data) < _FIXED.size:
        return None
    command, family, length = _FIXED.unpack_from(data)
    named = command == _PROXY and family != _UNSPECIFIED
    if command not in (_LOCAL, _PROXY) or (named and family not in _LAYOUTS):
        raise HeaderError("invalid")
    if length > MAX_V2:
        raise HeaderError("too_long")
    if len(data) < _FIXED.size + length:
        return None
    if not named:
        return Header(_FIXED.size + length)  # The rest must be ignored (2.2).
    size = _LAYOUTS[family].size
    if length < size:
        raise HeaderError("invalid")
    header = Header(_FIXED.size + length, *_readAddresses(data, family))
    if length > size:
        header.extensions = _parseExtensions(data[: _FIXED.size + length], _FIXED.size + size)
    return header


def _readAddresses(data: bytes, family: int) -> tuple[IAddress, IAddress]:
    """Return the addresses of client and server in a header of version 2."""
    layout = _LAYOUTS[family]
    client, server, *ports = layout.unpack_from(data, _FIXED.size)
    if layout is _UNIX:
        return _unixAddress(client), _unixAddress(server)
    v4 = layout is _IPV4
    make, family_ = (IPv4Address, socket.AF_INET) if v4 else (IPv6Address, socket.AF_INET6)
    kind: Literal["TCP", "UDP"] = "UDP" if family & 0x0F == 2 else "TCP"
    client, server = (socket.inet_ntop(family_, host) for host in (client, server))
    return make(kind, client, ports[0]), make(kind, server, ports[1])


def _unixAddress(path: bytes) -> UNIXAddress:
    """Return the address in a C{sun_path} of 108 bytes: a path up to NUL, or an abstract name."""
    name = path.rstrip(b"\0") if path[:1] == b"\0" else path.partition(b"\0")[0]
    return UNIXAddress(name or None)


def _parseExtensions(header: bytes, at: int) -> Extensions:
    """Parse the extensions of a whole header, which begin at an index (2.2, TLV)."""
    found: dict[str, str] = {}
    isChecked = False
    size = len(header)
    while at < size:
        if at + _TLV.size > size:
            raise HeaderError("invalid")
        kind, length = _TLV.unpack_from(header, at)
        start = at + _TLV.size
        at = start + length
        if at > size:
            raise HeaderError("invalid")
        if kind in _READERS:
            name, read = _READERS[kind]
            if name not in found and (text := read(header[start:at])):
                found[name] = text
        elif kind == _CRC32C:
            # A second one is refused, because each costs a pass over the whole header.
            unsigned = header[:start] + bytes(4) + header[at:]
            if isChecked or header[start:at] != crc32c(unsigned).to_bytes(4, "big"):
                raise HeaderError("invalid")
            isChecked = True
    return Extensions(**found) if found else NO_EXTENSIONS


def _readText(value: bytes) -> str:
    """Return a text, escaped as names of UNIX sockets are."""
    return printable(value.decode("utf-8", "surrogateescape")[:MAX_TEXT])


def _readAws(value: bytes) -> str:
    """Return the ID of an AWS VPC endpoint: subtype 1."""
    return _readText(value[1:]) if value[:1] == b"\1" else ""


def _readAzure(value: bytes) -> str:
    """Return the LINKID of an Azure private endpoint: subtype 1, 4 bytes, little-endian."""
    isLink = value[:1] == b"\1" and len(value) == 5
    return str(int.from_bytes(value[1:], "little")) if isLink else ""


def _readGcp(value: bytes) -> str:
    """Return a connection ID of Google's Private Service Connect: 8 bytes, big-endian."""
    return str(int.from_bytes(value, "big")) if len(value) == 8 else ""


_READERS: dict[int, tuple[str, Callable[[bytes], str]]] = {
    0x02: ("authority", _readText),
    0x05: ("uniqueId", _readText),
    0xE0: ("gcpConnectionId", _readGcp),
    0xEA: ("awsEndpointId", _readAws),
    0xEE: ("azureLinkId", _readAzure),
}
"""By type of extension: the attribute of L{Extensions}, and its parser; "" is malformed."""


def crc32c(data: bytes) -> int:
    """Return the CRC32C of data (RFC 9260, Appendix A)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def _crcOfByte(crc: int) -> int:
    """Return the entry of a byte in the table of the reflected CRC32C polynomial."""
    for _ in range(8):
        crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc


_CRC_TABLE = [_crcOfByte(byte) for byte in range(256)]
