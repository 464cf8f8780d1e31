"""The transports of accepted connections: without the reactor, reset, and behind a PROXY header."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from io import BytesIO
from socket import MSG_DONTWAIT, socket
from typing import Any, ClassVar, cast

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


class _Addresses:
    """A part of each transport here: the addresses of both ends, which its C{__init__} sets."""

    _peer: IAddress
    _host: IAddress

    def getPeer(self) -> IAddress:
        """Return the address of the client."""
        return self._peer

    def getHost(self) -> IAddress:
        """Return the address that the client reached."""
        return self._host


@implementer(ITransport)
class InPlaceTransport(_Addresses):
    """
    The transport of an accepted connection that its protocol is expected to close at once.

    It knows both addresses, and sends data that fits into the socket's buffer. It hands the
    connection over to the reactor if data does not fit, if the protocol uses any other attribute of
    a transport, or if the protocol does not close the connection.

    @ivar disconnecting: whether the protocol has closed the connection.
    @ivar protocol: the protocol, until the connection has ended.
    """

    details: ClassVar[None] = None
    disconnecting = False
    _adopted: Any = None

    def __init__(
        self,
        protocol: Protocol,
        connection: socket,
        peer: IAddress,
        host: IAddress,
        adopt: Callable[[Protocol, socket, IAddress], object],
    ) -> None:
        """
        Make a transport for a connection. The caller closes its socket.

        @param protocol: the protocol that the caller connects to this transport.
        @param connection: the accepted socket.
        @param peer: the address of the client.
        @param host: the address that the client reached.
        @param adopt: hands the connection to the reactor, which connects a given protocol to it:
            one that relays to C{protocol}.
        """
        self.protocol: Protocol | None = protocol
        self._connection = connection
        self._peer = peer
        self._host = host
        self._adopt = adopt

    def write(self, data: bytes) -> None:
        """
        Send data.

        @param data: the bytes. The reactor sends those that do not fit into the socket's buffer.
        """
        sent = 0
        if self._adopted is None:
            if self.disconnecting:
                return
            try:
                sent = self._connection.send(data, MSG_DONTWAIT)
            except BlockingIOError:
                pass
            except OSError:  # The client has reset; connectionLost tells the protocol.
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
        """Close the connection once all data is sent."""
        if self._adopted is None:
            self.disconnecting = True
        else:
            self._adopted.loseConnection()

    def handOver(self) -> Any:
        """
        Hand the connection over to the reactor, unless that was done.

        @return: the reactor's transport.
        """
        if self._adopted is None:
            relay = _Relay(cast(Protocol, self.protocol))
            self._adopt(relay, self._connection, self._peer)
            self._adopted = relay.transport
        return self._adopted


def _property(name: str) -> property:
    """Return a property that hands the connection over, and reads the adopted transport."""
    return property(lambda transport: getattr(transport.handOver(), name))


# In a class with __getattr__, Python looks up every attribute in a slower way.
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
    """Relays data and the end of the connection to a protocol that was connected before."""

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol

    def dataReceived(self, data: bytes) -> None:
        self._protocol.dataReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._protocol.connectionLost(reason)


class EndedTransport(_Addresses, FileWrapper):
    """The transport of a connection that the client has reset, though its data can be read."""

    abortConnection = FileWrapper.loseConnection

    def __init__(self, peer: IAddress, host: IAddress) -> None:
        """Make a transport with both addresses."""
        super().__init__(BytesIO())
        self._peer = peer
        self._host = host


@implementer(ITransport)
class ProxiedTransport(_Addresses):
    """
    The transport behind a PROXY header: its addresses are those that the header names.

    @ivar details: further arguments of L{HelloFactory.established}.
    """

    def __init__(
        self, transport: ITransport, peer: IAddress, host: IAddress, details: dict[str, Any]
    ) -> None:
        """
        Wrap a transport.

        @param transport: the transport of the connection to the proxy.
        @param peer: the client that the header names.
        @param host: the address that the client reached.
        @param details: further arguments of L{HelloFactory.established}.
        """
        self._transport: Any = transport
        self._peer = peer
        self._host = host
        self.details = details
        self._hasWritten = False

    def write(self, data: bytes) -> None:
        """
        Send data.

        @param data: the bytes to send.
        """
        self._hasWritten = True
        self._transport.write(data)

    def writeSequence(self, data: Iterable[bytes]) -> None:
        """
        Send data.

        @param data: its pieces.
        """
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        """Close the connection once all data is sent."""
        if self._hasWritten:
            self._transport.loseConnection()
        else:
            hangUp(self._transport)

    def __getattr__(self, name: str) -> Any:
        """Return any other attribute of the wrapped transport."""
        return getattr(self._transport, name)


def hangUp(transport: Any, abort: bool = False) -> None:
    """
    Close a connection to which nothing was sent.

    @param transport: its transport.
    @param abort: whether to free its descriptor at once.
    """
    # TLS would wait for the peer's close_notify; the transport of stdio: cannot abort.
    if abort or ISSLTransport.providedBy(transport):
        getattr(transport, "abortConnection", transport.loseConnection)()
    else:
        transport.loseConnection()
