"""What a connection says of itself."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import HostnameAddress, IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress
from zope.interface import implementer

from hello_listen import Connection
from hello_listen.connection import addressText, unmapped

V4 = IPv4Address("TCP", "127.0.0.1", 51974)
V6 = IPv6Address("TCP", "::1", 7878)
TIME = 1795378774.123456


@implementer(IAddress)
class PipeAddress:
    """Stands in for the address of standard I/O, which Windows has only with pywin32."""


def test_fields_of_tcp() -> None:
    """Every field has its OpenTelemetry name, the time is UTC in microseconds."""
    assert Connection(TIME, 3, V4, IPv4Address("TCP", "127.0.0.1", 7878)).fields() == {
        "timestamp": "2026-11-22T20:19:34.123456Z",
        "message": "Connection established!",
        "sequence": 3,
        "network.transport": "tcp",
        "network.type": "ipv4",
        "client.address": "127.0.0.1",
        "client.port": 51974,
        "server.address": "127.0.0.1",
        "server.port": 7878,
    }


def test_fields_of_unix() -> None:
    """What a UNIX socket does not have is left out: type, ports, and the name of most clients."""
    fields = Connection(TIME, 1, UNIXAddress(None), UNIXAddress(b"/run/hello")).fields()
    assert fields["network.transport"] == "unix"
    assert fields["server.address"] == "/run/hello"
    assert fields.keys().isdisjoint({"network.type", "client.address", "client.port"})


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (V4, "127.0.0.1:51974"),
        (V6, "[::1]:7878"),
        (IPv6Address("TCP", "fe80::1%eth0", 7878), "[fe80::1%eth0]:7878"),
        (UNIXAddress(b"/run/hello"), "unix:/run/hello"),
        (UNIXAddress(b"\0hello"), "unix:@hello"),
        (UNIXAddress(None), "unix:"),
        (UNIXAddress(b""), "unix:"),
        (PipeAddress(), "pipe:"),
        (HostnameAddress(b"example.com", 80), "hostname:"),
        (UNIXAddress(b"/a\nfake: line"), r"unix:/a\nfake: line"),
        (UNIXAddress(b"/a\\n"), r"unix:/a\\n"),
        (UNIXAddress("/\u202eevil".encode()), r"unix:/\u202eevil"),
        (UNIXAddress(b"/\xff"), r"unix:/\udcff"),
        (UNIXAddress("/é".encode()), "unix:/é"),
    ],
)
def test_text(address: IAddress, text: str) -> None:
    """An address reads as people write it, whatever kind it is, and stays on its line."""
    assert addressText(address) == text


def test_str() -> None:
    """A connection's text names both ends."""
    assert str(Connection(TIME, 1, V4, V6)) == (
        "Connection established! 127.0.0.1:51974 -> [::1]:7878"
    )


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (IPv6Address("TCP", "::ffff:1.2.3.4", 5), IPv4Address("TCP", "1.2.3.4", 5)),
        (IPv6Address("TCP", "::ffff:102:304", 5), IPv4Address("TCP", "1.2.3.4", 5)),
        (IPv6Address("TCP", "::ffff:0:0:1", 5), IPv6Address("TCP", "::ffff:0:0:1", 5)),
        (V4, V4),
        (V6, V6),
    ],
)
def test_unmapped(address: IAddress, expected: IAddress) -> None:
    """An IPv4 client of an IPv6 socket is IPv4; everyone else stays who they are."""
    assert unmapped(address) == expected


times = st.floats(0, 4e9)
ports = st.integers(0, 65535)
v4 = st.builds(IPv4Address, st.sampled_from(["TCP", "UDP"]), st.ip_addresses(v=4).map(str), ports)
v6 = st.builds(IPv6Address, st.just("TCP"), st.ip_addresses(v=6).map(str), ports)
addresses = st.one_of(v4, v6, st.builds(UNIXAddress, st.none() | st.binary(max_size=9)))


@given(times, ports, addresses, addresses, st.none() | v4, st.none() | st.just("proxy_header_late"))
def test_json(
    time: float,
    sequence: int,
    client: IAddress,
    server: IAddress,
    proxy: IAddress | None,
    error: str | None,
) -> None:
    """The JSON is that of the fields, on the fast way for IPv4 as on the slow one."""
    connection = Connection(time, sequence, client, server, proxy, error)
    assert connection.json() == json.dumps(connection.fields())


@given(name=st.binary(max_size=107).filter(lambda name: b"\0" not in name[1:]))
def test_nothing_breaks_a_line(name: bytes) -> None:
    """No name of a UNIX socket can end a line, hide, or reorder text, and none reads as another."""
    connection = Connection(TIME, 1, UNIXAddress(name), UNIXAddress(None))
    line = json.dumps(connection.fields(), ensure_ascii=False)
    assert str(connection).isprintable()
    assert line.isprintable()
    assert line.encode("utf-8")
    shown = str(connection.fields().get("client.address", ""))
    if not shown.startswith("@"):
        escaped = shown.encode("ascii", "backslashreplace").decode("unicode_escape")
        assert os.fsencode(escaped) == name
