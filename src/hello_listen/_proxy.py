"""Reads PROXY headers, and holds the connections whose header is not whole."""

from __future__ import annotations

from collections.abc import Callable
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
from hello_listen._failures import FailureLog
from hello_listen._networks import Networks
from hello_listen._proxy_header import Header, HeaderError, parse
from hello_listen._transport import ProxiedTransport, hangUp
from hello_listen.protocol import HelloFactory, reportSafely

HEADER_TIMEOUT = 5.0
"""Seconds from its accept that a connection may take to send its whole header."""

STALL_GRACE = 0.3
"""Extra seconds for headers after the process was stopped or blocked for longer than that."""

EVICTION_AGE = 0.6
"""Seconds that a connection has for its header before it may be evicted."""

SHORTAGE_EVICTION_AGE = 0.25
"""The same, in seconds, once descriptors have been short for L{EVICTION_AGE}."""

EVICTION_INTERVAL = 0.005
"""Seconds between two attempts to evict connections."""

_log = Logger(namespace="hello_listen")


class ProxiedProtocol(Protocol):
    """
    Reads the PROXY header, and reports it, or an error, once. It then relays to another protocol.

    @ivar ends: the addresses of the peer and of the socket.
    @ivar accepted: when the connection was made, in seconds since the epoch.
    @ivar isSilent: whether no byte was received before the report.
    """

    transport: ITransport

    def __init__(
        self,
        pending: PendingHeaders,
        port: ProxiedFactory,
        onHeader: Callable[[ProxiedProtocol, Header], object],
        onError: Callable[[ProxiedProtocol, str], object],
    ) -> None:
        """
        Make a protocol for one connection.

        @param pending: holds this protocol until its header is whole.
        @param port: the key by which C{pending} tells ports apart.
        @param onHeader: called with this protocol and its header.
        @param onError: called with this protocol and an C{error.type} instead.
        """
        self._pending = pending
        self._port = port
        self._onHeader = onHeader
        self._onError = onError
        self._data = b""
        self._protocol: Any = None
        self.isSilent = True

    def connectionMade(self) -> None:
        """Wait for the header."""
        # A transport may not know them once the connection is lost.
        self.ends = self.transport.getPeer(), self.transport.getHost()
        self.accepted = time()
        self._pending.add(self, self._port)

    def dataReceived(self, data: bytes) -> None:
        """Parse the header; relay all data that follows it."""
        if self._protocol is not None:
            self._protocol.dataReceived(data)
        elif self in self._pending:
            self._data += data
            self.isSilent = not self._data
            try:
                header = parse(self._data)
            except HeaderError as error:
                self.fail(str(error))
            else:
                if header is not None:
                    self._pending.remove(self)
                    self._data = self._data[header.size :]
                    self._onHeader(self, header)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Relay the end, or report that the header is incomplete."""
        if self._protocol is not None:
            self._protocol.connectionLost(reason)
        self.fail("incomplete")

    def fail(self, why: str) -> None:
        """
        Report an error, unless there was a report already.

        @param why: what is wrong with the header, as the end of C{error.type}.
        """
        if self in self._pending:
            self._pending.remove(self)
            self._data = b""
            self._onError(self, f"proxy_header_{why}")

    def relay(self, protocol: Any, transport: ITransport) -> None:
        """
        Connect another protocol, and relay data and the end of the connection to it.

        @param protocol: the protocol.
        @param transport: the transport that it gets.
        """
        rest, self._data = self._data, b""
        self._protocol = protocol
        protocol.makeConnection(transport)
        if rest:
            protocol.dataReceived(rest)


class UntrustedProtocol(Protocol):
    """Reports a peer that is not a trusted proxy, without reading from it."""

    transport: ITransport
    accepted: float | None = None
    isSilent = True

    def __init__(self, onError: Callable[[UntrustedProtocol, str], object]) -> None:
        """
        Make a protocol for one connection.

        @param onError: called with this protocol and an C{error.type}.
        """
        self._onError = onError

    def connectionMade(self) -> None:
        """Report the peer."""
        self.ends = self.transport.getPeer(), self.transport.getHost()
        self._onError(self, "proxy_not_trusted")


class PendingHeaders:
    """
    The connections of all ports whose PROXY header is not whole, oldest first.

    All ports share the process's descriptors: when those run out, the oldest connections of any
    port are evicted.
    """

    def __init__(self, clock: Any) -> None:
        """
        Hold no connections yet.

        @param clock: an L{twisted.internet.interfaces.IReactorTime} whose calls come after the
            reactor has read.
        """
        self._clock = clock
        # Oldest first: when each was added, and its port.
        self._entries: dict[ProxiedProtocol, tuple[float, ProxiedFactory]] = {}
        self._counts: dict[ProxiedFactory, int] = {}
        self._isWatching = False

    def __contains__(self, protocol: ProxiedProtocol) -> bool:
        """Return whether a connection's header is not whole."""
        return protocol in self._entries

    def __len__(self) -> int:
        """Return the number of connections."""
        return len(self._entries)

    def add(self, protocol: ProxiedProtocol, port: ProxiedFactory) -> None:
        """
        Add a connection, which fails after L{HEADER_TIMEOUT} seconds.

        @param protocol: the connection's protocol.
        @param port: the factory of the port that accepted it.
        """
        self._entries[protocol] = self._clock.seconds(), port
        self._counts[port] = self.countOfPort(port) + 1
        if not self._isWatching:
            self._isWatching = True
            Deferred.fromCoroutine(self._watch()).addErrback(
                lambda failure: _log.failure("PROXY header not timed out", failure)
            )

    def remove(self, protocol: ProxiedProtocol) -> None:
        """
        Remove a connection.

        @param protocol: the connection's protocol.
        """
        _, port = self._entries.pop(protocol)
        if count := self._counts.pop(port) - 1:
            self._counts[port] = count

    def countOfPort(self, port: ProxiedFactory) -> int:
        """
        Return the number of one port's connections.

        @param port: the factory of the port.
        """
        return self._counts.get(port, 0)

    def countOfFactory(self, hello: HelloFactory) -> int:
        """
        Return the number of connections of all ports that a factory serves.

        @param hello: the factory.
        """
        return sum(count for port, count in self._counts.items() if port.hello is hello)

    def failPort(self, port: ProxiedFactory, why: str) -> None:
        """
        Fail all connections of one port.

        @param port: the factory of the port.
        @param why: what is wrong with the headers, as the end of C{error.type}.
        """
        for protocol in [each for each, (_, its) in self._entries.items() if its is port]:
            protocol.fail(why)

    async def evict(self, limit: int, shortage: float) -> int:
        """
        Evict the oldest connections that have had time to send; wait until descriptors may be free.

        @param limit: the largest number to evict.
        @param shortage: for how many seconds descriptors have been short.

        @return: the number of connections that were evicted.
        """
        before = len(self)
        await deferLater(self._clock, 0)  # A header that has arrived frees a descriptor, too.
        age = EVICTION_AGE if shortage < EVICTION_AGE else SHORTAGE_EVICTION_AGE
        evicted = self._fail(age, "evicted", limit) if len(self) >= before else 0
        await deferLater(self._clock, EVICTION_INTERVAL if len(self) >= before else 0)
        return evicted

    async def _watch(self) -> None:
        """Enforce the timeout, which is the same for all: a timer for the oldest is enough."""
        try:
            while self._entries:
                due = next(iter(self._entries.values()))[0] + HEADER_TIMEOUT
                await deferLater(self._clock, due - self._clock.seconds())
                if self._clock.seconds() > due + STALL_GRACE:
                    # Headers that arrived during the stall may be in a TLS handshake.
                    await deferLater(self._clock, STALL_GRACE)
                self._fail(HEADER_TIMEOUT, "timeout", len(self))
        finally:
            self._isWatching = False

    def _fail(self, age: float, why: str, limit: int) -> int:
        """Fail the oldest connections that were added C{age} seconds ago; return their number."""
        latest = self._clock.seconds() - age
        oldest = takewhile(lambda each: each[1][0] <= latest, islice(self._entries.items(), limit))
        failing = [protocol for protocol, _ in oldest]
        for protocol in failing:
            protocol.fail(why)
        return len(failing)


@cache
def pendingHeaders(reactor: Any) -> PendingHeaders:
    """Return the pending headers that all ports of a reactor share."""
    return PendingHeaders(monotonicClock(reactor))


class ProxiedFactory(ServerFactory):
    """
    Reads PROXY headers for a L{HelloFactory}, which it starts and stops.

    @ivar hello: the factory.
    @ivar pending: the connections whose header is not whole, also those of other ports.
    """

    noisy = False

    def __init__(
        self, hello: HelloFactory, pending: PendingHeaders, trusted: Networks | None = None
    ) -> None:
        """
        Read headers for a factory.

        @param hello: builds a protocol for each client that a header names, and records the others.
        @param pending: holds the connections whose header is not whole.
        @param trusted: the proxies whose header is believed; by default, every peer's is.
        """
        self.hello = hello
        self.pending = pending
        self._failures = FailureLog()
        # Cached, because ipaddress is slow.
        self._isTrusted = lru_cache(maxsize=1000)(trusted.__contains__) if trusted else None

    @property
    def waiting(self) -> int:
        """The number of this factory's connections whose header is not whole."""
        return self.pending.countOfPort(self)

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """
        Return a protocol that reads the header, or one that refuses an untrusted peer.

        @param addr: the peer's address.
        """
        if self._isTrustedPeer(addr):
            return ProxiedProtocol(self.pending, self, self._connect, self._report)
        return UntrustedProtocol(self._report)

    def logPrefix(self) -> str:
        """Return the name of L{hello} in Twisted's log."""
        return self.hello.logPrefix()

    def startFactory(self) -> None:
        """Start L{hello}."""
        self.hello.doStart()

    def stopFactory(self) -> None:
        """Report the connections whose header is not whole, then stop L{hello}."""
        self.pending.failPort(self, "stopped")
        self.hello.doStop()

    def _isTrustedPeer(self, peer: IAddress | None) -> bool:
        """Return whether a peer's header is believed."""
        # File modes decide who may connect to a UNIX socket, and the shell who to standard input.
        if self._isTrusted is None or isinstance(peer, (UNIXAddress, PipeAddress)):
            return True
        return isinstance(peer, (IPv4Address, IPv6Address)) and self._isTrusted(peer.host)

    def _connect(self, reader: ProxiedProtocol, header: Header) -> None:
        """Connect a protocol of L{hello} to the client that a header names."""
        hello, (peer, host) = self.hello, reader.ends
        client, server = header.client or peer, header.server or host
        details = {"proxy": peer, "extensions": header.extensions, "accepted": reader.accepted}
        countBefore = hello.connections
        try:
            protocol = hello.buildProtocol(client)
            if protocol is None:
                hangUp(reader.transport)
            else:
                reader.relay(protocol, ProxiedTransport(reader.transport, client, server, details))
        except BaseException as error:
            self._failures.log(error)
            if hello.connections == countBefore:
                reportSafely(hello, client, server, error="failed", **details)
            hangUp(reader.transport, abort=True)

    def _report(self, reader: ProxiedProtocol | UntrustedProtocol, error: str) -> None:
        """Report a connection with the socket's own peer and an error, and close it."""
        silent, accepted = reader.isSilent, reader.accepted
        try:
            reportSafely(self.hello, *reader.ends, error=error, silent=silent, accepted=accepted)
        finally:
            # Eviction must free the descriptor now.
            hangUp(reader.transport, abort=error == "proxy_header_evicted")
