"""Summaries: what is left out is counted, in bounded memory, and nothing is forgotten."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress
from twisted.internet.stdio import PipeAddress
from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from events import texts
from hello_listen import Connection, Summaries, Summary, logConnection
from hello_listen import summaries as module
from hello_listen.summaries import SUMMARY_PERIOD
from reactors import HOUR, Stepping
from turns import until

SERVER = IPv4Address("TCP", "192.0.2.1", 7878)


def v4(host: str) -> IPv4Address:
    """Return a client's address."""
    return IPv4Address("TCP", host, 51974)


def v6(host: str) -> IPv6Address:
    """Return a client's address."""
    return IPv6Address("TCP", host, 51974)


class Fed:
    """Summaries with a clock, and what they passed on."""

    def __init__(self, perClient: int | None = None, *networks: str) -> None:
        self.clock = Clock()
        self.got: list[Connection | Summary] = []
        self.summaries = Summaries(self.got.append, perClient, networks, self.clock)

    def feed(
        self,
        client: IAddress,
        count: int = 1,
        error: str | None = None,
        server: IAddress = SERVER,
        silent: bool = False,
    ) -> None:
        """Have a client connect this many times, at the clock's time."""
        for _ in range(count):
            time = self.clock.seconds()
            self.summaries(Connection(time, client, server, error=error, silent=silent))

    def take(self) -> list[object]:
        """Return the clients of connections, and the fields of summaries, passed on since."""
        got: list[object] = [
            each.client
            if isinstance(each, Connection)
            else (each.count, each.clientAddress, each.first, each.last)
            for each in self.got
        ]
        self.got.clear()
        return got


def test_per_client() -> None:
    """A client's first connections in a minute are passed on, its others become one summary."""
    fed, client = Fed(2), v4("192.0.2.7")
    fed.feed(client)
    fed.clock.advance(1)
    fed.feed(client, 2)
    fed.clock.advance(20)
    fed.feed(client)
    fed.feed(v4("192.0.2.8"))
    assert fed.take() == [client, client, v4("192.0.2.8")]
    fed.clock.advance(SUMMARY_PERIOD - 21)
    assert fed.take() == [(2, "192.0.2.7", 1, 21)]
    fed.feed(client)
    assert fed.take() == [client]
    fed.clock.advance(SUMMARY_PERIOD)
    assert fed.take() == []
    assert not fed.clock.getDelayedCalls()


def test_times_are_those_of_the_connections() -> None:
    """A summary spans its connections, whatever their order."""
    fed = Fed(0)
    for time in (3.0, 1.0, 2.0):
        fed.summaries(Connection(time, v4("192.0.2.7"), SERVER))
    fed.clock.advance(SUMMARY_PERIOD)
    assert fed.take() == [(3, "192.0.2.7", 1, 3)]


def test_step_of_the_clock(stepping: Stepping, monkeypatch: pytest.MonkeyPatch) -> None:
    """A period ends on time even if the system's clock is set back meanwhile."""
    monkeypatch.setattr(module, "SUMMARY_PERIOD", 0.05)
    got: list[object] = []
    summaries = Summaries(got.append, 0, reactor=stepping)
    summaries(Connection(1, v4("192.0.2.7"), SERVER))
    stepping.step = -HOUR
    until(lambda: got, stepping)


def test_nothing_is_left_out_by_default() -> None:
    """Without a limit and networks, everything is passed on."""
    fed = Fed()
    fed.feed(v4("192.0.2.7"), 3)
    assert len(fed.take()) == 3
    assert not fed.clock.getDelayedCalls()


def test_networks() -> None:
    """Connections from a listed network are summarized, unless they have an error."""
    fed = Fed(None, "192.0.2.0/24", "2001:db8::1", "10.0.0.1")
    fed.feed(v4("192.0.2.7"), 3)
    fed.feed(v4("192.0.2.8"))
    fed.feed(v4("192.0.3.1"))
    fed.feed(v6("2001:db8::1"))
    fed.feed(v6("2001:db8::2%eth0"))
    fed.feed(v4("192.0.2.7"), error="proxy_header_invalid")
    fed.feed(UNIXAddress(b"/run/client"))
    assert fed.take() == [
        v4("192.0.3.1"),
        v6("2001:db8::2%eth0"),
        v4("192.0.2.7"),
        UNIXAddress(b"/run/client"),
    ]
    fed.clock.advance(SUMMARY_PERIOD)
    assert fed.take() == [
        (3, "192.0.2.7", 0, 0),
        (1, "192.0.2.8", 0, 0),
        (1, "2001:db8::/64", 0, 0),
    ]


def test_probes() -> None:
    """A listed health check that sent nothing is summarized; other errors are recorded."""
    fed = Fed(None, "10.0.0.0/8")
    probe, other = v4("10.0.0.1"), v4("192.0.2.7")
    fed.feed(probe, 2)
    fed.feed(probe, 3, error="proxy_header_incomplete", silent=True)
    fed.feed(probe, 4, error="proxy_not_trusted", silent=True)
    fed.feed(probe, error="proxy_header_incomplete")
    fed.feed(probe, error="proxy_header_timeout", silent=True)
    fed.feed(other, error="proxy_header_incomplete", silent=True)
    assert fed.take() == [probe, probe, other]
    fed.clock.advance(SUMMARY_PERIOD)
    assert fed.got == [
        Summary(2, 0, 0, "10.0.0.1", "tcp", "ipv4", ports={7878: 2}),
        Summary(3, 0, 0, "10.0.0.1", "tcp", "ipv4", "proxy_header_incomplete", {7878: 3}),
        Summary(4, 0, 0, "10.0.0.1", "tcp", "ipv4", "proxy_not_trusted", {7878: 4}),
    ]


def test_a_summary_for_each_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A summary has the error of its connections, even if it is of several clients."""
    monkeypatch.setattr(module, "MAX_COUNTED_CLIENTS", 1)
    fed = Fed(0)
    for client in (v4("192.0.2.7"), v4("192.0.2.8")):
        for error, count in ((None, 1), ("failed", 2), ("proxy_header_invalid", 3)):
            fed.feed(client, count, error)
    fed.clock.advance(SUMMARY_PERIOD)
    assert [(s.clientAddress, s.error, s.count) for s in fed.got if isinstance(s, Summary)] == [
        (address, error, count)
        for address in ("192.0.2.7", None)
        for error, count in ((None, 1), ("failed", 2), ("proxy_header_invalid", 3))
    ]


def test_networks_with_a_port() -> None:
    """Connections from a network to another port of the server are recorded."""
    fed = Fed(None, "192.0.2.7,7878", "192.0.2.0/28,80", "2001:db8::/32,7878", "10.0.0.1")
    known, other = v4("192.0.2.7"), IPv4Address("TCP", "192.0.2.1", 22)
    web = IPv6Address("TCP", "2001:db8::1", 80)
    fed.feed(known, 3)
    fed.feed(known, server=other)
    fed.feed(known, server=web)
    fed.feed(v4("192.0.2.8"))
    fed.feed(v6("2001:db8::9"))
    fed.feed(v4("10.0.0.1"), server=other)
    fed.feed(v4("10.0.0.1"), server=UNIXAddress(b"/run/server"))
    fed.feed(known, server=UNIXAddress(b"/run/server"))
    fed.feed(UNIXAddress(None))
    assert fed.take() == [known, v4("192.0.2.8"), known, UNIXAddress(None)]
    fed.clock.advance(SUMMARY_PERIOD)
    assert fed.take() == [
        (4, "192.0.2.7", 0, 0),
        (1, "2001:db8::/64", 0, 0),
        (2, "10.0.0.1", 0, 0),
    ]


def test_client_that_is_no_address() -> None:
    """Text that Twisted's own C{haproxy:} takes for an address is in no network."""
    fed = Fed(1, "0.0.0.0/0")
    fed.feed(v4("somebody"))
    fed.feed(v6("some:body"))
    assert fed.take() == [v4("somebody"), v6("some:body")]


def test_errors_count_for_the_limit() -> None:
    """A client cannot fill the disk by sending invalid headers."""
    fed = Fed(2)
    fed.feed(v4("192.0.2.7"), 5, error="proxy_header_invalid")
    assert len(fed.take()) == 2
    fed.clock.advance(SUMMARY_PERIOD)
    assert fed.take() == [(3, "192.0.2.7", 0, 0)]


@pytest.mark.parametrize(
    ("clients", "address", "transport", "networkType"),
    [
        ([v4("192.0.2.7"), v4("192.0.2.7")], "192.0.2.7", "tcp", "ipv4"),
        ([v6("2001:db8:1:2::3"), v6("2001:db8:1:2:f::4%e")], "2001:db8:1:2::/64", "tcp", "ipv6"),
        ([v6("fe80::1%eth0"), v6("fe80::1%eth0")], "fe80::1%eth0", "tcp", "ipv6"),
        ([UNIXAddress(None), UNIXAddress(b"")], None, "unix", None),
        ([UNIXAddress(b"/run/c"), UNIXAddress(b"/run/c")], "/run/c", "unix", None),
        ([PipeAddress(), PipeAddress()], None, "pipe", None),
    ],
)
def test_clients(
    clients: list[IAddress], address: str | None, transport: str, networkType: str | None
) -> None:
    """One client is an IPv4 address, an IPv6 /64, or all UNIX peers without a name."""
    fed = Fed(1)
    for client in clients:
        fed.feed(client)
    fed.clock.advance(SUMMARY_PERIOD)
    connection, summary = fed.got
    assert isinstance(connection, Connection)
    assert isinstance(summary, Summary)
    assert summary == Summary(1, 0, 0, address, transport, networkType, ports={7878: 1})


def test_clients_that_look_alike() -> None:
    """No client uses up the limit of another client, or is counted as another."""
    several = [
        UNIXAddress(b"192.0.2.7"),
        v4("192.0.2.7"),
        v6("fe80::1%eth0"),
        v6("fe80::2%eth0"),
        v6("fe80::1%eth1"),
        v6("2001:db8::1"),
        UNIXAddress(b"2001:db8::/64"),
        UNIXAddress(None),
        UNIXAddress(b"unix:"),
    ]
    fed = Fed(1)
    for client in several:
        fed.feed(client, 3)
    assert fed.take() == several
    fed.clock.advance(SUMMARY_PERIOD)
    summaries = [(each.transport, each.clientAddress) for each in fed.got if type(each) is Summary]
    assert summaries == [
        ("unix", "192.0.2.7"),
        ("tcp", "192.0.2.7"),
        ("tcp", "fe80::1%eth0"),
        ("tcp", "fe80::2%eth0"),
        ("tcp", "fe80::1%eth1"),
        ("tcp", "2001:db8::/64"),
        ("unix", "2001:db8::/64"),
        ("unix", None),
        ("unix", "unix:"),
    ]
    assert {each.count for each in fed.got if type(each) is Summary} == {2}


def test_two_transports_of_a_client() -> None:
    """A summary of connections over TCP and UDP names neither."""
    fed = Fed(0)
    for transport in ("TCP", "UDP", "TCP"):
        fed.feed(IPv4Address(transport, "192.0.2.7", 1))
    fed.clock.advance(SUMMARY_PERIOD)
    assert fed.got == [Summary(3, 0, 0, "192.0.2.7", None, "ipv4", ports={7878: 3})]


def test_too_many_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients beyond the upper bound share one summary without an address."""
    monkeypatch.setattr(module, "MAX_COUNTED_CLIENTS", 3)
    fed = Fed(1, "10.0.0.0/8")
    for number in range(1, 6):
        fed.feed(v4(f"192.0.2.{number}"), 2)
    fed.feed(v4("10.0.0.1"), 2)
    assert len(fed.take()) == 3
    fed.clock.advance(SUMMARY_PERIOD)
    assert fed.take() == [
        (1, "192.0.2.1", 0, 0),
        (1, "192.0.2.2", 0, 0),
        (1, "192.0.2.3", 0, 0),
        (6, None, 0, 0),
    ]


def test_close() -> None:
    """A close passes on all summaries, and closes the observer."""
    closed: list[object] = []

    class Log(list[object]):
        def __call__(self, record: object) -> None:
            self.append(record)

        def close(self) -> str:
            closed.append(list(self))
            return "closed"

    summaries = Summaries(Log(), 0, reactor=Clock())
    summaries(Connection(5, v4("192.0.2.7"), SERVER))
    results: list[object] = []
    summaries.close().addCallback(results.append)
    assert results == ["closed"]
    assert closed == [[Summary(1, 5, 5, "192.0.2.7", "tcp", "ipv4", ports={7878: 1})]]
    Summaries(logConnection, 1, reactor=Clock()).close().addCallback(results.append)
    assert results == ["closed", None]


def test_observer_that_fails() -> None:
    """An observer's error is logged, and it gets the next summary nevertheless."""
    got: list[object] = []

    def observer(record: object) -> None:
        got.append(record)
        raise RuntimeError("no room")

    summaries = Summaries(observer, 0, reactor=Clock())
    for host in ("192.0.2.7", "192.0.2.8"):
        summaries(Connection(5, v4(host), SERVER))
    with capturedLogs() as events:
        summaries.close()
    assert len(got) == 2
    assert texts(events) == [
        f"Observer failed for: Connections summarized: 1 from 192.0.2.{n} to port 7878 in 1 s"
        for n in (7, 8)
    ]


def test_global_reactor() -> None:
    """Without a reactor the installed one is the clock."""
    summaries = Summaries(list[object]().append, 1)
    summaries(Connection(5, v4("192.0.2.7"), SERVER))
    summaries.close()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("192.0.2.7/33", "not a network: '192.0.2.7/33'"),
        ("192.0.2.7,", "not a port from 1 to 65535: '' in '192.0.2.7,'"),
        ("192.0.2.7,0", "not a port from 1 to 65535: '0' in '192.0.2.7,0'"),
        ("192.0.2.7,70000", "not a port from 1 to 65535: '70000' in '192.0.2.7,70000'"),
        ("192.0.2.7,http", "not a port from 1 to 65535: 'http' in '192.0.2.7,http'"),
        ("192.0.2.7,1,2", "not a port from 1 to 65535: '1,2' in '192.0.2.7,1,2'"),
        ("::1,+80", "not a port from 1 to 65535: '+80' in '::1,+80'"),
        ("192.0.2.7,\u0668", "not a port from 1 to 65535: '\u0668' in '192.0.2.7,\u0668'"),
        (",7878", "not a network: ''"),
    ],
)
def test_bad_network(text: str, reason: str) -> None:
    """What is neither a network nor one with a port is an error that names it."""
    with pytest.raises(ValueError, match="not a") as raised:
        Summaries(logConnection, networks=[text], reactor=Clock())
    assert str(raised.value) == reason


@pytest.mark.parametrize(
    ("summary", "text"),
    [
        (Summary(812, 1, 60.5, "203.0.113.7", "tcp", "ipv4"), "812 from 203.0.113.7 in 60 s"),
        (Summary(1, 1, 1, None, "unix", None), "1 from unix: in 1 s"),
        (Summary(2, 1, 1.5, "/☃", "unix", None), r"2 from unix:/\u2603 in 1 s"),
        (Summary(7, 1, 9, None, None, None), "7 in 8 s"),
        (Summary(7, 1, 9, None, None, None, "failed"), "7 in 8 s (failed)"),
        (Summary(7, 1, 9, None, None, None, ports={22: 7}), "7 to port 22 in 8 s"),
        (Summary(7, 1, 9, None, None, None, ports={22: 6}), "7 to port 22 (6), others (1) in 8 s"),
        (
            Summary(7, 1, 9, None, None, None, ports={23: 3, 80: 1, 22: 3}),
            "7 to port 22 (3), 23 (3), 80 (1) in 8 s",
        ),
    ],
)
def test_text(summary: Summary, text: str) -> None:
    """A summary is one line in Twisted's log."""
    with capturedLogs() as events:
        logConnection(summary)
    assert texts(events) == [f"Connections summarized: {text}"]


clients = st.one_of(
    st.builds(v4, st.sampled_from(["192.0.2.1", "192.0.2.2", "10.0.0.1", "10.0.0.2"])),
    st.builds(v6, st.sampled_from(["2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"])),
    st.just(UNIXAddress(None)),
)
steps = st.tuples(clients, st.sampled_from([None, None, "failed"]), st.floats(0, 40))


@given(
    st.lists(steps, max_size=60),
    st.none() | st.integers(0, 3),
    st.sampled_from([(), ("10.0.0.0/8",), ("2001:db8::/64", "10.0.0.1")]),
    st.integers(1, 4),
)
def test_nothing_is_lost(
    fed: list[tuple[IAddress, str | None, float]],
    perClient: int | None,
    networks: tuple[str, ...],
    most: int,
) -> None:
    """Each connection is passed on or summarized exactly once, in any order of any clients."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_COUNTED_CLIENTS", most)
        feeding = Fed(perClient, *networks)
        for client, error, wait in fed:
            feeding.feed(client, error=error)
            feeding.clock.advance(wait)
        feeding.summaries.close()
    assert not feeding.clock.getDelayedCalls()
    passedOn = [each for each in feeding.got if isinstance(each, Connection)]
    counted = [each for each in feeding.got if isinstance(each, Summary)]
    assert len(passedOn) + sum(summary.count for summary in counted) == len(fed)
    assert all(
        summary.first <= summary.last < summary.first + SUMMARY_PERIOD for summary in counted
    )
    if not networks and perClient is None:
        assert not counted
    errors: Callable[[Any], bool] = lambda each: each.error is not None  # noqa: E731
    if perClient is None:
        assert sum(map(errors, passedOn)) == sum(error is not None for _, error, _ in fed)
    if perClient is not None:
        assert max(Counter(map(str, (c.client for c in passedOn))).values(), default=0) <= (
            perClient * (1 + sum(wait for *_, wait in fed) // SUMMARY_PERIOD)
        )


def test_ports() -> None:
    """A summary has the server port, or the ten that came most and the rest of its count."""
    fed, client = Fed(0), v4("192.0.2.7")
    fed.feed(client, 3)
    fed.feed(v4("192.0.2.8"), 1)
    fed.feed(v4("192.0.2.8"), 2, server=IPv4Address("TCP", "192.0.2.9", 23))
    fed.feed(v4("192.0.2.9"), server=UNIXAddress(b"/run/hello"))
    for port in range(1, 13):
        fed.feed(v6("2001:db8::1"), port, server=IPv6Address("TCP", "::1", port))
    fed.clock.advance(SUMMARY_PERIOD)
    one, two, none, many = (each.fields() for each in fed.got)
    assert one["server.port"] == 7878
    assert not {"server.ports", "server.ports.others"} & one.keys()
    assert (two["server.ports"], two["server.ports.others"]) == ({"23": 2, "7878": 1}, 0)
    assert not [name for name in none if name.startswith("server.")]
    ports = many["server.ports"]
    assert isinstance(ports, dict)
    assert list(ports.items()) == [(str(n), n) for n in range(12, 2, -1)]
    assert many["server.ports.others"] == 3
    assert "server.port" not in two.keys() | many.keys()


def test_scan() -> None:
    """A scan of all ports is one summary of bounded memory; a port that comes often is found."""
    fed, client = Fed(0), v4("192.0.2.7")
    for port in range(65_536):
        fed.feed(client, server=IPv4Address("TCP", "192.0.2.1", port))
        if port > 60_000 and port % 5 == 0:
            fed.feed(client, server=IPv4Address("TCP", "192.0.2.1", 22))
    fed.clock.advance(SUMMARY_PERIOD)
    [summary] = fed.got
    assert isinstance(summary, Summary)
    assert summary.count == 65_536 + 1107
    assert len(summary.ports) <= module.MAX_PORTS
    fields = summary.fields()
    assert len(fields["server.ports"]) == 10
    assert next(iter(fields["server.ports"].items())) == ("22", 1107)
    assert sum(fields["server.ports"].values()) + fields["server.ports.others"] == summary.count


@given(st.lists(st.sampled_from([*range(40), *[41, 42] * 20]), min_size=1))
def test_ports_are_never_overstated(ports: list[int]) -> None:
    """A port has at most its connections, and exactly these if there are few ports."""
    fed = Fed(0)
    for port in ports:
        fed.feed(v4("192.0.2.7"), server=IPv4Address("TCP", "192.0.2.1", port))
    fed.clock.advance(SUMMARY_PERIOD)
    [summary] = fed.got
    counts = Counter(ports)
    assert isinstance(summary, Summary)
    assert all(count <= counts[port] for port, count in summary.ports.items())
    if len(counts) <= module.MAX_PORTS:
        assert summary.ports == counts


def test_drops() -> None:
    """What a full accept queue dropped is passed on to an observer that counts it."""
    drops: list[tuple[IAddress, int]] = []

    class Observer:
        def __call__(self, connection: Connection) -> None:
            """Ignore connections."""

        def dropped(self, server: IAddress, packets: int) -> str:
            drops.append((server, packets))
            return "told"

    assert Summaries(Observer(), 1).dropped(SERVER, 23) == "told"
    assert drops == [(SERVER, 23)]
    assert Summaries(logConnection, 1).dropped(SERVER, 23) is None


def test_no_negative_number() -> None:
    """A negative number of connections per client is refused at once."""
    with pytest.raises(ValueError, match="perClient is negative: -1"):
        Summaries(logConnection, -1)
