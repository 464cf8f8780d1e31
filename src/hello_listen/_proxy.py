"""Waits for PROXY headers, reports the client that each names, and holds those that wait."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, lru_cache
from itertools import islice, takewhile
from time import time
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, ITransport
from twisted.internet.protocol import Protocol, ServerFactory, connectionDone
from twisted.internet.stdio import PipeAddress
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from hello_listen._clock import monotonicClock
from hello_listen._networks import Networks
from hello_listen._proxy_header import Header, HeaderError, parse
from hello_listen._transport import ProxiedTransport, hangUp
from hello_listen.protocol import HelloFactory, establish

TIMEOUT = 5.0
"""Seconds that a client or proxy has for its whole header."""

GRACE = 0.3
"""Seconds for headers on their way after the process stood still for longer than that."""

EVICTION_AGE = 0.6
"""Seconds that a connection has for its header before it may be evicted."""

SHORTAGE_EVICTION_AGE = 0.25
"""The same once descriptors have been short for L{EVICTION_AGE}."""

RETRY = 0.005
"""Seconds between attempts to find a connection that may be evicted."""

_log = Logger(namespace="hello_listen")


class ProxiedProtocol(Protocol):
    """Reads the PROXY header, then connects the factory's own protocol to the client it names."""

    factory: ProxiedFactory
    transport: ITransport

    def connectionMade(self) -> None:
        """Wait for the header."""
        # They cannot be asked for once the connection is lost.
        self._ends = self.transport.getPeer(), self.transport.getHost()
        self._accepted = time()
        self._data = b""
        self._protocol: Any = None
        self.factory.pending.add(self)

    def dataReceived(self, data: bytes) -> None:
        """Connect the factory's own protocol once the header is whole; then pass data on."""
        if self._protocol is not None:
            self._protocol.dataReceived(data)
        elif self in self.factory.pending:
            self._data += data
            try:
                header = parse(self._data)
            except HeaderError as error:
                self.fail(str(error))
            else:
                if header is not None:
                    self._connect(header)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Report a client that hung up before its header was whole."""
        if self._protocol is not None:
            self._protocol.connectionLost(reason)
        self.fail("incomplete")

    def fail(self, why: str) -> None:
        """
        Report the connection with the socket's own addresses, unless it was reported already.

        @param why: what was wrong with the header, for C{error.type}.
        """
        if self in self.factory.pending:
            self._report(f"proxy_header_{why}")

    def _connect(self, header: Header) -> None:
        """Connect a protocol to the client that a header names."""
        self.factory.pending.remove(self)
        hello, (peer, host) = self.factory.hello, self._ends
        client, server = header.client or peer, header.server or host
        facts = {"proxy": peer, "extensions": header.extensions, "accepted": self._accepted}
        rest, self._data = self._data[header.size :], b""
        known = hello.connections
        try:
            self._protocol = hello.buildProtocol(client)
            if self._protocol is None:
                hangUp(self.transport)
                return
            transport = ProxiedTransport(self.transport, client, server, facts)
            self._protocol.makeConnection(transport)
            if rest:
                self._protocol.dataReceived(rest)
        except BaseException:
            _log.failure("Connection could not be served")
            if hello.connections == known:
                establish(hello, client, server, error="failed", **facts)
            hangUp(self.transport, abort=True)

    def _report(self, error: str) -> None:
        """Report the connection as the proxy's, and hang up."""
        self.factory.pending.remove(self)
        silent, self._data = not self._data, b""
        try:
            establish(
                self.factory.hello, *self._ends, error=error, silent=silent, accepted=self._accepted
            )
        finally:
            # Eviction must free the descriptor now.
            hangUp(self.transport, abort=error == "proxy_header_evicted")


class UntrustedProtocol(Protocol):
    """Report a peer whose PROXY header would not be believed, and drop the connection."""

    factory: ProxiedFactory
    transport: ITransport

    def connectionMade(self) -> None:
        """Report the socket's own addresses, and hang up even if that fails."""
        ends = self.transport.getPeer(), self.transport.getHost()
        try:
            establish(self.factory.hello, *ends, error="proxy_not_trusted", silent=True)
        finally:
            hangUp(self.transport)


class PendingHeaders:
    """
    The connections whose PROXY header is not whole, oldest first.

    Whichever ports they came to, their descriptors are the process's: when those run out, the
    oldest connections make room.
    """

    def __init__(self, clock: Any) -> None:
        """
        Wait for nobody yet.

        @param clock: an L{IReactorTime}, whose calls come after the reactor has read.
        """
        self._clock = clock
        # When each was added.
        self._since: dict[ProxiedProtocol, float] = {}
        self._watched = False

    def __contains__(self, protocol: ProxiedProtocol) -> bool:
        """Return whether a connection's header is not whole."""
        return protocol in self._since

    def __len__(self) -> int:
        """Return how many connections there are."""
        return len(self._since)

    def __iter__(self) -> Iterator[ProxiedProtocol]:
        """Iterate over the connections."""
        return iter(self._since)

    def add(self, protocol: ProxiedProtocol) -> None:
        """
        Give a connection L{TIMEOUT} seconds for its header.

        @param protocol: the connection's.
        """
        self._since[protocol] = self._clock.seconds()
        protocol.factory.waiting += 1
        if not self._watched:
            self._watched = True
            Deferred.fromCoroutine(self._watch()).addErrback(
                lambda failure: _log.failure("PROXY header not timed out", failure)
            )

    def remove(self, protocol: ProxiedProtocol) -> None:
        """
        Forget a connection, whose header is whole or no longer waited for.

        @param protocol: the connection's.
        """
        del self._since[protocol]
        protocol.factory.waiting -= 1

    async def makeRoom(self, most: int, lasts: float) -> int:
        """
        Wait until descriptors may be free: evict the oldest, if they had the time to send.

        @param most: the largest number to evict.
        @param lasts: for how many seconds descriptors have been short.

        @return: how many were evicted.
        """
        before = len(self)
        await deferLater(self._clock, 0)  # Headers that have arrived free descriptors as well.
        age = EVICTION_AGE if lasts < EVICTION_AGE else SHORTAGE_EVICTION_AGE
        evicted = self._fail(age, "evicted", most) if len(self) >= before else 0
        await deferLater(self._clock, RETRY if len(self) >= before else 0)
        return evicted

    async def _watch(self) -> None:
        """Enforce the time limit, which is the same for all: one timer for the oldest will do."""
        try:
            while self._since:
                due = next(iter(self._since.values())) + TIMEOUT
                await deferLater(self._clock, due - self._clock.seconds())
                if self._clock.seconds() > due + GRACE:
                    # The process stood still: what was sent meanwhile may be in a TLS handshake.
                    await deferLater(self._clock, GRACE)
                self._fail(TIMEOUT, "timeout", len(self))
        finally:
            self._watched = False

    def _fail(self, age: float, why: str, most: int) -> int:
        """Fail the oldest that were added so many seconds ago, and return how many they are."""
        latest = self._clock.seconds() - age
        oldest = takewhile(lambda each: each[1] <= latest, islice(self._since.items(), most))
        failing = [protocol for protocol, _ in oldest]
        for protocol in failing:
            protocol.fail(why)
        return len(failing)


@cache
def pendingHeaders(reactor: Any) -> PendingHeaders:
    """Return the connections of all ports of a reactor whose header is not whole."""
    return PendingHeaders(monotonicClock(reactor))


class ProxiedFactory(ServerFactory):
    """
    Stands between a port and a L{HelloFactory}.

    @ivar hello: what is told of each connection.
    @ivar pending: the connections whose header is not whole, also those of other ports.
    @ivar waiting: how many of them are this port's.
    """

    protocol = ProxiedProtocol  # type: ignore[assignment]
    noisy = False

    def __init__(
        self, hello: HelloFactory, pending: PendingHeaders, trusted: Networks | None = None
    ) -> None:
        """
        Read headers for a factory.

        @param hello: what is told of each connection.
        @param pending: holds the connections whose header is not whole.
        @param trusted: the proxies whose header is believed; by default everybody's is.
        """
        self.hello = hello
        self.pending = pending
        self.waiting = 0
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

    def logPrefix(self) -> str:
        """Return what Twisted's log calls the factory behind."""
        return self.hello.logPrefix()

    def startFactory(self) -> None:
        """Start the factory behind."""
        self.hello.doStart()

    def stopFactory(self) -> None:
        """Report those whose header was on its way when the port stopped."""
        for protocol in [p for p in self.pending if p.factory is self]:
            protocol.fail("stopped")
        self.hello.doStop()
