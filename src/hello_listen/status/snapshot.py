"""Snapshots of tally, endpoints and log, which the page, the JSON and the metrics show."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IAddress
from twisted.logger import Logger

from hello_listen._addresses import addressText, transportAndType
from hello_listen._place import NOWHERE, GeoError, Place
from hello_listen.connection import timestamp
from hello_listen.status.tally import Facts, Tally

if TYPE_CHECKING:
    from hello_listen.connection_log import ConnectionLog
    from hello_listen.geo import GeoDatabases
    from hello_listen.notifications import Notifications
    from hello_listen.service import HelloService

_log = Logger(namespace="hello_listen")

MAX_AGE = 0.5
"""Seconds for which a snapshot is cached."""


@dataclass(frozen=True)
class LogCounts:
    """
    The connections of a L{ConnectionLog}, by what became of them.

    >>> from hello_listen import ConnectionLog
    >>> from hello_listen.status import StatusResource, Tally
    >>> log = ConnectionLog("connections.jsonl")
    >>> StatusResource(Tally(), log=log).snapshots.take().log.lost
    0
    >>> closed = log.close()
    """

    recorded: int
    """Connections with a written record of their own."""

    summarized: int
    """Connections that are counted in a written summary."""

    toSummarize: int
    """Connections to be summarized at the end of the minute."""

    toWrite: int
    """Connections whose record or summary is to be written."""

    lost: int
    """Connections that the log will not record."""

    bytesToWrite: int
    """Bytes of records in memory."""

    failing: str | None
    """Why the log cannot be written, or L{None}."""


@dataclass(frozen=True)
class Deliveries:
    """What became of the messages of all L{Notifications}."""

    delivered: int
    """Messages that were delivered."""

    failed: int
    """Attempts that failed."""

    waiting: int
    """New clients that no delivered message counts, at the receiver with the most of them."""

    last: float | None
    """When the last message was delivered, in seconds since the epoch."""

    failing: Sequence[str]
    """For each receiver whose last attempt failed, its name and why."""


@dataclass(frozen=True)
class Snapshot:
    """
    Tally, endpoints and log at one moment; immutable.

    >>> from hello_listen.status import StatusResource, Tally
    >>> snapshot = StatusResource(Tally()).snapshots.take()
    >>> snapshot.fields()["connections"], snapshot.problems
    (0, [])
    """

    facts: Facts
    """The counts of connections."""

    endpoints: Sequence[tuple[str, str | None]]
    """Each endpoint's description, and the address that it is bound to, or L{None}."""

    headersWaiting: int
    """Connections whose PROXY header is incomplete."""

    log: LogCounts | None
    """The connection log, if there is one."""

    notifications: Deliveries | None = None
    """The notifications, if there are any."""

    places: Mapping[str, Place] = field(default_factory=dict)
    """The places of the clients of C{facts}, if databases of them were given."""

    def place(self, client: str) -> Place:
        """Return the place of a client, by its identity."""
        return self.places.get(client, NOWHERE)

    @property
    def problems(self) -> list[str]:
        """The problems, as one sentence each."""
        problems = [
            f"Not listening: {description}"
            for description, address in self.endpoints
            if address is None
        ]
        if self.log is not None and self.log.failing is not None:
            problems.append(
                f"The connection log cannot be written: {self.log.failing}. "
                f"{self.log.bytesToWrite:,} bytes are kept in memory."
            )
        if self.notifications is not None:
            problems += [
                f"Notifications are not delivered: {reason}"
                for reason in self.notifications.failing
            ]
        return problems

    def fields(self) -> dict[str, Any]:
        """Return all fields, as the JSON has them."""
        facts, log = self.facts, self.log
        fields: dict[str, Any] = {
            "timestamp": timestamp(facts.now),
            "since": timestamp(facts.since),
            "problems": self.problems,
            "endpoints": [
                {"endpoint": description, "address": address}
                for description, address in self.endpoints
            ],
            "headers_waiting": self.headersWaiting,
            "connections": facts.connections,
            "last_minute": facts.lastMinute,
            "last_hour": facts.lastHour,
            "last_day": facts.lastDay,
            "minute_before": facts.minuteBefore,
            "hour_before": facts.hourBefore,
            "day_before": facts.dayBefore,
            "dropped_packets": sum(facts.drops.values()),
        }
        if log is not None:
            fields |= {
                "recorded": log.recorded,
                "summarized": log.summarized,
                "waiting_to_be_summarized": log.toSummarize,
                "waiting_to_be_written": log.toWrite,
                "lost": log.lost,
            }
        if self.notifications is not None:
            last = self.notifications.last
            fields["notifications"] = {
                "delivered": self.notifications.delivered,
                "failed": self.notifications.failed,
                "clients_waiting": self.notifications.waiting,
                "last_delivered": None if last is None else timestamp(last),
            }
        return fields | {
            "servers": [
                {
                    "network.transport": transport,
                    "server": server,
                    "error.type": error,
                    "connections": count,
                }
                for (transport, server, error), count in facts.totals.items()
            ],
            "distinct_ports": facts.distinctPorts,
            "ports": [{"port": port, "connections": count} for port, count in facts.ports],
            "minutes": _times(facts.minutes),
            "hours": _times(facts.hours),
            "distinct_clients": facts.distinctClients,
            "clients": [
                {
                    "client.address": client.name,
                    "connections": client.connections,
                    "missed": client.missed,
                    "first": timestamp(client.first),
                    "last": timestamp(client.last),
                    **self.place(client.name).fields(),
                }
                for client in facts.clients
            ],
            "others": facts.others,
            "latest": [
                connection.fields() | self.place(connection.identity).fields()
                for connection in facts.latest
            ],
        }


class Snapshots:
    """Takes snapshots, and caches the last."""

    def __init__(
        self,
        tally: Tally,
        service: HelloService | None = None,
        log: ConnectionLog | None = None,
        clock: Callable[[], float] = monotonic,
        notifications: Sequence[Notifications] = (),
        places: GeoDatabases | None = None,
    ) -> None:
        """
        Take snapshots of a tally, a service and a log.

        @param tally: the tally of the connections.
        @param service: the service whose endpoints to show, if any.
        @param log: the log that records the connections, if any.
        @param clock: returns seconds of a monotonic clock.
        @param notifications: the notifications whose deliveries to show.
        @param places: finds the countries and networks to show, if given.
        """
        self._geo = places
        self._damage = ""
        self._notifications = notifications
        self._tally = tally
        self._service: Any = service
        self._log: Any = log
        self._clock = clock
        self._last: tuple[float, Snapshot] | None = None

    def take(self) -> Snapshot:
        """Return the last snapshot if it was taken in the last L{MAX_AGE} seconds, or a new one."""
        now = self._clock()
        if self._last is None or now - self._last[0] >= MAX_AGE:
            self._last = now, self._new()
        return self._last[1]

    def expectServers(self) -> None:
        """Have the tally count the service's own servers apart."""
        addresses = [address for _, address in self._listening() if address is not None]
        self._tally.expect(
            (transportAndType(address)[0], addressText(address)) for address in addresses
        )

    def _listening(self) -> list[tuple[str, IAddress | None]]:
        """Return each endpoint's description, and the address that it is bound to."""
        return [] if self._service is None else self._service.listening

    def _new(self) -> Snapshot:
        """Return a new snapshot."""
        self.expectServers()
        facts = self._tally.facts()
        return Snapshot(
            facts,
            [
                (endpoint, None if address is None else addressText(address))
                for endpoint, address in self._listening()
            ],
            0 if self._service is None else self._service.headersWaiting,
            self._counts(facts.connections),
            self._deliveries(),
            self._places(facts),
        )

    def _places(self, facts: Facts) -> dict[str, Place]:
        """Return the places of the clients that a snapshot names."""
        if self._geo is None:
            return {}
        names = [client.name for client in facts.clients]
        names += [connection.identity for connection in facts.latest]
        try:
            return {name: self._geo.find(name) for name in names}
        except GeoError as error:
            if str(error) != self._damage:
                self._damage = str(error)
                _log.error("No countries and networks are shown: {reason}", reason=self._damage)
            return {}

    def _deliveries(self) -> Deliveries | None:
        """Return what became of the messages."""
        every = self._notifications
        if not every:
            return None
        return Deliveries(
            delivered=sum(each.delivered for each in every),
            failed=sum(each.failed for each in every),
            waiting=max(each.waiting for each in every),
            last=max(each.lastDelivered or 0.0 for each in every) or None,
            failing=[
                f"{each.name}: {each.failing}" if each.name else each.failing
                for each in every
                if each.failing is not None
            ],
        )

    def _counts(self, connections: int) -> LogCounts | None:
        """Return the counts of the log, out of all connections."""
        log = self._log
        if log is None:
            return None
        recorded, summarized, lost = log.recorded, log.summarized, log.lost
        return LogCounts(
            recorded=recorded,
            summarized=summarized,
            toSummarize=max(0, connections - log.connections),
            toWrite=max(0, log.connections - recorded - summarized - lost),
            lost=lost,
            bytesToWrite=log.waiting,
            failing=log.failing,
        )


def _times(counts: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """Return the start of each minute or hour, and its connections, as the JSON has them."""
    return [{"timestamp": timestamp(start), "connections": count} for start, count in counts]
