"""What the page, the JSON and the metrics show: connections, endpoints and log at one moment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IAddress

from hello_listen._addresses import addressText, transportAndType
from hello_listen.connection import timestamp
from hello_listen.status.tally import Facts, Tally

if TYPE_CHECKING:
    from hello_listen.connection_log import ConnectionLog
    from hello_listen.service import HelloService

MAX_AGE = 0.5
"""Seconds for which a snapshot is shown again."""


@dataclass(frozen=True)
class LogCounts:
    """What has become of the connections that a L{ConnectionLog} was told of, and of others."""

    recorded: int
    """Connections with a written record of their own."""

    summarized: int
    """Connections that are counted in a written summary."""

    toSummarize: int
    """Connections to be summarized at the end of the minute."""

    toWrite: int
    """Connections whose record or summary is to be written."""

    lost: int
    """Connections that the log does not hold."""

    bytesToWrite: int
    """Bytes of records in memory."""

    failing: str | None
    """Why the log cannot be written at the moment."""


@dataclass(frozen=True)
class Snapshot:
    """What is known at one moment. It does not change."""

    facts: Facts
    """The connections."""

    endpoints: Sequence[tuple[str, str | None]]
    """Each endpoint's description, and the address that it listens on, if it does."""

    headersWaiting: int
    """Connections whose PROXY header is incomplete."""

    log: LogCounts | None
    """The connection log, if there is one."""

    @property
    def problems(self) -> list[str]:
        """What is wrong, each in a sentence."""
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
        return problems

    def fields(self) -> dict[str, Any]:
        """Return everything as values that JSON knows."""
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
        }
        if log is not None:
            fields |= {
                "recorded": log.recorded,
                "summarized": log.summarized,
                "waiting_to_be_summarized": log.toSummarize,
                "waiting_to_be_written": log.toWrite,
                "lost": log.lost,
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
                }
                for client in facts.clients
            ],
            "others": facts.others,
            "latest": [connection.fields() for connection in facts.latest],
        }


class Snapshots:
    """Takes a snapshot when it is asked for one, and the last is no longer fresh."""

    def __init__(
        self,
        tally: Tally,
        service: HelloService | None = None,
        log: ConnectionLog | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """
        Observe a tally, a service and a log.

        @param tally: counts the connections.
        @param service: what listens, if known.
        @param log: where the connections are recorded, if known.
        @param clock: returns seconds, which a change of the system's time does not affect.
        """
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
        """Have the tally tell the servers that listen apart."""
        addresses = [address for _, address in self._listening() if address is not None]
        self._tally.expect(
            (transportAndType(address)[0], addressText(address)) for address in addresses
        )

    def _listening(self) -> list[tuple[str, IAddress | None]]:
        """Return each endpoint's description, and the address that it listens on."""
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
        )

    def _counts(self, connections: int) -> LogCounts | None:
        """Return what has become of all connections."""
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
    """Return when each minute or hour began, and its connections."""
    return [{"timestamp": timestamp(start), "connections": count} for start, count in counts]
