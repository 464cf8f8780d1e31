"""Notifications of a real twistd, to real receivers: HTTP servers that fail, and a mail server."""

from __future__ import annotations

import email
import email.policy
import json
import re
import shlex
import socket
from collections.abc import Iterator
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from threading import Event, Thread
from time import monotonic
from typing import Any

import pytest
from aiosmtpd.controller import Controller

from processes import (
    DEPLOY,
    LOOPBACK,
    PATIENCE,
    SCRIPTS,
    Start,
    curl,
    freePort,
    load,
    run,
    slow,
    untilEnd,
)


class Pager(ThreadingHTTPServer):
    """
    An HTTP server that fails in each of these ways, one request after the other, then succeeds.

    @ivar got: the messages that it was sent.
    """

    def __init__(self, *failures: str) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.failures = list(failures)
        self.got: Queue[dict[str, Any]] = Queue()
        self.ended = Event()

    def write(self, folder: Path) -> Path:
        """Write its URL, with a secret, to a file."""
        path = folder / "urls.txt"
        path.write_text(f"# mine\njson://user:hunter2@127.0.0.1:{self.server_port}/hunter2\n")
        return path

    def get(self) -> str:
        """Wait for the next message, and return its text."""
        message: str = self.got.get(timeout=PATIENCE)["message"]
        return message


class Request(BaseHTTPRequestHandler):
    """A request."""

    server: Pager

    def do_POST(self) -> None:
        """Keep the message, and answer or fail."""
        self.server.got.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        failure = self.server.failures.pop(0) if self.server.failures else "200"
        if failure == "hangs":
            self.server.ended.wait(PATIENCE)
        elif failure == "breaks off":
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            self.send_response(int(failure))
            self.send_header("Retry-After", "1")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def log_message(self, *_: object) -> None:
        """Be silent."""


@pytest.fixture
def pager() -> Iterator[Pager]:
    """Run an HTTP server in a thread."""
    with Pager() as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.ended.set()
        server.shutdown()
        thread.join()


def test_touch(hello: Start, pager: Pager, tmp_path: Path) -> None:
    """The first touch is told of at once, what follows in one message, a known client never."""
    server = hello(
        "-e", LOOPBACK, "--notify", pager.write(tmp_path), "--summarize", "127.0.0.9",
        "--status", LOOPBACK,
    )  # fmt: skip
    status = server.expect(r"Status on (.*)")[1]
    port = server.port()
    untilEnd(("127.0.0.1", port), "127.0.0.9")
    untilEnd(("127.0.0.1", port), "127.0.0.2")
    first = pager.got.get(timeout=PATIENCE)
    assert re.fullmatch("hello-listen on .*: 1 new client", first["title"])
    one = rf"1 new client, 1 connection since \d\d:\d\d: 127\.0\.0\.2 \(1, port {port}\)"
    assert re.fullmatch(one, first["message"])
    assert "hello_listen_notifications_delivered_total" in curl(f"http://{status}/metrics").stdout
    for source in ("127.0.0.3", "127.0.0.4", "127.0.0.4", "127.0.0.9"):
        untilEnd(("127.0.0.1", port), source)
    said = server.stop()
    many = (
        r"2 new clients, 3 connections since \d\d:\d\d: "
        rf"127\.0\.0\.4 \(2, port {port}\), 127\.0\.0\.3 \(1, port {port}\)"
    )
    assert re.fullmatch(many, pager.get())
    assert pager.got.empty()
    assert "otif" not in said


def test_test_message(pager: Pager, tmp_path: Path) -> None:
    """The handbook's command sends a test message to every URL, also to those with tags."""
    with pager.write(tmp_path).open("a") as file:
        file.write(f"phone=json://127.0.0.1:{pager.server_port}/\n")
    command = re.search(r"`(apprise .*--title test .*)`", (DEPLOY / "README.md").read_text())
    assert command is not None
    result = run(*shlex.split(f"{SCRIPTS}/{command[1]}"), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert [pager.get(), pager.get()] == ["test", "test"]


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        ("503", "HTTP status 503"),
        slow("429", "HTTP status 429"),
        slow("breaks off", "connection failed"),
        slow("hangs", "connection failed"),
    ],
)
def test_failure(hello: Start, pager: Pager, tmp_path: Path, failure: str, reason: str) -> None:
    """What a receiver does not take is sent again, with what came since; no secret is logged."""
    pager.failures.append(failure)
    server = hello("-e", LOOPBACK, "--notify", pager.write(tmp_path))
    port = server.port()
    untilEnd(("127.0.0.1", port), "127.0.0.2")
    assert pager.get().startswith("1 new client, 1 connection ")
    untilEnd(("127.0.0.1", port), "127.0.0.3")
    server.expect(rf"Notification not delivered, will be retried \(JSON\): {reason}$")
    assert pager.get().startswith("2 new clients, 2 connections ")
    server.expect(r"Notifications are delivered again \(JSON\)$")
    said = server.stop()
    assert "hunter2" not in said
    assert "nobody was notified" not in said


@pytest.mark.slow
def test_away(hello: Start, tmp_path: Path) -> None:
    """Clients are served while a receiver is away; a stop says how many nobody was told of."""
    (tmp_path / "urls.txt").write_text(f"json://127.0.0.1:{freePort()}/hunter2\n")
    server = hello("-e", LOOPBACK, "--notify", "urls.txt")
    port = server.port()
    for number in range(2, 5):
        untilEnd(("127.0.0.1", port), f"127.0.0.{number}")
    server.expect("Notification not delivered")
    said = server.stop()
    assert "New clients that nobody was notified of (JSON): 3" in said
    assert said.count("Notification not delivered") == 1
    assert "hunter2" not in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_flood(hello: Start, pager: Pager, tmp_path: Path) -> None:
    """Of 100,000 new clients, two messages count all, or one more for each minute of the flood."""
    server = hello("-e", f"haproxy:{LOOPBACK}", "-l", "log", "--notify", pager.write(tmp_path))

    def header(number: int) -> bytes:
        host = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        return f"PROXY TCP4 {host} 192.0.2.1 51974 22\r\n".encode()

    port = server.port()
    began = monotonic()
    ends = load(("127.0.0.1", port), 100_000, 50, data=header)
    assert ends == {"ended": 100_000}
    server.stop()
    texts = [pager.get(), pager.get()]
    while not pager.got.empty():
        texts.append(pager.get())
    assert len(texts) <= 2 + (monotonic() - began) // 60
    counts = [re.findall(r"^(\d+) new clients?, (\d+) conn", text)[0] for text in texts]
    assert [sum(map(int, column)) for column in zip(*counts, strict=True)] == [100_000, 100_000]
    assert texts[1].endswith(" more")


class Mailbox:
    """What a mail server does with a mail: it keeps it."""

    def __init__(self) -> None:
        self.got: Queue[EmailMessage] = Queue()

    async def handle_DATA(self, server: object, session: object, envelope: Any) -> str:
        """Parse the mail."""
        mail = email.message_from_bytes(envelope.content, policy=email.policy.default)
        self.got.put(mail)
        return "250 OK"


@pytest.mark.parametrize("form", [slow(""), "&format=text"])
@pytest.mark.slow
def test_mail(hello: Start, tmp_path: Path, form: str) -> None:
    """A mail has the title as its subject, and the text alone as its body, whatever its format."""
    mailbox = Mailbox()
    controller = Controller(mailbox, hostname="127.0.0.1", port=freePort())
    controller.start()
    try:
        (tmp_path / "urls.txt").write_text(
            f"mailto://127.0.0.1:{controller.port}/?mode=insecure&smtp=127.0.0.1"
            f"&from=canary@example.org&to=me@example.org{form}\n"
        )
        server = hello("-e", LOOPBACK, "--notify", "urls.txt")
        port = server.port()
        untilEnd(("127.0.0.1", port), "127.0.0.2")
        mail = mailbox.got.get(timeout=PATIENCE)
        server.stop()
    finally:
        controller.stop()
    assert re.fullmatch("hello-listen on .*: 1 new client", mail["Subject"])
    assert mail["To"] == "me@example.org"
    body = mail.get_body(("plain", "html"))
    assert body is not None
    text = rf"1 new client, 1 connection since \d\d:\d\d: 127\.0\.0\.2 \(1, port {port}\)"
    assert re.fullmatch(text, body.get_content().strip())


@pytest.mark.parametrize("program", ["twistd", slow("twist")])
def test_wrong_file(start: Start, tmp_path: Path, program: str) -> None:
    """A file that Apprise does not understand ends in one line with the file and its line."""
    (tmp_path / "urls.txt").write_text("json://localhost\nbogus://hunter2\n")
    options = ["-n", "--pidfile="] if program == "twistd" else []
    server = start(program, *options, "hello-listen", "--notify", "urls.txt")
    assert server.wait() == 1
    assert server.lines == [
        "hello-listen: --notify: Apprise does not understand line 2 of 'urls.txt'"
    ]
