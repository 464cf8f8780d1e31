"""Hands accepted connections over to the reactor."""

from __future__ import annotations

import errno
import socket
from contextlib import suppress
from typing import Any
from weakref import WeakSet

from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IAddress
from twisted.python.failure import Failure

from hello_listen._addresses import socketAddress
from hello_listen._transport import EndedTransport

NO_DESCRIPTOR = errno.EMFILE, errno.ENFILE
"""The errors of a process, and of a system, that has no descriptor left."""


class Adopter:
    """
    Has the reactor connect protocols to the connections that a port has accepted.

    The reactor duplicates a connection's descriptor. L{reserve} makes sure, before a connection is
    accepted, that there is a descriptor for that, too.

    @ivar isUsed: whether to reserve a descriptor: a connection was handed over, or the first one is
        likely to be.
    @ivar transports: the reactor's transports, if they are tracked.
    """

    def __init__(self, listener: socket.socket, reactor: Any, isUsed: bool, tracks: bool) -> None:
        """
        Hand over no connection yet.

        @param listener: the listening socket.
        @param reactor: an L{twisted.internet.interfaces.IReactorSocket}.
        @param isUsed: whether the first connection is likely to be handed over.
        @param tracks: whether to track transports.
        """
        self.isUsed = isUsed
        self.transports: WeakSet[Any] = WeakSet()
        self._listener = listener
        self._reactor = reactor
        self._tracks = tracks
        self._spare: socket.socket | None = None
        self._protocol: Any = None

    def reserve(self) -> None:
        """
        Hold a spare descriptor.

        @raise OSError: there is none.
        """
        if self._spare is None:
            self._spare = self._listener.dup()

    def release(self) -> None:
        """Close the spare descriptor."""
        if self._spare is not None:
            self._spare.close()
            self._spare = None

    def adopt(self, protocol: Any, connection: socket.socket, peer: IAddress) -> None:
        """
        Have the reactor connect a protocol, or do so here if the client has reset the connection.

        @param protocol: the protocol.
        @param connection: the accepted socket, which the caller closes.
        @param peer: the client's address.

        @raise OSError: no descriptor is left.
        """
        connection.setblocking(False)
        try:
            connection.getpeername()
        except OSError:  # The reactor would refuse a connection without a peer.
            _serveReset(protocol, connection, peer)
            return
        self.isUsed = True
        self.release()
        self._protocol = protocol
        try:
            transport = self._reactor.adoptStreamConnection(
                connection.fileno(), self._listener.family, self
            )
        except OSError as error:
            if self._protocol is None or error.errno in NO_DESCRIPTOR:
                raise
            _serveReset(protocol, connection, peer)  # The client reset it after getpeername.
        else:
            if self._tracks:
                self.transports.add(transport)

    def buildProtocol(self, address: IAddress) -> Any:
        """
        Return the protocol for the connection that the reactor adopts, as a factory does.

        @param address: the client's address.
        """
        protocol, self._protocol = self._protocol, None
        return protocol


def _serveReset(protocol: Any, connection: socket.socket, peer: IAddress) -> None:
    """Connect a protocol to a connection that the client has reset, and deliver its data."""
    protocol.makeConnection(EndedTransport(peer, socketAddress(connection.getsockname())))
    data = b""
    with suppress(OSError):
        data = connection.recv(65536)
    try:
        if data:
            protocol.dataReceived(data)
    finally:
        protocol.connectionLost(Failure(ConnectionLost()))
