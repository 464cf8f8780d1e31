"""Rate-limits records per client: beyond the limit, one summary a minute."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from heapq import nlargest
from operator import itemgetter
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress

from hello_listen._addresses import addressIdentity, transportAndType
from hello_listen._clock import monotonicClock
from hello_listen._networks import Networks
from hello_listen._observing import Observer, ObserverCalls, checkObserver
from hello_listen.connection import TOP_PORTS, Connection, Summary

SUMMARY_PERIOD = 60.0
"""Seconds that a summary covers at most."""

MAX_COUNTED_CLIENTS = 10_000
"""Clients that are counted apart in a period; all others share a summary for each error."""

MAX_PORTS = 32
"""Server ports of a client that are counted apart; one more leaves those with the most
connections. So a scan of all ports takes no more memory, and a port that comes often is found."""

PROBE_ERRORS = ("proxy_header_incomplete", "proxy_not_trusted")
"""Errors of TCP health checks, if not a byte was received: summarized like other connections."""


class Summaries:
    """
    Passes connections on to another observer, up to a limit, and summaries of the others.

    Clients are counted by L{Connection.identity}, so behind a proxy by the client in the PROXY
    header. In a period of 60 seconds, at most 10,000 clients are counted apart. A call blocks only
    if the observer blocks.

    >>> from twisted.internet.address import IPv4Address
    >>> from hello_listen import Connection, Summaries
    >>> client = IPv4Address("TCP", "203.0.113.7", 51974)
    >>> connection = Connection(1795348800.0, client, IPv4Address("TCP", "192.0.2.1", 7878))
    >>> summaries = Summaries(print, perClient=1)
    >>> summaries(connection)
    Connection established! 203.0.113.7:51974 -> 192.0.2.1:7878
    >>> summaries(connection)
    >>> closed = summaries.close()
    Connections summarized: 1 from 203.0.113.7 to port 7878 in 1 s
    """

    def __init__(
        self,
        observer: Observer,
        perClient: int | None = None,
        networks: Iterable[str] = (),
        reactor: Any = None,
    ) -> None:
        """
        Wrap an observer.

        @param observer: called with each L{Connection} that is passed on, and each L{Summary}; it
            is closed with this one, if it has C{close}.
        @param perClient: the most connections of a client that are passed on in a period, 0 for
            none; by default all.
        @param networks: addresses or networks, such as C{192.0.2.0/24}, whose connections are
            only summarized. C{192.0.2.7,7878} stands for connections to the server's port 7878
            only. A connection with an error is treated as if C{networks} did not name its client,
            unless its error is one of L{PROBE_ERRORS} and not a byte was received.
        @param reactor: the clock; by default the global reactor.

        @raise ValueError: a text is not a network, or C{perClient} is negative.
        @raise TypeError: the observer cannot be called.
        """
        checkObserver(observer)
        if perClient is not None and perClient < 0:
            raise ValueError(f"perClient is negative: {perClient}")
        if reactor is None:
            from twisted.internet import reactor
        self._observer = observer
        self._calls = ObserverCalls()
        self._perClient = perClient
        self._networks = ListedNetworks(networks)
        self._clock = monotonicClock(reactor)
        # The connections of each client that were passed on in this period.
        self._clients: dict[str, int] = {}
        self._summaries: dict[tuple[str | None, str | None], Summary] = {}
        self._end: Any = None

    def __call__(self, connection: Connection) -> None:
        """
        Pass a connection on, or add it to a summary.

        @param connection: the connection.
        """
        key = addressIdentity(connection.client)
        if not (self._networks and connection in self._networks):
            if self._perClient is None:
                self._calls.call(self._observer, connection)
                return
            count = self._clients.get(key, 0)
            if count < self._perClient and (count or self._countApart(key)):
                self._clients[key] = count + 1
                self._calls.call(self._observer, connection)
                return
        self._summarize(key if self._countApart(key) else None, connection)

    def open(self) -> None:
        """Open the observer again, if it has C{open}."""
        getattr(self._observer, "open", lambda: None)()

    def dropped(self, server: IAddress, packets: int) -> Any:
        """
        Pass on that clients may be missing, if the observer has C{dropped}.

        @param server: the address of a port whose accept queue was full.
        @param packets: the upper bound of the packets of clients that the system dropped.

        @return: what the observer returns.
        """
        return getattr(self._observer, "dropped", lambda *_: None)(server, packets)

    def close(self) -> Deferred[Any]:
        """
        Pass on the summaries so far, wait for the observer's coroutines, and close it.

        @return: a L{twisted.internet.defer.Deferred} with what its C{close} returns, or L{None}
            if it has none.
        """
        self._endPeriod()
        close = getattr(self._observer, "close", lambda: None)
        return self._calls.finish(self._clock).addCallback(lambda _: close())

    def _countApart(self, key: str) -> bool:
        """Start to count a client apart if there is room; say whether it is counted apart."""
        if self._end is None:
            self._end = self._clock.callLater(SUMMARY_PERIOD, self._endPeriod)
        if len(self._clients) < MAX_COUNTED_CLIENTS:
            self._clients.setdefault(key, 0)
        return key in self._clients

    def _summarize(self, key: str | None, connection: Connection) -> None:
        """Add a connection to the summary of a client; L{None} is all clients without their own."""
        time = connection.time
        transport, networkType = transportAndType(connection.client) if key else (None, None)
        error = connection.error
        summary = self._summaries.get((key, error))
        if summary is None:
            address = key if networkType or not key else connection.clientAddress
            summary = Summary(0, time, time, address, transport, networkType, error)
            self._summaries[key, error] = summary
        elif summary.transport != transport:  # A PROXY header may say UDP.
            summary.transport = None
        summary.count += 1
        port = connection.serverPort
        if port is not None:
            summary.ports[port] = summary.ports.get(port, 0) + 1
            if len(summary.ports) > MAX_PORTS:
                most = nlargest(TOP_PORTS, summary.ports.items(), key=itemgetter(1))
                summary.ports = dict(most)
        summary.first = min(summary.first, time)
        summary.last = max(summary.last, time)

    def _endPeriod(self) -> None:
        """Pass on the summaries, and let the next connection begin a new period."""
        if self._end is None:
            return
        if self._end.active():
            self._end.cancel()
        self._end = None
        summaries, self._summaries = self._summaries, {}
        self._clients.clear()
        for summary in summaries.values():
            self._calls.call(self._observer, summary)


class ListedNetworks:
    """The networks whose connections are only summarized; false if there are none."""

    def __init__(self, texts: Iterable[str]) -> None:
        """
        Parse networks.

        @param texts: as for L{networksByPort}.

        @raise ValueError: a text cannot be parsed.
        """
        self._networks = networksByPort(texts)
        # A look-up takes 2 µs in ipaddress.
        self._isIn = lru_cache(maxsize=MAX_COUNTED_CLIENTS)(self._find)

    def __bool__(self) -> bool:
        return bool(self._networks)

    def __contains__(self, connection: Connection) -> bool:
        """
        Say whether a connection is from one of the networks, and without a genuine error.

        @param connection: the connection.
        """
        if connection.error and not (connection.silent and connection.error in PROBE_ERRORS):
            return False
        client = connection.client
        return isinstance(client, (IPv4Address, IPv6Address)) and self._isIn(
            client.host, getattr(connection.server, "port", None)
        )

    def _find(self, host: str, port: int | None) -> bool:
        """Say whether an IP address is in one of the networks for a server's port."""
        return any(host in self._networks.get(each, ()) for each in {None, port})


def networksByPort(texts: Iterable[str]) -> dict[int | None, Networks]:
    """
    Parse networks, each with or without a server's port.

    @param texts: texts such as C{192.0.2.0/24} or C{192.0.2.7,7878}.

    @return: the networks for each port, and under L{None} those for all ports.

    @raise ValueError: a text cannot be parsed; the message quotes it.
    """
    found: dict[int | None, list[str]] = {}
    for text in texts:
        network, comma, port = text.partition(",")
        if comma and not (re.fullmatch("[1-9][0-9]{0,4}", port) and int(port) <= 65535):
            raise ValueError(f"not a port from 1 to 65535: {port!r} in {text!r}")
        found.setdefault(int(port) if comma else None, []).append(network)
    return {port: Networks(networks) for port, networks in found.items()}
