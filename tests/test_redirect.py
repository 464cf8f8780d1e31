"""The address that a client called before a firewall redirected it."""

from __future__ import annotations

import re
import select
import socket
import sys
from typing import Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress
from twisted.internet.testing import MemoryReactorClock

from hello_listen import Connection, HelloEndpoint, HelloFactory, HelloProtocol
from hello_listen._redirect import originalAddress
from reactors import TIMEOUT
from turns import reactor, until

V4 = bytes.fromhex("0200 0016 c0000201 0000000000000000")
"""A sockaddr_in: 192.0.2.1, port 22."""

V6 = bytes.fromhex("0a00 ffff 00000000 20010db8000000000000000000000001 00000000")
"""A sockaddr_in6: 2001:db8::1, port 65535."""

OWN = ("10.0.0.2", 7878)
OWN6 = ("2001:db8::2", 7878, 0, 0)


class Redirected:
    """A socket, as the system shows it, that is tracked for IPv4, for IPv6, or not."""

    def __init__(self, own: Any, v4: bytes = b"", v6: bytes = b"") -> None:
        """Make a socket with its own address, and what the system tracks."""
        self._own = own
        self._tracked: dict[tuple[int, ...], bytes] = {(0, 80, 16): v4, (41, 80, 28): v6}

    def getsockname(self) -> Any:
        """Return the socket's own address."""
        return self._own

    def getsockopt(self, *arguments: int) -> bytes:
        """Return the original address, or fail as the system does."""
        if not self._tracked[arguments]:
            raise FileNotFoundError
        return self._tracked[arguments]


@pytest.mark.parametrize(
    ("connection", "address"),
    [
        (Redirected(OWN, V4), IPv4Address("TCP", "192.0.2.1", 22)),
        (Redirected(OWN, b"", V6), IPv4Address("TCP", *OWN)),
        (Redirected(OWN6, b"", V6), IPv6Address("TCP", "2001:db8::1", 65535)),
        (Redirected(OWN6, V4), IPv6Address("TCP", *OWN6)),
        (Redirected(("::ffff:10.0.0.2", 7878, 0, 0), V4), IPv4Address("TCP", "192.0.2.1", 22)),
        (Redirected("/run/hello"), UNIXAddress("/run/hello")),
    ],
)
def test_original_address(connection: Any, address: IAddress) -> None:
    """It is what the system tracks for the socket's address family, else the socket's own."""
    assert originalAddress(connection) == address


class Greeting(HelloProtocol):
    """A protocol that the reactor serves."""

    def connectionMade(self) -> None:
        """Greet the client."""
        self.transport.write(b"Hello\r\n")
        super().connectionMade()


class Greeter(HelloFactory):
    """A factory of such protocols."""

    protocol = Greeting


class Failing(HelloFactory):
    """A factory that builds no protocol."""

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """Fail."""
        raise RuntimeError("no protocol")


@pytest.mark.parametrize(
    ("make", "data", "error"),
    [(HelloFactory, b"", None), (Greeter, b"Hello\r\n", None), (Failing, b"", "failed")],
)
def test_not_redirected(make: type[HelloFactory], data: bytes, error: str | None) -> None:
    """Any factory serves clients; one that was not redirected has called the socket's address."""
    seen: list[Connection] = []
    ports: list[Any] = []
    endpoint = HelloEndpoint(reactor, "Redirected:tcp:0:interface=127.0.0.1")
    endpoint.listen(make(seen.append)).addCallback(ports.append)
    [port] = ports
    client = socket.create_connection(("127.0.0.1", port.getHost().port), timeout=TIMEOUT)
    until(lambda: select.select([client], [], [], 0)[0])
    with client:
        assert client.recv(100) == data
    [connection] = seen
    assert (connection.server, connection.error) == (port.getHost(), error)
    stopped = port.stopListening()
    until(lambda: stopped.called)


@pytest.mark.parametrize(
    ("description", "reason"),
    [
        ("redirected", "redirected: is for tcp:, tcp6: and systemd:, not ''"),
        ("redirected:unix:a", "redirected: is for tcp:, tcp6: and systemd:, not 'unix'"),
        ("redirected:stdio:", "redirected: is for tcp:, tcp6: and systemd:, not 'stdio'"),
        ("redirected:tls:a:1", "redirected: is for tcp:, tcp6: and systemd:, not 'tls'"),
        ("redirected:redirected:tcp:1", "redirected: is for tcp:, tcp6: and systemd:, not 'redir"),
        ("redirected:haproxy:tcp:1", "redirected: is not needed, the PROXY header names the add"),
        ("haproxy:redirected:tcp:1", "redirected: is not needed, the PROXY header names the add"),
        ("redirected:tcp", "missing: 'port'"),
        ("redirected:tcp:x", "not a number: 'x'"),
        ("redirected:7878", "redirected: is for tcp:, tcp6: and systemd:, not '7878'; did you mea"),
        ("redirected:systemd:INET:index=0", "no such socket was inherited"),
    ],
)
def test_descriptions(description: str, reason: str) -> None:
    """The message quotes the endpoint, and says why it cannot be redirected."""
    with pytest.raises(ValueError, match=re.escape(f"{description!r}: {reason}")):
        HelloEndpoint(MemoryReactorClock(), description)


def test_other_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only Linux tells the original address."""
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ValueError, match=re.escape("'redirected:tcp:1': redirected: needs Linux")):
        HelloEndpoint(MemoryReactorClock(), "redirected:tcp:1")
