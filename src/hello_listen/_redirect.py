"""The address that a client called before a rule of the kernel's firewall redirected it."""

from __future__ import annotations

import socket
import struct
import sys
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory

from hello_listen._addresses import socketAddress, unmapped

SO_ORIGINAL_DST = 80
"""From linux/netfilter_ipv4.h; IP6T_SO_ORIGINAL_DST is the same number."""


def checkRedirected(description: str) -> None:
    """
    Check that connections to an endpoint can be redirected ones.

    @param description: the endpoint's description, without C{redirected:}.

    @raise ValueError: they cannot.
    """
    kind = description.partition(":")[0].lower()
    if kind == "haproxy":
        raise ValueError("redirected: is not needed, the PROXY header names the address")
    if kind not in ("tcp", "tcp6", "systemd"):
        raise ValueError(f"redirected: is for tcp:, tcp6: and systemd:, not {kind!r}")
    if sys.platform != "linux":
        raise ValueError("redirected: needs Linux")


def originalAddress(connection: socket.socket) -> IAddress:
    """
    Return the address that a client called: before REDIRECT or DNAT, as the kernel tracks it.

    @param connection: the accepted socket. If the kernel does not track it, the socket's own
        address is returned.
    """
    own = socketAddress(connection.getsockname())
    try:
        if isinstance(unmapped(own), IPv4Address):
            # A sockaddr_in: family, port, address, padding.
            found = connection.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, 16)
            port, packed = struct.unpack("!2xH4s8x", found)
            return socketAddress((socket.inet_ntop(socket.AF_INET, packed), port))
        # A sockaddr_in6: family, port, flow, address, scope in the machine's byte order.
        found = connection.getsockopt(socket.IPPROTO_IPV6, SO_ORIGINAL_DST, 28)
        port, packed = struct.unpack("!2xH4x16s4x", found)
        [scope] = struct.unpack("=24xI", found)
        return socketAddress((socket.inet_ntop(socket.AF_INET6, packed), port, 0, scope))
    except OSError:
        return own


_wrapping: WrappingFactory[Any] = WrappingFactory(Factory())


class RedirectedProtocol(ProtocolWrapper):
    """Stands between the reactor and a protocol, whose transport then has the original address."""

    def __init__(self, protocol: Any, host: IAddress) -> None:
        """
        Wrap a protocol that is not connected yet.

        @param protocol: the protocol.
        @param host: the address that the client called.
        """
        super().__init__(_wrapping, protocol)
        self._host = host

    def getHost(self) -> IAddress:
        """Return the address that the client called."""
        return self._host
