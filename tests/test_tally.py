"""The tally's totals, times and clients."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress
from twisted.internet.task import Clock

from hello_listen.status import Facts, Tally
from hello_listen.status.tally import BATCH_SIZE, LATEST_CONNECTIONS, MAX_SERVERS, TOP_CLIENTS
from records import NOON, SERVER, connection, summary


def clients(facts: Facts) -> dict[str, int]:
    """Return the connections of each named client."""
    return {client.name: client.connections for client in facts.clients}


def test_totals() -> None:
    """Connections are counted by transport, server and kind of error."""
    tally = Tally()
    for error in (None, "proxy_header_timeout", None):
        tally(connection(error=error))
    tally(connection(UNIXAddress(None), server=UNIXAddress(b"/run/hello")))
    tally(connection(server=IPv6Address("UDP", "::1", 7)))
    facts = tally.facts()
    assert facts.connections == 5
    assert facts.totals == {
        ("tcp", "192.0.2.1:7878", ""): 2,
        ("tcp", "192.0.2.1:7878", "proxy_header_timeout"): 1,
        ("unix", "unix:/run/hello", ""): 1,
        ("udp", "[::1]:7", ""): 1,
    }


def test_last_times() -> None:
    """The last connection's time is known for each server, also in a batch and with an error."""
    tally = Tally()
    assert tally.facts().lastTimes == {}
    other = IPv4Address("TCP", "192.0.2.2", 7)
    tally.expect([("tcp", "192.0.2.2:7"), ("tcp", "192.0.2.3:7")])
    assert tally.facts().lastTimes == {}
    for time, server, error in (
        (1.5, SERVER, None),
        (2.5, other, None),
        (3.5, SERVER, "proxy_header_timeout"),
        (4.5, SERVER, None),
        (5.5, other, None),
    ):
        tally(connection(time=NOON + time, server=server, error=error))
    tally(summary(3, "198.51.100.7"))
    assert tally.facts().lastTimes == {
        ("tcp", "192.0.2.1:7878"): NOON + 4.5,
        ("tcp", "192.0.2.2:7"): NOON + 5.5,
        ("tcp", ""): NOON,
    }
    # The clock was set back.
    tally(connection(time=NOON - 3600))
    assert tally.facts().lastTimes["tcp", "192.0.2.1:7878"] == NOON - 3600


def test_many_servers() -> None:
    """At most a number of the servers that PROXY headers name are counted apart."""
    tally = Tally()
    for error in (None, "proxy_header_timeout"):
        for port in range(MAX_SERVERS + 5):
            tally(connection(server=IPv4Address("TCP", "192.0.2.1", port), error=error))
    tally(summary(3, "198.51.100.7"))
    totals = tally.facts().totals
    assert len(totals) == 2 * (MAX_SERVERS + 1) + 1
    assert totals["tcp", "other", ""] == totals["tcp", "other", "proxy_header_timeout"] == 5
    assert totals["tcp", "", ""] == 3


def test_drops() -> None:
    """Dropped packets are counted by server, from 0 for TCP servers that listen, in few names."""
    tally = Tally()
    assert tally.facts().drops == {}
    tally.expect([("tcp", "192.0.2.1:7878"), ("tcp", "192.0.2.2:7"), ("unix", "unix:/run/hello")])
    tally.dropped(SERVER, 20)
    tally.dropped(SERVER, 3)
    assert tally.facts().drops == {"192.0.2.1:7878": 23, "192.0.2.2:7": 0}
    assert tally.facts().connections == 0
    for port in range(MAX_SERVERS + 5):
        tally.dropped(IPv4Address("TCP", "203.0.113.9", port), 1)
    assert tally.facts().drops["other"] == 5


def test_servers_that_listen() -> None:
    """Servers that listen are counted apart in any case; a wildcard stands for its port."""
    tally = Tally()
    for port in range(MAX_SERVERS + 5):
        tally(connection(server=IPv4Address("TCP", "203.0.113.9", port)))
    named = [("tcp", f"192.0.2.1:{port}") for port in range(200)]
    known = ("tcp", "203.0.113.9:7")
    tally.facts()
    tally.expect([*named, known, ("tcp", "0.0.0.0:7001"), ("tcp", "[::]:7002")])
    assert tally.facts().totals["tcp", "192.0.2.1:199", ""] == 0
    for port in (*range(200), 7001, 7002, 7003):
        for error in (None, "proxy_header_timeout"):
            tally(connection(server=IPv4Address("TCP", "192.0.2.1", port), error=error))
    # The one that is no longer among the others leaves its place to one more.
    totals = tally.facts().totals
    for error in ("", "proxy_header_timeout"):
        assert all(totals["tcp", f"192.0.2.1:{port}", error] == 1 for port in range(200))
        assert totals["tcp", "192.0.2.1:7001", error] == 1
        assert totals["tcp", "[::]:7002", error] == 1
    assert totals["tcp", "other", "proxy_header_timeout"] == 1
    assert totals["tcp", "other", ""] == 6
    assert totals[(*known, "")] == 1


def test_times() -> None:
    """Connections are counted in the last minute, and by minute and hour, up to a day."""
    clock = Clock()
    clock.advance(NOON - 86_400)
    tally = Tally(clock=clock.seconds)
    for ago in (86_400, 82_799, 3_600, 3_599, 3_000, 60, 59, 1, 0):
        clock.advance(NOON - ago - clock.seconds())
        tally(connection(time=clock.seconds()))
    facts = tally.facts()
    assert (facts.since, facts.now) == (NOON - 86_400, NOON)
    assert (facts.connections, facts.lastMinute, facts.lastHour) == (9, 3, 5)
    minutes = [count for _, count in facts.minutes]
    assert (facts.minutes[0][0], facts.minutes[-1][0]) == (NOON - 59 * 60, NOON)
    assert (minutes[9], minutes[58], minutes[59], sum(minutes)) == (1, 3, 1, 5)
    hours = [count for _, count in facts.hours]
    assert (facts.hours[0][0], facts.hours[-1][0]) == (NOON - 23 * 3600, NOON)
    assert (hours[0], hours[22], hours[23], sum(hours)) == (1, 6, 1, 8)


def test_times_begin_with_the_counting() -> None:
    """Minutes and hours before the tally began are left out, rather than zero."""
    clock = Clock()
    clock.advance(NOON + 150)
    tally = Tally(clock=clock.seconds)
    assert tally.facts().minutes == [(NOON + 120, 0)]
    assert tally.facts().hours == [(NOON, 0)]
    clock.advance(3600)
    tally(connection(time=clock.seconds()))
    facts = tally.facts()
    assert [start for start, _ in facts.minutes] == [NOON + 60 * m for m in range(3, 63)]
    assert facts.hours == [(NOON, 0), (NOON + 3600, 1)]


def test_times_when_the_clock_is_set_back() -> None:
    """Where the system's clock is set back, the connections since then are shown."""
    clock = Clock()
    clock.advance(NOON + 7200)
    tally = Tally(clock=clock.seconds)
    clock.advance(-7200)
    tally(connection(time=NOON))
    assert tally.facts().minutes == [(NOON, 1)]
    assert tally.facts().hours == [(NOON, 1)]


def test_late_records() -> None:
    """A connection that was accepted before others does not push out a newer second."""
    tally = Tally(clock=lambda: NOON)
    for ago in [*range(59, -1, -1), 62, 61, 60]:
        tally(connection(time=NOON - ago))
    assert tally.facts().lastMinute == 60


def test_two_days() -> None:
    """At most a day of minutes is kept."""
    tally = Tally(clock=lambda: NOON + 86_400)
    for minute in range(2880):
        tally(connection(time=NOON - 86_400 + 60 * minute))
    assert [count for _, count in tally.facts().hours] == [60] * 23 + [0]


@pytest.mark.parametrize(
    ("address", "transport", "recorded", "name"),
    [
        (IPv4Address("TCP", "192.0.2.7", 1), "tcp", "192.0.2.7", "192.0.2.7"),
        (IPv6Address("TCP", "2001:db8::4", 1), "tcp", "2001:db8::/64", "2001:db8::/64"),
        (IPv6Address("TCP", "fe80::1%eth0", 1), "tcp", "fe80::1%eth0", "fe80::1%eth0"),
        (UNIXAddress(None), "unix", None, "unix:"),
        (UNIXAddress(b"192.0.2.7"), "unix", "192.0.2.7", "unix:192.0.2.7"),
        (UNIXAddress("/é".encode()), "unix", "/é", "unix:/é"),
    ],
)
def test_client_and_its_summary(
    address: IAddress, transport: str, recorded: str | None, name: str
) -> None:
    """A client's connections and summaries are counted together."""
    tally = Tally()
    tally(connection(address))
    tally(summary(5, recorded, transport))
    assert clients(tally.facts()) == {name: 6}


def test_clients() -> None:
    """The clients with the most connections are named, with their times; others are counted."""
    tally = Tally()
    for number in range(TOP_CLIENTS + 5):
        for time in range(number + 1):
            tally(connection(f"192.0.2.{number}", NOON + time))
    facts = tally.facts()
    assert [client.connections for client in facts.clients] == list(range(TOP_CLIENTS + 5, 5, -1))
    most = facts.clients[0]
    assert (most.name, most.first, most.last, most.missed) == ("192.0.2.24", NOON, NOON + 24, 0)
    assert facts.others == 0


def test_distinct_clients() -> None:
    """The number of clients is exact until some are forgotten, then a lower bound."""
    tally = Tally(limit=4)
    for number in range(4):
        tally(connection(f"192.0.2.{number}"))
        tally(connection("198.51.100.7") if number else summary(2, "198.51.100.7"))
        facts = tally.facts()
        expected = min(number + 2, 4)
        assert (facts.distinctClients, facts.others > 0) == (expected, number == 3)
    tally(connection("192.0.2.0"))
    assert tally.facts().distinctClients == 4


def test_facts_stay() -> None:
    """Facts do not change when more connections are counted."""
    tally = Tally()
    tally(connection())
    facts = tally.facts()
    tally(connection())
    assert tally.facts().clients[0].connections == 2
    assert facts.clients[0].connections == 1


def test_latest() -> None:
    """The latest connections are kept, latest first."""
    tally = Tally()
    all_ = [connection(time=NOON + number) for number in range(BATCH_SIZE + LATEST_CONNECTIONS)]
    for one in all_:
        tally(one)
    assert tally.facts().latest == all_[: -LATEST_CONNECTIONS - 1 : -1]


@given(st.integers(2, 12), st.lists(st.integers(0, 30), max_size=300))
def test_error_bound(limit: int, sequence: list[int]) -> None:
    """In any order of clients, missed connections are within the bound, and the sum is exact."""
    tally = Tally(limit)
    for number in sequence:
        tally(connection(f"192.0.2.{number}"))
    facts = tally.facts()
    assert len(facts.clients) <= limit
    assert facts.others + sum(clients(facts).values()) == len(sequence)
    bound = len(sequence) / (limit / 2)
    true = Counter(f"192.0.2.{number}" for number in sequence)
    for client in facts.clients:
        missed = true.pop(client.name) - client.connections
        assert 0 <= missed <= client.missed <= bound
    assert all(count <= bound for count in true.values())


@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.integers(0, 2), st.floats(0, 7200), st.booleans()),
        max_size=2 * BATCH_SIZE + 9,
    )
)
def test_exact(sequence: list[tuple[int, int, float, bool]]) -> None:
    """Totals are exact in any order of connections, and whenever they are asked for."""
    tally = Tally(clock=lambda: NOON)
    for client, port, ago, asked in sequence:
        server = IPv4Address("TCP", "192.0.2.1", port)
        tally(connection(f"192.0.2.{client}", NOON - ago, server))
        if asked:
            tally.facts()
    facts = tally.facts()
    assert facts.connections == sum(facts.totals.values()) == len(sequence)
    assert sum(count for _, count in facts.hours) == len(sequence)
    ports = Counter(("tcp", f"192.0.2.1:{port}", "") for _, port, _, _ in sequence)
    assert facts.totals == ports
    assert clients(facts) == Counter(f"192.0.2.{client}" for client, _, _, _ in sequence)


def test_summaries() -> None:
    """A summary counts as all of its connections."""
    tally = Tally(clock=lambda: NOON)
    tally(connection())
    tally(summary(10, "198.51.100.7"))
    tally(summary(5, None, "unix"))
    tally(summary(2, None, None))
    facts = tally.facts()
    assert facts.connections == 18
    assert facts.totals["", "", ""] == 2
    assert clients(facts) == {"198.51.100.7": 11, "unix:": 5}
    assert facts.others == 2
    assert facts.lastMinute == 18
