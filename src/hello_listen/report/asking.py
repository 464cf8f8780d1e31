"""Makes a report: reads the logs into the database, and runs the queries."""

from __future__ import annotations

import glob
import json
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from hello_listen._addresses import clientIdentity
from hello_listen.report.database import Database
from hello_listen.report.facts import (
    BAR_UNITS,
    Bar,
    Client,
    Country,
    Failure,
    Network,
    Problem,
    Report,
    Run,
    Server,
)
from hello_listen.report.inputs import Input
from hello_listen.report.reading import readLogs
from hello_listen.report.runs import makeRun

if TYPE_CHECKING:
    from hello_listen._place import Place
    from hello_listen.geo import GeoDatabases

EPOCH = datetime(1970, 1, 1)

Group = TypeVar("Group", Country, Network)

_Groups = dict[tuple[Any, ...], list[Any]]


def ask(
    database: Database,
    inputs: Sequence[Input],
    problems: Sequence[Problem],
    since: datetime | None = None,
    until: datetime | None = None,
    sort: str = "connections",
    top: int = 20,
    places: GeoDatabases | None = None,
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
    @param places: finds countries and networks, if given.

    @raise duckdb.Error: the database cannot be written.
    @raise GeoError: a database of C{places} is damaged.
    """
    problems = [*problems, *readLogs(database, inputs, since, until)]
    runs, repeated = _runs(database, since, until)
    [about] = database.rows("about")
    span = about["last"] - about["first"] if about["first"] else timedelta()
    unit = next(unit for unit in BAR_UNITS if span <= unit.longest)
    _identify(database)
    [totals] = database.rows("totals")
    countries, networks = _groups(database, places) if places else ([], [])
    return Report(
        runs=runs,
        clients=[
            Client(**row, place=places.find(row["address"]) if places else None)
            for row in database.rows("clients", sort=sort, top=top)
        ],
        servers=[Server(**row) for row in database.rows("servers")],
        countries=countries if places and places.hasCountries else None,
        networks=networks if places and places.hasNetworks else None,
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


def _groups(database: Database, places: GeoDatabases) -> tuple[list[Country], list[Network]]:
    """Return the connections by country and by network."""
    countries: _Groups = {}
    networks: _Groups = {}
    previous: Place | None = None
    both: tuple[list[Any], ...] = ()
    for identity, connections, first, last in database.tuples("places"):
        place = places.find(identity)
        if place is not previous:
            keys = (
                (place.country, place.isPrivate),
                (place.number, place.organization, place.isPrivate),
            )
            previous, both = place, tuple(map(_group, (countries, networks), keys))
        for group in both:
            group[0] += connections
            group[1] += identity is not None
            if first is not None:
                group[2] = first if group[2] is None else min(group[2], first)
                group[3] = last if group[3] is None else max(group[3], last)
    return _sorted(Country, countries), _sorted(Network, networks)


def _group(groups: _Groups, key: tuple[Any, ...]) -> list[Any]:
    """Return the connections, the clients, the first and the last time of a group, to count in."""
    return groups.setdefault(key, [0, 0, None, None])


def _sorted(make: Callable[..., Group], groups: _Groups) -> list[Group]:
    """Return groups as dataclasses, the one with the most connections first."""
    made = [
        make(*key, count, clients, _time(first), _time(last))
        for key, (count, clients, first, last) in groups.items()
    ]
    return sorted(made, key=lambda group: (-group.connections, group.name))


def _time(microseconds: int | None) -> datetime | None:
    """Return a time that is given since the epoch, as DuckDB returns a timestamp."""
    return None if microseconds is None else EPOCH + timedelta(microseconds=microseconds)


def _identify(database: Database) -> None:
    """Give each connection the identity of its client. IPv4 addresses are their own."""
    database.run("visits")
    path = f"{database.folder}/identities.jsonl"
    with open(path, "w", encoding="ascii") as file:
        for (address,) in database.tuples("addresses"):
            identity = clientIdentity("tcp", address)
            file.write(json.dumps({"client": address, "identity": identity}) + "\n")
    database.run("identities", files=[glob.escape(path)])
