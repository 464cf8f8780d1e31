"""The transports that protocols get: in place, without the reactor, and behind a PROXY header."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from io import BytesIO
from socket import MSG_DONTWAIT, if_indextoname, socket
from typing import Any, ClassVar, cast

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import (
    IAddress,
    IConsumer,
    IPushProducer,
    ISSLTransport,
    ITCPTransport,
    ITransport,
)
from twisted.internet.protocol import FileWrapper, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer


def socketAddress(name: Any) -> IAddress:
    """
    Return the address of a TCP or UNIX socket.

    @param name: the address in the form of L{socket.socket.getsockname}. The scope of an IPv6
        address becomes a part of the host, as in Twisted's own addresses.
    """
    if not isinstance(name, tuple):
        return UNIXAddress(name or None)
    if len(name) == 2:
        return IPv4Address("TCP", *name)
    host, port, flow, scope = name
    if scope:
        with suppress(OSError):
            host = f"{host}%{if_indextoname(scope)}"
    return IPv6Address("TCP", host, port, flow, scope)


@implementer(ITransport)
class InPlaceTransport:
    """
    The transport of an accepted connection that is expected to end at once.

    It knows both ends, sends what fits into the socket's buffer, and hangs up. The reactor takes
    the connection over where data does not fit, where the protocol asks for anything else that a
    transport has, and where it does not hang up.

    @ivar disconnecting: whether the protocol has hung up.
    @ivar protocol: the protocol, until the connection has ended.
    """

    facts: ClassVar[None] = None
    disconnecting = False
    _reactors: Any = None

    def __init__(
        self,
        protocol: Protocol,
        connection: socket,
        peer: IAddress,
        host: IAddress,
        adopt: Callable[[Protocol, socket, IAddress], object],
    ) -> None:
        """
        Hold a connection, whose socket is the caller's to close.

        @param protocol: the protocol that is going to get this transport.
        @param connection: the accepted socket.
        @param peer: the address of the client.
        @param host: the address that the client reached.
        @param adopt: hands the connection to the reactor, which connects another protocol to it.
        """
        self.protocol: Protocol | None = protocol
        self._connection = connection
        self._peer = peer
        self._host = host
        self._adopt = adopt

    def getPeer(self) -> IAddress:
        """Return the address of the client."""
        return self._peer

    def getHost(self) -> IAddress:
        """Return the address that the client reached."""
        return self._host

    def write(self, data: bytes) -> None:
        """
        Send data.

        @param data: the bytes to send; the reactor sends what does not fit into the buffer.
        """
        sent = 0
        if self._reactors is None:
            if self.disconnecting:
                return
            try:
                sent = self._connection.send(data, MSG_DONTWAIT)
            except BlockingIOError:
                pass
            except OSError:  # The client is gone, which a protocol learns by connectionLost.
                return
        if sent < len(data):
            self.handOver().write(data[sent:])

    def writeSequence(self, data: Iterable[bytes]) -> None:
        """
        Send data.

        @param data: its pieces.
        """
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        """Hang up, once all data is sent."""
        if self._reactors is None:
            self.disconnecting = True
        else:
            self._reactors.loseConnection()

    def handOver(self) -> Any:
        """
        Let the reactor take the connection over, unless it has.

        @return: the reactor's transport.
        """
        if self._reactors is None:
            relay = _Relay(cast(Protocol, self.protocol))
            self._adopt(relay, self._connection, self._peer)
            self._reactors = relay.transport
        return self._reactors


def _property(name: str) -> property:
    """Return an attribute that only the reactor's transport has."""
    return property(lambda transport: getattr(transport.handOver(), name))


# With __getattr__, Python would look up every attribute in a slower way (measured, 0.3 µs in all).
for _each in {
    *ITCPTransport.names(all=True),
    *IPushProducer.names(all=True),
    *IConsumer.names(all=True),
    "getHandle",
    "startTLS",
}:
    if not hasattr(InPlaceTransport, _each):
        setattr(InPlaceTransport, _each, _property(_each))


class _Relay(Protocol):
    """Passes on to a protocol, which is connected already, what the reactor tells of it."""

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol

    def dataReceived(self, data: bytes) -> None:
        self._protocol.dataReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._protocol.connectionLost(reason)


class EndedTransport(FileWrapper):
    """The transport of a connection that has ended, though what it sent can still be read."""

    abortConnection = FileWrapper.loseConnection

    def __init__(self, peer: IAddress, host: IAddress) -> None:
        """Hold the addresses of both ends."""
        super().__init__(BytesIO())
        self._peer = peer
        self._host = host

    def getPeer(self) -> IAddress:
        """Return the address of the client."""
        return self._peer

    def getHost(self) -> IAddress:
        """Return the address that the client reached."""
        return self._host


@implementer(ITransport)
class ProxiedTransport:
    """
    The transport of a connection whose PROXY header was read: its ends are those of the client.

    @ivar facts: what L{HelloFactory.established} is told beside both ends.
    """

    def __init__(
        self, transport: ITransport, peer: IAddress, host: IAddress, facts: dict[str, Any]
    ) -> None:
        """
        Stand before a transport.

        @param transport: the connection to the proxy, which does all else.
        @param peer: the client that the header names.
        @param host: the address that the client reached.
        @param facts: what L{HelloFactory.established} is told beside both ends.
        """
        self._transport: Any = transport
        self._peer = peer
        self._host = host
        self.facts = facts
        self._isSilent = True

    def getPeer(self) -> IAddress:
        """Return the address of the client."""
        return self._peer

    def getHost(self) -> IAddress:
        """Return the address that the client reached."""
        return self._host

    def write(self, data: bytes) -> None:
        """
        Send data.

        @param data: the bytes to send.
        """
        self._isSilent = False
        self._transport.write(data)

    def writeSequence(self, data: Iterable[bytes]) -> None:
        """
        Send data.

        @param data: its pieces.
        """
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        """Hang up, once all data is sent."""
        if self._isSilent:
            hangUp(self._transport)
        else:
            self._transport.loseConnection()

    def __getattr__(self, name: str) -> Any:
        """Return what else the transport has."""
        return getattr(self._transport, name)


def hangUp(transport: Any, abort: bool = False) -> None:
    """
    Close a connection to which nothing was sent.

    @param transport: the connection's.
    @param abort: free its descriptor now.
    """
    # TLS would wait for the peer to agree that the connection is closed; stdio: cannot abort.
    if abort or ISSLTransport.providedBy(transport):
        getattr(transport, "abortConnection", transport.loseConnection)()
    else:
        transport.loseConnection()
