"""The report as text, in printable ASCII."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hello_listen._addresses import asciiText
from hello_listen._place import NOWHERE
from hello_listen.report.facts import (
    COUNTS,
    Client,
    Country,
    Failure,
    Network,
    Problem,
    Report,
    Server,
    placeName,
)

Group = Server | Country | Network | Failure

MAX_NOTES = 20
"""Upper bound of notes of a kind."""

MAX_ROWS = 20
"""Upper bound of a table, in rows. For runs: the newest, and all with missing records."""

MAX_WIDTH = 45
"""Upper bound of a bar and of a cell, in characters."""

_RIGHT = {*COUNTS, "clients"}

_ENDS = {
    "closed": "was closed by an earlier release, without its last number",
    "killed": "was killed, maybe before it had written its last records",
    "not closed": "was not closed, and its process cannot be seen from here",
}


def toText(report: Report) -> Iterator[str]:
    """Yield the report, line by line."""
    counts = [f"{name}: {report.total(name):,}" for name in COUNTS[:-1]]
    counts.append(f"missing: {_missing(report.total('missing'), report.isUncertain)}")
    yield ", ".join(counts).capitalize()
    ports = sum(server.isKnown for server in report.servers)
    failed = sum(failure.connections for failure in report.failures)
    yield f"Clients: {report.clientCount:,}, server ports: {ports:,}, with errors: {failed:,}"
    yield from toNotes(report)
    yield from _runs(report)
    yield from _clients(report)
    yield from _groups(report, "server port", report.servers)
    yield from _groups(report, "country", report.countries or [])
    yield from _groups(report, "network", report.networks or [])
    yield from _groups(report, "error", report.failures)
    yield from _bars(report)


def toNotes(report: Report) -> Iterator[str]:
    """Yield the notes that qualify the numbers."""
    if report.torn:
        yield f"Lines that are no records (torn, or of another log): {report.torn:,}"
    if report.unnumbered:
        yield f"Records without an id, counted among the clients only: {report.unnumbered:,}"
    if report.repeated:
        yield "Records that were read twice count once."
    yield from toProblems(report.problems)
    begins, ends, drops = [], [], []
    for run in report.runs:
        if "beginning" in run.unknown:
            numbers = f"its numbers from {run.lowest:,} on"
            if run.lowest > (run.highest or 0):
                numbers = "none of its records"
            begins.append(f"Run {run.id} began before these files: they hold {numbers}.")
        if "end" in run.unknown:
            ends.append(f"Run {run.id} {_ENDS[run.state]}.")
        if run.dropped:
            drops.append(
                f"Run {run.id} had a full accept queue: up to {run.dropped:,} packets of clients "
                "were dropped, so clients may be missing."
            )
    yield from _some(begins, "runs")
    yield from _some(ends, "runs")
    yield from _some(drops, "runs")


def toProblems(problems: Sequence[Problem]) -> Iterator[str]:
    """Yield the problems of files."""
    yield from _some([f"{each.file}: {each.reason}" for each in problems], "files")


def _some(notes: Sequence[str], things: str) -> Iterator[str]:
    """Yield notes of a kind, and the number of further ones."""
    yield from map(asciiText, notes[:MAX_NOTES])
    if len(notes) > MAX_NOTES:
        yield f"The same goes for {len(notes) - MAX_NOTES:,} more {things}."


def _missing(count: int, isUncertain: bool) -> str:
    """Return the number of missing records, as text."""
    if not isUncertain:
        return f"{count:,}"
    return f"{count:,} or more" if count else "unknown"


def _runs(report: Report) -> Iterator[str]:
    """Yield the table of runs."""
    older = len(report.runs) - MAX_ROWS
    runs = [run for n, run in enumerate(report.runs) if n >= older or run.missing]
    yield from _table(
        ("run", "host", "pid", "from", "to", "state", *COUNTS),
        [
            (
                _cut(run.id),
                _cut(run.host or ""),
                "" if run.pid is None else str(run.pid),
                report.unit.format(run.first),
                report.unit.format(run.last),
                run.state,
                *(f"{getattr(run, name):,}" for name in COUNTS[:-1]),
                _missing(run.missing, bool(run.unknown)),
            )
            for run in runs
        ],
    )
    if len(runs) < len(report.runs):
        yield f"and {len(report.runs) - len(runs):,} older, with none known to be missing"


def _clients(report: Report) -> Iterator[str]:
    """Yield the table of clients."""
    places = [
        title
        for title, groups in (("country", report.countries), ("network", report.networks))
        if groups is not None
    ]
    yield from _table(
        ("client", *places, "connections", "first", "last", "server ports"),
        [
            (
                _clientName(client),
                *(_cut(_placeName(client, title)) for title in places),
                f"{client.connections:,}",
                report.unit.format(client.first),
                report.unit.format(client.last),
                _servers(client),
            )
            for client in report.clients
        ],
    )
    named = sum(client.isOne for client in report.clients)
    connections = report.seen - sum(client.connections for client in report.clients)
    if named < report.clientCount:
        yield f"and {report.clientCount - named:,} others, with {connections:,} connections"


def _groups(report: Report, title: str, groups: Sequence[Group]) -> Iterator[str]:
    """Yield a table of connections grouped by server or error."""
    yield from _table(
        (title, "connections", "clients", "first", "last"),
        [
            (
                _cut(group.name),
                f"{group.connections:,}",
                f"{group.clients:,}",
                report.unit.format(group.first),
                report.unit.format(group.last),
            )
            for group in groups[:MAX_ROWS]
        ],
    )
    if rest := groups[MAX_ROWS:]:
        connections = sum(group.connections for group in rest)
        yield f"and {len(rest):,} others, with {connections:,} connections"


def _bars(report: Report) -> Iterator[str]:
    """Yield a line with a bar for each unit of time; "..." stands for units without connections."""
    bars, unit = report.bars, report.unit
    most = max([bar.connections for bar in bars], default=0)
    for previous, bar in zip([None, *bars], bars, strict=False):
        if previous is None:
            yield f"\nconnections by {unit.name}, UTC"
        elif bar.start - previous.start > unit.length:
            yield "..."
        marks = "#" * -(-bar.connections * MAX_WIDTH // most)
        yield f"{unit.label(bar.start)}  {marks:{MAX_WIDTH}}  {bar.connections:,}"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield an empty line and a table, with counts aligned right; nothing if there are no rows."""
    if not rows:
        return
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    yield ""
    for row in (titles, *rows):
        cells = (
            cell.rjust(width) if title in _RIGHT else cell.ljust(width)
            for cell, width, title in zip(row, widths, titles, strict=True)
        )
        yield "  ".join(cells).rstrip()


def _clientName(client: Client) -> str:
    """Return the name of a client."""
    if client.transport in ("unix", "pipe"):
        return _cut(f"{client.transport}:{client.address or ''}")
    several = f" ({client.addresses:,} addresses)" if client.addresses > 1 else ""
    return _cut(client.address or "others") + several


def _placeName(client: Client, title: str) -> str:
    """Return the country or the network of a client."""
    place = client.place or NOWHERE
    return placeName(getattr(place, title), place.isPrivate)


def _servers(client: Client) -> str:
    """Return the server ports that a client reached, as many as fit into a cell."""
    names = [*map(str, client.ports), *map(_cut, client.servers)]
    shown = names[:1]
    for name in names[1:]:
        if len(" ".join([*shown, name])) > MAX_WIDTH:
            return f"{' '.join(shown)} and {len(names) - len(shown):,} more"
        shown.append(name)
    return " ".join(shown)


def _cut(text: str) -> str:
    """Return a text, escaped and truncated for a cell."""
    text = asciiText(text)
    return text if len(text) <= MAX_WIDTH else f"{text[: MAX_WIDTH - 3]}..."
