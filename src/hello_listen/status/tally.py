"""Counts connections by server, by time and by client, in bounded memory."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import dataclass
from heapq import nlargest
from operator import attrgetter, itemgetter

from twisted.internet.interfaces import IAddress

from hello_listen._addresses import addressIdentity, addressText, transportAndType
from hello_listen.connection import Connection, Summary

MAX_CLIENTS = 10_000
"""Clients that are counted apart, in some 3 MB."""

MAX_SERVERS = 100
"""Servers that are counted apart besides those that listen: a PROXY header may name any."""

LATEST_CONNECTIONS = 50
"""Latest connections that are kept."""

TOP_CLIENTS = 20
"""Clients that L{Facts} names."""

TOP_PORTS = 100
"""Server ports that L{Facts} names."""

MAX_PORT = 65535
"""The largest server port; if all are called, their counts take some 6 MB."""

BATCH_SIZE = 64
"""Connections that are counted together: few enough not to trigger the garbage collector."""

LATE_MARGIN = 10
"""Counts of seconds and of minutes kept beyond the longest period shown, as a connection behind a
proxy is counted up to 5 seconds after it was accepted."""

DAY = 24 * 60
"""Minutes of a day."""

_count = attrgetter("connections")


class Client:
    """
    A client that is counted apart from others.

    >>> from twisted.internet.address import IPv4Address
    >>> from hello_listen import Connection
    >>> client = IPv4Address("TCP", "203.0.113.7", 51974)
    >>> connection = Connection(1795348800.0, client, IPv4Address("TCP", "192.0.2.1", 7878))
    >>> from hello_listen.status import Tally
    >>> tally = Tally()
    >>> tally(connection)
    >>> [client] = tally.facts().clients
    >>> client.name, client.connections
    ('203.0.113.7', 1)

    @ivar name: the client's identity, see L{hello_listen._addresses.clientIdentity}.
    @ivar connections: the number of its connections since it is counted apart.
    @ivar missed: the upper bound of its connections before that.
    @ivar first: when the first of C{connections} was accepted, in seconds since the epoch.
    @ivar last: when the last was.
    """

    __slots__ = ("connections", "first", "last", "missed", "name")

    def __init__(self, name: str, first: float, missed: int) -> None:
        """
        Count a client apart from now on.

        @param name: its identity.
        @param first: when its connection was accepted, in seconds since the epoch.
        @param missed: the upper bound of its connections before that.
        """
        self.name = name
        self.connections = 0
        self.missed = missed
        self.first = self.last = first


@dataclass(frozen=True)
class Facts:
    """
    The counts of a L{Tally} at one moment.

    >>> from hello_listen.status import Tally
    >>> facts = Tally().facts()
    >>> facts.connections, facts.clients
    (0, [])
    """

    now: float
    """The moment, in seconds since the epoch."""

    since: float
    """When the counting began."""

    connections: int
    """The number of all connections."""

    totals: dict[tuple[str, str, str], int]
    """Connections by transport, server and kind of error (C{""} for none)."""

    lastTimes: dict[tuple[str, str], float]
    """When the last connection was accepted, in seconds since the epoch, by server."""

    ports: list[tuple[str, int]]
    """The server ports, and names of servers without one, with the most connections, most first."""

    distinctPorts: int
    """The number of server ports and names."""

    lastMinute: int
    """Connections in the last 60 seconds."""

    lastHour: int
    """Connections in the last 60 minutes."""

    lastDay: int
    """Connections in the last 24 hours, to the minute."""

    minuteBefore: int | None
    """Connections in the 60 seconds before the last; L{None} if the counting began in them."""

    hourBefore: int | None
    """Connections in the 60 minutes before the last; L{None} if the counting began in them."""

    dayBefore: int | None
    """Connections in the 24 hours before the last; L{None} if the counting began in them."""

    minutes: list[tuple[int, int]]
    """The start of each of the last 60 minutes, from C{since} on, and its connections."""

    hours: list[tuple[int, int]]
    """The start of each of the last 24 hours, from C{since} on, and its connections."""

    distinctClients: int
    """The number of clients: exact while C{others} is 0, else a lower bound."""

    clients: list[Client]
    """The clients with the most connections, most first."""

    others: int
    """Connections of all clients that are not counted apart."""

    latest: list[Connection]
    """The last connections, latest first."""

    drops: dict[str, int]
    """By server, the upper bound of the packets of clients that a full accept queue dropped."""


class Tally:
    """
    An observer that counts connections, by server, by time and by client.

    Totals and times are exact. At most C{limit} clients are counted apart. One more makes the tally
    forget the half with the fewest connections. A client that is new after that may be one of the
    forgotten, so its C{missed} is the most connections that a forgotten client had. This is
    Space-Saving (Metwally, Agrawal, El Abbadi 2005) in batches. Of N connections, no client misses
    more than N / (limit / 2), and a client with more than that is counted apart.

    >>> from twisted.internet.address import IPv4Address
    >>> from hello_listen import Connection
    >>> client = IPv4Address("TCP", "203.0.113.7", 51974)
    >>> connection = Connection(1795348800.0, client, IPv4Address("TCP", "192.0.2.1", 7878))
    >>> from hello_listen.status import Tally
    >>> tally = Tally()
    >>> tally(connection)
    >>> tally.facts().totals
    {('tcp', '192.0.2.1:7878', ''): 1}
    """

    def __init__(self, limit: int = MAX_CLIENTS, clock: Callable[[], float] = time.time) -> None:
        """
        Begin to count.

        @param limit: the number of clients to count apart.
        @param clock: returns the time, in seconds since the epoch.
        """
        self._clock = clock
        self._limit = limit
        self._since = clock()
        self._pending: list[Connection] = []
        self._connections = 0
        self._totals: dict[tuple[str, str, str], int] = {}
        self._lastTimes: dict[tuple[str, str], float] = {}
        self._ports: Counter[str] = Counter()
        self._listening: set[tuple[str, str]] = set()
        self._others: set[tuple[str, str]] = set()
        self._seconds: dict[int, int] = {}
        self._minutes: dict[int, int] = {}
        self._clients: dict[str, Client] = {}
        self._missed = 0
        self._latest: deque[Connection] = deque(maxlen=LATEST_CONNECTIONS)
        self._drops: Counter[str] = Counter()

    def __call__(self, record: Connection | Summary) -> None:
        """
        Count a connection, or all connections of a summary.

        @param record: the connection or the summary.
        """
        if isinstance(record, Summary):
            self._countSummary(record)
            return
        self._pending.append(record)
        if len(self._pending) >= BATCH_SIZE:
            self._countPending()

    def dropped(self, server: IAddress, packets: int) -> None:
        """
        Count packets of clients that a full accept queue dropped.

        @param server: the address of the port.
        @param packets: the upper bound of their number.
        """
        name = self._serverName(transportAndType(server)[0], addressText(server))
        self._drops[name] += packets

    def expect(self, servers: Iterable[tuple[str, str]]) -> None:
        """
        Count servers apart, from 0, whichever other servers PROXY headers name first.

        @param servers: the transport and the address of each.
        """
        for place in servers:
            self._listening.add(place)
            self._others.discard(place)
            self._totals.setdefault((*place, ""), 0)
            if place[0] == "tcp":
                self._drops.setdefault(place[1], 0)

    def facts(self) -> Facts:
        """Return the counts at this moment."""
        self._countPending()
        now = self._clock()
        second, minute, hour = int(now), int(now // 60), int(now // 3600)
        # A connection is older than the tally if the system's clock was set back.
        first = min(int(self._since // 60), minute, *self._minutes)
        minutes = [
            (60 * m, self._minutes.get(m, 0)) for m in range(max(first, minute - 59), minute + 1)
        ]

        def before(counts: dict[int, int], last: int, period: int, unit: int) -> int | None:
            """Return the connections of the period before the last, if all of it was counted."""
            isCounted = self._since // unit <= last - 2 * period + 1
            return _sum(counts, last - period, period) if isCounted else None

        return Facts(
            now=now,
            since=self._since,
            connections=self._connections,
            totals=dict(self._totals),
            lastTimes=dict(self._lastTimes),
            ports=nlargest(TOP_PORTS, self._ports.items(), key=itemgetter(1)),
            distinctPorts=len(self._ports),
            lastMinute=_sum(self._seconds, second, 60),
            lastHour=_sum(self._minutes, minute, 60),
            lastDay=_sum(self._minutes, minute, DAY),
            minuteBefore=before(self._seconds, second, 60, 1),
            hourBefore=before(self._minutes, minute, 60, 60),
            dayBefore=before(self._minutes, minute, DAY, 60),
            minutes=minutes,
            hours=[
                (3600 * h, sum(self._minutes.get(m, 0) for m in range(60 * h, 60 * h + 60)))
                for h in range(max(first // 60, hour - 23), hour + 1)
            ],
            distinctClients=self._limit if self._missed else len(self._clients),
            clients=[copy(c) for c in nlargest(TOP_CLIENTS, self._clients.values(), key=_count)],
            others=self._connections - sum(c.connections for c in self._clients.values()),
            latest=list(reversed(self._latest)),
            drops=dict(self._drops),
        )

    def _countPending(self) -> None:
        """Count the batch of connections that are not counted yet."""
        pending, self._pending = self._pending, []
        if not pending:
            return
        self._latest.extend(pending)
        for second, times in Counter(map(int, map(attrgetter("time"), pending))).items():
            self._countTime(second, times)
        reached, count, time = (pending[0].server, pending[0].error), 0, pending[0].time
        for connection in pending:
            # Successive connections mostly reach the same server.
            if (connection.server, connection.error) != reached:
                self._countServer(*reached, count, time)
                reached, count = (connection.server, connection.error), 0
            count += 1
            time = connection.time
            name = addressIdentity(connection.client)
            client = self._clients.get(name) or self._addClient(name, time)
            client.connections += 1
            client.last = time
        self._countServer(*reached, count, time)

    def _countSummary(self, summary: Summary) -> None:
        """Count the connections of a summary, which names no server, but mostly its port."""
        name = summary.identity
        for port, count in summary.ports.items():
            self._ports[str(port)] += count
        if unknown := summary.count - sum(summary.ports.values()):
            self._ports["unknown"] += unknown
        self._countTime(int(summary.last), summary.count)
        self._addTotal(summary.transport or "", "", "", summary.count, summary.last)
        if name:
            client = self._clients.get(name) or self._addClient(name, summary.first)
            client.connections += summary.count
            client.last = summary.last

    def _countTime(self, second: int, count: int) -> None:
        """Add to the connections, and to those of a second and of its minute."""
        self._connections += count
        for counts, key, most in (
            (self._seconds, second, 2 * 60 + LATE_MARGIN),
            (self._minutes, second // 60, 2 * DAY + LATE_MARGIN),
        ):
            counts[key] = counts.get(key, 0) + count
            if len(counts) > most:
                del counts[next(iter(counts))]

    def _countServer(self, server: IAddress, error: str | None, count: int, last: float) -> None:
        """Count connections that reached a server; the last was accepted at C{last}."""
        transport = transportAndType(server)[0]
        name = self._serverName(transport, addressText(server))
        self._addTotal(transport, name, error or "", count, last)
        port = getattr(server, "port", None)
        # Twisted's own haproxy: takes any number.
        isPort = isinstance(port, int) and 0 <= port <= MAX_PORT
        self._ports[str(port) if isPort else name or "unknown"] += count

    def _addTotal(self, transport: str, server: str, error: str, count: int, last: float) -> None:
        """Add to the totals; the last connection was accepted at C{last}."""
        key = transport, server, error
        self._totals[key] = self._totals.get(key, 0) + count
        # Not the maximum: the clock may have been set back.
        self._lastTimes[transport, server] = last

    def _serverName(self, transport: str, server: str) -> str:
        """Return the name that a server is counted by."""
        place = transport, server
        if place in self._listening or place in self._others:
            return server
        if len(self._others) < MAX_SERVERS:
            self._others.add(place)
            return server
        port = server.rpartition(":")[2]
        for wildcard in (f"0.0.0.0:{port}", f"[::]:{port}"):
            if (transport, wildcard) in self._listening:
                return wildcard
        return "other"

    def _addClient(self, name: str, first: float) -> Client:
        """Count a client apart, and return it."""
        if len(self._clients) >= self._limit:
            self._forgetHalf()
        client = self._clients[name] = Client(name, first, self._missed)
        return client

    def _forgetHalf(self) -> None:
        """Forget the half of the clients that made the fewest connections, the oldest first."""
        half = self._limit // 2
        most = sorted(c.connections + c.missed for c in self._clients.values())
        self._missed = most[half - 1]
        for client in list(self._clients.values()):
            if half and client.connections + client.missed <= self._missed:
                del self._clients[client.name]
                half -= 1


def _sum(counts: dict[int, int], last: int, period: int) -> int:
    """Return the connections of a period, whose last second or minute is given."""
    return sum(counts.get(each, 0) for each in range(last - period + 1, last + 1))
