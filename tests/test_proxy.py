"""PROXY headers: any data, however it is split, makes one record."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from io import BytesIO
from ipaddress import ip_address
from itertools import pairwise
from time import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from proxyprotocol.detect import ProxyProtocolDetect
from proxyprotocol.result import is_ipv4, is_ipv6
from twisted.internet.address import HostnameAddress, IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IAddress, ISSLTransport
from twisted.internet.protocol import FileWrapper
from twisted.internet.stdio import PipeAddress
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs
from twisted.python.failure import Failure
from zope.interface import directlyProvides

import fuzz
from events import texts
from headers import (
    CORPUS,
    HOST,
    INVALID,
    LOCAL,
    NAMED,
    PROXY,
    SIGNATURE,
    UNNAMED,
    Server,
    divided,
    extended,
    inet,
    receive,
    tlv,
    unix,
    v2,
)
from hello_listen import Connection, HelloFactory
from hello_listen._addresses import unmapped
from hello_listen._networks import Networks
from hello_listen._proxy import (
    EVICTION_AGE,
    EVICTION_INTERVAL,
    HEADER_TIMEOUT,
    STALL_GRACE,
    PendingHeaders,
    ProxiedFactory,
    ProxiedProtocol,
)
from hello_listen._proxy_header import MAX_TEXT, HeaderError, crc32c, parse
from hello_listen.connection import NO_EXTENSIONS, Extensions


@pytest.mark.parametrize(("header", "text"), NAMED, ids=repr)
def test_header_names_the_client(header: bytes, text: str) -> None:
    """The record names the client and the proxy as soon as the last byte of the header arrives."""
    server = Server()
    protocol, transport = server.connect()
    for byte in header[:-1]:
        protocol.dataReceived(bytes([byte]))
        assert not server.seen
    protocol.dataReceived(header[-1:])
    assert transport.disconnecting
    [connection] = server.seen
    assert f"Connection established! {text}" in str(connection)
    assert connection.proxy == PROXY
    assert connection.error is None
    protocol.connectionLost()
    server.clock.advance(HEADER_TIMEOUT)
    assert len(server.seen) == 1


@pytest.mark.parametrize("header", UNNAMED, ids=repr)
def test_header_that_names_nobody(header: bytes) -> None:
    """A proxy's own health check is recorded with the proxy as its client, and is no error."""
    connection = receive(header)
    assert (connection.client, connection.server) == (PROXY, HOST)
    assert (connection.proxy, connection.error) == (PROXY, None)


@pytest.mark.parametrize("data", INVALID, ids=repr)
def test_what_is_no_header(data: bytes) -> None:
    """Invalid data is recorded with the socket's own peer, and an error."""
    connection = receive(data)
    assert (connection.client, connection.server) == (PROXY, HOST)
    assert (connection.proxy, connection.error) == (None, "proxy_header_invalid")
    assert connection.fields()["error.type"] == "proxy_header_invalid"
    assert str(connection).endswith("10.0.0.2:40112 -> 10.0.0.1:7878 (proxy_header_invalid)")


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", "timeout"),
        (b"P", "timeout"),
        (b"PROXY TCP4", "timeout"),
        (SIGNATURE, "timeout"),
        (b"PROXY UNKNOWN" + bytes(93), "timeout"),
        (b"PROXY UNKNOWN" + bytes(94), "too_long"),
        (b"PROXY UNKNOWN" + bytes(93) + b"\r\n", "too_long"),
        (v2(0x11, bytes(4096))[:-1], "timeout"),
        (v2(0x11, bytes(4097)), "too_long"),
        (v2(0x11, bytes(65535))[:16], "too_long"),
        (v2(0x11, bytes(65535), command=0x20)[:16], "too_long"),
    ],
    ids=repr,
)
def test_header_without_an_end(data: bytes, error: str) -> None:
    """A header must end in 5 seconds, and in 107 bytes (version 1) or 16 + 4,096 (version 2)."""
    assert receive(data).error == f"proxy_header_{error}"


def test_longest_headers() -> None:
    """A header of the largest size is accepted."""
    assert receive(b"PROXY UNKNOWN ".ljust(105, b"x") + b"\r\n").error is None
    assert receive(LOCAL[:-2] + b"\x10\0" + bytes(4096)).error is None
    certificate = tlv(0x20, bytes(4096 - 12 - 3 - 4))
    longest = receive(extended(certificate, tlv(2, b"e")))
    assert (longest.error, longest.extensions.authority) == (None, "e")
    assert longest.clientAddress == "192.0.2.7"


@pytest.mark.parametrize(
    ("extensions", "expected"),
    [
        ([], NO_EXTENSIONS),
        ([tlv(1, b"h2"), tlv(4, bytes(7)), tlv(0x20, b"\1" + bytes(4))], NO_EXTENSIONS),
        ([tlv(2, b""), tlv(5, b"")], NO_EXTENSIONS),
        ([tlv(2, b"first"), tlv(2, b"second")], Extensions(authority="first")),
        ([tlv(0xEA, b"\2vpce-0"), tlv(0xEA, b"\1vpce-1")], Extensions(awsEndpointId="vpce-1")),
        ([tlv(0xEA, b""), tlv(0xEA, b"\1")], NO_EXTENSIONS),
        ([tlv(0xEE, b"\2\1\0\0\0"), tlv(0xEE, b"\1\1\0\0")], NO_EXTENSIONS),
        ([tlv(0xEE, b"\1\0\0\0\0")], Extensions(azureLinkId="0")),
        ([tlv(0xE0, bytes(7)), tlv(0xE0, bytes(9))], NO_EXTENSIONS),
        ([tlv(0xE0, bytes(8))], Extensions(gcpConnectionId="0")),
        ([tlv(2, b"x" * 4000)], Extensions(authority="x" * MAX_TEXT)),
        ([tlv(5, "é☃".encode() * 200)], Extensions(uniqueId=("é☃" * 200)[:MAX_TEXT])),
    ],
)
def test_extensions(extensions: list[bytes], expected: Extensions) -> None:
    """The first well-formed extension of a type is recorded, truncated; others are ignored."""
    connection = receive(extended(*extensions))
    assert connection.extensions == expected
    assert connection.error is None
    shown = json.loads(connection.json())
    assert {k: v for k, v in shown.items() if k.startswith(("tls.", "proxy_protocol."))} == (
        expected.fields()
    )


def test_extensions_of_nobody() -> None:
    """Extensions of health checks, and of an unspecified address family, are ignored."""
    for header in (v2(0x11, bytes(12) + tlv(2, b"e"), command=0x20), v2(0x00, tlv(2, b"e"))):
        assert receive(header).extensions == NO_EXTENSIONS


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"123456789", 0xE3069283),
        (b"", 0),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_checksum(data: bytes, expected: int) -> None:
    """The CRC32C is that of the examples in RFC 3720 (B.4), which are little-endian."""
    assert crc32c(data) == divided(data) == expected


@given(st.binary(max_size=200))
def test_any_checksum(data: bytes) -> None:
    """The CRC32C of any data is the remainder of the division that RFC 3720 defines."""
    assert crc32c(data) == divided(data)


# The first is of https://github.com/aws/elastic-load-balancing-tools, both are in the tests of
# go-proxyproto.
@pytest.mark.parametrize(
    ("header", "text"),
    [
        (
            "0d0a0d0a000d0a515549540a21110054ac1f0771ac1f0a1fc8f20050030004e8d6892dea001701"
            "767063652d3038643262663135666163353030316339040024",
            "172.31.7.113:51442 -> 172.31.10.31:80 via 10.0.0.2:40112 "
            'proxy_protocol.aws.vpc_endpoint_id="vpce-08d2bf15fac5001c9"',
        ),
        (
            "0d0a0d0a000d0a515549540a21110054c0a82c0ac0a82c07cc3e241b030004b9286fa6ea001701"
            "767063652d3030656166633435386563393762383333040024",
            "192.168.44.10:52286 -> 192.168.44.7:9243 via 10.0.0.2:40112 "
            'proxy_protocol.aws.vpc_endpoint_id="vpce-00eafc458ec97b833"',
        ),
    ],
)
def test_captured_headers(header: str, text: str) -> None:
    """Headers captured from AWS's load balancer are valid, and with a flipped bit they are not."""
    data = bytes.fromhex(header) + bytes(36)
    assert str(receive(data)) == f"Connection established! {text}"
    for place in (17, 33, 60, len(data) - 1):
        broken = bytearray(data)
        broken[place] ^= 1
        assert receive(bytes(broken)).error == "proxy_header_invalid"


@pytest.mark.parametrize("data", [b"", b"PROXY TCP4 1.2."])
def test_hang_up_halfway(data: bytes) -> None:
    """A client that closes before its header is whole is recorded once."""
    server = Server()
    protocol, _ = server.connect()
    protocol.dataReceived(data)
    protocol.connectionLost()
    server.clock.advance(HEADER_TIMEOUT)
    assert [connection.error for connection in server.seen] == ["proxy_header_incomplete"]
    assert [connection.silent for connection in server.seen] == [not data]


@pytest.mark.parametrize("data", [b"", b"P", b"G", LOCAL])
def test_silent(data: bytes) -> None:
    """A connection is silent if no byte was received, whatever its error is."""
    assert receive(data).silent == (not data)


@pytest.mark.parametrize(
    "peer",
    [
        IPv4Address("TCP", "10.0.0.2", 1),
        IPv6Address("TCP", "::ffff:10.0.0.2", 1),
        IPv6Address("TCP", "::ffff:192.0.2.7", 1),
        IPv6Address("TCP", "fe80::1%eth0", 1),
        UNIXAddress(None),
        UNIXAddress(b"/run/proxy"),
        PipeAddress(),
    ],
)
def test_trusted(peer: IAddress) -> None:
    """The headers of trusted proxies, and of all peers of a UNIX socket, are believed."""
    server = Server("10.0.0.0/8", "::ffff:192.0.2.7", "fe80::%eth0/64")
    protocol, transport = server.connect(peer)
    assert not server.seen
    protocol.dataReceived(NAMED[0][0])
    assert transport.disconnecting
    [connection] = server.seen
    assert (connection.clientAddress, connection.proxy) == ("192.0.2.7", unmapped(peer))


@pytest.mark.parametrize("header", [b"", NAMED[0][0], b"PROXY", b"GET / HTTP/1.0"])
@pytest.mark.parametrize(
    "peer",
    [
        IPv4Address("TCP", "11.0.0.2", 1),
        IPv6Address("TCP", "::ffff:192.0.2.8", 1),
        IPv6Address("TCP", "::10.0.0.2", 1),
        IPv6Address("TCP", "fe80::1%eth1", 1),
        HostnameAddress(b"10.0.0.2", 1),
    ],
)
def test_untrusted(peer: IAddress, header: bytes) -> None:
    """An untrusted peer is its own client; it is recorded at once and only once."""
    server = Server("10.0.0.0/8", "::ffff:192.0.2.7", "fe80::%eth0/64")
    protocol, transport = server.connect(peer)
    assert transport.disconnecting
    [connection] = server.seen
    assert (connection.client, connection.server) == (unmapped(peer), HOST)
    assert (connection.proxy, connection.error) == (None, "proxy_not_trusted")
    assert connection.silent
    protocol.dataReceived(header)
    protocol.connectionLost(Failure(ConnectionLost()))
    assert len(server.seen) == 1
    assert not server.factory.waiting
    assert not server.clock.getDelayedCalls()


def failing(error: type[BaseException], counts: bool, seen: list[Connection]) -> HelloFactory:
    """Return a factory that raises an error for each connection, after counting it or without."""

    class Failing(HelloFactory):
        def established(self, *arguments: Any, **facts: Any) -> None:
            if counts:
                super().established(*arguments, **facts)
            raise error

    return Failing(seen.append)


@pytest.mark.parametrize("counts", [True, False])
def test_untrusted_with_a_subclass_that_fails(counts: bool) -> None:
    """If a subclass raises an error, the peer is recorded once, and its connection closed."""
    seen: list[Connection] = []
    server = Server("10.0.0.3", hello=failing(RuntimeError, counts, seen))
    with capturedLogs() as events:
        _, transport = server.connect()
    assert transport.disconnecting
    assert [connection.error for connection in seen] == ["proxy_not_trusted"]
    assert texts(events) == ["Connection could not be reported"]


def test_nobody_is_trusted() -> None:
    """An empty list of trusted proxies trusts nobody."""
    factory = ProxiedFactory(HelloFactory(), PendingHeaders(Clock()), Networks([]))
    assert not isinstance(factory.buildProtocol(PROXY), ProxiedProtocol)


def test_stop() -> None:
    """A port that closes records its own connections without a whole header, not another's."""
    server = Server()
    server.factory.doStart()
    assert server.factory.hello.numPorts == 1
    other = ProxiedFactory(server.factory.hello, server.factory.pending)
    other.doStart()
    _, transport = server.connect()
    other.doStop()
    assert not server.seen
    server.factory.doStop()
    assert server.factory.hello.numPorts == 0
    assert transport.disconnecting
    assert [connection.error for connection in server.seen] == ["proxy_header_stopped"]


def test_each_has_the_same_time() -> None:
    """One timer serves all connections, and each has the full timeout."""
    server = Server()
    _, early = server.connect()
    server.clock.advance(1)
    late = [server.connect()[1] for _ in range(100)]
    assert len(server.clock.getDelayedCalls()) == 1
    server.clock.advance(HEADER_TIMEOUT - 1)
    assert early.disconnecting
    assert not any(transport.disconnecting for transport in late)
    server.clock.advance(0.9)
    assert len(server.seen) == 1
    server.clock.advance(0.1)
    assert all(transport.disconnecting for transport in late)
    assert [connection.error for connection in server.seen] == ["proxy_header_timeout"] * 101
    assert not server.clock.getDelayedCalls()


def test_process_that_stood_still() -> None:
    """When a suspended process runs again, headers have a grace period to arrive."""
    server = Server()
    (sending, _), (_, silent) = server.connect(), server.connect()
    server.clock.advance(2 * HEADER_TIMEOUT)
    assert not server.seen
    sending.dataReceived(NAMED[0][0])
    server.clock.advance(STALL_GRACE)
    assert silent.disconnecting
    assert [c.error for c in server.seen] == [None, "proxy_header_timeout"]


def test_time_is_when_it_was_accepted() -> None:
    """The record's time is that of the accept, however late the header is."""
    server = Server()
    protocols, between = [], [time()]
    for _ in range(3):
        protocols.append(server.connect()[0])
        between.append(time())
    protocols[0].dataReceived(NAMED[0][0])
    protocols[1].connectionLost()
    server.clock.advance(HEADER_TIMEOUT)
    times = [connection.time for connection in server.seen]
    assert all(
        start <= at <= end for at, (start, end) in zip(times, pairwise(between), strict=True)
    )


@pytest.mark.parametrize("counts", [True, False])
def test_subclass_that_fails(counts: bool) -> None:
    """If a subclass raises an error, the connection is closed and recorded all the same."""
    seen: list[Connection] = []
    server = Server(hello=failing(SystemExit, counts, seen))
    server.factory.doStart()
    with capturedLogs() as events:
        (named, _), (lost, _) = server.connect(), server.connect()
        named.dataReceived(NAMED[0][0])
        lost.connectionLost()
        evicting = Deferred.fromCoroutine(server.factory.pending.evict(9, 0))
        transports = [server.connect()[1] for _ in range(2)]
        server.clock.pump([EVICTION_AGE, EVICTION_INTERVAL])
        assert evicting.called
        transports += [server.connect()[1] for _ in range(2)]
        server.clock.pump([HEADER_TIMEOUT - EVICTION_AGE, EVICTION_AGE])
        transports += [server.connect()[1] for _ in range(2)]
        server.factory.doStop()
    assert all(each.disconnecting for each in transports)
    assert server.factory.hello.connections == len(seen) == 8
    # For the connection with a whole header, the failure of its protocol is logged, too.
    assert len(events) == (8 if counts else 9)
    whole = None if counts else "failed"
    errors = ["incomplete", *["evicted"] * 2, *["timeout"] * 2, *["stopped"] * 2]
    assert [c.error for c in seen] == [whole, *(f"proxy_header_{error}" for error in errors)]


def test_transport_that_fails() -> None:
    """After a transport that cannot be closed, later connections still time out."""

    class Broken(StringTransport):
        def loseConnection(self) -> None:
            raise RuntimeError

    server = Server()
    broken = server.factory.buildProtocol(PROXY)
    assert broken is not None
    broken.makeConnection(Broken(hostAddress=HOST, peerAddress=PROXY))
    with capturedLogs() as events:
        server.clock.advance(HEADER_TIMEOUT)
    assert texts(events) == ["PROXY header not timed out"]
    _, transport = server.connect()
    server.clock.advance(HEADER_TIMEOUT)
    assert transport.disconnecting
    assert len(server.seen) == 2


def test_evicted_from_standard_input() -> None:
    """An eviction closes a transport that has no C{abortConnection}."""
    server = Server()
    protocol = server.factory.buildProtocol(PROXY)
    transport = FileWrapper(BytesIO())
    protocol.makeConnection(transport)
    protocol.fail("evicted")
    assert transport.closed
    assert [connection.error for connection in server.seen] == ["proxy_header_evicted"]


def test_tls_is_aborted() -> None:
    """A TLS connection is aborted, without waiting for the peer's close_notify."""
    server = Server()
    protocol, transport = server.connect()
    directlyProvides(transport, ISSLTransport)
    protocol.dataReceived(LOCAL)
    assert transport.disconnected


def test_datagrams() -> None:
    """A header may name UDP as the transport."""
    header = inet(0x12, "192.0.2.7", "198.51.100.1", 53, 53)
    assert receive(header).fields()["network.transport"] == "udp"


def test_fields() -> None:
    """The proxy has its own fields in the record."""
    fields = receive(NAMED[0][0]).fields()
    assert (fields["client.address"], fields["client.port"]) == ("192.0.2.7", 56324)
    assert (fields["server.address"], fields["server.port"]) == ("198.51.100.1", 443)
    assert (fields["network.peer.address"], fields["network.peer.port"]) == ("10.0.0.2", 40112)


ports = st.integers(0, 65535)
v4s = st.ip_addresses(v=4).map(str)
v6s = st.ip_addresses(v=6).map(str)
paths = st.binary(max_size=108).filter(lambda path: path != b"\0" and not path[1:].count(0))
extensions = st.lists(
    st.tuples(
        st.integers(0, 255) | st.sampled_from([2, 5, 0xE0, 0xEA, 0xEE]), st.binary(max_size=40)
    ).filter(lambda e: e[0] != 3),
    max_size=5,
).map(lambda pairs: b"".join(tlv(*pair) for pair in pairs))


@st.composite
def headers(draw: st.DrawFn) -> tuple[bytes, tuple[object, object]]:
    """Return a valid header, and the client and server that it names."""
    version, family = draw(st.sampled_from([1, 2])), draw(st.sampled_from([4, 6, 0]))
    one, two = draw(ports), draw(ports)
    if family == 0:
        source, dest = draw(paths), draw(paths)
        return unix(source, dest), (UNIXAddress(source or None), UNIXAddress(dest or None))
    addresses, kind = (v4s, IPv4Address) if family == 4 else (v6s, IPv6Address)
    source_, dest_ = draw(addresses), draw(addresses)
    named = kind("TCP", source_, one), kind("TCP", dest_, two)
    if version == 1:
        return f"PROXY TCP{family} {source_} {dest_} {one} {two}\r\n".encode(), named
    number = 0x11 if family == 4 else 0x21
    return inet(number, source_, dest_, one, two, extensions=draw(extensions)), named


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    """Return data in pieces."""
    ends = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(ends)]


@given(header=headers(), behind=st.binary(max_size=600), places=st.lists(st.integers(0, 2000)))
def test_any_header_cut_anywhere(
    header: tuple[bytes, tuple[object, object]], behind: bytes, places: list[int]
) -> None:
    """A valid header is parsed however it is split, and whatever data follows."""
    data, named = header
    connection = receive(*cut(data + behind, places))
    assert connection.error is None
    text = str(connection)
    assert text.isprintable()
    expected = Connection(0, *named)  # type: ignore[arg-type]
    if "::ffff:" not in text + str(expected):
        assert (connection.client, connection.server) == named


@settings(max_examples=300)
@given(
    data=st.one_of(
        st.binary(max_size=700),
        st.binary(max_size=700).map(lambda data: SIGNATURE + data),
        st.binary(max_size=4100).map(lambda data: v2(0x11, bytes(12) + data)),
        st.binary(max_size=120).map(lambda data: b"PROXY " + data),
        st.text(alphabet="TCP46UNKOW 0123456789.:%+\r\n\x1bf", max_size=90).map(
            lambda text: b"PROXY " + text.encode()
        ),
    ),
    places=st.lists(st.integers(0, 2000)),
)
def test_any_bytes_are_one_record(data: bytes, places: list[int]) -> None:
    """Any data, however it is split, makes one record and raises no error."""
    whole, pieces = receive(data), receive(*cut(data, places))
    assert replace(whole, time=0) == replace(pieces, time=0)
    assert str(whole).isprintable()


def oracle(data: bytes) -> tuple[object, ...] | None:
    """Return the addresses that the library proxy-protocol finds, or L{None} if it refuses."""
    try:
        result = ProxyProtocolDetect().unpack(data)
    except Exception:
        return None
    if not (is_ipv4(result) or is_ipv6(result)):
        return ()
    ends = (result.source, result.dest)
    return tuple((ip_address(str(host)), port) for host, port in ends)


@settings(max_examples=300)
@given(header=st.one_of(headers().map(lambda made: made[0]), st.sampled_from(CORPUS)))
def test_oracle(header: bytes) -> None:
    """The addresses are those that another parser finds, if it accepts the header."""
    theirs = oracle(header)
    try:
        ours = parse(header)
    except HeaderError:
        return
    assert ours is not None or theirs is None
    if theirs and ours and ours.client:
        assert all(
            isinstance(end, (IPv4Address, IPv6Address)) for end in (ours.client, ours.server)
        )
        ends = tuple((ip_address(e.host), e.port) for e in (ours.client, ours.server))  # type: ignore[union-attr]
        assert ends == theirs
    elif theirs is not None and ours:
        assert bool(theirs) == (
            ours.client is not None and not isinstance(ours.client, UNIXAddress)
        )


others = st.lists(st.tuples(st.integers(6, 255), st.binary(max_size=40)), max_size=5)


@given(authority=st.text(max_size=40), uniqueId=st.binary(max_size=128), others=others)
def test_extensions_as_another_reads_them(
    authority: str, uniqueId: bytes, others: list[tuple[int, bytes]]
) -> None:
    """The texts in the record, unescaped, are those that the library proxy-protocol finds."""
    mixed = [*others, (2, authority.encode()), *others, (5, uniqueId)]
    header = extended(*(tlv(*pair) for pair in mixed))
    theirs = ProxyProtocolDetect().unpack(header).tlv
    ours = receive(header).extensions
    assert unescaped(ours.authority) == (theirs.authority or "").encode()
    assert unescaped(ours.uniqueId) == theirs.unique_id


def unescaped(text: str | None) -> bytes:
    """Return a text of a record as it was before it was escaped."""
    plain = (text or "").encode("ascii", "backslashreplace").decode("unicode_escape")
    return plain.encode("utf-8", "surrogateescape")


def test_fuzzing(capsys: pytest.CaptureFixture[str]) -> None:
    """C{fuzz.py}, which feeds mutated headers in long runs, works."""
    fuzz.main(100)
    assert capsys.readouterr().out.startswith("100 inputs: {")
