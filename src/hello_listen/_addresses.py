"""Addresses: their host, port, text and client identity; the escaping of text from peers."""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache
from ipaddress import IPv6Address as IPv6
from socket import AF_INET6, if_indextoname, inet_ntop, inet_pton
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress

IPV4_CHARACTERS = "0123456789."
"""The characters of an IPv4 address: Twisted's own C{haproxy:} takes any text for a host."""

_NAT64_PREFIX = inet_pton(AF_INET6, "64:ff9b::")[:12]


def socketAddress(name: Any) -> IAddress:
    """
    Return the address of a TCP or UNIX socket.

    @param name: the address in the form of L{socket.socket.getsockname}. The scope of an IPv6
        address becomes a part of the host, as in Twisted's own addresses.
    """
    if not isinstance(name, tuple):
        return UNIXAddress(name or None)
    if len(name) == 2:
        host, port = name
        return IPv4Address("TCP", host, port)
    host, port, flow, scope = name
    if scope:
        with suppress(OSError):
            host = f"{host}%{if_indextoname(scope)}"
    return IPv6Address("TCP", host, port, flow, scope)


def unmapped(address: IAddress) -> IAddress:
    """Return an IPv4-mapped IPv6 address (RFC 4291, 2.5.5.2) as IPv4, any other as it is."""
    if isinstance(address, IPv6Address) and address.host.startswith("::ffff:"):
        mapped = IPv6(address.host).ipv4_mapped
        if mapped is not None:
            return IPv4Address(address.type, str(mapped), address.port)
    return address


def hostAndPort(address: IAddress | None) -> tuple[str | None, int | None]:
    """Return the host (escaped) or socket name, and the port; L{None} for each that is missing."""
    if isinstance(address, (IPv4Address, IPv6Address)):
        return printable(address.host), address.port
    if isinstance(address, UNIXAddress) and address.name:
        name = address.name.decode("utf-8", "surrogateescape")
        # A name in Linux's abstract namespace starts with NUL, written @ by ss(8) and systemd.
        return printable("@" + name[1:] if name[0] == "\0" else name), None
    return None, None


def transportAndType(address: IAddress) -> tuple[str, str | None]:
    """Return the C{network.transport} and the C{network.type} of an address."""
    if isinstance(address, (IPv4Address, IPv6Address)):
        return address.type.lower(), "ipv4" if isinstance(address, IPv4Address) else "ipv6"
    return "unix" if isinstance(address, UNIXAddress) else "pipe", None


def addressText(address: IAddress) -> str:
    """Return an address as ASCII: C{host:port}, C{[host]:port}, C{unix:path} or C{pipe:}."""
    host, port = hostAndPort(address)
    if port is None:
        return asciiText(f"{transportAndType(address)[0]}:{host or ''}")
    return f"[{host}]:{port}" if isinstance(address, IPv6Address) else f"{host}:{port}"


def addressIdentity(address: IAddress) -> str:
    """Return the L{clientIdentity} of a client with an address."""
    if type(address) is IPv4Address and not address.host.strip(IPV4_CHARACTERS):
        return address.host  # What clientIdentity returns, in a tenth of the time.
    return clientIdentity(transportAndType(address)[0], hostAndPort(address)[0])


def clientIdentity(transport: str | None, address: str | None) -> str:
    """
    Return the client that the C{network.transport} and the C{client.address} of a record name.

    That is an IPv4 address, the /64 network of an IPv6 address, or C{unix:} or C{pipe:} and the
    name of the socket, if any. An IPv6 address is a client of its own where its /64 is not one
    network: link-local (RFC 4291, 2.5.6; with the interface), loopback, or NAT64 (RFC 6052, 2.1).

    @param transport: the transport that a connection or a summary names.
    @param address: the address that it names; for IPv6, a summary names a network, such as
        C{2001:db8::/64}.

    @return: C{""} where the record names no client.
    """
    address = address or ""
    if transport in ("unix", "pipe"):
        return f"{transport}:{address}"
    return _ipv6Identity(address) if ":" in address else address


@lru_cache(maxsize=1000)
def _ipv6Identity(address: str) -> str:
    """Return the identity of an IPv6 client."""
    try:
        packed = inet_pton(AF_INET6, address.partition("%")[0])
    except OSError:  # A summary's network, or what Twisted's own haproxy: takes for an address.
        return address
    prefix = packed[:8]
    linkLocal = packed[0] == 0xFE and packed[1] & 0xC0 == 0x80
    if linkLocal or prefix == bytes(8) or packed[:12] == _NAT64_PREFIX:
        return address
    return f"{inet_ntop(AF_INET6, prefix + bytes(8))}/64"


def printable(text: str) -> str:
    """Escape backslashes and non-printable characters, so that peers cannot forge log lines."""
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(c if c.isprintable() and c != "\\" else _escaped(c) for c in text)


def asciiText(text: str) -> str:
    """Escape all but printable ASCII: no encoding drops it, and no terminal hides or moves it."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if " " <= c <= "~" else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    """Return the escape sequence of a character, as Python writes it."""
    return character.encode("unicode_escape").decode("ascii")
