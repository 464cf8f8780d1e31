"""Addresses as text, and the clients that they belong to."""

import socket
from typing import Any

import pytest
from twisted.internet.address import HostnameAddress, IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress
from twisted.internet.stdio import PipeAddress

from hello_listen._addresses import (
    addressIdentity,
    addressText,
    asciiText,
    clientIdentity,
    socketAddress,
    unmapped,
)

V4 = IPv4Address("TCP", "127.0.0.1", 51974)
V6 = IPv6Address("TCP", "::1", 7878)


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
        (HostnameAddress(b"example.com", 80), "pipe:"),
        (UNIXAddress(b"/a\nfake: line"), r"unix:/a\nfake: line"),
        (UNIXAddress(b"/a\\n"), r"unix:/a\\n"),
        (UNIXAddress("/\u202eevil".encode()), r"unix:/\u202eevil"),
        (UNIXAddress(b"/\xff"), r"unix:/\udcff"),
        (UNIXAddress("/é☃".encode()), r"unix:/\xe9\u2603"),
    ],
)
def test_text(address: IAddress, text: str) -> None:
    """An address reads as people write it, whatever kind it is, and stays on its line."""
    assert addressText(address) == text


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


@pytest.mark.parametrize(
    ("transport", "address", "expected"),
    [
        ("tcp", "192.0.2.7", "192.0.2.7"),
        ("udp", "192.0.2.7", "192.0.2.7"),
        (None, "192.0.2.7", "192.0.2.7"),
        ("tcp", "2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("tcp", "2001:db8:1:2::3%eth0", "2001:db8:1:2::/64"),
        ("tcp", "2001:db8:1:2::/64", "2001:db8:1:2::/64"),
        ("tcp", "fe80::1%eth0", "fe80::1%eth0"),
        ("tcp", "fe80::1", "fe80::1"),
        ("tcp", "febf::1%0", "febf::1%0"),
        ("tcp", "fec0::1", "fec0::/64"),
        ("tcp", "::1", "::1"),
        ("tcp", "64:ff9b::c000:201", "64:ff9b::c000:201"),
        ("tcp", "64:ff9b:1::1", "64:ff9b:1::/64"),
        ("tcp", "some:body", "some:body"),
        ("unix", "192.0.2.7", "unix:192.0.2.7"),
        ("unix", "fe80::1", "unix:fe80::1"),
        ("unix", None, "unix:"),
        ("pipe", None, "pipe:"),
        (None, None, ""),
    ],
)
def test_identity(transport: str | None, address: str | None, expected: str) -> None:
    """An IPv6 /64 is one client, but only where it is one network; a UNIX name is no IP address."""
    assert clientIdentity(transport, address) == expected


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (IPv4Address("TCP", "192.0.2.7", 1), "192.0.2.7"),
        (IPv4Address("UDP", "192.0.2.7", 2), "192.0.2.7"),
        (IPv4Address("TCP", "2001:db8:1:2::3", 1), "2001:db8:1:2::/64"),
        (IPv4Address("TCP", "1.2.3.4\n", 1), r"1.2.3.4\n"),
        (IPv6Address("TCP", "2001:db8:1:2::3", 1), "2001:db8:1:2::/64"),
        (UNIXAddress(b"/run/a"), "unix:/run/a"),
        (UNIXAddress(None), "unix:"),
        (PipeAddress(), "pipe:"),
    ],
)
def test_identity_of_an_address(address: IAddress, expected: str) -> None:
    """The port tells no clients apart, and text that stands for an address is escaped."""
    assert addressIdentity(address) == expected


def test_scope_of_an_address() -> None:
    """A link-local address keeps the name of its link, where that has one."""
    link = socket.if_indextoname(1)
    for scope, host in ((1, f"fe80::1%{link}"), (2**31 - 1, "fe80::1")):
        address: Any = socketAddress(("fe80::1", 5, 0, scope))
        assert address.host == host


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a~ b", "a~ b"), ("é☃\n", r"\xe9\u2603\n"), ("\x7f\udcff", r"\x7f\udcff"), ("\\", "\\")],
)
def test_ascii(text: str, expected: str) -> None:
    """All but printable ASCII is escaped."""
    assert asciiText(text) == expected
