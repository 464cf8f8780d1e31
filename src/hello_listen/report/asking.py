"""Makes a report: reads the logs into the database, and runs the queries."""

from __future__ import annotations

import glob
import json
from collections.abc import Sequence
from datetime import datetime, timedelta

from hello_listen._addresses import clientIdentity
from hello_listen.report.database import Database
from hello_listen.report.facts import BAR_UNITS, Bar, Client, Failure, Problem, Report, Run, Server
from hello_listen.report.inputs import Input
from hello_listen.report.reading import readLogs
from hello_listen.report.runs import makeRun


def ask(
    database: Database,
    inputs: Sequence[Input],
    problems: Sequence[Problem],
    since: datetime | None = None,
    until: datetime | None = None,
    sort: str = "connections",
    top: int = 20,
) -> Report:
    """
    Return the report of logs.

    @param database: an empty database.
    @param inputs: the logs.
    @param problems: the problems of files that are not among the logs.
    @param since: the start of the period to report, or L{None}.
    @param until: the end of the period, exclusive, or L{None}.
    @param sort: the order of clients: most C{connections}, or latest C{first} or C{last}
        connection.
    @param top: the number of clients to list.

    @raise duckdb.Error: the database cannot be written.
    """
    problems = [*problems, *readLogs(database, inputs, since, until)]
    runs, repeated = _runs(database, since, until)
    [about] = database.rows("about")
    span = about["last"] - about["first"] if about["first"] else timedelta()
    unit = next(unit for unit in BAR_UNITS if span <= unit.longest)
    _identify(database)
    [totals] = database.rows("totals")
    return Report(
        runs=runs,
        clients=[Client(**row) for row in database.rows("clients", sort=sort, top=top)],
        servers=[Server(**row) for row in database.rows("servers")],
        failures=[Failure(**row) for row in database.rows("errors")],
        bars=[Bar(**row) for row in database.rows("bars", unit=unit.name)],
        unit=unit,
        clientCount=totals["clients"],
        seen=int(totals["connections"]),
        lines=about["lines"],
        unnumbered=about["unnumbered"],
        torn=about["torn"],
        repeated=repeated,
        problems=problems,
    )


def _runs(
    database: Database, since: datetime | None, until: datetime | None
) -> tuple[list[Run], bool]:
    """Return the runs, and whether lines were read twice."""
    rows = database.rows("runs")
    repeated = any(row["repeated"] for row in rows)
    if repeated:
        database.run("once")
        rows = database.rows("runs")
    both = {}
    if any(row["told"] for row in rows):
        both = {row["id"]: row["numbers"] for row in database.rows("both")}
    return [makeRun(row, both.get(row["id"], 0), since, until) for row in rows], repeated


def _identify(database: Database) -> None:
    """Give each connection the identity of its client. IPv4 addresses are their own."""
    database.run("visits")
    path = f"{database.folder}/identities.jsonl"
    with open(path, "w", encoding="ascii") as file:
        for address in database.column("addresses"):
            identity = clientIdentity("tcp", address)
            file.write(json.dumps({"client": address, "identity": identity}) + "\n")
    database.run("identities", files=[glob.escape(path)])
