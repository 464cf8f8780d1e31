"""The status page in a real browser, the metrics in a real Prometheus, and both in a process."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.client import HTTPConnection
from itertools import chain
from pathlib import Path
from urllib.parse import quote

import pytest

import geodata
from browser import Browser, Page
from crowd import Crowd
from logs import recorded
from processes import (
    LOOPBACK,
    PATIENCE,
    Process,
    Start,
    curl,
    freePort,
    isKnown,
    makeCertificate,
    needTLS,
    run,
    tool,
    until,
    untilEnd,
)

SCRIPT = b"<script>document.title = 'hacked'</script>"
IMAGE = b"<img src=x onerror=\"document.title = 'hacked'\">'\"&amp;"


def statusPort(process: Process) -> int:
    """Read until the status listens, and return its port."""
    return int(process.expect(r"Status on .*:(\d+)$")[1])


def get(port: int, path: str = "/", host: str = "127.0.0.1") -> tuple[int, str]:
    """Return the HTTP status and the body of an answer."""
    client = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    client.request("GET", path, headers={"Host": host})
    response = client.getresponse()
    text = response.read().decode()
    client.close()
    return response.status, text


def fromProxy(port: int, client: bytes, server: bytes) -> None:
    """Connect as a proxy does that names UNIX sockets, as version 2 of the PROXY header can."""
    signature = b"\r\n\r\n\0\r\nQUIT\n\x21\x31" + struct.pack("!H", 216)
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as proxy:
        proxy.sendall(signature + client.ljust(108, b"\0") + server.ljust(108, b"\0"))
        proxy.recv(1)


def test_one_more_option(hello: Start) -> None:
    """--status shows the clients; connections are still logged."""
    server = hello("-e", LOOPBACK, "--status", LOOPBACK)
    status, port = statusPort(server), server.port()
    assert get(status, "/healthz") == (200, "OK\n")
    name, _ = untilEnd(("127.0.0.1", port))
    until(lambda: name in get(status)[1])
    known = json.loads(get(status, "/status.json")[1])
    assert known["endpoints"] == [{"endpoint": LOOPBACK, "address": f"127.0.0.1:{port}"}]
    assert known["connections"] == 1
    assert server.connections(1) == [f"{name} -> 127.0.0.1:{port}"]
    server.stop()


@pytest.mark.slow
def test_log(hello: Start) -> None:
    """With a connection log, the status shows its counts and its failure."""
    server = hello("-e", LOOPBACK, "--status", LOOPBACK, "-l", "/dev/full")
    status, port = statusPort(server), server.port()
    untilEnd(("127.0.0.1", port))
    until(lambda: get(status, "/healthz")[0] == 503)
    assert "No space left on device" in get(status, "/healthz")[1]
    assert "hello_listen_log_failing 1.0" in get(status, "/metrics")[1]
    server.stop()


@pytest.mark.parametrize("taken", ["-e", "--status"])
def test_all_or_nothing(start: Start, taken: str) -> None:
    """Where one of the endpoints cannot be bound, none is, and one line says why."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        there = f"tcp:{other.getsockname()[1]}:interface=127.0.0.1"
        free = f"unix:{'status' if taken == '-e' else 'hello'}.sock"
        arguments = {"-e": free, "--status": free} | {taken: there}
        server = start("twistd", "-n", "--pidfile=", "hello-listen", *sum(arguments.items(), ()))
        assert server.wait() == 1
    assert server.lines[-1].endswith(f"hello-listen: Address already in use: '{there}'")
    assert "Traceback" not in "\n".join(server.lines)
    assert not list(server.folder.glob("*.sock*"))


def test_answers_to_the_end(hello: Start, fifo: Path, reader: int) -> None:
    """At a stop, the status is served until the last connection is recorded."""
    server = hello("-e", LOOPBACK, "--status", LOOPBACK, "-l", fifo)
    status, port = statusPort(server), server.port()
    # More than a pipe holds that nobody reads.
    for _ in range(400):
        untilEnd(("127.0.0.1", port))
    server.kill(signal.SIGTERM)
    until(lambda: get(status, "/healthz") == (503, f"Not listening: {LOOPBACK}\n"))
    assert json.loads(get(status, "/status.json")[1])["connections"] == 400
    os.set_blocking(reader, True)
    while os.read(reader, 65536):
        pass
    os.close(reader)
    server.wait()
    assert "recorded: 400, summarized: 0, lost: 0" in "\n".join(server.lines)


def test_unix_and_tls(hello: Start, tmp_path: Path) -> None:
    """The status may be on a UNIX socket, or behind TLS."""
    server = hello("-e", LOOPBACK, "--status", "unix:status.sock")
    server.port()
    answer = curl("--unix-socket", tmp_path / "status.sock", "http://localhost/healthz")
    assert answer.stdout == "OK\n"
    refused = curl("--unix-socket", tmp_path / "status.sock", "http://a.example/")
    assert "Unknown Host" in refused.stdout
    server.stop()
    needTLS("tls:")
    (tmp_path / "server.pem").write_text(makeCertificate(tmp_path))
    server = hello("-e", LOOPBACK, "--status", "tls:server.pem:0:interface=127.0.0.1")
    assert curl("-k", f"https://127.0.0.1:{statusPort(server)}/healthz").stdout == "OK\n"
    server.stop()


def test_hosts(hello: Start) -> None:
    """A name that --status-host gives is answered; under others, only metrics and health are."""
    server = hello("-e", LOOPBACK, "--status", LOOPBACK, "--status-host", "status.example")
    status = statusPort(server)
    assert get(status, host="status.example:80")[0] == 200
    assert get(status, host="attacker.example")[0] == 403
    assert get(status, "/metrics", "hello-listen")[0] == 200
    assert get(status, "/healthz", "hello-listen") == (200, "OK\n")
    server.stop()


@pytest.mark.slow
def test_slow_clients(hello: Start) -> None:
    """200 slow HTTP clients delay neither connections nor the page."""
    server = hello("-e", LOOPBACK, "--status", LOOPBACK)
    status, port = statusPort(server), server.port()
    with ExitStack() as slow:
        for number in range(200):
            client = slow.enter_context(socket.create_connection(("127.0.0.1", status)))
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"\r\n" * (number % 2))
        untilEnd(("127.0.0.1", port))
        server.connections(1)
        assert get(status)[0] == 200
    assert "Traceback" not in server.stop()


class Pipeline(threading.Thread):
    """Clients that send 32 kB of requests at once, and more as long as they are answered."""

    def __init__(self, port: int, count: int, reads: bool = True) -> None:
        """Connect so many clients; they may leave their answers where they are."""
        super().__init__(daemon=True)
        self._poll = select.epoll()
        self._reads = reads
        self._enough = threading.Event()
        self.answers = 0
        self.ended = 0
        self._clients: dict[int, socket.socket] = {}
        for number in range(count):
            client = socket.socket()
            # Little is under way before the server has to keep it.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**20 if reads else 4096)
            client.bind((f"127.0.0.{2 + number}", 0))
            client.connect(("127.0.0.1", port))
            client.setblocking(False)
            self._clients[client.fileno()] = client
            self._poll.register(client, select.EPOLLOUT | (select.EPOLLIN if reads else 0))

    def run(self) -> None:
        """Send and receive until a condition is true, or all connections are lost."""
        requests = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 900
        left = dict.fromkeys(self._clients, requests[: 2**15])
        while self._clients and not self._enough.is_set():
            for number, events in self._poll.poll(0.1):
                client = self._clients[number]
                try:
                    if events & (select.EPOLLERR | select.EPOLLHUP):
                        raise ConnectionError
                    if events & select.EPOLLIN:
                        answers = client.recv(2**20).count(b"HTTP/1.1 200 OK")
                        self.answers += answers
                        left[number] += requests[: 37 * answers]
                    if events & select.EPOLLOUT and left[number]:
                        left[number] = left[number][client.send(left[number]) :]
                except BlockingIOError:
                    pass
                except OSError:
                    self.ended += 1
                    self._clients.pop(number).close()
        for client in self._clients.values():
            client.close()
        self._poll.close()

    def end(self) -> None:
        """Close what is still open."""
        self._enough.set()
        self.join(PATIENCE)


def test_pipelined_requests(hello: Start) -> None:
    """Clients that send many requests at once delay neither a connection nor a PROXY header."""
    server = hello(
        "-e", LOOPBACK, "-e", f"haproxy:{LOOPBACK}", "--status", LOOPBACK, "-l", "c.jsonl"
    )
    status, port, proxied = statusPort(server), server.port(), server.port()
    attackers = Pipeline(status, 60)
    attackers.start()
    until(lambda: attackers.answers > 60)
    crowds = [Crowd(("127.0.0.1", port)), Crowd(("127.0.0.1", proxied), proxied=True)]
    for crowd in crowds:
        crowd.start()
    for crowd in crowds:
        crowd.untilEnded(200)
    assert get(status, "/healthz") == (200, "OK\n")
    for crowd in crowds:
        crowd.finish()
    answers = attackers.answers
    until(lambda: attackers.answers > answers)
    assert "Traceback" not in server.stop()
    attackers.end()
    records = recorded(server.folder / "c.jsonl")
    assert [record for record in records if "error.type" in record] == []
    for crowd in crowds:
        assert not crowd.failed
    names = {(record["client.address"], record["client.port"]) for record in records}
    assert names == set(crowds[0].answered) | set(crowds[1].answered)


@pytest.mark.slow
def test_answers_that_nobody_takes(hello: Start) -> None:
    """Clients that never take an answer cost little memory, and are dropped."""
    server = hello("-e", LOOPBACK, "--status", LOOPBACK)
    status = statusPort(server)

    def memory() -> int:
        """Return the server's peak memory, in KiB."""
        text = Path(f"/proc/{server.pid}/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+) kB", text)[0])

    assert get(status)[0] == 200
    before = memory()
    attackers = Pipeline(status, 20, reads=False)
    attackers.start()
    until(lambda: attackers.ended == 20)
    assert memory() - before < 20 * 1024
    attackers.end()
    assert "Traceback" not in server.stop()


@pytest.mark.slow
def test_log_of_every_endpoint(hello: Start, tmp_path: Path) -> None:
    """On no endpoint do Twisted's own log lines name a class of this package."""
    (tmp_path / "server.pem").write_text(makeCertificate(tmp_path))
    secure = ["ssl:0:privateKey=server.pem:interface=127.0.0.1"]
    if isKnown("tls:"):
        secure.append("tls:server.pem:0:interface=127.0.0.1")
    plain = [LOOPBACK, "unix:hello.sock", *secure]
    endpoints = [*plain, *(f"haproxy:{each}".replace("hello.", "proxied.") for each in plain)]
    arguments = chain.from_iterable(("-e", each) for each in endpoints)
    server = hello(*arguments, "--status", secure[-1])
    for _ in endpoints:
        server.expect("Listening on ")
    said = server.stop()
    assert " starting on " in said
    assert re.findall(r"\w*(?:Factory|Site|Protocol|HelloPort)\w*", said) == []


def test_metrics_are_clean(hello: Start) -> None:
    """promtool accepts the metrics, whatever names clients have."""
    promtool = tool("promtool")
    server = hello("-e", f"haproxy:{LOOPBACK}", "--status", LOOPBACK, "-l", "c.jsonl")
    status, port = statusPort(server), server.port()
    fromProxy(port, SCRIPT, IMAGE + b'"\n\\ {} \xff')
    until(lambda: "img src" in get(status, "/metrics")[1])
    text = get(status, "/metrics")[1]
    assert "<script" not in text
    (server.folder / "metrics").write_text(text)
    checked = run("/bin/sh", "-c", f"{promtool} check metrics <{server.folder}/metrics")
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
    server.stop()


def test_countries(hello: Start, tmp_path: Path) -> None:
    """The page names the country of a client, and SIGHUP takes a new database."""
    path = geodata.write(tmp_path / "x.mmdb", {"127.0.0.0/8": geodata.country("DE")})
    server = hello("-e", LOOPBACK, "--status", LOOPBACK, "--mmdb", "x.mmdb", "--mmdb", path)
    status, port = statusPort(server), server.port()
    untilEnd(("127.0.0.1", port))
    until(lambda: ">DE<" in get(status)[1])
    geodata.write(path, {"127.0.0.0/8": geodata.country("FR")})
    server.kill(signal.SIGHUP)
    until(lambda: ">FR<" in get(status)[1])
    path.write_bytes(b"")
    server.kill(signal.SIGHUP)
    server.expect(f"Not reloaded: not a MaxMind database: '{path}'$")
    assert ">FR<" in get(status)[1]
    server.stop()


@pytest.mark.slow
def test_prometheus(hello: Start, start: Start, tmp_path: Path) -> None:
    """A Prometheus that scrapes the metrics can tell the rate of connections."""
    server = hello("-e", LOOPBACK, "--status", LOOPBACK)
    status, port = statusPort(server), server.port()
    (tmp_path / "prometheus.yml").write_text(
        "scrape_configs: [{job_name: hello, scrape_interval: 200ms, scrape_timeout: 200ms, "
        f"static_configs: [{{targets: ['127.0.0.1:{status}']}}]}}]"
    )
    web = freePort()
    start(
        "prometheus", f"--web.listen-address=127.0.0.1:{web}", "--config.file=prometheus.yml",
        "--storage.tsdb.path=data",
    ).expect("ready to receive web requests")  # fmt: skip

    def rate() -> float:
        """Return the connections a second that Prometheus knows of."""
        untilEnd(("127.0.0.1", port))
        query = quote("rate(hello_listen_connections_total[1m])")
        result = json.loads(get(web, f"/api/v1/query?query={query}")[1])["data"]["result"]
        assert all(each["metric"]["server"] == f"127.0.0.1:{port}" for each in result)
        return sum(float(each["value"][1]) for each in result)

    until(lambda: rate() > 0)
    server.stop()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Start a browser for all tests, each of which opens its own pages."""
    chromium = Browser(tmp_path_factory.mktemp("chromium"))
    yield chromium
    chromium.close()


Open = Callable[..., Page]


@pytest.fixture
def show(browser: Browser) -> Iterator[Open]:
    """Open the status page on a port; check that it has no errors and loads nothing else."""
    pages: list[tuple[Page, str]] = []

    def openPage(port: int, **options: object) -> Page:
        page = browser.page(**options)  # type: ignore[arg-type]
        pages.append((page, f"http://127.0.0.1:{port}/"))
        page.open(pages[-1][1])
        return page

    yield openPage
    for page, url in pages:
        assert page.complaints() == []
        assert page.requests()
        assert all(request.startswith(url) for request in page.requests())


@pytest.mark.slow
def test_page_shows_who_comes(hello: Start, show: Open) -> None:
    """The page shows a new connection by itself, and keeps focus and scrolling."""
    server = hello("-e", LOOPBACK, "--status", LOOPBACK)
    status, port = statusPort(server), server.port()
    for _ in range(60):
        untilEnd(("127.0.0.1", port))
    page = show(status)
    assert page.text(".main dd") == "60"
    page.evaluate(
        "window.kept = true; link = document.querySelector('footer a'); "
        "link.focus(); window.scrollTo(0, 99)"
    )
    name, _ = untilEnd(("127.0.0.1", port))
    asked = page.requests().count(f"http://127.0.0.1:{status}/")
    page.until(f"document.querySelector('#latest').innerText.includes('{name}')")
    assert page.requests().count(f"http://127.0.0.1:{status}/") <= asked + 1
    assert page.text(".main dd") == "61"
    assert page.text("#state") == "Live"
    assert page.evaluate("document.querySelector('#latest tr').className") == "new"
    assert page.evaluate("kept && document.activeElement === link && window.scrollY") == 99
    assert page.evaluate("document.title") == "61 - hello-listen"
    server.stop()


@pytest.mark.slow
def test_page_says_when_the_server_is_gone(hello: Start, show: Open) -> None:
    """While the server does not answer, the page says since when; then it updates again."""
    port = freePort()
    arguments = "-e", LOOPBACK, "--status", f"tcp:{port}:interface=127.0.0.1"
    server = hello(*arguments)
    page = show(statusPort(server))
    page.until("document.querySelector('#state').innerText === 'Live'")
    server.stop()
    page.until("document.querySelector('#state').innerText.startsWith('No answer since ')")
    assert page.evaluate("document.querySelector('#state').dataset.state") == "gone"
    server = hello(*arguments)
    statusPort(server)
    page.until("document.querySelector('#state').innerText === 'Live'")
    # What the browser itself tells of a refused connection is expected.
    assert page.complaints(forget=True)
    server.stop()


@pytest.mark.slow
def test_names_stay_text_in_a_browser(hello: Start, show: Open) -> None:
    """Script and markup in an address are shown, and nothing else."""
    server = hello("-e", f"haproxy:{LOOPBACK}", "--status", LOOPBACK)
    status, port = statusPort(server), server.port()
    fromProxy(port, SCRIPT, b"/run/hello")
    page = show(status)
    assert SCRIPT.decode() in page.text("#latest")
    assert SCRIPT.decode() in page.text("#clients")
    fromProxy(port, IMAGE, IMAGE)
    page.until("document.querySelector('#latest').rows.length === 2")
    assert IMAGE.decode()[:42] in page.text("#latest")
    assert page.evaluate("[document.scripts.length, document.images.length]") == [1, 1]
    assert page.evaluate("document.title") == "2 - hello-listen"
    server.stop()


@pytest.mark.slow
def test_page_without_scripts(hello: Start, show: Open) -> None:
    """Without JavaScript the page is whole, and reloads."""
    server = hello("-e", LOOPBACK, "--status", LOOPBACK)
    status, port = statusPort(server), server.port()
    page = show(status, scripts=False)
    assert page.text("#state") == "Reloads every 5 seconds"
    assert page.text(".main dd") == "0"
    name, _ = untilEnd(("127.0.0.1", port))
    page.until("document.querySelector('.main dd')?.innerText === '1'")
    assert name in page.text("#latest")
    server.stop()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_looks(hello: Start, show: Open, tmp_path: Path, width: int, scheme: str) -> None:
    """The page fits narrow and wide screens, and axe-core finds no fault, light or dark."""
    server = hello(
        "-e", LOOPBACK, "-e", f"haproxy:{LOOPBACK}", "-e", "unix:hello.sock",
        "--status", LOOPBACK, "-l", "/dev/full",
        *("--mmdb", geodata.countries(tmp_path), "--mmdb", geodata.networks(tmp_path)),
    )  # fmt: skip
    status, port, proxied = statusPort(server), server.port(), server.port()
    for number in range(60):
        untilEnd(("127.0.0.1", port))
        with socket.create_connection(("127.0.0.1", proxied), PATIENCE) as proxy:
            proxy.sendall(b"PROXY TCP4 198.51.100.%d 192.0.2.1 4242 443\r\n" % (number % 30))
            proxy.recv(1)
    untilEnd(f"{tmp_path}/hello.sock")
    fromProxy(proxied, SCRIPT, IMAGE)
    curl(f"http://127.0.0.1:{proxied}/")
    until(lambda: get(status, "/healthz")[0] == 503)
    page = show(status, width=width, scheme=scheme)
    assert "DE AS64500 Example Ltd." in page.evaluate("document.body.innerText")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate("document.documentElement.scrollHeight") < 3000
    cut = "each => each.className !== 'hidden' && each.scrollHeight > each.clientHeight + 1"
    scrolls = "getComputedStyle(each).overflowY !== 'visible'"
    boxes = f"[...document.querySelectorAll('main *')].filter({cut} && {scrolls}).length"
    assert page.evaluate(boxes) == 0
    folder = Path(os.environ.get("HELLO_LISTEN_SCREENSHOTS", tmp_path))
    page.screenshot(folder / f"status-{width}-{scheme}.png")
    modules = run(tool("npm"), "root", "--global").stdout.strip()
    page.evaluate(Path(tool(f"{modules}/axe-core/axe.min.js", os.F_OK)).read_text())
    faults = page.evaluate(
        "axe.run().then(result => result.violations.map("
        "each => `${each.id}: ${each.nodes.map(node => node.html).join(' ')}`))"
    )
    assert faults == []
    server.stop()
