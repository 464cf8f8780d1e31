"""PROXY headers of all kinds, and a server that reads them."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address as V4
from ipaddress import IPv6Address as V6

from twisted.internet.address import IPv4Address
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from hello_listen import Connection, HelloFactory
from hello_listen._networks import Networks
from hello_listen._proxy import HEADER_TIMEOUT, PendingHeaders, ProxiedFactory

PROXY = IPv4Address("TCP", "10.0.0.2", 40112)
HOST = IPv4Address("TCP", "10.0.0.1", 7878)
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
LOCAL = SIGNATURE + b"\x20\x00\x00\x00"


def v2(family: int, data: bytes, command: int = 0x21) -> bytes:
    """Return a header of version 2."""
    return SIGNATURE + struct.pack("!BBH", command, family, len(data)) + data


def inet(family: int, source: str, dest: str, *ports: int, extensions: bytes = b"") -> bytes:
    """Return a header of version 2 with IP addresses."""
    kind = V4 if family < 0x20 else V6
    data = kind(source).packed + kind(dest).packed + struct.pack("!HH", *ports)
    return v2(family, data + extensions)


def tlv(kind: int, value: bytes) -> bytes:
    """Return an extension."""
    return struct.pack("!BH", kind, len(value)) + value


def extended(*extensions: bytes) -> bytes:
    """Return a header of version 2 with extensions."""
    return inet(0x11, "192.0.2.7", "198.51.100.1", 1, 2, extensions=b"".join(extensions))


def signed(*extensions: bytes, wrong: int = 0) -> bytes:
    """Return a header of version 2 with extensions and a checksum, which may be wrong."""
    header = extended(*extensions, tlv(3, bytes(4)))
    return header[:-4] + struct.pack("!L", divided(header) ^ wrong)


def divided(data: bytes) -> int:
    """Return the CRC32C, by the bitwise division of RFC 9260."""
    bits = int.from_bytes(bytes(int(f"{byte:08b}"[::-1], 2) for byte in data), "big") << 32
    rest = bits ^ 0xFFFFFFFF << 8 * len(data)
    for place in range(8 * len(data) - 1, -1, -1):
        if rest >> place + 32 & 1:
            rest ^= 0x11EDC6F41 << place
    return int(f"{rest ^ 0xFFFFFFFF:032b}"[::-1], 2)


def unix(source: bytes, dest: bytes, family: int = 0x31) -> bytes:
    """Return a header of version 2 with UNIX addresses."""
    return v2(family, source.ljust(108, b"\0") + dest.ljust(108, b"\0"))


class Server:
    """A proxied factory with a clock, and the records of its connections."""

    def __init__(self, *trusted: str, hello: HelloFactory | None = None) -> None:
        """Make a factory."""
        self.clock = Clock()
        self.seen: list[Connection] = []
        self.factory = ProxiedFactory(
            hello or HelloFactory(self.seen.append),
            PendingHeaders(self.clock),
            Networks(trusted) if trusted else None,
        )

    def connect(self, peer: IAddress = PROXY) -> tuple[Protocol, StringTransport]:
        """Connect a proxy."""
        protocol = self.factory.buildProtocol(peer)
        assert isinstance(protocol, Protocol)
        transport = StringTransport(hostAddress=HOST, peerAddress=peer)
        protocol.makeConnection(transport)
        return protocol, transport

    def receive(self, *chunks: bytes) -> Connection:
        """Connect a proxy that sends chunks and then waits; return its only record."""
        protocol, transport = self.connect()
        before = len(self.seen)
        for chunk in chunks:
            protocol.dataReceived(chunk)
        self.clock.advance(HEADER_TIMEOUT)
        assert transport.disconnecting
        assert transport.value() == b""
        assert not self.factory.waiting
        assert not self.clock.getDelayedCalls()
        [connection] = self.seen[before:]
        return connection


def receive(*chunks: bytes) -> Connection:
    """Return a new server's record of these chunks."""
    return Server().receive(*chunks)


NAMED = [
    (
        b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n",
        "192.0.2.7:56324 -> 198.51.100.1:443 via 10.0.0.2:40112",
    ),
    (
        b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
        "255.255.255.255:65535 -> 255.255.255.255:65535 via 10.0.0.2:40112",
    ),
    (
        b"PROXY TCP6 2001:db8::7 2001:db8::1 0 1\r\n",
        "[2001:db8::7]:0 -> [2001:db8::1]:1 via 10.0.0.2:40112",
    ),
    (
        b"PROXY TCP6 ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n".replace(
            b"ffff:f...f:ffff", b"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
        ),
        "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535 -> "
        "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535 via 10.0.0.2:40112",
    ),
    (
        b"PROXY TCP6 2001:db8::77 127.0.0.1 51512 40123\r\n",
        "[2001:db8::77]:51512 -> 127.0.0.1:40123 via 10.0.0.2:40112",
    ),
    (
        b"PROXY TCP6 192.0.2.7 2001:db8::1 1 2\r\n",
        "192.0.2.7:1 -> [2001:db8::1]:2 via 10.0.0.2:40112",
    ),
    (
        b"PROXY TCP6 192.0.2.7 198.51.100.1 1 2\r\n",
        "192.0.2.7:1 -> 198.51.100.1:2 via 10.0.0.2:40112",
    ),
    (
        b"PROXY TCP6 ::ffff:192.0.2.7 ::ffff:198.51.100.1 1 2\r\n",
        "192.0.2.7:1 -> 198.51.100.1:2 via 10.0.0.2:40112",
    ),
    (
        inet(0x11, "192.0.2.7", "198.51.100.1", 1, 2),
        "192.0.2.7:1 -> 198.51.100.1:2 via 10.0.0.2:40112",
    ),
    (
        inet(0x21, "2001:db8::7", "2001:db8::1", 1, 2, extensions=b"\x04\0\2ab\x01\0\2h2"),
        "[2001:db8::7]:1 -> [2001:db8::1]:2 via 10.0.0.2:40112",
    ),
    (unix(b"/run/client", b"/run/server"), "unix:/run/client -> unix:/run/server via "),
    (unix(b"/a\n\0junk", b"\0name"), r"unix:/a\n -> unix:@name via 10.0.0.2:40112"),
    (unix(b"/\xc3\xa9", b"/\xff" * 54), r"unix:/\xe9 -> unix:" + r"/\udcff" * 54 + " via "),
    (unix(b"", b""), "unix: -> unix: via 10.0.0.2:40112"),
    (
        signed(tlv(2, b"example.org"), tlv(5, b"4242"), tlv(0xEA, b"\1vpce-08d2bf15fac5001c9")),
        "192.0.2.7:1 -> 198.51.100.1:2 via 10.0.0.2:40112 "
        'tls.client.server_name="example.org" proxy_protocol.unique_id="4242" '
        'proxy_protocol.aws.vpc_endpoint_id="vpce-08d2bf15fac5001c9"',
    ),
    (
        extended(tlv(0xEE, b"\1\xaa\xe8\xff\x1f"), tlv(0xE0, b"\xff\xff\xff\xff\xc0\xa8\x64\2")),
        "192.0.2.7:1 -> 198.51.100.1:2 via 10.0.0.2:40112 "
        'proxy_protocol.azure.link_id="536864938" '
        'proxy_protocol.gcp.psc_connection_id="18446744072646845442"',
    ),
    (
        extended(tlv(2, b'a" b="c\\\n\x1b[31m\xff'), tlv(5, "☃é".encode())),
        "192.0.2.7:1 -> 198.51.100.1:2 via 10.0.0.2:40112 "
        'tls.client.server_name="a\\" b=\\"c\\\\\\n\\x1b[31m\\udcff" '
        'proxy_protocol.unique_id="\\u2603\\xe9"',
    ),
]

UNNAMED = [
    b"PROXY UNKNOWN\r\n",
    b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n",
    LOCAL,
    LOCAL[:-1] + b"\x0c" + bytes(12),
    LOCAL[:13] + b"\x11\x00\x05hello",
    LOCAL[:13] + b"\xff\x00\x0c\x03\x00\x02" + bytes(9),
    v2(0x00, b""),
    v2(0x00, b"anything"),
]

INVALID = [
    b"G",
    b"\r\n\r\n\0\r\nQUIT\n\x23\x00\0\0",
    b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"PROXY TCP4 1.2.3.4\x1b[31mEVIL 5.6.7.8 1 2\r\n",
    b"PROXY TCP4 a\nfake:line 5.6.7.8 1 2\r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 1 65536\r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 +1 2\r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 01 2\r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 1_0 2\r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\n",
    b"PROXY TCP4 ::1 ::1 1 2\r\n",
    b"PROXY TCP4 01.2.3.4 5.6.7.8 1 2\r\n",
    b"PROXY TCP6 fe80::1%\x1b[31m ::1 1 2\r\n",
    b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n",
    b"PROXY TCP4 1.2.3.4 ::1 1 2\r\n",
    b"PROXY TCP4 ::1 1.2.3.4 1 2\r\n",
    b"PROXY TCP4 ::ffff:1.2.3.4 5.6.7.8 1 2\r\n",
    b"PROXY TCP6 01.2.3.4 ::1 1 2\r\n",
    b"PROXY TCP6 ::1 1.2.3 1 2\r\n",
    b"PROXY TCP6 ::1 1.2.3.4 1 65536\r\n",
    b"PROXY TCP6 \xff.2.3.4 ::1 1 2\r\n",
    b"PROXY TCP4 \xff.2.3.4 5.6.7.8 1 2\r\n",
    b"PROXY TCP4 1.2.3.4 \xff.6.7.8 1 2\r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 1 99999\r\n",
    b"PROXY UDP4 1.2.3.4 5.6.7.8 1 2\r\n",
    b"PROXY \r\n",
    b"PROXY  TCP4 1.2.3.4 5.6.7.8 1 2\r\n",
    b"proxy TCP4 1.2.3.4 5.6.7.8 1 2\r\n",
    v2(0x11, bytes(11)),
    v2(0x21, bytes(35)),
    v2(0x31, bytes(215)),
    v2(0x41, bytes(12)),
    v2(0x10, bytes(12)),
    v2(0x01, b""),
    v2(0x11, bytes(12), command=0x22),
    v2(0x11, bytes(12), command=0x11),
    v2(0x11, bytes(14)),
    v2(0x11, bytes(12) + b"\x04\0\5ab"),
    extended(tlv(2, b"example.org"), b"\4\0"),
    extended(tlv(2, b"example.org")[:-1]),
    signed(tlv(2, b"example.org"), wrong=1),
    signed(tlv(2, b"example.org"), wrong=0xFFFFFFFF),
    signed(tlv(3, bytes(4))),
    extended(tlv(3, bytes(3))),
    extended(tlv(3, b"")),
    b"\r\n\r\n\0\r\nQUIX\n\x21\x11\0\0",
]

CORPUS = [header for header, _ in NAMED] + UNNAMED + INVALID
