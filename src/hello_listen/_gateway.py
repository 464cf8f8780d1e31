"""Warns where address translation hides the clients, as the network of a container often does."""

from __future__ import annotations

import sys
from collections.abc import Collection
from contextlib import suppress
from itertools import islice
from pathlib import Path
from socket import AF_INET, AF_INET6, inet_ntop

from twisted.logger import Logger

from hello_listen.connection import Connection
from hello_listen.protocol import HelloFactory

SAMPLE_SIZE = 100
"""Connections from nobody but a gateway after which the warning comes."""

MAX_ROUTES = 1000
"""Upper bound of the routes that are read of each family; a router may have a million."""

_log = Logger(namespace="hello_listen")


def warnIfHidden(factory: HelloFactory, gateways: Collection[str]) -> None:
    """
    Warn once if a factory's first connections all come from gateways, as if from one client.

    This observes the factory until a connection comes from elsewhere, or names its client in a
    PROXY header, so later connections cost nothing. A connection with an error does not count: a
    health check of a C{haproxy:} endpoint sends no header, and may come from a gateway.

    @param factory: the factory.
    @param gateways: the addresses of the gateways, if any.
    """
    count = 0

    def observe(connection: Connection) -> None:
        nonlocal count
        if connection.error is not None:
            return
        address = str(connection.clientAddress).partition("%")[0]
        if connection.proxy is None and address in gateways:
            count += 1
            if count < SAMPLE_SIZE:
                return
            _log.warn(
                "The first {count} connections came from the gateway {address}: does it hide the "
                "clients (NAT)? Use the host's network, externalTrafficPolicy: Local, or haproxy:",
                count=count,
                address=address,
            )
        factory.observers = tuple(each for each in factory.observers if each is not observe)

    if gateways:
        factory.observers = (*factory.observers, observe)


def defaultGateways(folder: Path = Path("/proc/net")) -> set[str]:
    """
    Return the addresses of the gateways of Linux's default routes; none on other systems.

    @param folder: the folder of the routing tables, see proc(5).
    """
    found = set()
    for route in _routes(folder / "route"):
        with suppress(LookupError, ValueError, OverflowError):
            destination, gateway, mask = route[1], int(route[2], 16), route[7]
            if destination == mask == "00000000":
                found.add(inet_ntop(AF_INET, gateway.to_bytes(4, sys.byteorder)))
    for route in _routes(folder / "ipv6_route"):
        with suppress(LookupError, ValueError):
            if route[0] == "0" * 32 and route[1] == "00":
                found.add(inet_ntop(AF_INET6, bytes.fromhex(route[4])))
    return found - {"0.0.0.0", "::"}  # noqa: S104 # Routes without a gateway.


def _routes(table: Path) -> list[list[str]]:
    """Return the fields of each route of a table; nothing where there is no such table."""
    with suppress(OSError), table.open("rb") as file:
        return [line.decode("latin-1").split() for line in islice(file, MAX_ROUTES)]
    return []
