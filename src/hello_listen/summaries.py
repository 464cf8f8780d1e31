"""An observer before another: of clients that come too often, one record a minute."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred

from hello_listen._addresses import addressIdentity, transportAndType
from hello_listen._clock import monotonicClock
from hello_listen._networks import Networks
from hello_listen._observing import Observer, ObserverCalls, checkObserver
from hello_listen.connection import Connection, Summary

PERIOD = 60.0
"""Seconds that a summary covers."""

CLIENTS = 10_000
"""How many clients are told apart in a period; those of more share one summary."""

PROBES = ("proxy_header_incomplete", "proxy_not_trusted")
"""Errors that are no news of a listed network, where not a byte was read: TCP health checks."""


class Summaries:
    """
    Passes connections on to another observer, and L{Summary} objects for what it leaves out.

    Clients are told apart by L{clientIdentity}; behind a proxy, by the client that it names. Of a
    period of 60 seconds, 10,000 clients are told apart at most. No call blocks, unless the
    observer does.
    """

    def __init__(
        self,
        observer: Observer,
        perClient: int | None = None,
        networks: Iterable[str] = (),
        reactor: Any = None,
    ) -> None:
        """
        Stand before an observer.

        @param observer: called with each L{Connection} that is passed on, and each L{Summary}; it
            is closed with this one, if it has C{close}.
        @param perClient: at most how many connections of a client are passed on in a period, 0 for
            none; by default all.
        @param networks: addresses or networks, such as C{192.0.2.0/24}, whose connections are
            only summarized. C{192.0.2.7,7878} stands for connections to the server's port 7878
            only. Connections with an error are passed on, unless a PROXY header was expected and
            not a byte was read: from a health check, or a peer that is not trusted.
        @param reactor: what keeps the time; by default the global reactor.

        @raise ValueError: a network cannot be understood, or C{perClient} is negative.
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
        self._networks = networksByPort(networks)
        self._clock = monotonicClock(reactor)
        # ipaddress takes 2 µs for each look.
        self._isIn = lru_cache(maxsize=CLIENTS)(self._findNetwork)
        # How many connections of each client were passed on.
        self._clients: dict[str, int] = {}
        self._summaries: dict[tuple[str | None, str | None], Summary] = {}
        self._end: Any = None

    def __call__(self, connection: Connection) -> None:
        """
        Pass a connection on, or count it.

        @param connection: what came.
        """
        key = addressIdentity(connection.client)
        if not (self._networks and self._isListed(connection)):
            if self._perClient is None:
                self._calls.call(self._observer, connection)
                return
            count = self._clients.get(key, 0)
            if count < self._perClient and (count or self._isToldApart(key)):
                self._clients[key] = count + 1
                self._calls.call(self._observer, connection)
                return
        self._summarize(key if self._isToldApart(key) else None, connection)

    def open(self) -> None:
        """Open the observer again, if it has C{open}."""
        getattr(self._observer, "open", lambda: None)()

    def close(self) -> Deferred[Any]:
        """
        Pass on what is counted so far, wait for the observer's coroutines, and close it.

        @return: a L{Deferred} with what its C{close} returns, or L{None} if it has none.
        """
        self._endPeriod()
        close = getattr(self._observer, "close", lambda: None)
        return self._calls.finish(self._clock).addCallback(lambda _: close())

    def _isToldApart(self, key: str) -> bool:
        """Say whether a client has a place of its own in this period."""
        if self._end is None:
            self._end = self._clock.callLater(PERIOD, self._endPeriod)
        if len(self._clients) < CLIENTS:
            self._clients.setdefault(key, 0)
        return key in self._clients

    def _summarize(self, key: str | None, connection: Connection) -> None:
        """Count a connection of a client."""
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
        summary.first = min(summary.first, time)
        summary.last = max(summary.last, time)

    def _isListed(self, connection: Connection) -> bool:
        """Say whether a connection came from one of the networks and is no news."""
        if connection.error and not (connection.silent and connection.error in PROBES):
            return False
        client = connection.client
        return isinstance(client, (IPv4Address, IPv6Address)) and self._isIn(
            client.host, getattr(connection.server, "port", None)
        )

    def _findNetwork(self, host: str, port: int | None) -> bool:
        """Say whether an IP address is in one of the networks for a server's port."""
        return any(host in self._networks.get(each, ()) for each in {None, port})

    def _endPeriod(self) -> None:
        """Pass on what was counted, and begin anew."""
        if self._end is None:
            return
        if self._end.active():
            self._end.cancel()
        self._end = None
        summaries, self._summaries = self._summaries, {}
        self._clients.clear()
        for summary in summaries.values():
            self._calls.call(self._observer, summary)


def networksByPort(texts: Iterable[str]) -> dict[int | None, Networks]:
    """
    Parse networks, each with or without a server's port.

    @param texts: such as C{192.0.2.0/24} or C{192.0.2.7,7878}.

    @return: the networks for each port, and under L{None} those for all ports.

    @raise ValueError: a text cannot be understood; the message quotes it.
    """
    found: dict[int | None, list[str]] = {}
    for text in texts:
        network, comma, port = text.partition(",")
        if comma and not (re.fullmatch("[1-9][0-9]{0,4}", port) and int(port) <= 65535):
            raise ValueError(f"not a port from 1 to 65535: {port!r} in {text!r}")
        found.setdefault(int(port) if comma else None, []).append(network)
    return {port: Networks(networks) for port, networks in found.items()}
