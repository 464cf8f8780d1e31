"""Makes the records that observers get."""

from __future__ import annotations

from twisted.internet.address import IPv4Address
from twisted.internet.interfaces import IAddress

from hello_listen import Connection, Summary

NOON = 1_795_348_800.0
"""A full hour, and midday in UTC."""

SERVER = IPv4Address("TCP", "192.0.2.1", 7878)


def connection(
    client: str | IAddress = "198.51.100.7",
    time: float = NOON,
    server: IAddress = SERVER,
    error: str | None = None,
) -> Connection:
    """Return a connection, of an IPv4 client unless an address is given."""
    if isinstance(client, str):
        client = IPv4Address("TCP", client, 1)
    return Connection(time=time, client=client, server=server, error=error)


def summary(count: int, client: str | None, transport: str | None = "tcp") -> Summary:
    """Return a summary."""
    return Summary(count, NOON - 60, NOON, client, transport, None)
