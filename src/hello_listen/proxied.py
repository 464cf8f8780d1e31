"""Behind a proxy: no connection is reported before its PROXY header has named the client."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress, ISSLTransport, ITransport
from twisted.internet.protocol import Protocol, ServerFactory
from twisted.internet.stdio import PipeAddress
from twisted.python.failure import Failure

from hello_listen.connection import NO_EXTENSIONS, Extensions
from hello_listen.networks import Networks
from hello_listen.protocol import HelloFactory
from hello_listen.proxy_header import HeaderError, parse

TIMEOUT = 5.0
"""Seconds that a client or proxy has for its whole header."""


class ProxiedProtocol(Protocol):
    """Read the PROXY header, report who it names, and drop the connection."""

    factory: ProxiedFactory
    transport: ITransport

    def connectionMade(self) -> None:
        """Wait for the header, for L{TIMEOUT} seconds."""
        # They cannot be asked for once the connection is lost.
        self._ends = self.transport.getPeer(), self.transport.getHost()
        self._data = b""
        self.factory.hello.waiting[self] = self.factory.reactor.callLater(
            TIMEOUT, self.fail, "timeout"
        )

    def dataReceived(self, data: bytes) -> None:
        """Report the connection once the header is complete or invalid."""
        if self not in self.factory.hello.waiting:
            return
        self._data += data
        try:
            header = parse(self._data)
        except HeaderError as error:
            self.fail(str(error))
        else:
            if header is not None:
                peer, host = self._ends
                named = header.client or peer, header.server or host
                self._report(named, peer, extensions=header.extensions)

    def connectionLost(self, reason: Failure | None = None) -> None:
        """Report a client that hung up before its header was whole."""
        self.fail("incomplete")

    def fail(self, why: str) -> None:
        """
        Report the connection with the socket's own addresses, unless it was reported already.

        @param why: what was wrong with the header, for C{error.type}.
        """
        if self in self.factory.hello.waiting:
            self._report(self._ends, error=f"proxy_header_{why}")

    def _report(
        self,
        ends: tuple[IAddress, IAddress],
        proxy: IAddress | None = None,
        error: str | None = None,
        extensions: Extensions = NO_EXTENSIONS,
    ) -> None:
        """Report the connection, and hang up."""
        limit = self.factory.hello.waiting.pop(self)
        if limit.active():
            limit.cancel()
        silent, self._data = not self._data, b""
        try:
            self.factory.hello.established(*ends, proxy, error, extensions, silent)
        finally:
            transport: Any = self.transport
            # TLS would wait for the peer to agree that the connection is closed, and a
            # descriptor that is to make room is wanted at once; stdio: has no way to do so.
            if ISSLTransport.providedBy(transport) or error == "proxy_header_evicted":
                getattr(transport, "abortConnection", transport.loseConnection)()
            else:
                transport.loseConnection()


class UntrustedProtocol(Protocol):
    """Report a peer whose PROXY header would not be believed, and drop the connection."""

    factory: ProxiedFactory
    transport: ITransport

    def connectionMade(self) -> None:
        """Report the socket's own addresses, and hang up even if that fails."""
        peer, host = self.transport.getPeer(), self.transport.getHost()
        try:
            self.factory.hello.established(peer, host, error="proxy_not_trusted", silent=True)
        finally:
            self.transport.loseConnection()


class ProxiedFactory(ServerFactory):
    """
    Stands between an endpoint and a L{HelloFactory}.

    @ivar hello: what is told of each connection.
    @ivar reactor: what keeps the time.
    """

    protocol = ProxiedProtocol  # type: ignore[assignment]
    noisy = False

    def __init__(self, hello: HelloFactory, reactor: Any, trusted: Networks | None = None) -> None:
        """
        Read headers for a factory.

        @param hello: what is told of each connection.
        @param reactor: what keeps the time.
        @param trusted: the proxies whose header is believed; by default everybody's is.
        """
        self.hello = hello
        self.reactor = reactor
        # ipaddress takes 2 µs for each look.
        self._isTrusted = lru_cache(maxsize=1000)(trusted.__contains__) if trusted else None

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """
        Return what reads the header, or what refuses to.

        @param addr: the peer's address.
        """
        # Who may connect to a UNIX socket, or to standard input, is decided elsewhere.
        if self._isTrusted is None or isinstance(addr, (UNIXAddress, PipeAddress)):
            return super().buildProtocol(addr)
        if isinstance(addr, (IPv4Address, IPv6Address)) and self._isTrusted(addr.host):
            return super().buildProtocol(addr)
        protocol = UntrustedProtocol()
        protocol.factory = self
        return protocol

    def startFactory(self) -> None:
        """Start the factory behind."""
        self.hello.doStart()

    def stopFactory(self) -> None:
        """Report those whose header was on its way when the port stopped."""
        for protocol in [p for p in self.hello.waiting if p.factory is self]:
            protocol.fail("stopped")
        self.hello.doStop()
