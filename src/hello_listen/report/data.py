"""The report as JSON, for scripts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from hello_listen._place import Place
from hello_listen.report.facts import COUNTS, Report

# Attributes of the report that have another name in the connection log.
_NAMES = {
    "id": "service.instance.id",
    "host": "host.name",
    "pid": "process.pid",
    "lowest": "sequence.first",
    "highest": "sequence.last",
    "dropped": "packets.dropped",
    "address": "client.address",
    "transport": "network.transport",
    "port": "server.port",
    "server": "server.address",
    "ports": "server.ports",
    "servers": "server.addresses",
    "error": "error.type",
    "country": "client.geo.country.iso_code",
    "number": "client.as.number",
    "organization": "client.as.organization.name",
}


def toJSON(report: Report) -> str:
    """Return the report as one JSON object, under the connection log's names."""
    return json.dumps(
        {
            **{name: report.total(name) for name in COUNTS},
            "unknown": report.unknown,
            "runs": _objects(report.runs),
            "clients": _clients(report),
            "clients.count": report.clientCount,
            "servers": _objects(report.servers),
            **_places(report),
            "errors": _objects(report.failures),
            "timeline": {"unit": report.unit.name, "bars": _objects(report.bars)},
            "lines.torn": report.torn,
            "lines.unnumbered": report.unnumbered,
            "lines.repeated": report.repeated,
            "problems": _objects(report.problems),
        },
        default=_time,
    )


def _clients(report: Report) -> list[dict[str, Any]]:
    """Return the clients; each has the fields of its place only if places were looked up."""
    clients = _objects(report.clients)
    for client in clients:
        place: Place | None = client.pop("place")
        if place is not None:
            client |= place.attributes() | {"private": place.isPrivate}
    return clients


def _places(report: Report) -> dict[str, Any]:
    """Return the tables of countries and networks that there are."""
    tables = {"countries": report.countries, "networks": report.networks}
    return {name: _objects(groups) for name, groups in tables.items() if groups is not None}


def _objects(values: Sequence[Any]) -> list[dict[str, Any]]:
    """Return the fields of dataclasses, under their names in the JSON."""
    return [
        {_NAMES.get(name, name): field for name, field in vars(each).items()} for each in values
    ]


def _time(moment: datetime) -> str:
    """Return a time in the format of the connection log."""
    return moment.isoformat(timespec="microseconds") + "Z"
