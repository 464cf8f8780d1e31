"""
C{hello-listen-report}: who connected, how often and when, and whether anything is missing.

DuckDB reads the connection logs once, into a table in a temporary folder, and answers from there.

A run is what one L{ConnectionLog} wrote, known by its C{service.instance.id}.

  - Its connections are what C{Connection log closed} says. Without that line, and for a period
    (C{--since}, C{--until}), they are what the records say. A summary counts where it begins.
  - Missing are the numbers from 1 to the highest that no record has and no C{Connections not
    recorded} tells of; for a period, those of the whole run. Where C{Connection log opened} is not
    in the files, the lowest number takes the place of 1, and the text says so: what was rotated
    away is not missing. What a killed process had not written yet, nobody knows.
  - Without C{Connection log closed}, a run of this host is "open" while the process that began it
    lives, else "killed". Processes of another host cannot be seen: its run is "not closed".

Records without an id, of earlier releases, count among the clients and in the bars only. A record
that is read twice, as from a log and its copy, counts once.
"""

from __future__ import annotations

import argparse
import errno
import glob
import json
import os
import re
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

MEMORY = "400MB"
"""Memory for DuckDB's tables; beyond that it uses the temporary folder. Buffers come on top."""

THREADS = 4
"""Most threads that read, each with a buffer of 32 MiB."""

UNNAMED = {"unix": "unix:", "pipe": "pipe:"}
"""Clients that have no name, by transport."""

RUNS = 20
"""Runs that the text shows: the newest, and any with something missing."""

WIDTH = 45
"""Characters of the longest bar, and of the longest name that is shown whole."""

UNITS = (
    ("minute", timedelta(minutes=1), timedelta(hours=2), 16),
    ("hour", timedelta(hours=1), timedelta(days=4), 16),
    ("day", timedelta(days=1), timedelta(days=800), 10),
    ("year", timedelta(days=366), timedelta.max, 4),
)
"""What a bar stands for: name, length, the longest span, and how much of its start is shown."""

COUNTS = ("connections", "recorded", "summarized", "lost", "missing")

# Python knows no other years; only a forged record has them.
_MACRO = "CREATE MACRO sane(t) AS CASE WHEN year(t::TIMESTAMP) BETWEEN 1 AND 9999 THEN t END"

# A line that is no JSON object becomes a row of NULLs, and a value of another type NULL.
_READ = """
CREATE TABLE record AS SELECT
    CASE message WHEN 'Connection established!' THEN 'connection'
        WHEN 'Connections summarized' THEN 'summary' WHEN 'Connections not recorded' THEN 'loss'
        WHEN 'Connection log opened' THEN 'opened' WHEN 'Connection log closed' THEN 'closed'
        END AS kind,
    "service.instance.id" AS id, "host.name" AS host, "process.pid" AS pid,
    sequence, "sequence.first" AS low, "sequence.last" AS high, "count", connections, recorded,
    summarized, lost, "client.address" AS client, "network.transport" AS transport,
    coalesce("server.port"::VARCHAR, "server.address") AS server,
    coalesce(sane("timestamp.first"), sane("timestamp")) AS since,
    coalesce(sane("timestamp.last"), sane("timestamp")) AS until,
    coalesce(since >= $since::TIMESTAMP, $since IS NULL)
        AND coalesce(since < $until::TIMESTAMP, $until IS NULL) AS inside,
    CASE WHEN inside AND kind = 'connection' THEN 1
        WHEN inside AND kind = 'summary' AND "count" > 0 THEN "count" END AS came
FROM read_json($files, format = 'newline_delimited', ignore_errors = true, columns = {
    'message': 'VARCHAR', 'service.instance.id': 'VARCHAR', 'host.name': 'VARCHAR',
    'process.pid': 'BIGINT', 'sequence': 'BIGINT', 'sequence.first': 'BIGINT',
    'sequence.last': 'BIGINT', 'count': 'BIGINT', 'connections': 'BIGINT',
    'recorded': 'BIGINT', 'summarized': 'BIGINT', 'lost': 'BIGINT', 'client.address': 'VARCHAR',
    'network.transport': 'VARCHAR', 'server.port': 'BIGINT', 'server.address': 'VARCHAR',
    'timestamp': 'TIMESTAMP', 'timestamp.first': 'TIMESTAMP', 'timestamp.last': 'TIMESTAMP'})
"""

_RUNS = """
SELECT id, max(host) AS host, max(pid) AS pid, min(since) AS first, max(until) AS last,
    bool_or(kind = 'opened') AS opened, bool_or(kind = 'closed') AS closed,
    max(connections) FILTER (kind = 'closed') AS connections,
    max(recorded) AS recorded, max(summarized) AS summarized, max(lost) AS lost,
    count(*) FILTER (kind = 'connection') AS records,
    sum(came) FILTER (kind = 'connection') AS seen, sum(came) FILTER (kind = 'summary') AS counted,
    sum(connections) FILTER (kind = 'loss' AND inside) AS told,
    sum("count") FILTER (kind = 'loss') AS excused,
    min(least(sequence, low)) AS lowest, max(greatest(sequence, high)) AS highest,
    count(DISTINCT sequence) AS numbers, count(sequence) > numbers
        OR count(*) FILTER (kind = 'opened') > 1 OR count(*) FILTER (kind = 'closed') > 1 AS twice
FROM record WHERE id IS NOT NULL GROUP BY id HAVING bool_or(inside) ORDER BY first, id
"""

_ONCE = """
CREATE TABLE once AS SELECT DISTINCT * FROM record WHERE id IS NOT NULL
UNION ALL SELECT * FROM record WHERE id IS NULL;
DROP TABLE record; ALTER TABLE once RENAME TO record
"""

_ABOUT = """
SELECT min(since) FILTER (came > 0) AS first, max(since) FILTER (came > 0) AS last,
    count(*) FILTER (came > 0 AND id IS NULL) AS old, count(*) FILTER (kind IS NULL) AS torn,
    count(kind) AS known
FROM record
"""

_CLIENTS = """
SELECT client AS "client.address", sum(came) AS connections, min(since) AS first,
    max(until) AS last, CASE WHEN client IS NULL THEN transport END AS transport,
    list_sort(list(DISTINCT server) FILTER (server IS NOT NULL))[:9] AS servers
FROM record WHERE came > 0 GROUP BY ALL ORDER BY connections DESC, client LIMIT $top
"""

_BARS = """
SELECT date_trunc($unit, since)::TIMESTAMP AS start, sum(came) AS connections
FROM record WHERE came > 0 AND since IS NOT NULL GROUP BY start ORDER BY start
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Print the report.

    @param arguments: the command line, by default that of the process.

    @return: the status: 0 where nothing is missing, 1 where something is, 2 without a report.
    """
    options = _options().parse_args(arguments)
    try:
        import duckdb
    except ImportError:
        return _fail("needs DuckDB: pip install duckdb")
    try:
        found = _find(options)
        if found["torn"] and not found["known"]:
            return _fail(f"no connection log: {' '.join(options.files)}")
        if options.svg:
            Path(options.svg).write_text(_svg(found), encoding="ascii")
        for note in _notes(found) if options.json else ():
            print(note, file=sys.stderr)
        print(_json(found) if options.json else "\n".join(_text(found)), flush=True)
    except BrokenPipeError:
        # The reader (head) has enough. The interpreter flushes again when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        return _fail(str(error).partition("] ")[2])
    except KeyboardInterrupt:
        return _fail("interrupted")
    except duckdb.Error as error:
        return _fail(str(error).split("\n\n")[0].rpartition("Error: ")[2].split("\n")[0])
    return 1 if found["missing"] else 0


def _options() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="hello-listen-report",
        description="Tell who connected, how often and when, and whether anything is missing.",
        epilog="Status: 0 where nothing is missing, 1 where something is, 2 for errors.",
    )
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="a log, also .gz; a pattern; - for standard input"
    )
    parser.add_argument("--since", type=_moment, metavar="TIME", help="2026-11-22T20:19, in UTC")
    parser.add_argument("--until", type=_moment, metavar="TIME", help="the time to stop before")
    parser.add_argument("--top", type=int, default=20, metavar="N", help="clients (default: 20)")
    parser.add_argument("--svg", metavar="FILE", help="draw the connections over time")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _moment(text: str) -> datetime:
    """Parse a date or time of ISO 8601, in UTC unless it says otherwise."""
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
        return (moment.astimezone(timezone.utc) if moment.tzinfo else moment).replace(tzinfo=None)
    except (OverflowError, ValueError):
        raise argparse.ArgumentTypeError(f"no time: {text!r}") from None


def _fail(reason: str) -> int:
    """Print why there is no report, and return the status."""
    print(f"hello-listen-report: {_printable(reason)}", file=sys.stderr)
    return 2


def _find(options: argparse.Namespace) -> dict[str, Any]:
    """Return what there is to tell; a Ctrl-C ends that, though DuckDB does not heed it itself."""
    import duckdb

    config: dict[str, Any] = {
        "memory_limit": MEMORY,
        "threads": min(THREADS, os.cpu_count() or 1),
        "preserve_insertion_order": False,
        "autoinstall_known_extensions": False,
    }
    with (
        TemporaryDirectory(prefix="hello-listen-report-") as folder,
        duckdb.connect(f"{folder}/records", config=config | {"temp_directory": folder}) as database,
        ThreadPoolExecutor(1) as pool,
    ):
        try:
            return pool.submit(_ask, database, options).result()
        except KeyboardInterrupt:
            database.interrupt()
            raise


def _ask(database: DuckDBPyConnection, options: argparse.Namespace) -> dict[str, Any]:
    """Read the files into a table, and return what there is to tell."""

    def rows(query: str, **values: object) -> list[dict[str, Any]]:
        database.execute(query, values)
        names = [column[0] for column in database.description or ()]
        return [dict(zip(names, row, strict=True)) for row in database.fetchall()]

    database.execute(f"SET enable_progress_bar = {sys.stdout.isatty()}")
    database.execute(_MACRO)
    files = [_pattern(name) for name in dict.fromkeys(options.files)]
    database.execute(_READ, {"files": files, "since": options.since, "until": options.until})
    runs = rows(_RUNS)
    twice = any(run["twice"] for run in runs)
    if twice:
        database.execute(_ONCE)
        runs = rows(_RUNS)
    told = [_run(run, whole=options.since is options.until is None) for run in runs]
    [about] = rows(_ABOUT)
    span = about["last"] - about["first"] if about["first"] else timedelta()
    unit = next(unit for unit in UNITS if span <= unit[2])
    return {
        **{name: sum(run[name] for run in told) for name in COUNTS},
        "runs": told,
        "clients": rows(_CLIENTS, top=options.top),
        "bars": rows(_BARS, unit=unit[0]),
        "unit": unit,
        "twice": twice,
        **about,
    }


def _pattern(name: str) -> str:
    """Return a file's name for DuckDB, which reads folders whole and takes a [ for a pattern."""
    if name == "-":
        return "/dev/stdin"
    if os.path.isdir(name):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    return glob.escape(name) if os.path.exists(name) else name


def _run(row: dict[str, Any], whole: bool) -> dict[str, Any]:
    """Return what is told of a run, of all its time or of a period."""
    lowest = 1 if row["opened"] else row["lowest"]
    missing = 0
    if row["highest"] is not None:
        missing = row["highest"] - lowest + 1 - row["numbers"] - (row["excused"] or 0)
    if row["opened"] and row["closed"]:
        missing = max(missing, (row["recorded"] or 0) - row["records"])
    counts = [row[name] or 0 for name in ("seen", "counted", "told")]
    counts.insert(0, sum(counts))
    if whole and row["closed"]:
        counts = [row[name] or 0 for name in COUNTS[:4]]
    return {
        "service.instance.id": row["id"],
        "host.name": row["host"],
        "process.pid": row["pid"],
        "first": row["first"],
        "last": row["last"],
        "state": _state(row),
        "sequence.first": lowest,
        "sequence.last": row["highest"],
        **dict(zip(COUNTS, [*counts, max(missing, 0)], strict=True)),
    }


def _state(row: dict[str, Any]) -> str:
    """Say whether a run was closed, is open, or was killed, as far as that can be known here."""
    if row["closed"]:
        return "closed"
    # Without the first process, nobody else's can be seen (hidepid, or another system).
    here = row["host"] == socket.gethostname() and os.path.exists("/proc/1")
    if not here or row["pid"] is None or row["first"] is None:
        return "not closed"
    try:
        status = Path(f"/proc/{row['pid']}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return "killed"
    # A number is used again, in a container at each start. Clocks are set, by less than a minute.
    ticks = int(status[19])
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    first = row["first"].replace(tzinfo=timezone.utc).timestamp()
    return "open" if time.time() - age < first + 60 else "killed"


def _json(found: dict[str, Any]) -> str:
    """Return the report as one JSON object."""
    fields = ("client.address", "connections", "first", "last")
    clients = [{name: client[name] for name in fields} for client in found["clients"]]
    report = {name: found[name] for name in (*COUNTS, "runs")} | {"clients": clients}
    return json.dumps(report, default=lambda time: time.isoformat(timespec="microseconds") + "Z")


def _notes(found: dict[str, Any]) -> Iterator[str]:
    """Say what a reader of the numbers should know."""
    if found["torn"]:
        yield f"Lines that are no records (torn, or of another log): {found['torn']:,}"
    if found["old"]:
        yield f"Records without an id, counted among the clients only: {found['old']:,}"
    if found["twice"]:
        yield "Records that were read twice count once."
    for run in found["runs"]:
        first = run["sequence.first"] or 1
        if first > 1:
            name = _printable(run["service.instance.id"])
            yield f"Run {name} began before these files: they hold its numbers from {first:,} on."


def _text(found: dict[str, Any]) -> Iterator[str]:
    """Return the report for people, line by line."""
    yield ", ".join(f"{name}: {found[name]:,}" for name in COUNTS).capitalize()
    yield from _notes(found)
    older = len(found["runs"]) - RUNS
    runs = [run for n, run in enumerate(found["runs"]) if n >= older or run["missing"]]
    yield from _table(
        {
            "run": run["service.instance.id"],
            "host": run["host.name"],
            "pid": str(run["process.pid"] or ""),
            "from": _minute(run["first"]),
            "to": _minute(run["last"]),
            "state": run["state"],
        }
        | {name: run[name] for name in COUNTS}
        for run in runs
    )
    if len(runs) < len(found["runs"]):
        yield f"Older runs, with nothing missing: {len(found['runs']) - len(runs):,}"
    yield from _table(
        {
            "client": client["client.address"] or UNNAMED.get(client["transport"], "others"),
            "connections": client["connections"],
            "first": _minute(client["first"]),
            "last": _minute(client["last"]),
            "server ports": " ".join(sorted(client["servers"] or (), key=lambda p: (len(p), p))),
        }
        for client in found["clients"]
    )
    yield from _bars(found)


def _minute(moment: datetime | None) -> str:
    """Return a time as people read it, in UTC."""
    return moment.isoformat(" ")[:16] if moment else ""


def _table(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Return an empty line and a table, numbers to the right; nothing if there are no rows."""
    table = list(rows)
    if not table:
        return
    right = [isinstance(cell, int) for cell in table[0].values()]
    lines = [list(table[0]), *([_cell(cell) for cell in row.values()] for row in table)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    yield ""
    for line in lines:
        cells = zip(line, widths, right, strict=True)
        yield "  ".join(c.rjust(w) if number else c.ljust(w) for c, w, number in cells).rstrip()


def _cell(cell: str | int | None) -> str:
    """Return a cell of a table as text."""
    return f"{cell:,}" if isinstance(cell, int) else _printable(cell or "")[:WIDTH]


def _printable(text: str) -> str:
    """Escape all but plain ASCII: nothing moves, hides or reorders what a terminal shows."""
    return re.sub(r"[^ -~]", lambda c: c[0].encode("unicode_escape").decode("ascii"), text)


def _bars(found: dict[str, Any]) -> Iterator[str]:
    """Return the connections over time, a bar a line; "..." is a time without any."""
    name, length, _, shown = found["unit"]
    bars = found["bars"]
    most = max([bar["connections"] for bar in bars], default=0)
    for previous, bar in zip([None, *bars], bars, strict=False):
        if previous is None:
            yield f"\nconnections by {name}, UTC"
        elif bar["start"] - previous["start"] > length:
            yield "..."
        marks = "#" * -(-bar["connections"] * WIDTH // most)
        yield f"{bar['start'].isoformat(' ')[:shown]}  {marks:{WIDTH}}  {bar['connections']:,}"


def _svg(found: dict[str, Any]) -> str:
    """Return the connections over time as a drawing of 800 by 200, with a margin for the labels."""
    name, length, _, shown = found["unit"]
    bars = found["bars"]
    most = max([bar["connections"] for bar in bars], default=0)
    slots = (bars[-1]["start"] - bars[0]["start"]) / length + 1 if bars else 1
    elements = [f'<text y="-6">connections by {name}, UTC: {most:,} at most</text>']
    for bar in bars:
        x = 800 * ((bar["start"] - bars[0]["start"]) / length) / slots
        height = 200 * bar["connections"] / most
        elements.append(
            f'<rect x="{x:.2f}" y="{200 - height:.2f}" width="{max(640 / slots, 0.5):.2f}" '
            f'height="{height:.2f}"><title>{bar["start"].isoformat(" ")[:shown]}: '
            f"{bar['connections']:,}</title></rect>"
        )
    for bar, x, anchor in zip(bars[:1] + bars[1:][-1:], (0, 800), ("start", "end"), strict=False):
        label = bar["start"].isoformat(" ")[:shown]
        elements.append(f'<text x="{x}" y="216" text-anchor="{anchor}">{label}</text>')
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="-8 -24 816 248" font-size="12">'
    return "\n".join([head, *elements, "</svg>\n"])
