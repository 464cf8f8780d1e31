"""Clients, ports, errors and times in the report: as text, JSON and a drawing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from socket import AF_INET6, inet_ntop
from typing import Any
from xml.etree import ElementTree

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress
from twisted.internet.task import Clock

import geodata
from asked import answer, run
from hello_listen import Connection, Summaries
from hello_listen._addresses import clientIdentity
from written import Run, at, write

pytest.importorskip("duckdb")
pytest.importorskip("maxminddb")

HOSTILE = "\x1b[31m\u202e\u0007\x00\u05d0\u200b"
"""Colour, right-to-left override, bell, NUL, a Hebrew letter and a space of no width."""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Return the path of a log."""
    return tmp_path / "connections.jsonl"


def tables(out: str) -> dict[str, list[list[str]]]:
    """Return the report's tables by their first title."""
    found = {}
    for block in out.split("\n\n")[1:]:
        title, *rows = [re.split("  +", line.strip()) for line in block.splitlines()]
        found[title[0]] = rows
    return found


def test_clients(log: Path) -> None:
    """Clients are sorted by connections, with first, last and their server ports."""
    process = Run()
    for second, port in enumerate((80, 7878, 443, 80)):
        process.now = second * 60
        process.connection("198.51.100.1", **{"server.port": port})
    unix = {"network.transport": "unix", "server.port": None, "server.address": "/run/hello.sock"}
    process.connection(None, **unix)
    process.summary(2, None, **{"network.transport": "unix"})
    process.connection("/run/client", **unix)
    process.connection(
        None, **{"network.transport": "pipe", "server.address": None, "server.port": None}
    )
    process.summary(2, None, **{"network.transport": None})
    _, out, _ = run(write(log, process.close()))
    assert tables(out)["client"] == [
        ["198.51.100.1", "4", "2026-11-22 20:00:00", "2026-11-22 20:03:00", "80 443 7878"],
        ["unix:", "3", "2026-11-22 20:03:00", "2026-11-22 20:03:30", "/run/hello.sock"],
        ["others", "2", "2026-11-22 20:03:00", "2026-11-22 20:03:30"],
        ["pipe:", "1", "2026-11-22 20:03:00", "2026-11-22 20:03:00"],
        ["unix:/run/client", "1", "2026-11-22 20:03:00", "2026-11-22 20:03:00", "/run/hello.sock"],
    ]
    assert "\nClients: 4, server ports: 4, with errors: 0\n" in out
    found = answer(log)
    assert found["clients.count"] == 4
    assert found["clients"][0] == {
        "client.address": "198.51.100.1",
        "network.transport": "tcp",
        "addresses": 1,
        "connections": 4,
        "first": "2026-11-22T20:00:00.000000Z",
        "last": "2026-11-22T20:03:00.000000Z",
        "server.ports": [80, 443, 7878],
        "server.addresses": [],
    }
    assert [(c["client.address"], c["network.transport"]) for c in found["clients"][1:]] == [
        (None, "unix"),
        (None, None),
        (None, "pipe"),
        ("/run/client", "unix"),
    ]


def test_top(log: Path) -> None:
    """Clients beyond --top are counted."""
    process = Run()
    for number in range(1, 62):
        process.connection(f"192.0.2.{number}").summary(number, f"192.0.2.{number}")
    _, out, _ = run(write(log, process.close()))
    assert "\nClients: 61, " in out
    assert len(tables(out)["client"]) == 21
    rest = sum(number + 1 for number in range(1, 42))
    assert f"\nand 41 others, with {rest} connections\n" in out
    _, out, _ = run(log, "--top", 1)
    assert tables(out)["client"][0][0] == "192.0.2.61"
    assert "\nand 60 others, with 1,890 connections\n" in out
    assert "others" not in run(log, "--top", 61)[1]
    assert "client " not in run(log, "--top", 0)[1]
    found = answer(log, "--top", 0)
    assert (found["clients"], found["clients.count"]) == ([], 61)


def test_sort(log: Path) -> None:
    """--sort puts the newest or latest clients on top."""
    process = Run()
    for second, client in enumerate("abcbac"):
        process.now = second
        process.connection(client)
    process.connection("b")
    write(log, process.close())
    for arguments, order in (
        ([], "bac"),
        (["--sort", "connections"], "bac"),
        (["--sort", "first"], "cba"),
        (["--sort", "last"], "bca"),
    ):
        found = answer(log, *arguments)
        assert "".join(c["client.address"] for c in found["clients"]) == order


def test_ports(log: Path) -> None:
    """Ports are sorted as numbers and never truncated; those that do not fit are counted."""
    process = Run()
    for port in [*range(50001, 50010), 8080, 9000]:
        process.connection("192.0.2.1", **{"server.port": port})
    for port in range(1, 1001):
        process.connection("192.0.2.2", **{"server.port": port})
    process.connection("192.0.2.3", **{"server.port": None, "server.address": "/run/" + "x" * 99})
    _, out, _ = run(write(log, process.close()))
    told = {row[0]: row[-1] for row in tables(out)["client"]}
    assert told["192.0.2.1"] == "8080 9000 50001 50002 50003 50004 50005 50006 and 3 more"
    assert told["192.0.2.2"] == "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 and 982 more"
    assert told["192.0.2.3"] == "/run/" + "x" * 37 + "..."
    assert "\nand 992 others, with 992 connections\n" in out
    ports = {c["client.address"]: c["server.ports"] for c in answer(log)["clients"]}
    assert ports["192.0.2.1"] == [8080, 9000, *range(50001, 50010)]
    assert ports["192.0.2.2"] == list(range(1, 1001))


def test_servers_and_errors(log: Path) -> None:
    """Connections are counted by server port and by error."""
    process = Run().connection("192.0.2.1").connection("192.0.2.1").connection("192.0.2.2")
    process.now = 60
    process.connection("192.0.2.3", **{"server.port": 80, "error.type": "proxy_header_invalid"})
    process.connection("192.0.2.3", **{"server.port": 80, "error.type": "proxy_header_timeout"})
    process.summary(40, "192.0.2.1").summary(7, "192.0.2.2", **{"server.port": 80})
    process.summary(2, "192.0.2.2", **{"server.port": [1, 2], "error.type": "proxy_header_timeout"})
    _, out, _ = run(write(log, process.close()))
    assert "\nClients: 3, server ports: 2, with errors: 4\n" in out
    second, last = "2026-11-22 20:01:00", "2026-11-22 20:01:30"
    assert tables(out)["server port"] == [
        ["unknown", "42", "2", second, last],
        ["80", "9", "2", second, last],
        ["7878", "3", "2", "2026-11-22 20:00:00", "2026-11-22 20:00:00"],
    ]
    assert tables(out)["error"] == [
        ["proxy_header_timeout", "3", "2", second, last],
        ["proxy_header_invalid", "1", "1", second, second],
    ]
    found = answer(log)
    assert found["servers"][1] == {
        "server.port": 80,
        "server.address": None,
        "connections": 9,
        "clients": 2,
        "first": at(60),
        "last": at(90),
    }
    assert found["errors"][1] == {
        "error.type": "proxy_header_invalid",
        "connections": 1,
        "clients": 1,
        "first": at(60),
        "last": at(60),
    }


def test_ipv6(log: Path) -> None:
    """A /64 is one client; one with a single known address is shown as that address."""
    process = Run()
    for host in ("1", "2", "2"):
        process.connection(f"2001:db8:0:1::{host}")
    process.connection("2001:db8:0:2::7").connection("2001:db8:0:2::7")
    process.connection("2001:db8:0:3::1").summary(3, "2001:db8:0:3::/64")
    process.summary(9, "2001:db8:0:4::/64")
    for address in ("fe80::1%eth0", "fe80::1%eth1", "::1", "::1"):
        process.connection(address)
    process.summary(8, "::1")
    _, out, _ = run(write(log, process.close()))
    assert [row[:2] for row in tables(out)["client"]] == [
        ["::1", "10"],
        ["2001:db8:0:4::/64", "9"],
        ["2001:db8:0:3::/64", "4"],
        ["2001:db8:0:1::/64 (2 addresses)", "3"],
        ["2001:db8:0:2::7", "2"],
        ["fe80::1%eth0", "1"],
        ["fe80::1%eth1", "1"],
    ]
    addresses = [client["addresses"] for client in answer(log)["clients"]]
    assert addresses == [1, 0, 1, 2, 1, 1, 1]


CLIENTS: list[IAddress] = [
    *(IPv4Address("TCP", host, 1) for host in ("127.0.0.1", "192.0.2.1", "not an: address")),
    IPv4Address("UDP", "192.0.2.1", 1),
    *(
        IPv6Address("TCP", host, 1)
        for host in (
            *("::1", "::2", "2001:db8::1", "2001:db8::2", "2001:db8:0:0:8000::", "2001:db8:0:1::"),
            *("fe80::1%eth0", "fe80::1%eth1", "febf::1", "fec0::1", "64:ff9b::192.0.2.1", "::%1"),
            *("2001:db8::1%eth0", "1:0:0:0:1:0:0:0", "0:0:1::", "not: an address", "::/64"),
        )
    ),
    *(UNIXAddress(name) for name in (b"127.0.0.1", b"2001:db8::1", b"\0a", b"\\", b"/64", None)),
]


def test_identity(log: Path) -> None:
    """The report identifies clients as summaries do."""
    server = IPv4Address("TCP", "192.0.2.99", 7878)
    for perClient in (0, 1, 9):
        records: list[Connection] = []
        summaries = Summaries(records.append, perClient, reactor=Clock())
        for number, client in enumerate(CLIENTS * 3):
            summaries(Connection(float(number), client, server))
        summaries.close()
        log.write_text("".join(record.json() + "\n" for record in records))
        found = answer(log, "--top", 99)
        told = [
            (clientIdentity(c["network.transport"], c["client.address"]), c["connections"])
            for c in found["clients"]
        ]
        names = [Connection(0, client, server).fields() for client in CLIENTS]
        identities = [
            clientIdentity(str(name["network.transport"]), name.get("client.address"))  # type: ignore[arg-type]
            for name in names
        ]
        assert sorted(told) == sorted(
            (each, 3 * identities.count(each)) for each in set(identities)
        )
        assert found["clients.count"] == len(told)


def addresses() -> Iterator[str]:
    """Yield IPv6 addresses in all forms, and similar texts."""
    random = Random(7)
    for number in range(20_000):
        groups = [random.choice((0, 0, 1, 0x20, 0xFFFF, random.getrandbits(16))) for _ in range(8)]
        groups[0] = random.choice((0x2001, 0x2001, 0x3FFF, 0xFE80, 0x64, groups[0]))
        text = inet_ntop(AF_INET6, b"".join(group.to_bytes(2, "big") for group in groups))
        if number % 3:
            yield text
            continue
        place = random.randrange(len(text))
        yield random.choice(
            (
                text[:place]
                + random.choice((":", "0", "::", "g", "%", "F", ".", "00"))
                + text[place:],
                text[:place] + text[place + 1 :],
                text.upper(),
                f"{text}%eth0",
                ":".join(f"{group:04x}" for group in groups),
                ":".join(f"{group:x}" for group in groups),
            )
        )


def test_identity_of_any_address(log: Path) -> None:
    """For any text, the report's SQL and C{clientIdentity} agree."""
    process, expected = Run(None), Counter[str]()
    for address in addresses():
        process.connection(address)
        expected[clientIdentity("tcp", address)] += 1
    clients = answer(write(log, process), "--top", 100_000)["clients"]
    told = {clientIdentity("tcp", c["client.address"]): c["connections"] for c in clients}
    assert told == expected
    assert len(told) == len(clients)


def test_unix_client_that_is_named_as_an_address(log: Path) -> None:
    """A UNIX client named like an address is no TCP client, in any table."""
    process = Run().connection("203.0.113.7").connection("203.0.113.7")
    process.connection("203.0.113.7", **{"network.transport": "unix"})
    process.summary(5, "203.0.113.7", **{"network.transport": "unix"})
    _, out, _ = run(write(log, process.close()))
    clients = [row[:2] for row in tables(out)["client"]]
    assert clients == [["unix:203.0.113.7", "6"], ["203.0.113.7", "2"]]


@pytest.mark.parametrize(
    ("step", "count", "unit", "first", "last"),
    [
        (60, 100, "minute", "2026-11-22 20:00", "2026-11-22 21:39"),
        pytest.param(
            3600, 90, "hour", "2026-11-22 20:00", "2026-11-26 13:00", marks=pytest.mark.slow
        ),
        (86400, 100, "day", "2026-11-22", "2027-03-01"),
        pytest.param(86400 * 365, 9, "year", "2026", "2034", marks=pytest.mark.slow),
    ],
)
def test_bars(log: Path, step: int, count: int, unit: str, first: str, last: str) -> None:
    """The span chooses the unit of the bars; the longest bar is the maximum; gaps are short."""
    process = Run()
    for number in range(count):
        process.now = number * step
        if number != 5:
            process.connection()
    process.summary(9)
    _, out, _ = run(write(log, process), "--svg", log.with_suffix(".svg"))
    head, *bars = out.strip().split("\n\n")[-1].splitlines()
    assert head == f"connections by {unit}, UTC"
    assert len(bars) == count
    assert bars[0].split("  ")[0] == first
    assert bars[-1].split("  ")[0] == last
    assert [bar.count("#") for bar in (bars[0], bars[-1])] == [5, 45]
    assert bars[5] == "..."
    timeline = answer(log)["timeline"]
    assert (timeline["unit"], len(timeline["bars"])) == (unit, count - 1)
    assert timeline["bars"][0]["connections"] == 1
    assert timeline["bars"][-1]["start"].startswith(last.replace(" ", "T"))
    svg = ElementTree.parse(log.with_suffix(".svg")).getroot()
    texts = [element.text for element in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert texts == [f"connections by {unit}, UTC: 10 at most", first, last]
    rects = list(svg.iter("{http://www.w3.org/2000/svg}rect"))
    assert len(rects) == count - 1
    assert [rect[0].text for rect in (rects[0], rects[-1])] == [f"{first}: 1", f"{last}: 10"]
    for rect in rects:
        assert 0 <= float(rect.attrib["x"]) <= 800
        assert float(rect.attrib["y"]) + float(rect.attrib["height"]) == pytest.approx(200)
    assert float(rects[-1].attrib["height"]) == 200


def test_seconds(log: Path) -> None:
    """Times have seconds if the span is short."""
    process = Run().connection()
    process.now = 7200
    out = run(write(log, process.connection()))[1]
    assert re.findall(r"^192.*(2026.{16,18}) +7878$", out, re.MULTILINE)
    assert tables(out)["client"][0][3] == "2026-11-22 22:00:00"
    process.now = 7201
    out = run(write(log, process.connection()))[1]
    assert tables(out)["client"][0][3] == "2026-11-22 22:00"


@pytest.mark.parametrize("content", ["", "\n"])
def test_nothing(log: Path, content: str) -> None:
    """A log without connections is no error; its drawing has no bars."""
    log.write_text(content)
    found = answer(log)
    assert (found["connections"], found["runs"], found["status"]) == (0, [], 0)
    status, out, err = run(log, "--svg", log.with_suffix(".svg"))
    totals = "Connections: 0, recorded: 0, summarized: 0, lost: 0, missing: 0\n"
    assert (status, err) == (0, "")
    assert out == f"{totals}Clients: 0, server ports: 0, with errors: 0\n"
    assert len(ElementTree.parse(log.with_suffix(".svg")).getroot()) == 1


def test_many_runs(log: Path) -> None:
    """With many runs, the text has the newest, those with missing records, and few notes."""
    runs = []
    for number in range(50):
        runs.append(Run(f"{number:012}").connection().vanish(number == 3).connection())
    _, out, _ = run(write(log, *runs))
    assert re.findall(r"^(\d{12}) ", out, re.MULTILINE) == [
        f"{number:012}" for number in (3, *range(30, 50))
    ]
    assert "\nand 29 older, with none known to be missing\n" in out
    assert len(re.findall("^Run .* was not closed", out, re.MULTILINE)) == 20
    assert "\nThe same goes for 30 more runs.\n" in out
    assert len(answer(log)["runs"]) == 50


def test_hostile(log: Path) -> None:
    """Text from a log is escaped in the terminal and the drawing, and whole in JSON."""
    process = Run(HOSTILE, **{"host.name": HOSTILE * 99})
    process.connection(HOSTILE, **{"server.port": None, "server.address": HOSTILE})
    process.connection("<&>" + "x" * 10_000, **{"error.type": HOSTILE})
    raw = process.lines[-1].replace("192.0.2.1", HOSTILE.replace("\0", ""))
    status, out, err = run(write(log, process, also=raw), "--svg", log.with_suffix(".svg"))
    assert (status, err) == (3, "")
    assert re.fullmatch(r"[ -~\n]*", out)
    assert r"\x1b[31m\u202e\x07\x00\u05d0\u200b" in out
    assert max(map(len, out.splitlines())) < 250
    assert HOSTILE in [client["client.address"] for client in answer(log)["clients"]]
    ElementTree.parse(log.with_suffix(".svg"))
    status, out, err = run(f"{log}{HOSTILE.replace(chr(0), '')}")
    assert (status, out) == (2, "")
    assert re.fullmatch(r"[ -~]*\n", err)


def test_forged(log: Path) -> None:
    """Forged records change counts, but do not stop the report."""
    process = Run()
    forgeries: dict[str, list[Any]] = {
        "timestamp": ["infinity", "290000-01-01", "0044-03-15 (BC)", "0001-01-01", 5],
        "sequence": [2**63 - 1, -(2**63), 10**40, {"a": 1}],
        "service.instance.id": [["x"], ""],
        "client.address": [{"a": [None, "\ud800"]}, 7, "", ":", "::::::::::"],
        "network.transport": [None, 7, "unix", "pipe"],
        "server.port": [-1e300, "http", [80, 443]],
        "process.pid": [-1, 2**62],
    }
    for name, values in forgeries.items():
        for value in values:
            process.connection(**{name: value})
    process.connection(timestamp="9999-12-31T23:59:59.999999Z")
    for number, count in enumerate((-5, 0, 2**63 - 1, 10**40, "many", None)):
        forged = Run(f"{number}")
        forged.write("Connections summarized", sequence=1, count=count)
        numbers = {"sequence.first": count, "sequence.last": count}
        forged.write("Connections not recorded", count=count, connections=count, **numbers)
        last = {"sequence.last": count}
        forged.write("Connection log closed", connections=count, recorded=count, lost=count, **last)
        process.lines += forged.lines
    process.lines *= 2
    for arguments in (["--svg", log.with_suffix(".svg")], ["--json"], ["--since", "1000-01-01"]):
        status, out, _ = run(*arguments, write(log, process))
        assert status == 1
        assert out


def test_places(log: Path, tmp_path: Path) -> None:
    """Clients have a country and a network, and connections are counted by both."""
    process = Run()
    for client, count in (
        ("198.51.100.7", 5), ("198.51.100.200", 4), ("198.51.100.8", 1), ("203.0.113.9", 3),
        ("10.0.0.1", 2), ("8.8.8.8", 2), ("2001:db8:7:1::1", 1), ("2001:db8:7:1::2", 1),
    ):  # fmt: skip
        for _ in range(count):
            process.now += 1
            process.connection(client)
    process.connection("/run/client", **{"network.transport": "unix"})
    process.summary(7, None)
    write(log, process.close())
    databases = [geodata.countries(tmp_path), geodata.networks(tmp_path)]
    options = [text for path in databases for text in ("--mmdb", path)]
    _, out, _ = run(log, *options)
    found = tables(out)
    assert [row[:4] for row in found["client"]] == [
        ["others", "unknown", "unknown", "7"],
        ["198.51.100.7", "DE", "AS64500 Example Ltd.", "5"],
        ["198.51.100.200", "FR", "AS64500 Example Ltd.", "4"],
        ["203.0.113.9", "US", "AS64501 Tel\\xe9fonica", "3"],
        ["10.0.0.1", "private", "private", "2"],
        ["2001:db8:7:1::/64 (2 addresses)", "JP", "AS64502 Six", "2"],
        ["8.8.8.8", "unknown", "unknown", "2"],
        ["198.51.100.8", "DE", "AS64500 Example Ltd.", "1"],
        ["unix:/run/client", "unknown", "unknown", "1"],
    ]
    assert [row[:3] for row in found["country"]] == [
        ["unknown", "10", "2"], ["DE", "6", "2"], ["FR", "4", "1"], ["US", "3", "1"],
        ["JP", "2", "1"], ["private", "2", "1"],
    ]  # fmt: skip
    assert found["country"][1][3:] == ["2026-11-22 20:00:01", "2026-11-22 20:00:10"]
    assert [row[:3] for row in found["network"]] == [
        ["AS64500 Example Ltd.", "10", "3"], ["unknown", "10", "2"],
        ["AS64501 Tel\\xe9fonica", "3", "1"], ["AS64502 Six", "2", "1"], ["private", "2", "1"],
    ]  # fmt: skip
    known = answer(log, *options)
    names = ("client.geo.country.iso_code", "client.as.number", "client.as.organization.name")
    assert [known["clients"][4][name] for name in (*names, "private")] == [None, None, None, True]
    assert [known["clients"][3][name] for name in names] == ["US", 64501, "Tel\u00e9fonica"]
    assert known["countries"][1] == {
        "client.geo.country.iso_code": "DE",
        "private": False,
        "connections": 6,
        "clients": 2,
        "first": "2026-11-22T20:00:01.000000Z",
        "last": "2026-11-22T20:00:10.000000Z",
    }
    assert [known["networks"][0][name] for name in names[1:]] == [64500, "Example Ltd."]
    for table in ("countries", "networks"):
        assert sum(each["connections"] for each in known[table]) == 27
        assert sum(each["clients"] for each in known[table]) == known["clients.count"]


def test_one_kind_of_places(log: Path, tmp_path: Path) -> None:
    """Without a database of networks, or of countries, their columns are absent."""
    write(log, Run().connection("198.51.100.7").close())
    for path, there, absent in (
        (geodata.countries(tmp_path), "country", "network"),
        (geodata.networks(tmp_path), "network", "country"),
    ):
        _, out, _ = run(log, "--mmdb", path)
        assert there in tables(out)
        assert absent not in out
        tablesThere = {"countries", "networks"} & answer(log, "--mmdb", path).keys()
        assert tablesThere == {"countries" if there == "country" else "networks"}
    assert not {"countries", "networks"} & answer(log).keys()
    assert "private" not in answer(log)["clients"][0]


def test_damaged_places(log: Path, tmp_path: Path) -> None:
    """Damage of a database that is found while reporting is an error."""
    records = {
        f"10.{n >> 8}.{n & 255}.0/24": geodata.system(n, f"Name {n:04}") for n in range(1200)
    }
    path = geodata.write(tmp_path / "x.mmdb", records)
    path.write_bytes(path.read_bytes().replace(b"Name 1199", b"\xff" * 9))
    write(log, Run().connection("10.4.175.1").close())
    error = f"hello-listen-report: --mmdb: the database is damaged: '{path}'\n"
    assert run(log, "--mmdb", path) == (2, "", error)


def test_places_without_times(log: Path, tmp_path: Path) -> None:
    """Connections without a time are counted by country, too."""
    process = Run(None)
    for time in (None, at(5), None, at(3)):
        process.connection("198.51.100.7", timestamp=time)
    write(log, process)
    [country] = answer(log, "--mmdb", geodata.countries(tmp_path))["countries"]
    assert (country["connections"], country["first"], country["last"]) == (4, at(3), at(5))
    write(log, Run(None).connection("198.51.100.7", timestamp=None))
    [country] = answer(log, "--mmdb", geodata.countries(tmp_path))["countries"]
    assert (country["connections"], country["first"], country["last"]) == (1, None, None)


def test_ports_of_summaries(log: Path) -> None:
    """The ports in a summary count, but never more connections than its count."""
    process = Run()
    process.summary(5, "192.0.2.7", **{"server.port": 23})
    process.summary(9, "192.0.2.7", **{"server.ports": {"80": 4, "23": 3}})
    process.summary(4, "192.0.2.8", **{"server.ports": {"80": 3, "443": 1}})
    for forged in ({"80": 9, "x": 1}, {"80": -1}, {"80": "x"}, {}, "80", [80], {"x": 1}):
        process.summary(2, "192.0.2.9", **{"server.ports": forged})
    _, out, _ = run(write(log, process.close()))
    assert [row[:3] for row in tables(out)["server port"]] == [
        ["unknown", "16", "2"], ["23", "8", "1"], ["80", "7", "2"], ["443", "1", "1"],
    ]  # fmt: skip
    found = answer(log)
    ports = {c["client.address"]: (c["connections"], c["server.ports"]) for c in found["clients"]}
    assert ports == {
        "192.0.2.7": (14, [23, 80]),
        "192.0.2.8": (4, [80, 443]),
        "192.0.2.9": (14, []),
    }
    assert found["connections"] == 32


def test_ports_of_real_summaries(log: Path) -> None:
    """The ports of a real scan's summaries add up to all its connections."""
    records: list[Any] = []
    summaries = Summaries(records.append, 0, reactor=Clock())
    for port in range(1, 100):
        for _ in range(100 - port):
            server = IPv4Address("TCP", "192.0.2.1", port)
            summaries(Connection(0, IPv4Address("TCP", "192.0.2.7", 1), server))
    summaries.close()
    [summary] = records
    assert summary.count == 4950
    process = Run()
    fields = {n: v for n, v in summary.fields().items() if n.startswith("server.")}
    process.summary(4950, **fields)
    servers = answer(write(log, process.close()))["servers"]
    assert sum(each["connections"] for each in servers) == 4950
    few: dict[int | None, int] = {port: 100 - port for port in range(1, 11)}
    assert {each["server.port"]: each["connections"] for each in servers} == {
        None: sum(range(1, 90)),
        **few,
    }
