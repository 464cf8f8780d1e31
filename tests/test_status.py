"""The status resource and its site, over HTTP in memory."""

from __future__ import annotations

import errno
import json
import re
import sys
from collections import Counter
from dataclasses import dataclass
from html.parser import HTMLParser
from http.client import HTTPResponse
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openMetrics
from prometheus_client.parser import text_string_to_metric_families as textMetrics
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import succeed
from twisted.internet.error import CannotListenError, ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import IAddress, IProtocolNegotiationFactory
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.logger import capturedLogs, eventAsText, formatEvent
from twisted.python.failure import Failure
from twisted.python.usage import UsageError
from twisted.web.resource import Resource

import geodata
from hello_listen import Connection, HelloFactory, HelloService, ListenError
from hello_listen._addresses import addressText
from hello_listen.geo import GeoDatabases
from hello_listen.status import Facts, StatusResource, Tally
from hello_listen.status import site as siteModule
from hello_listen.status.site import (
    MAX_CONNECTIONS,
    MAX_CONNECTIONS_PER_CLIENT,
    MAX_REQUEST,
    REQUEST_TIMEOUT,
    StatusSite,
)
from hello_listen.status.snapshot import MAX_AGE
from hello_listen.tap import Options, makeService
from reactors import HOUR, FakePort, ListeningReactor, Stepping
from records import NOON, SERVER, connection, summary
from turns import until

PAGES = ("/", "/status.json", "/metrics", "/healthz", "/style.css", "/script.js", "/icon.svg")
PROXY = IPv4Address("TCP", "10.0.0.2", 40112)


@dataclass
class Log:
    """The counts of a connection log."""

    connections: int = 7
    recorded: int = 7
    summarized: int = 0
    lost: int = 0
    failing: str | None = None
    waiting: int = 0


@dataclass
class Service:
    """The listening endpoints of a service."""

    listening: list[tuple[str, IAddress | None]]
    headersWaiting: int = 0


def status(log: Log | None = None, address: IAddress | None = SERVER, **options: Any) -> Any:
    """
    Return a resource for an endpoint that listens at an address, and its tally.

    Unless a clock is given, every request comes a second after the last.
    """
    tally = Tally(clock=lambda: NOON)
    service: Any = Service([("tcp:7878", address)])
    someLog: Any = log
    options.setdefault("clock", count().__next__)
    return StatusResource(tally, service, someLog, **options), tally


class Transport(StringTransport):
    """A transport whose peer reads all that is written, unless a test says otherwise."""

    bufferSize = 2**16
    takes = True
    unsent = 0

    def write(self, data: bytes) -> None:
        """Send, or buffer and pause the producer, as Twisted's transports do."""
        super().write(data)
        self.unsent += 0 if self.takes else len(data)
        if self.unsent > self.bufferSize:
            self.producerState = "paused"
            assert self.producer is not None
            self.producer.pauseProducing()

    def take(self) -> None:
        """Let the peer read everything."""
        self.unsent = 0
        assert self.producer is not None
        self.producer.resumeProducing()


class HTTP:
    """A connection of an HTTP client, in memory."""

    def __init__(self, site: StatusSite, peer: str = "127.0.0.1") -> None:
        """Connect."""
        self.site = site
        self.transport = Transport(peerAddress=IPv4Address("TCP", peer, 4242))
        self.protocol = site.buildProtocol(None)
        self.protocol.makeConnection(self.transport)

    def send(self, *lines: str) -> None:
        """Send the lines of a request."""
        self.protocol.dataReceived("\r\n".join([*lines, "", ""]).encode("latin-1"))

    def answers(self) -> int:
        """Return the number of answered requests."""
        answers: int = self.transport.value().count(b"HTTP/1.1 ")
        return answers

    def ask(
        self, path: str = "/", method: str = "GET", host: str | None = "localhost", **headers: str
    ) -> tuple[HTTPResponse, str]:
        """Return what is answered to a request."""
        self.transport.clear()
        lines = [f"{method} {path} HTTP/1.1", *([] if host is None else [f"Host: {host}"])]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.send(*lines)
        self.site.clock.advance(0)
        return self.response(method)

    def response(self, method: str = "GET") -> tuple[HTTPResponse, str]:
        """Return what was answered."""
        answer: Any = self
        response = HTTPResponse(answer, method=method)
        response.begin()
        return response, response.read().decode()

    def makefile(self, *_: object) -> BytesIO:
        """Let what was written be read."""
        return BytesIO(self.transport.value())


def ask(resource: Resource, path: str = "/", **options: Any) -> tuple[HTTPResponse, str]:
    """Return what a resource answers."""
    return HTTP(StatusSite(resource, Clock())).ask(path, **options)


class Parser(HTMLParser):
    """Collects the text and the elements of a page, and their attributes."""

    def __init__(self, page: str) -> None:
        """Read a page."""
        super().__init__()
        self.text = ""
        self.elements: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep its name."""
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        """Keep the text."""
        self.text += data


def test_page() -> None:
    """The page tells who listens where, how many connected, who came most and who last."""
    resource, tally = status(Log(), IPv4Address("TCP", "127.0.0.1", 7878))
    for number in range(25):
        for _ in range(number + 1):
            tally(connection(f"192.0.2.{number}", NOON - 86_400))
    tally(connection(UNIXAddress(None), NOON, UNIXAddress(b"/run/hello"), "proxy_header_timeout"))
    tally(Connection(NOON, SERVER, SERVER, PROXY))
    response, page = ask(resource)
    assert response.getheader("Content-Type") == "text/html; charset=utf-8"
    text = re.sub("\n+", "|", Parser(page).text)
    assert "|327 - hello-listen|" in text
    assert (
        "|connections since 12:00:00327in the last minute2in the last hour2in the last day2"
        "clients26recorded7summarized0lost0to be summarized320to be written0|"
    ) in text
    assert "|tcp:7878 on 127.0.0.1:7878|" in text
    assert "|Last hour by minute|12:00: 211:01 to nowat most 2 in a minute|" in text
    assert "|192.0.2.242521 Nov 12:0021 Nov 12:00192.0.2.2324" in text
    assert "everybody else93|" in text
    assert "|12:00:00192.0.2.1:7878192.0.2.1:7878via 10.0.0.2" in text
    assert "10.0.0.212:00:00unix:proxy_header_timeoutunix:/run/hello" in text
    assert 'role="alert"></div>' in page


def test_page_of_nobody() -> None:
    """Before the first connection, the page says so, and omits unknown facts."""
    page = ask(StatusResource(Tally()))[1]
    assert page.count("Nobody has connected yet.") == 3
    assert "before" not in Parser(page).text
    assert "lost" not in page
    assert "at most" not in page


def test_page_says_what_is_wrong() -> None:
    """The page begins with endpoints that do not listen and a log that cannot be written."""
    page = ask(status(Log(lost=3, failing="No space left on device", waiting=1234), None)[0])[1]
    text = Parser(page).text
    assert "Not listening: tcp:7878" in text
    assert "The connection log cannot be written: No space left on device. 1,234 bytes" in text
    assert "tcp:7878 does not listen" in text
    assert '<div class="bad"><dt>lost</dt><dd>3</dd></div>' in page
    assert "dropped" not in page


def test_drops() -> None:
    """The page shows dropped packets if there are any, the JSON always; /healthz stays as it is."""
    resource, tally = status(Log())
    assert json.loads(ask(resource, "/status.json")[1])["dropped_packets"] == 0
    assert "dropped" not in ask(resource)[1]
    tally.dropped(SERVER, 2000)
    tally.dropped(IPv4Address("TCP", "192.0.2.2", 7), 331)
    assert json.loads(ask(resource, "/status.json")[1])["dropped_packets"] == 2331
    figure = '<div class="bad"><dt>packets dropped, at most</dt><dd>2,331</dd></div>'
    assert figure in ask(resource)[1]
    assert ask(resource, "/healthz")[1] == "OK\n"


def test_page_marks_what_is_not_exact() -> None:
    """After clients were forgotten, their number and connections are marked as lower bounds."""
    tally = Tally(2)
    for client in "abcd":
        tally(connection(client))
    page = ask(StatusResource(tally))[1]
    assert '<td class="number">≥ 1</td>' in page
    assert "<dt>clients</dt><dd>≥ 2</dd>" in page


def test_everything_filled() -> None:
    """With names of any length, the page stays below 60 kB."""
    resource, tally = status(Log())
    for number in range(1440):
        name = b"<" * 100 + b"%d" % (number % 30)
        client, server = UNIXAddress(name), UNIXAddress(name)
        tally(Connection(NOON - 60 * number, client, server, UNIXAddress(name), "x"))
    assert 20_000 < len(ask(resource)[1].encode()) < 60_000


def test_json() -> None:
    """The same facts as JSON, in full."""
    resource, tally = status(Log(failing="Disk full"))
    name = b"/" + b"n" * 100
    tally(connection(UNIXAddress(name), NOON - 60))
    tally(connection())
    response, text = ask(resource, "/status.json")
    assert response.getheader("Content-Type") == "application/json; charset=utf-8"
    known = json.loads(text)
    assert known["endpoints"] == [{"endpoint": "tcp:7878", "address": "192.0.2.1:7878"}]
    assert (known["connections"], known["last_minute"], known["last_hour"]) == (2, 1, 2)
    assert (known["recorded"], known["summarized"], known["lost"]) == (7, 0, 0)
    assert len(known["problems"]) == 1
    assert known["minutes"][-1] == {"timestamp": "2026-11-22T12:00:00.000000Z", "connections": 1}
    assert [hour["connections"] for hour in known["hours"]] == [1, 1]
    assert known["distinct_clients"] == 2
    assert known["servers"] == [
        {
            "network.transport": "tcp",
            "server": "192.0.2.1:7878",
            "error.type": "",
            "connections": 2,
        }
    ]
    assert known["clients"][0] == {
        "client.address": f"unix:{name.decode()}",
        "connections": 1,
        "missed": 0,
        "first": "2026-11-22T11:59:00.000000Z",
        "last": "2026-11-22T11:59:00.000000Z",
    }
    assert known["others"] == 0
    assert known["latest"][0] == connection().fields()
    assert "lost" not in json.loads(ask(StatusResource(tally), "/status.json")[1])


def samples(families: Any) -> dict[tuple[str, str], float]:
    """Return the values of metrics, by their name and the labels' values."""
    return {
        (
            sample.name,
            " ".join(value for _, value in sorted(sample.labels.items())[::-1]),
        ): sample.value
        for family in families
        for sample in family.samples
    }


@pytest.mark.parametrize("accept", ["", "text/plain;version=0.0.4", "*/*", "text/plain;version=x"])
def test_metrics(accept: str) -> None:
    """The figures as Prometheus's text, with the process's own."""
    resource, tally = status(Log(connections=12, lost=2, waiting=99, failing="Disk full"))
    tally(connection(error="proxy_header_timeout"))
    tally.dropped(SERVER, 23)
    response, text = ask(resource, "/metrics", accept=accept)
    assert str(response.getheader("Content-Type")).startswith("text/plain; version=0.0.4;")
    known = samples(textMetrics(text))
    ours = {name: value for name, value in known.items() if name[0].startswith("hello_listen")}
    assert ours == {
        ("hello_listen_connections_total", "tcp 192.0.2.1:7878 "): 0,
        ("hello_listen_connections_total", "tcp 192.0.2.1:7878 proxy_header_timeout"): 1,
        ("hello_listen_last_connection_timestamp_seconds", "tcp 192.0.2.1:7878"): NOON,
        ("hello_listen_dropped_packets_total", "192.0.2.1:7878"): 23,
        ("hello_listen_headers_waiting", ""): 0,
        ("hello_listen_recorded_total", ""): 7,
        ("hello_listen_summarized_total", ""): 0,
        ("hello_listen_to_summarize", ""): 0,
        ("hello_listen_to_write", ""): 3,
        ("hello_listen_lost_total", ""): 2,
        ("hello_listen_log_failing", ""): 1,
        ("hello_listen_log_waiting_bytes", ""): 99,
    }
    assert any(name.startswith("python_info") for name, _ in known)


def test_last_connection_metric() -> None:
    """The time of the last connection is exact, and absent before the first connection."""
    resource, tally = status()
    for accept in ("", "application/openmetrics-text"):
        assert "last_connection" not in ask(resource, "/metrics", accept=accept)[1]
    tally(connection(time=1_795_000_000.123456))
    known = samples(textMetrics(ask(resource, "/metrics")[1]))
    name = "hello_listen_last_connection_timestamp_seconds"
    assert known[name, "tcp 192.0.2.1:7878"] == 1_795_000_000.123456


def test_open_metrics() -> None:
    """Clients that prefer OpenMetrics get it; without service and log, those metrics are absent."""
    tally = Tally()
    tally(connection())
    accept = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"
    response, text = ask(StatusResource(tally), "/metrics", accept=accept)
    assert str(response.getheader("Content-Type")).startswith("application/openmetrics-text;")
    known = samples(openMetrics(text))
    assert known["hello_listen_connections_total", "tcp 192.0.2.1:7878 "] == 1
    assert ("hello_listen_lost_total", "") not in known


@settings(max_examples=50)
@given(st.binary(min_size=1, max_size=107), st.binary(min_size=1, max_size=107))
def test_names_stay_text(client: bytes, server: bytes) -> None:
    """A name of a UNIX client or in a PROXY header becomes neither markup nor a metric."""
    resource, tally = status()
    tally(connection())
    harmless = Parser(ask(resource)[1])
    for _ in range(2):
        tally(Connection(NOON, UNIXAddress(client), UNIXAddress(server), UNIXAddress(client)))
    page = Parser(ask(resource)[1])
    assert page.elements <= harmless.elements | {"span"}
    assert page.attributes <= harmless.attributes
    assert addressText(UNIXAddress(client))[:47] in page.text
    label = f"unix {addressText(UNIXAddress(server))} "
    metrics = samples(textMetrics(ask(resource, "/metrics")[1]))
    assert metrics["hello_listen_connections_total", label] == 2
    assert json.loads(ask(resource, "/status.json")[1])["connections"] == 3


def test_health() -> None:
    """/healthz is 200 while all endpoints listen and the log can be written, else 503."""
    response, text = ask(status(Log())[0], "/healthz")
    assert (response.status, text) == (200, "OK\n")
    response, text = ask(status(Log(), None)[0], "/healthz")
    assert (response.status, text) == (503, "Not listening: tcp:7878\n")
    response, text = ask(status(Log(failing="Disk full"))[0], "/healthz")
    assert response.status == 503
    assert "Disk full" in text


def test_waiting() -> None:
    """Connections that are not yet summarized or written are counted as waiting, not as lost."""
    log = Log(connections=800, recorded=700, summarized=60, lost=10)
    resource, tally = status(log)
    for _ in range(1000):
        tally(connection())
    known = json.loads(ask(resource, "/status.json")[1])
    waiting = {"waiting_to_be_summarized": 200, "waiting_to_be_written": 30}
    assert known.items() >= waiting.items()
    names = ("recorded", "summarized", *waiting, "lost")
    assert sum(known[name] for name in names) == known["connections"]
    text = Parser(ask(resource)[1]).text
    assert "lost10to be summarized200to be written30" in text
    metrics = samples(textMetrics(ask(resource, "/metrics")[1]))
    assert metrics["hello_listen_to_summarize", ""] == 200
    assert metrics["hello_listen_to_write", ""] == 30


def test_chart_of_the_first_minutes() -> None:
    """Charts begin where counting began, at a fixed scale."""
    clock = Clock()
    clock.advance(NOON + 65)
    tally = Tally(clock=clock.seconds)
    clock.advance(60)
    tally(connection(time=clock.seconds()))
    page = ask(StatusResource(tally))[1]
    text = re.sub("\n+", "|", Parser(page).text)
    assert "|Last hour by minute|12:02: 112:01 to nowat most 1 in a minute|" in text
    assert "|Last day by hour|12:00: 112:00 to nowat most 1 in an hour|" in text
    assert "connections since 12:01:05" in text
    assert re.findall(r'viewBox="0 0 (\d+) 100"', page) == ["60", "24"]


def test_metrics_of_many_endpoints() -> None:
    """Each listening server has a series from 0, whatever other servers were counted before."""
    resource, tally = status()
    for port in range(200):
        tally(connection(server=IPv4Address("TCP", "203.0.113.9", port)))
    resource.snapshots.expectServers()
    tally(connection())
    ask(resource, "/metrics")
    service: Any = Service([(f"tcp:{n}", IPv4Address("TCP", "192.0.2.2", n)) for n in range(200)])
    resource = StatusResource(tally, service)
    resource.snapshots.expectServers()
    for port in range(200):
        tally(connection(server=IPv4Address("TCP", "192.0.2.2", port)))
    known = samples(textMetrics(ask(resource, "/metrics")[1]))
    name = "hello_listen_connections_total"
    assert all(known[name, f"tcp 192.0.2.2:{port} "] == 1 for port in range(200))
    assert known[name, "tcp 192.0.2.1:7878 "] == 1
    assert known[name, "tcp other "] == 100
    assert len([key for key in known if key[0] == name]) == 302


@pytest.mark.parametrize("path", PAGES)
def test_head(path: str) -> None:
    """HEAD is answered as GET is, without the content."""
    resource, _ = status()
    got, _ = ask(resource, path)
    head, body = ask(resource, path, method="HEAD")
    assert (got.status, head.status, body) == (200, 200, "")
    assert head.getheader("Content-Type") == got.getheader("Content-Type")
    if path != "/metrics":  # Their process goes on meanwhile.
        assert head.getheader("Content-Length") == got.getheader("Content-Length")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "NONSENSE"])
@pytest.mark.parametrize("path", ["/", "/metrics", "/nowhere"])
def test_other_methods(method: str, path: str) -> None:
    """Only GET and HEAD are allowed."""
    response, _ = ask(status()[0], path, method=method)
    assert (response.status, response.getheader("Allow")) == (405, "GET, HEAD")


@pytest.mark.parametrize("path", ["/nowhere", "/metrics/more", "/style.css/", "//", "/page.xml"])
def test_other_paths(path: str) -> None:
    """Other paths are not found."""
    assert ask(status()[0], path)[0].status == 404


@pytest.mark.parametrize("path", [*PAGES, "/nowhere", "*"])
@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("host", ["localhost", "attacker.example"])
def test_headers(path: str, method: str, host: str) -> None:
    """Every answer has the security headers, and names no version."""
    response, _ = ask(status()[0], path, method=method, host=host)
    headers = dict(response.getheaders())
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; ")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cache-Control"] == "no-store"
    assert "Server" not in headers


@pytest.mark.parametrize(
    ("host", "answered"),
    [
        ("127.0.0.1:7880", 200),
        ("192.0.2.1", 200),
        ("[::1]:7880", 200),
        ("[2001:db8::1]", 200),
        ("localhost:7880", 200),
        ("LocalHost", 200),
        ("status.example:443", 200),
        ("STATUS.example", 200),
        ("status.example.", 200),
        ("localhost.:80", 200),
        ("xn--bcher-kva.example:80", 200),
        ("attacker.example", 403),
        ("attacker.example:7880", 403),
        ("localhost.attacker.example", 403),
        ("127.0.0.1.attacker.example", 403),
        ("127.0.0.1, attacker.example", 403),
        ("", 403),
        ("1", 403),
    ],
)
@pytest.mark.parametrize("path", PAGES)
def test_host(host: str | None, answered: int, path: str) -> None:
    """A foreign Host header is refused (DNS rebinding), unless no client's address is shown."""
    response, _ = ask(status(hosts=["Status.example", "bücher.example."])[0], path, host=host)
    assert response.status == (200 if path in ("/metrics", "/healthz") else answered)


@pytest.mark.parametrize("path", ["/metrics", "/healthz"])
def test_no_client_under_any_host(path: str) -> None:
    """What is served under any host name has no client's address, whatever is wrong."""
    resource, tally = status(Log(failing="No space left on device"), address=None)
    client = IPv4Address("TCP", "203.0.113.7", 51974)
    for error in (None, "proxy_header_invalid", "failed"):
        for proxy in (None, PROXY):
            tally(Connection(NOON, client, SERVER, proxy, error))
    tally(summary(3, "203.0.113.7"))
    assert "203.0.113.7" in ask(resource, "/status.json")[1]
    response, content = ask(resource, path, host="hello-listen:7880")
    assert response.status in (200, 503)
    assert not re.search(r"203\.0\.113\.7|10\.0\.0\.2", content)


def test_elsewhere() -> None:
    """The resource works at any path of a site, with its checks and relative links."""
    root = Resource()
    root.putChild(b"who is it", status()[0])
    response, _ = ask(root, "/who%20is%20it")
    assert (response.status, response.getheader("Location")) == (302, "who%20is%20it/")
    assert ask(root, "/who%20is%20it", host="attacker.example")[0].status == 403
    assert ask(root, "/who%20is%20it/", host="hello-listen")[0].status == 403
    assert ask(root, "/who%20is%20it/healthz", host="hello-listen")[0].status == 200
    assert ask(root, "/who%20is%20it/")[0].status == 200
    assert ask(root, "/who%20is%20it/style.css")[0].status == 200


def test_rendered_twice_a_second() -> None:
    """Each view is rendered at most twice a second, however many requests come."""
    rendered: Counter[str] = Counter()

    class Told(Connection):
        """A connection that counts how often it is read."""

        def fields(self) -> dict[str, str | int]:
            rendered["json"] += 1
            return super().fields()

        @property
        def proxyAddress(self) -> str | None:
            rendered["page"] += 1
            return super().proxyAddress

    clock = Clock()
    resource, tally = status(clock=clock.seconds)
    tally(Told(NOON, SERVER, SERVER))
    for turn in range(1, 4):
        answers = {ask(resource, path)[1] for path in ("/", "/status.json") for _ in range(5)}
        assert len(answers) == 2
        assert rendered == {"json": turn, "page": turn}
        tally(connection())
        clock.advance(MAX_AGE)
    for path in ("/", "/status.json", "/metrics"):
        assert "4" in ask(resource, path)[1]
    assert json.loads(ask(resource, "/status.json")[1])["connections"] == 4


def test_own_failures_are_logged() -> None:
    """An exception in this package is logged, and the client gets a 500."""

    class Broken(Tally):
        """A tally that fails."""

        def facts(self) -> Facts:
            raise ZeroDivisionError("a bug")

    with capturedLogs() as events:
        assert ask(StatusResource(Broken()))[0].status == 500
    assert "a bug" in str(eventAsText(events[0]))


@pytest.mark.parametrize(
    ("site", "mode", "dest", "answered"),
    [
        ("none", "navigate", "document", 200),
        ("same-origin", "cors", "empty", 200),
        ("cross-site", "navigate", "document", 200),
        ("same-site", "navigate", "document", 200),
        ("cross-site", "no-cors", "empty", 403),
        ("cross-site", "cors", "empty", 403),
        ("cross-site", "no-cors", "image", 403),
        ("cross-site", "navigate", "iframe", 403),
        ("same-site", "no-cors", "script", 403),
        ("same-site", "cors", "empty", 403),
    ],
)
def test_other_sites(site: str, mode: str, dest: str, answered: int) -> None:
    """A link from another site leads to the page; cross-site requests are refused."""
    resource, _ = status()
    headers = {"Sec_Fetch_Site": site, "Sec_Fetch_Mode": mode, "Sec_Fetch_Dest": dest}
    for path in PAGES:
        assert ask(resource, path, **headers)[0].status == answered


class Turns(Clock):
    """A clock whose turns end before calls that were made meanwhile."""

    def turn(self) -> None:
        """Make the calls that are due."""
        for call in [call for call in self.calls if call.getTime() <= self.seconds()]:
            self.calls.remove(call)
            call.called = 1
            call.func(*call.args, **call.kw)


def site() -> tuple[StatusSite, Turns]:
    """Return a site, and its clock."""
    clock = Turns()
    return StatusSite(status()[0], clock), clock


REQUEST = "GET / HTTP/1.1", "Host: localhost", ""


def test_turns() -> None:
    """One request is answered per reactor turn, however many clients send at once."""
    served, clock = site()
    clients = [HTTP(served) for _ in range(3)]
    for client in clients:
        client.send(*(300 * REQUEST)[:-1])
    for turn in range(1, 10):
        clock.turn()
        answers = [client.answers() for client in clients]
        assert sum(answers) == turn
        assert max(answers) - min(answers) <= 1
    clients[0].protocol.connectionLost(Failure(ConnectionDone()))
    for _ in range(2 * 300 + 1):
        clock.turn()
    assert [client.answers() for client in clients] == [3, 300, 300]


ODD = {
    "host": ("GET / HTTP/1.1", "Host: \xff"),
    "no host": ("GET / HTTP/1.1",),
    "old version": ("GET / HTTP/1.0",),
    "two hosts": ("GET / HTTP/1.1", "Host: localhost", "Host: localhost"),
    "NUL in the host": ("GET / HTTP/1.1", "Host: local\0host"),
    "NUL in the path": ("GET /\0 HTTP/1.1", "Host: localhost"),
    "other host in the path": ("GET http://attacker.example/ HTTP/1.1", "Host: localhost"),
    "header": ("GET / HTTP/1.1", "Host: localhost", "X\xff: \xfe"),
    "method": ("\xff / HTTP/1.1", "Host: localhost"),
    "version": ("GET / HTTP/9.9", "Host: localhost"),
    "percent": ("GET /%zz%ff%00 HTTP/1.1", "Host: localhost"),
    "length": ("GET / HTTP/1.1", "Host: localhost", f"Content-Length: {'9' * 5000}"),
    "next length": (*REQUEST, "GET / HTTP/1.1", f"Content-Length: {'9' * 5000}"),
    "chunk": ("GET / HTTP/1.1", "Host: localhost", "Transfer-Encoding: chunked", "", "zz"),
    "header that is too long": ("GET / HTTP/1.1", f"X: {'y' * 20_000}"),
    "too many headers": ("GET / HTTP/1.1", *["X: y"] * 1000),
    "form": (
        "POST / HTTP/1.1", "Host: localhost", "Content-Type: multipart/form-data; boundary=\xff",
        "Content-Length: 9", "", "123456789",
    ),
    "TLS": ("\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",),
    "HEAD of nothing": ("HEAD /nowhere HTTP/1.1", "Host: localhost"),
}  # fmt: skip
"""Requests that something is wrong with."""

ANSWERS: dict[str, set[int | None]] = {
    "host": {403}, "old version": {200}, "other host in the path": {403}, "percent": {404},
    "HEAD of nothing": {404}, "form": {405}, "next length": {200},
    "header that is too long": {None},
    # Twisted's releases differ.
    "NUL in the host": {400, 403}, "length": {400, None},
}  # fmt: skip
"""How they are answered; the others with 400."""


@pytest.mark.parametrize("name", ODD)
def test_odd_requests(name: str) -> None:
    """Any request is answered or dropped, without a line in the log."""
    served, clock = site()
    client = HTTP(served)
    with capturedLogs() as events:
        client.send(*ODD[name])
        clock.advance(0)
        clock.advance(REQUEST_TIMEOUT)
    answer = client.transport.value()[9:12]
    assert (int(answer) if answer else None) in ANSWERS.get(name, {400})
    assert client.transport.disconnected or client.transport.disconnecting
    assert events == []


@pytest.mark.parametrize("target", ["http://localhost", "HTTPS://localhost:80/", "http://[::1]?x"])
def test_absolute_form(target: str) -> None:
    """The host of a request in absolute form counts (RFC 9112, 3.2.2)."""
    response, _ = ask(status()[0], target, host="attacker.example")
    assert (response.status, response.getheader("Content-Type")) == (
        200,
        "text/html; charset=utf-8",
    )


def test_slow_requests() -> None:
    """A client that sends its request too slowly is dropped."""
    served, clock = site()
    slow = HTTP(served)
    for _ in range(REQUEST_TIMEOUT):
        assert not slow.transport.disconnected
        slow.protocol.dataReceived(b"G")
        clock.advance(1)
    assert slow.transport.disconnected


def test_step_of_the_clock(stepping: Stepping, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow client is dropped in time even if the system's clock is set back."""
    monkeypatch.setattr(siteModule, "REQUEST_TIMEOUT", 0.05)
    slow = HTTP(StatusSite(status()[0], stepping))
    stepping.step = -HOUR
    until(lambda: slow.transport.disconnected, stepping)


def test_time_limit_starts_again() -> None:
    """A client that keeps requesting may keep its connection."""
    served, clock = site()
    client = HTTP(served)
    for path in ("/", "/healthz") * 5:
        assert client.ask(path)[0].status == 200
        clock.advance(REQUEST_TIMEOUT - 1)
    assert not client.transport.disconnected
    client.transport.loseConnection()
    client.protocol.connectionLost(Failure(ConnectionDone()))
    assert not served.protocols
    assert not clock.getDelayedCalls()


def unread() -> tuple[StatusSite, Turns, HTTP]:
    """Return a site, its clock, and a client that has sent 600 requests, but reads no answer."""
    served, clock = site()
    client = HTTP(served)
    client.transport.takes = False
    client.send(*(600 * REQUEST)[:-1])
    for _ in range(600):
        clock.advance(0)
    return served, clock, client


def test_answers_that_are_not_taken() -> None:
    """A client that does not read its answers gets no more, and is dropped later."""
    _, clock, client = unread()
    assert 2 <= client.answers() < 30
    assert client.transport.unsent < 2**20
    clock.advance(REQUEST_TIMEOUT - 1)
    assert not client.transport.disconnected
    clock.advance(1)
    assert client.transport.disconnected


def test_answers_that_are_taken_late() -> None:
    """A client that has read its answers gets the next, with a new timeout."""
    _, clock, client = unread()
    before = client.answers()
    clock.advance(REQUEST_TIMEOUT - 1)
    client.transport.take()
    clock.turn()
    assert client.answers() == before + 1
    clock.advance(REQUEST_TIMEOUT - 1)
    assert not client.transport.disconnected


def test_client_that_does_not_wait() -> None:
    """A client that closes before its answer is not answered, and delays nobody."""
    served, clock = site()
    gone, client = HTTP(served), HTTP(served)
    for each in (gone, client, gone):
        each.send(*REQUEST[:-1])
    gone.protocol.connectionLost(Failure(ConnectionDone()))
    clock.turn()
    assert (gone.answers(), client.answers()) == (0, 1)
    last = HTTP(served)
    last.send(*REQUEST[:-1])
    last.protocol.connectionLost(Failure(ConnectionDone()))
    clock.turn()
    assert last.answers() == 0
    client.protocol.connectionLost(Failure(ConnectionDone()))
    assert not clock.getDelayedCalls()


def test_end_of_a_client_that_takes_nothing() -> None:
    """A connection that is lost with unread answers leaves nothing behind."""
    served, clock, client = unread()
    assert client.transport.producer is not None
    client.transport.producer.stopProducing()
    client.protocol.connectionLost(Failure(ConnectionAborted()))
    client.transport.take()
    clock.advance(0)
    assert not served.protocols
    assert not clock.getDelayedCalls()


def test_negotiation() -> None:
    """Over TLS, HTTP/1.1 is all that is spoken."""
    assert IProtocolNegotiationFactory(site()[0]).acceptableProtocols() == [b"http/1.1"]


def test_name() -> None:
    """Twisted's log calls the site by a name that operators understand."""
    assert site()[0].logPrefix() == "Status page"


def lost(clients: list[HTTP]) -> list[HTTP]:
    """Remove the dropped connections from a list, and return them."""
    gone = [client for client in clients if client.transport.disconnected]
    for client in gone:
        client.protocol.connectionLost(Failure(ConnectionAborted()))
        clients.remove(client)
    return gone


def test_places_of_a_client() -> None:
    """One client cannot take all connections from the others."""
    served, clock = site()
    viewer = HTTP(served, "192.0.2.7")
    assert viewer.ask()[0].status == 200
    attacker = [HTTP(served) for _ in range(MAX_CONNECTIONS)]
    for number in range(MAX_CONNECTIONS):
        attacker.append(HTTP(served))
        if number % 2:
            attacker[-1].send(*REQUEST[:-1])
        clock.turn()
    lost(attacker)
    assert len(attacker) == MAX_CONNECTIONS_PER_CLIENT
    free = MAX_CONNECTIONS - MAX_CONNECTIONS_PER_CLIENT
    others = [HTTP(served, f"192.0.2.{number}") for number in range(free + 9)]
    assert len(served.protocols) == MAX_CONNECTIONS
    assert len(lost(attacker)) == 10
    assert not lost([viewer, *others])
    for each in (viewer, *others):
        assert each.ask()[0].status == 200


def test_whose_connection_is_dropped() -> None:
    """Of one client, the connection with the most answers that asks again is dropped first."""
    served, clock = site()
    first, second = HTTP(served), HTTP(served)
    everybody = [first, second, *(HTTP(served) for _ in range(MAX_CONNECTIONS_PER_CLIENT - 1))]
    assert lost(everybody) == [first]
    assert second.ask()[0].status == 200
    third = everybody[1]
    everybody.append(HTTP(served))
    assert lost(everybody) == [third]
    everybody[5].send(*(2 * REQUEST)[:-1])
    everybody[9].send(*(3 * REQUEST)[:-1])
    for _ in range(3):
        clock.turn()
    greedy = everybody[9]
    everybody.append(HTTP(served))
    assert lost(everybody) == [greedy]
    for each in everybody:
        each.send(*(2 * REQUEST)[:-1])
    clock.turn()
    newcomer = HTTP(served)
    [gone] = lost([*everybody, newcomer])
    assert gone.answers()
    newcomer.send(*REQUEST[:-1])
    for _ in range(3 * MAX_CONNECTIONS_PER_CLIENT):
        clock.turn()
    assert newcomer.answers() == 1


def test_newcomer_is_dropped() -> None:
    """If all connections of a client wait for their first answer, the newest is dropped."""
    served, _ = site()
    waiting = [HTTP(served) for _ in range(MAX_CONNECTIONS_PER_CLIENT)]
    for each in waiting:
        each.send(*REQUEST[:-1])
    newcomer = HTTP(served)
    assert lost([*waiting, newcomer]) == [newcomer]


def test_long_requests() -> None:
    """A client that sends a request beyond the size limit is dropped."""
    served, _ = site()
    client = HTTP(served)
    client.protocol.dataReceived(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1")
    client.protocol.dataReceived(b"0" * 9 + b"\r\n\r\n")
    for _ in range(MAX_REQUEST // 1024):
        assert not client.transport.disconnected
        client.protocol.dataReceived(bytes(1024))
    assert client.transport.disconnected
    client.protocol.connectionLost(Failure(ConnectionAborted()))


def test_command_line() -> None:
    """--status is bound first, and its tally observes beside the log."""
    reactor = MemoryReactorClock()
    options = Options(reactor)
    options.parseOptions(["-e", "tcp:1", "--status", "tcp:2", "--status-host", "status.example"])
    service: Any = makeService(options, reactor)
    service.privilegedStartService()
    service.startService()
    assert [port for port, *_ in reactor.tcpServers] == [2, 1]
    with capturedLogs() as events:
        service.factory.established(SERVER, SERVER)
    assert formatEvent(events[-1]) == "Connection established! 192.0.2.1:7878 -> 192.0.2.1:7878"
    served = reactor.tcpServers[0][1]
    assert isinstance(served, StatusSite)
    client = HTTP(served)
    assert json.loads(client.ask("/status.json", host="status.example")[1])["connections"] == 1


def test_host_names() -> None:
    """Host names are compared as browsers send them."""
    options = Options(MemoryReactorClock())
    hosts = ["Status.Example.", "b\u00fccher.example"]
    options.parseOptions(["--status", "tcp:1", *(f"--status-host={host}" for host in hosts)])
    assert options["status-hosts"] == ["status.example", "xn--bcher-kva.example"]


@pytest.mark.parametrize(
    ("host", "warns"),
    [
        ("127.0.0.1", 0),
        ("::1", 0),
        ("::ffff:127.0.0.1", 0),
        ("0.0.0.0", 1),
        ("fe80::1%lo", 1),
        (None, 0),
    ],
)
def test_warning(host: str | None, warns: int) -> None:
    """A status page that other machines can reach is logged as a warning, once."""
    make = IPv6Address if ":" in (host or "") else IPv4Address
    address = UNIXAddress(b"s") if host is None else make("TCP", host, 7880)

    class Port(FakePort):
        def getHost(self) -> Any:
            return address

    class Endpoint:
        def listen(self, factory: object) -> Any:
            return succeed(Port())

    status: Any = Endpoint(), lambda service: object()
    service = HelloService(HelloFactory(), [], MemoryReactorClock(), status)
    with capturedLogs() as events:
        service.privilegedStartService()
    assert sum("open to other machines" in (formatEvent(event) or "") for event in events) == warns


def test_series_from_the_start() -> None:
    """A listening server has a series before the first request; no other takes its place."""
    reactor = MemoryReactorClock()
    options = Options(reactor)
    options.parseOptions(["-e", "tcp:1", "--status", "tcp:2"])
    service: Any = makeService(options, reactor)
    service.privilegedStartService()
    reactor.run()
    [tally] = [each for each in service.factory.observers if isinstance(each, Tally)]
    assert list(tally.facts().totals.values()) == [0]


@pytest.mark.parametrize("refused", [1, 2])
def test_all_or_nothing(monkeypatch: pytest.MonkeyPatch, refused: int) -> None:
    """If the status or another endpoint cannot be bound, those before it are released."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    error = CannotListenError(None, refused, OSError(errno.EADDRINUSE, "Address already in use"))
    ports = [FakePort()] * (refused == 1)
    reactor = ListeningReactor(*ports, error)
    options = Options(reactor)
    options.parseOptions(["-e", "tcp:1", "--status", "tcp:2"])
    with pytest.raises(ListenError, match=f"Address already in use: 'tcp:{refused}'"):
        makeService(options, reactor).privilegedStartService()
    assert all(port.stopped for port in ports)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--status", "tcp:x"], "'tcp:x': not a number: 'x'"),
        (["--status", "7880"], "; did you mean 'tcp:7880:interface=127.0.0.1'?"),
        (["--status", "tcp:1", "--status-host", "a:80"], "not a host name (without port or path"),
        (["--status", "tcp:1", "--status-host", "b\u00fc cher"], "not a host name (without port"),
        (["--status", "tcp:1", "--status", "tcp:2"], "--status given twice: 'tcp:2'"),
        (["--status", "haproxy:tcp:1"], "'haproxy:tcp:1': haproxy: is not supported for --status"),
        (["--status", "redirected:tcp:1"], "': redirected: is not supported for --status"),
        (["--status-host", "status.example"], "--status-host needs --status"),
        (["--mmdb", "x.mmdb"], "--mmdb needs --status"),
        (
            ["--status", "tcp:1", "--mmdb", "/none/x"],
            "--mmdb: No such file or directory: '/none/x'",
        ),
        (["--status", "tcp:1", "--mmdb", __file__], f"not a MaxMind database: {__file__!r}"),
    ],
)
def test_usage_errors(arguments: list[str], reason: str) -> None:
    """A wrong option is one line."""
    with pytest.raises(UsageError, match=re.escape(reason)):
        Options(MemoryReactorClock()).parseOptions(arguments)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the Prometheus client, --status says what to install."""
    for name in [name for name in sys.modules if name.startswith("hello_listen.status")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(UsageError, match="pip install prometheus-client"):
        Options(MemoryReactorClock()).parseOptions(["--status", "tcp:1"])


def test_without_the_geo_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without maxminddb, --mmdb says what to install."""
    monkeypatch.delitem(sys.modules, "hello_listen.geo", raising=False)
    monkeypatch.setitem(sys.modules, "maxminddb", None)
    with pytest.raises(UsageError, match="pip install maxminddb"):
        Options(MemoryReactorClock()).parseOptions(["--status", "tcp:1", "--mmdb", "x"])


def test_places(tmp_path: Path) -> None:
    """The page and the JSON show the country and network of each client."""
    geodata.countries(tmp_path)
    geodata.networks(tmp_path)
    places = GeoDatabases([str(tmp_path / "country.mmdb"), str(tmp_path / "asn.mmdb")])
    resource, tally = status(places=places)
    for client in ("198.51.100.7", "198.51.100.7", "203.0.113.9", "10.0.0.1", "8.8.8.8"):
        tally(connection(client))
    tally(connection(IPv6Address("TCP", "2001:db8:7:1::1", 1)))
    text = re.sub("\n+", "|", Parser(ask(resource)[1]).text)
    assert "|198.51.100.7DE AS64500 Example Ltd.2" in text
    assert "10.0.0.1private1" in text
    assert "8.8.8.8112:00" in text
    assert "2001:db8:7:1::/64JP AS64502 Six1" in text
    assert "[2001:db8:7:1::1]:1JP AS64502 Six192.0.2.1:7878" in text
    known = json.loads(ask(resource, "/status.json")[1])
    expected = {
        "client.geo.country.iso_code": "DE",
        "client.as.number": 64500,
        "client.as.organization.name": "Example Ltd.",
    }
    assert known["clients"][0].items() >= expected.items()
    assert known["latest"][-1].items() >= expected.items()
    assert not {"client.geo.country.iso_code", "client.as.number"} & known["clients"][2].keys()


def test_hostile_places(tmp_path: Path) -> None:
    """Texts of a database are escaped and truncated."""
    record = geodata.country("DE") | geodata.system(1, "<script>" * 99)
    path = geodata.write(tmp_path / "x.mmdb", {"198.51.100.0/24": record})
    resource, tally = status(places=GeoDatabases([str(path)]))
    tally(connection("198.51.100.7"))
    page = ask(resource)[1]
    assert "DE AS1 &lt;script&gt;&lt;script&gt;" in page
    assert page.count("&lt;script") <= 2 * 8
    assert page.count("<script") == 1


def test_damaged_database(tmp_path: Path) -> None:
    """Damage of a database is logged once, and its places are left out."""
    records = {
        f"10.{n >> 8}.{n & 255}.0/24": geodata.system(n, f"Name {n:04}") for n in range(1200)
    }
    path = geodata.write(tmp_path / "x.mmdb", records)
    path.write_bytes(path.read_bytes().replace(b"Name 1199", b"\xff" * 9))
    resource, tally = status(places=GeoDatabases([str(path)]))
    tally(connection("10.4.175.1"))
    with capturedLogs() as events:
        for _ in range(3):
            assert "10.4.175.1" in ask(resource)[1]
    reason = f"the database is damaged: '{path}'"
    assert list(map(formatEvent, events)) == [f"No countries and networks are shown: {reason}"]
    assert ask(resource, "/healthz")[0].status == 200


def test_ports() -> None:
    """Connections are counted by server port, or by the name of a server without one."""
    resource, tally = status()
    for port in range(1, 21):
        for host in ("192.0.2.1", "192.0.2.2"):
            for _ in range(port):
                tally(connection(server=IPv4Address("TCP", host, port)))
    tally(connection(server=IPv6Address("TCP", "2001:db8::1", 20), error="proxy_header_timeout"))
    tally(connection(UNIXAddress(None), server=UNIXAddress(b"/run/hello")))
    tally(summary(7, "192.0.2.7"))
    ports = json.loads(ask(resource, "/status.json")[1])["ports"]
    assert ports[:2] == [{"port": "20", "connections": 41}, {"port": "19", "connections": 38}]
    assert {"port": "unix:/run/hello", "connections": 1} in ports
    assert {"port": "unknown", "connections": 7} in ports
    assert sum(each["connections"] for each in ports) == 2 * 210 + 9
    text = re.sub("\n+", "|", Parser(ask(resource)[1]).text)
    assert "|Server portCount|20411938" in text
    rest = sum(each["connections"] for each in ports[12:])
    assert f"{len(ports) - 12} others{rest}|" in text


def test_scan_of_every_port() -> None:
    """After a scan of all ports, the ports called most are shown, and there are few series."""
    resource, tally = status()
    for port in range(1, 65536):
        tally(connection(server=IPv4Address("TCP", "192.0.2.1", port)))
    for _ in range(9):
        tally(connection(server=IPv4Address("TCP", "192.0.2.1", 60023)))
    for connections, known in ((7, 5), (2, 2)):
        summarized = summary(connections, "192.0.2.7")
        summarized.ports[2222] = known
        tally(summarized)
    tally(connection(server=IPv4Address("TCP", "192.0.2.1", 70000)))
    shown = json.loads(ask(resource, "/status.json")[1])
    assert shown["ports"][:2] == [
        {"port": "60023", "connections": 10},
        {"port": "2222", "connections": 8},
    ]
    assert len(shown["ports"]) == 100
    assert len(shown["servers"]) < 110
    text = re.sub("\n+", "|", Parser(ask(resource)[1]).text)
    assert "|Server portCount|60023102222" in text
    # With the number that is no port, and two of a summary without a port.
    total = 65535 + 9 + 7 + 2 + 1
    assert f"65,525 others{total - 10 - 8 - 2 - 9:,}|" in text
    series = samples(textMetrics(ask(resource, "/metrics")[1]))
    counted = {key: n for key, n in series.items() if key[0] == "hello_listen_connections_total"}
    assert len(counted) < 110
    assert sum(counted.values()) == total
    assert counted["hello_listen_connections_total", "tcp other "] > 65000


def test_compared_to_before() -> None:
    """The last minute, hour and day are compared with the ones before, once those are complete."""
    clock = Clock()
    clock.advance(NOON)
    tally = Tally(clock=clock.seconds)
    resource = StatusResource(tally, clock=count().__next__)
    for minutes, labels in (
        (0, ["in the last minute1", "in the last hour1", "in the last day1"]),
        (1, ["in the last minute1", "in the last hour2", "in the last day2"]),
        (1, ["in the last minute, 1 in the one before1", "in the last hour3"]),
        (118, ["last minute, 0 in the one before1", "last hour, 2 in the one before1"]),
        (2760, ["last hour, 0 in the one before1", "last day, 3 in the one before1"]),
    ):
        clock.advance(60 * minutes)
        tally(connection(time=clock.seconds()))
        text = Parser(ask(resource)[1]).text
        for label in labels:
            assert label in text, minutes
    known = json.loads(ask(resource, "/status.json")[1])
    names = ("last_minute", "minute_before", "last_hour", "hour_before", "last_day", "day_before")
    assert [known[name] for name in names] == [1, 0, 1, 0, 1, 3]


@dataclass
class Notified:
    """The state of notifications."""

    name: str = ""
    delivered: int = 0
    failed: int = 0
    waiting: int = 0
    lastDelivered: float | None = None
    failing: str | None = None


def test_notifications() -> None:
    """The page, the JSON and the metrics show the last delivery, or why it failed."""
    resource, _ = status(notifications=[Notified()])
    assert "none yet" in ask(resource, "/")[1]
    assert json.loads(ask(resource, "/status.json")[1])["notifications"] == {
        "delivered": 0, "failed": 0, "clients_waiting": 0, "last_delivered": None,
    }  # fmt: skip
    assert ask(resource, "/healthz")[1] == "OK\n"
    told = Notified("ntfy", 3, 1, 0, NOON)
    failing = [Notified("JSON", 2, 1, 5, NOON - 9, "HTTP status 503"), Notified(failing="refused")]
    resource, _ = status(notifications=[told, *failing])
    page = ask(resource, "/")[1]
    assert "last notification" in page
    assert 'class="bad"' in page
    for reason in ("JSON: HTTP status 503", "refused"):
        assert f"Notifications are not delivered: {reason}" in page
    fields = json.loads(ask(resource, "/status.json")[1])["notifications"]
    assert (fields["delivered"], fields["failed"], fields["clients_waiting"]) == (5, 2, 5)
    assert fields["last_delivered"] == "2026-11-22T12:00:00.000000Z"
    assert "hello_listen_notifications_delivered_total 5.0" in ask(resource, "/metrics")[1]
    assert "hello_listen_notifications_failed_total 2.0" in ask(resource, "/metrics")[1]
    assert "hello_listen_notifications_failing 2.0" in ask(resource, "/metrics")[1]
