"""What a report tells, as values."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

COUNTS = ("connections", "recorded", "summarized", "lost", "missing")


@dataclass(frozen=True)
class Problem:
    """
    A file that could not be read, or not all of it.

    @ivar file: its name, as it was given.
    @ivar reason: what is wrong with it.
    """

    file: str
    reason: str


@dataclass(frozen=True)
class Run:
    """
    What one process wrote.

    @ivar id: its C{service.instance.id}.
    @ivar state: C{closed}, C{open}, C{killed}, or C{not closed} where that cannot be told.
    @ivar lowest: the number that its records in the files begin with.
    @ivar highest: the last number that it is known to have given out, or L{None}.
    @ivar missing: how many numbers are in no file; where something is C{unknown}, at least.
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
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class Client:
    """
    A client, as L{hello_listen._addresses.clientIdentity} tells it from others.

    @ivar address: its address or name; an IPv6 network where it has several, or may have.
    @ivar transport: C{tcp}, C{udp}, C{unix} or C{pipe}; L{None} for clients that are not told
        apart.
    @ivar addresses: how many addresses of it were recorded.
    @ivar ports: the server's ports that it reached.
    @ivar servers: the servers without a port that it reached.
    """

    address: str | None
    transport: str | None
    addresses: int
    connections: int
    first: datetime | None
    last: datetime | None
    ports: list[int]
    servers: list[str]

    @property
    def isOne(self) -> bool:
        """Whether this is one client, and not all those that are not told apart."""
        return self.address is not None or self.transport in ("unix", "pipe")


@dataclass(frozen=True)
class Server:
    """What came to a port, or to a server without one; summaries may name neither."""

    port: int | None
    server: str | None
    connections: int
    clients: int
    first: datetime | None
    last: datetime | None

    @property
    def isKnown(self) -> bool:
        """Whether it is named."""
        return self.port is not None or self.server is not None

    @property
    def name(self) -> str:
        """What people call it."""
        return self.server or "unknown" if self.port is None else str(self.port)


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
        """What people call it."""
        return self.error


@dataclass(frozen=True)
class Bar:
    """The connections of a minute, hour, day or year."""

    start: datetime
    connections: int


@dataclass(frozen=True)
class Unit:
    """
    What a bar stands for, and how precise times are.

    @ivar longest: the longest span that is shown with such bars.
    @ivar shown: how many characters of a bar's start tell it from others.
    @ivar precise: how many characters of other times are shown.
    """

    name: str
    length: timedelta
    longest: timedelta
    shown: int
    precise: int = 16

    def label(self, start: datetime) -> str:
        """Return the start of a bar as people read it."""
        return start.isoformat(" ")[: self.shown]

    def format(self, moment: datetime | None) -> str:
        """Return a time as people read it."""
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
    What there is to tell.

    @ivar clients: those that were asked for, of C{clientCount}.
    @ivar lines: how many lines the logs have.
    @ivar seen: how many connections the clients made, servers got, and bars show.
    @ivar unnumbered: how many records have no id: nobody can say whether any is missing.
    @ivar torn: how many lines are no records.
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

    def total(self, name: str) -> int:
        """Return the sum of a count over all runs."""
        return sum(getattr(run, name) for run in self.runs)

    @property
    def isEmpty(self) -> bool:
        """Whether the logs have no record at all."""
        return self.lines == self.torn

    @property
    def unknown(self) -> int:
        """Of how many runs nobody can know whether more is missing."""
        return sum(bool(run.unknown) for run in self.runs)

    @property
    def isUncertain(self) -> bool:
        """Whether more may be missing than is told: records without an id have no numbers."""
        return bool(self.unknown or self.unnumbered)

    @property
    def status(self) -> int:
        """The exit status of the command."""
        if self.problems:
            return 2
        return 1 if self.total("missing") else 3 * self.isUncertain
