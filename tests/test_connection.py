"""What a connection says of itself."""

import json
import os
from datetime import datetime, timezone

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress
from twisted.internet.stdio import PipeAddress

from hello_listen import Connection, Summary
from hello_listen.connection import SUMMARY_MESSAGE, Extensions, timestamp

V4 = IPv4Address("TCP", "127.0.0.1", 51974)
V6 = IPv6Address("TCP", "::1", 7878)
TIME = 1795378774.123456


def test_fields_of_tcp() -> None:
    """Every field has its OpenTelemetry name, the time is UTC in microseconds."""
    assert Connection(TIME, V4, IPv4Address("TCP", "127.0.0.1", 7878)).fields() == {
        "timestamp": "2026-11-22T20:19:34.123456Z",
        "message": "Connection established!",
        "network.transport": "tcp",
        "network.type": "ipv4",
        "client.address": "127.0.0.1",
        "client.port": 51974,
        "server.address": "127.0.0.1",
        "server.port": 7878,
    }


def test_fields_of_unix() -> None:
    """A UNIX connection has no type and no ports, and mostly no client name."""
    fields = Connection(TIME, UNIXAddress(None), UNIXAddress(b"/run/hello")).fields()
    assert fields["network.transport"] == "unix"
    assert fields["server.address"] == "/run/hello"
    assert fields.keys().isdisjoint({"network.type", "client.address", "client.port"})


def test_accessors() -> None:
    """Properties are plain text and numbers, or None where the connection has none."""
    tcp = Connection(TIME, V4, V6, V4)
    assert (tcp.clientAddress, tcp.clientPort) == ("127.0.0.1", 51974)
    assert (tcp.serverAddress, tcp.serverPort) == ("::1", 7878)
    assert (tcp.proxyAddress, tcp.proxyPort) == ("127.0.0.1", 51974)
    assert (tcp.transport, tcp.networkType, tcp.identity) == ("tcp", "ipv4", "127.0.0.1")
    unix = Connection(TIME, UNIXAddress(None), UNIXAddress(b"/run/hello"))
    assert (unix.clientAddress, unix.clientPort) == (None, None)
    assert (unix.serverAddress, unix.serverPort) == ("/run/hello", None)
    assert (unix.proxyAddress, unix.proxyPort) == (None, None)
    assert (unix.transport, unix.networkType) == ("unix", None)
    assert Connection(TIME, PipeAddress(), PipeAddress()).transport == "pipe"
    assert tcp == Connection(TIME, V4, V6, V4)
    assert tcp != unix


def test_summary() -> None:
    """A summary has the fields of the connection log."""
    summary = Summary(3, TIME, TIME + 1, "192.0.2.7", "tcp", "ipv4")
    fields = json.loads(summary.json())
    assert fields.pop("timestamp").endswith("Z")
    assert fields == {
        "message": SUMMARY_MESSAGE,
        "count": 3,
        "timestamp.first": "2026-11-22T20:19:34.123456Z",
        "timestamp.last": "2026-11-22T20:19:35.123456Z",
        "network.transport": "tcp",
        "network.type": "ipv4",
        "client.address": "192.0.2.7",
    }
    assert "client.address" not in Summary(1, TIME, TIME, None, None, None).fields()
    failed = Summary(1, TIME, TIME, None, None, None, "failed").fields()
    assert failed["error.type"] == "failed"


def test_str() -> None:
    """A connection's text names both ends."""
    assert str(Connection(TIME, V4, V6)) == (
        "Connection established! 127.0.0.1:51974 -> [::1]:7878"
    )


def test_extensions() -> None:
    """The proxy's extensions are in fields and text, if there is a proxy."""
    extensions = Extensions("example.org", "42", "vpce-1", "2", "3")
    proxied = Connection(TIME, V4, V6, V4, extensions=extensions)
    assert list(proxied.fields().items())[-6:] == [
        ("network.peer.port", 51974),
        ("tls.client.server_name", "example.org"),
        ("proxy_protocol.unique_id", "42"),
        ("proxy_protocol.aws.vpc_endpoint_id", "vpce-1"),
        ("proxy_protocol.azure.link_id", "2"),
        ("proxy_protocol.gcp.psc_connection_id", "3"),
    ]
    assert str(proxied) == (
        "Connection established! 127.0.0.1:51974 -> [::1]:7878 via 127.0.0.1:51974 "
        'tls.client.server_name="example.org" proxy_protocol.unique_id="42" '
        'proxy_protocol.aws.vpc_endpoint_id="vpce-1" proxy_protocol.azure.link_id="2" '
        'proxy_protocol.gcp.psc_connection_id="3"'
    )
    plain = Connection(TIME, V4, V6)
    assert Connection(TIME, V4, V6, extensions=extensions).fields() == plain.fields()
    assert plain.extensions.authority is None


times = st.floats(0, 4e9)
ports = st.integers(0, 65535)
v4 = st.builds(IPv4Address, st.sampled_from(["TCP", "UDP"]), st.ip_addresses(v=4).map(str), ports)
v6 = st.builds(IPv6Address, st.just("TCP"), st.ip_addresses(v=6).map(str), ports)
addresses = st.one_of(v4, v6, st.builds(UNIXAddress, st.none() | st.binary(max_size=9)))


extensions = st.builds(Extensions, st.none() | st.text(), gcpConnectionId=st.none() | st.just("1"))


@given(
    times,
    addresses,
    addresses,
    st.none() | v4,
    st.none() | st.just("proxy_header_late"),
    extensions,
)
def test_json(
    time: float,
    client: IAddress,
    server: IAddress,
    proxy: IAddress | None,
    error: str | None,
    extensions: Extensions,
) -> None:
    """The JSON equals that of the fields, for IPv4 addresses and for others."""
    connection = Connection(time, client, server, proxy, error, extensions)
    assert connection.json() == json.dumps(connection.fields())


@pytest.mark.parametrize(
    "address",
    [
        IPv4Address("TCP", '1.2.3.4","client.port": "5', 6),
        IPv4Address("TCP", "1.2.3.4\n", 6),
        IPv4Address("TCP", "²", 6),
        IPv4Address("TCP", "\u0661.2.3.4", 6),
        IPv4Address("TCP", "", 6),
        IPv4Address("TCP", "1.2.3.4", "5"),  # type: ignore[arg-type]
        IPv4Address("TCP", "1.2.3.4", True),
        IPv4Address("TCP", "1.2.3.4", None),  # type: ignore[arg-type]
    ],
)
def test_no_address(address: IPv4Address) -> None:
    """Text that Twisted's own C{haproxy:} takes for an address is written as JSON."""
    for connection in (Connection(TIME, address, V4), Connection(TIME, V4, address)):
        line = connection.json()
        assert line == json.dumps(connection.fields())
        assert line.isascii()
        assert line.isprintable()


@given(st.floats(-62_135_596_800, 253_402_300_799, allow_nan=False))
@example(-0.5)
@example(-1e-20)
@example(-0.0)
@example(0.9999999)
@example(0.0000005)
@example(1.9999995)
@example(1795378774.9999998)
def test_timestamp(seconds: float) -> None:
    """Any time is rounded as Python's datetime does, whatever was written before."""
    expected = datetime.fromtimestamp(seconds, timezone.utc).replace(tzinfo=None)
    assert timestamp(seconds) == expected.isoformat(timespec="microseconds") + "Z"


@given(name=st.binary(max_size=107).filter(lambda name: b"\0" not in name[1:]))
def test_nothing_breaks_a_line(name: bytes) -> None:
    """No UNIX socket name ends a line, hides or reorders text, or reads as another name."""
    connection = Connection(TIME, UNIXAddress(name), UNIXAddress(None))
    line = json.dumps(connection.fields(), ensure_ascii=False)
    assert str(connection).isprintable()
    assert str(connection).isascii()
    assert line.isprintable()
    assert line.encode("utf-8")
    shown = str(connection.fields().get("client.address", ""))
    if not shown.startswith("@"):
        escaped = shown.encode("ascii", "backslashreplace").decode("unicode_escape")
        assert os.fsencode(escaped) == name
