"""The dataclasses of a report."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from hello_listen._place import Place

COUNTS = ("connections", "recorded", "summarized", "lost", "missing")


@dataclass(frozen=True)
class Problem:
    """
    A file that could not be read, or not completely.

    @ivar file: its name, as on the command line.
    @ivar reason: the reason.
    """

    file: str
    reason: str


@dataclass(frozen=True)
class Run:
    """
    The records of one run of a connection log.

    @ivar id: its C{service.instance.id}.
    @ivar state: C{closed}, C{open}, C{killed}, or C{not closed} if neither is known.
    @ivar lowest: the first sequence number in the files.
    @ivar highest: the last sequence number that is known, or L{None}.
    @ivar missing: the number of missing records; a lower bound if C{unknown} is not empty.
    @ivar dropped: the upper bound of the packets of clients that a full accept queue dropped.
    @ivar unknown: C{beginning}, C{end}, both or neither: where more may be missing.
    """

    id: str
    host: str | None
    pid: int | None
    first: datetime | None
    last: datetime | None
    state: str
    lowest: int
    highest: int | None
    connections: int
    recorded: int
    summarized: int
    lost: int
    missing: int
    dropped: int
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class Client:
    """
    A client, as identified by L{hello_listen._addresses.clientIdentity}.

    @ivar address: its address or name; an IPv6 network if it has, or may have, several addresses.
    @ivar transport: C{tcp}, C{udp}, C{unix} or C{pipe}; L{None} for a summary of unnamed clients.
    @ivar addresses: the number of its addresses in records.
    @ivar ports: the server ports that it reached.
    @ivar servers: the servers without a port, such as UNIX sockets, that it reached.
    @ivar place: its country and network, if databases of them were given.
    """

    address: str | None
    transport: str | None
    addresses: int
    connections: int
    first: datetime | None
    last: datetime | None
    ports: list[int]
    servers: list[str]
    place: Place | None = None

    @property
    def isOne(self) -> bool:
        """Whether this is one client, not a summary of unnamed clients."""
        return self.address is not None or self.transport in ("unix", "pipe")


@dataclass(frozen=True)
class Server:
    """The connections to a port, or to a server without one; summaries may name neither."""

    port: int | None
    server: str | None
    connections: int
    clients: int
    first: datetime | None
    last: datetime | None

    @property
    def isKnown(self) -> bool:
        """Whether the records name the server."""
        return self.port is not None or self.server is not None

    @property
    def name(self) -> str:
        """The name in the report."""
        return self.server or "unknown" if self.port is None else str(self.port)


@dataclass(frozen=True)
class Country:
    """
    The connections from a country.

    @ivar country: its code of two letters, or L{None} for private and unknown addresses.
    @ivar private: whether these are the private addresses.
    """

    country: str | None
    private: bool
    connections: int
    clients: int
    first: datetime | None
    last: datetime | None

    @property
    def name(self) -> str:
        """The name in the report."""
        return placeName(self.country, self.private)


@dataclass(frozen=True)
class Network:
    """
    The connections from a network, an autonomous system.

    @ivar number: its number, or L{None} for private and unknown addresses.
    @ivar organization: the name of its organization, or L{None}.
    @ivar private: whether these are the private addresses.
    """

    number: int | None
    organization: str | None
    private: bool
    connections: int
    clients: int
    first: datetime | None
    last: datetime | None

    @property
    def name(self) -> str:
        """The name in the report."""
        return placeName(Place(None, self.number, self.organization).network, self.private)


def placeName(name: str | None, isPrivate: bool) -> str:
    """Return the name of a country or network in the report."""
    return name or ("private" if isPrivate else "unknown")


@dataclass(frozen=True)
class Failure:
    """Connections with the same C{error.type}."""

    error: str
    connections: int
    clients: int
    first: datetime | None
    last: datetime | None

    @property
    def name(self) -> str:
        """The name in the report."""
        return self.error


@dataclass(frozen=True)
class Bar:
    """The connections of a minute, hour, day or year."""

    start: datetime
    connections: int


@dataclass(frozen=True)
class Unit:
    """
    The unit of the bars, and the precision of times.

    @ivar longest: the longest time span for this unit.
    @ivar shown: the length of a bar's label, in characters of ISO 8601.
    @ivar precise: the length of other times, in characters of ISO 8601.
    """

    name: str
    length: timedelta
    longest: timedelta
    shown: int
    precise: int = 16

    def label(self, start: datetime) -> str:
        """Return the label of a bar."""
        return start.isoformat(" ")[: self.shown]

    def format(self, moment: datetime | None) -> str:
        """Return a time, truncated to the precision."""
        return moment.isoformat(" ")[: self.precise] if moment else ""


BAR_UNITS = (
    Unit("minute", timedelta(minutes=1), timedelta(hours=2), 16, 19),
    Unit("hour", timedelta(hours=1), timedelta(days=4), 16),
    Unit("day", timedelta(days=1), timedelta(days=800), 10),
    Unit("year", timedelta(days=366), timedelta.max, 4),
)


@dataclass(frozen=True)
class Report:
    """
    A report.

    @ivar clients: the first C{--top} of C{clientCount} clients.
    @ivar countries: the connections by country; L{None} without a database of countries.
    @ivar networks: the connections by network; L{None} without a database of networks.
    @ivar lines: the number of lines in the logs.
    @ivar seen: the number of connections in records, which clients, servers and bars add up to.
    @ivar unnumbered: the number of records without an id, of which any number may be missing.
    @ivar torn: the number of lines that are no records.
    @ivar repeated: whether lines were read twice.
    """

    runs: list[Run]
    clients: list[Client]
    clientCount: int
    seen: int
    lines: int
    servers: list[Server]
    failures: list[Failure]
    unit: Unit
    bars: list[Bar]
    unnumbered: int
    torn: int
    repeated: bool
    problems: list[Problem]
    countries: list[Country] | None = None
    networks: list[Network] | None = None

    def total(self, name: str) -> int:
        """Return the sum of a count over all runs."""
        return sum(getattr(run, name) for run in self.runs)

    @property
    def isEmpty(self) -> bool:
        """Whether the logs have no record at all."""
        return self.lines == self.torn

    @property
    def unknown(self) -> int:
        """The number of runs of which more records may be missing."""
        return sum(bool(run.unknown) for run in self.runs)

    @property
    def isUncertain(self) -> bool:
        """Whether more records may be missing than the report counts."""
        return bool(self.unknown or self.unnumbered)

    @property
    def status(self) -> int:
        """The exit status of the command."""
        if self.problems:
            return 2
        if self.total("missing"):
            return 1
        return 3 if self.isUncertain or self.total("dropped") else 0
