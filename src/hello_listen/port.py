"""What Twisted's ports do not do by themselves: hang up in place, and drain before they close."""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
import sys
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import Any

from twisted.internet import tcp
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress, ITransport
from twisted.internet.task import deferLater
from zope.interface import implementer

from hello_listen.connection import unmapped
from hello_listen.protocol import HelloFactory, HelloProtocol

AT_ONCE = 20
"""How many are accepted in one turn of the reactor at the end, as each may take a descriptor."""

MOST_TURNS = 10_000
"""After so many turns, a port closes whoever is still coming."""


@implementer(ITransport)
class InPlaceTransport:
    """
    The transport of a connection that ends before the reactor learns of it.

    L{tcp.Port} calls its C{transport} in the place of L{tcp.Server}. That no connection is ever
    registered with the reactor, and each is closed inside C{loseConnection}, saves three system
    calls and a turn of the reactor, and needs one descriptor at a time.
    """

    def __init__(
        self,
        host: IAddress | None,
        connection: socket.socket,
        protocol: object,
        client: tuple[Any, ...],
        *_: object,
    ) -> None:
        """
        Hold an accepted connection.

        @param host: the address of the server; L{None} if the connection is to be asked for it.
        @param connection: what was accepted.
        @param protocol: what the connection is made for.
        @param client: the address of the client, as L{socket.socket.accept} returns it.
        """
        self._host = host
        self._connection = connection
        self._client = client

    def getPeer(self) -> IAddress:
        """Return the address of the client."""
        return _tcpAddress(self._client)

    def getHost(self) -> IAddress:
        """Return the address that the client reached."""
        return self._host or _tcpAddress(self._connection.getsockname())

    def loseConnection(self) -> None:
        """Close the connection at once, with a clean end unless the client has sent something."""
        self._connection.close()

    def write(self, data: bytes) -> None:
        """Send nothing: nobody here does."""

    def writeSequence(self, data: Iterable[bytes]) -> None:
        """Send nothing: nobody here does."""


def _tcpAddress(name: tuple[Any, ...]) -> IAddress:
    """Return a socket's name as an address, with an IPv6 scope in the host as Twisted has it."""
    if len(name) == 2:
        return IPv4Address("TCP", *name)
    host, _ = socket.getnameinfo(name, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)
    return IPv6Address("TCP", host, *name[1:])


def hangUpInPlace(port: object) -> object:
    """Return a port that closes its connections in place, if all they meet is L{HelloProtocol}."""
    if type(port) is not tcp.Port or type(port.factory) is not HelloFactory:
        return port
    if port.factory.protocol is HelloProtocol:
        host = port.getHost()
        anywhere = unmapped(host).host in ("0.0.0.0", "::")  # type: ignore[attr-defined]  # noqa: S104
        port.transport = partial(InPlaceTransport, None if anywhere else host)  # type: ignore[assignment]
        port.socket = _plain(port.socket)
        port.fileno = port.socket.fileno  # type: ignore[method-assign]
    return port


def _plain(listener: socket.socket) -> socket.socket:
    """
    Return a listening socket that has looked up its enumerations.

    L{socket.socket.accept} makes members of enumerations of two numbers each time: 2 of 23 µs.
    """
    known = {"family": listener.family, "type": listener.type, "proto": listener.proto}
    plain: socket.socket = type("PlainSocket", (socket.socket,), known)(fileno=listener.detach())
    plain.setblocking(False)
    return plain


async def drain(port: object) -> None:
    """
    Let nobody in any more, and serve those who are in already.

    Closing a socket resets what waits in its accept queue, unrecorded: measured, up to 354 clients.
    """
    if not isinstance(port, tcp.Port):
        return
    port.stopReading()
    reactor: Any = port.reactor
    accept = _acceptTCP
    if port.addressFamily == getattr(socket, "AF_UNIX", None):
        accept = _acceptUNIX
        port.socket.shutdown(socket.SHUT_RD)
    else:
        _refuseNew(port.socket)
    # A handshake that is half done, and a PROXY header that is there, have one turn more.
    turns = 2
    for _ in range(MOST_TURNS):
        turns = 2 if accept(port) else turns - 1
        await deferLater(reactor, 0)
        if not turns:
            break


def _acceptTCP(port: Any) -> bool:
    """Serve some of the accept queue, and say if there may be more."""
    port.numberAccepts = AT_ONCE
    port.doRead()
    return bool(port.numberAccepts > AT_ONCE)


def _acceptUNIX(port: Any) -> bool:
    """Do for a UNIX socket what L{tcp.Port.doRead} does, but know the end of one that was shut."""
    for number in range(AT_ONCE):
        try:
            connection, name = port.socket.accept()
        except OSError as error:
            return number > 0 or error.errno in (errno.EMFILE, errno.ENFILE)
        protocol = port.factory.buildProtocol(UNIXAddress(name))
        protocol.makeConnection(port.transport(connection, protocol, name, port, 0, port.reactor))
    return True


def _refuseNew(listener: socket.socket) -> None:
    """Take no new connections, where the system can be told so; else, take few."""
    # A queue that is shrunk lets in one more for each that is accepted, and leaves clients whose
    # last packet it drops waiting for ever; a filter for SYN lets in nobody, and loses nobody.
    # Classic BPF, Linux's socket(7): drop = flags & SYN.
    drop = struct.pack("HBBI" * 4, 0x30, 0, 0, 13, 0x45, 0, 1, 2, 6, 0, 0, 0, 6, 0, 0, 0xFFFFFFFF)
    program = ctypes.create_string_buffer(drop)
    if sys.platform == "linux":
        attach = struct.pack("HP", 4, ctypes.addressof(program))
        with suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, 26, attach)  # SO_ATTACH_FILTER
            return
    listener.listen(0)
