"""The warning that a gateway hides the clients."""

from __future__ import annotations

from pathlib import Path

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress
from twisted.logger import capturedLogs

from events import texts
from hello_listen import Connection, HelloFactory
from hello_listen._gateway import MAX_ROUTES, defaultGateways, warnIfHidden
from records import SERVER

GATEWAYS = {"172.17.0.1", "fd00::1", "fe80::1"}
GATEWAY = IPv4Address("TCP", "172.17.0.1", 40112)
CLIENT = IPv4Address("TCP", "203.0.113.7", 51974)

# As Linux 6.18 shows them, on a machine of little-endian byte order.
ROUTES = """\
Iface	Destination	Gateway 	Flags	RefCnt	Use	Metric	Mask		MTU	Window	IRTT
eth0	00000000	010011AC	0003	0	0	0	00000000	0	0	0
eth1	00000000	0202000A	0003	0	0	100	00000000	0	0	0
tun0	00000000	0900000A	0003	0	0	0	00000080	0	0	0
ppp0	00000000	00000000	0001	0	0	200	00000000	0	0	0
eth0	000011AC	00000000	0001	0	0	0	0000FFFF	0	0	0
"""
ROUTES6 = f"""\
fd000000000000000000000000000000 40 {"0" * 32} 00 {"0" * 32} 00000100 00000001 00000000 00000001 eth0
{"0" * 32} 00 {"0" * 32} 00 fd000000000000000000000000000001 00000400 00000003 00000000 00000003 eth0
{"0" * 32} 01 {"0" * 32} 00 fd000000000000000000000000000009 00000400 00000003 00000000 00000003 tun0
{"0" * 32} 00 {"0" * 32} 00 {"0" * 32} ffffffff 00000001 00000000 00200200 lo
"""  # noqa: E501


@pytest.fixture
def records() -> list[Connection]:
    """Return the connections that the factory's other observer was called with."""
    return []


@pytest.fixture
def factory(records: list[Connection]) -> HelloFactory:
    """Return a factory that warns."""
    factory = HelloFactory(records.append)
    warnIfHidden(factory, GATEWAYS)
    return factory


def warnings(factory: HelloFactory, count: int, client: IAddress, **details: object) -> list[str]:
    """Return what is logged while so many connections are established."""
    with capturedLogs() as events:
        for _ in range(count):
            factory.established(client, SERVER, **details)  # type: ignore[arg-type]
    return texts(events)


@pytest.mark.parametrize(
    ("client", "named"),
    [
        (GATEWAY, "172.17.0.1"),
        (IPv6Address("TCP", "::ffff:172.17.0.1", 1), "172.17.0.1"),
        (IPv6Address("TCP", "fd00::1", 1), "fd00::1"),
        (IPv6Address("TCP", "fe80::1%eth0", 1), "fe80::1"),
    ],
)
def test_only_a_gateway(
    factory: HelloFactory, records: list[Connection], client: IAddress, named: str
) -> None:
    """The hundredth connection from a gateway is warned of, once, and all are observed."""
    assert warnings(factory, 99, client) == []
    [warning] = warnings(factory, 1, client)
    assert warning.startswith(f"The first 100 connections came from the gateway {named}: ")
    assert warnings(factory, 1000, client) == []
    assert len(records) == 1100
    assert len(factory.observers) == 1


@pytest.mark.parametrize(
    "other",
    [
        CLIENT,
        IPv4Address("TCP", "127.0.0.1", 1),
        IPv6Address("TCP", "2001:db8::1", 1),
        UNIXAddress(None),
    ],
    ids=str,
)
@pytest.mark.parametrize("before", [0, 99])
def test_others(factory: HelloFactory, before: int, other: IAddress) -> None:
    """One connection from elsewhere within the first hundred ends the watch without a warning."""
    assert warnings(factory, before, GATEWAY) == []
    assert warnings(factory, 1, other) == []
    assert len(factory.observers) == 1
    assert warnings(factory, 200, GATEWAY) == []


def test_named_by_a_proxy(factory: HelloFactory) -> None:
    """A gateway that sends PROXY headers hides nobody, also where it checks the server's health."""
    assert warnings(factory, 1, GATEWAY, proxy=GATEWAY) == []
    assert len(factory.observers) == 1
    assert warnings(factory, 200, CLIENT, proxy=GATEWAY) == []


def test_errors(factory: HelloFactory) -> None:
    """Connections with an error, such as health checks without a PROXY header, do not count."""
    assert warnings(factory, 200, GATEWAY, error="proxy_header_incomplete") == []
    assert warnings(factory, 99, GATEWAY) == []
    assert len(warnings(factory, 1, GATEWAY)) == 1


def test_no_gateway() -> None:
    """Without a default route, nothing is observed."""
    factory = HelloFactory(print)
    warnIfHidden(factory, set())
    assert factory.observers == (print,)


@pytest.mark.parametrize(
    ("routes", "routes6", "gateways"),
    [
        (ROUTES, ROUTES6, {"172.17.0.1", "10.0.2.2", "fd00::1"}),
        (ROUTES, None, {"172.17.0.1", "10.0.2.2"}),
        (None, ROUTES6, {"fd00::1"}),
        (None, None, set()),
        ("", "", set()),
        ("eth0 00000000\nx 0 -1 0 0 0 0 0\nx 00000000 -1 3 0 0 0 00000000", "0 0\n", set()),
        ("eth0 00000000 zz 3 0 0 0 00000000", f"{'0' * 32} 00 0 0 zz\n", set()),
        ("\xff\0", f"{'0' * 32} 00 0 0 01\n", set()),
        ("x\n" * MAX_ROUTES + ROUTES, "x\n" * MAX_ROUTES + ROUTES6, set()),
    ],
)
def test_gateways(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    routes: str | None,
    routes6: str | None,
    gateways: set[str],
) -> None:
    """Default routes with a gateway are found; tables that are missing or wrong have none."""
    monkeypatch.setattr("sys.byteorder", "little")
    for name, table in (("route", routes), ("ipv6_route", routes6)):
        if table is not None:
            (tmp_path / name).write_bytes(table.encode("latin-1"))
    assert defaultGateways(tmp_path) == gateways
