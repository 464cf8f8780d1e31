"""Notifications by Apprise: delivery, failures, and files and URLs that it refuses."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from twisted.python.usage import UsageError

from hello_listen import SendError
from hello_listen._apprise import services
from hello_listen.tap import Options, makeService
from reactors import FakeReactor

# Plugins of Apprise import modules that newer versions of Python lack.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Answers(HTTPServer):
    """An HTTP server on a free port, with the status and body of its answers."""

    answer = 200, b""
    got: bytes

    @property
    def url(self) -> str:
        """Its URL for Apprise."""
        return f"json://127.0.0.1:{self.server_port}/hunter2"


class Handler(BaseHTTPRequestHandler):
    """Answers a POST."""

    server: Any

    def do_POST(self) -> None:
        """Record the body, and answer."""
        self.server.got = self.rfile.read(int(self.headers["Content-Length"]))
        status, body = self.server.answer
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def receiver() -> Iterator[Answers]:
    """Run an HTTP server in a thread."""
    with Answers(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_delivered(receiver: Answers) -> None:
    """Title and text arrive unchanged."""
    (service,) = services(receiver.url)
    service("a title", "unix:/a_b_c (1, port 7878)")
    assert b'"title": "a title", "message": "unix:/a_b_c (1, port 7878)"' in receiver.got
    assert service.name == "JSON"


@pytest.mark.parametrize(
    ("answer", "reason", "retryAfter"),
    [
        ((503, b""), "HTTP status 503", None),
        ((429, b'{"description": "Too Many Requests: retry after 35"}'), "HTTP status 429", 35),
        ((429, b'{"retry_after_ms": 2500}'), "HTTP status 429", 2.5),
    ],
)
def test_failed(
    receiver: Answers, answer: tuple[int, bytes], reason: str, retryAfter: float | None
) -> None:
    """The reason is the HTTP status; the pause that is asked for is read from Apprise's log."""
    receiver.answer = answer
    (service,) = services(receiver.url)
    with pytest.raises(SendError) as failed:
        service("a title", "a text")
    assert (str(failed.value), failed.value.retryAfter) == (reason, retryAfter)


def test_away(capfd: pytest.CaptureFixture[str]) -> None:
    """No message of Apprise is logged: it may contain a secret."""
    (service,) = services("json://127.0.0.1:1/hunter2")
    with pytest.raises(SendError, match=r"^connection failed$"):
        service("a title", "a text")
    (service,) = services(
        "mailto://a:hunter2@127.0.0.1:1/?smtp=127.0.0.1&from=a@b.example&to=b@c.example&mode=insecure"
    )
    with pytest.raises(SendError) as failed:
        service("a title", "a text")
    assert "hunter2" not in str(failed.value)
    assert capfd.readouterr() == ("", "")
    assert not logging.getLogger("apprise").propagate


def test_other_threads() -> None:
    """A line that Apprise logs in another thread is not taken for the reason."""
    (service,) = services("json://127.0.0.1:1/")
    log = logging.getLogger("apprise")
    notify = service._service.notify

    def notifyAndLog(*args: object, **kwargs: object) -> object:
        thread = Thread(target=log.warning, args=("error=500",))
        thread.start()
        thread.join()
        return notify(*args, **kwargs)

    service._service.notify = notifyAndLog
    with pytest.raises(SendError, match=r"^connection failed$"):
        service("a title", "a text")


FILES = [
    ("json://localhost/\n\nfoo://hunter2\n", "line 3 of"),
    ("json://localhost/\nmailto://hunter2:\n", "line 2 of"),
    ("json://localhost/\n!hunter2\n", "line 2 of"),
    ("hunter2", "line 1 of"),
    ("urls:\n  - json://localhost\n  - bogus://hunter2\n", "entry 2 of"),
    ("urls:\n  - json://localhost\n  bad: : hunter2\n", "line 3 of"),
    ("urls:\n  - 'json://hunter2\n", "line 3 of"),
    ("include hunter2.txt\njson://localhost/\n", "all of"),
    ("# nothing\n", "no Apprise URL in"),
    ("", "no Apprise URL in"),
    ("\udcff", "not a text in UTF-8"),
]


@pytest.mark.parametrize(("text", "named"), FILES, ids=range(len(FILES)))
def test_wrong_files(tmp_path: Path, text: str, named: str) -> None:
    """A line that Apprise does not understand is a usage error that names the file and the line."""
    path = tmp_path / ("urls.yml" if text.startswith("urls:") else "urls.txt")
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(UsageError) as error:
        Options(FakeReactor()).parseOptions(["--notify", str(path)])
    assert named in str(error.value)
    assert repr(str(path)) in str(error.value)
    assert "hunter2" not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("place", "named"),
    [
        ("nonsense://u:hunter2@x", "nonsense:// URL"),
        ("json://", "json:// URL"),
        ("/no/such/file", "No such file or directory: '/no/such/file'"),
        ("/", "Is a directory: '/'"),
    ],
)
def test_wrong_places(place: str, named: str) -> None:
    """A URL that Apprise does not understand, or a file that is not there, is a usage error."""
    with pytest.raises(UsageError) as error:
        Options(FakeReactor()).parseOptions(["--notify", place])
    assert named in str(error.value)
    assert "hunter2" not in str(error.value)


def test_without_apprise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package, one line says what to install."""
    monkeypatch.setitem(sys.modules, "hello_listen._apprise", None)
    with pytest.raises(UsageError, match=r"pip install apprise$"):
        Options(FakeReactor()).parseOptions(["--notify", "json://localhost"])


def test_services_of_a_file(tmp_path: Path) -> None:
    """Each service of a file gets notifications of its own, so that none waits for another."""
    path = tmp_path / "a file #1%20?.txt"
    path.write_text("# mine\njson://localhost/\n\ntag=ntfy://localhost/topic\n")
    options = Options(FakeReactor())
    options.parseOptions(["--notify", str(path), "--notify", "json://localhost"])
    assert [each.name for each in options["notify"]] == ["JSON", "ntfy", "JSON"]
    service: Any = makeService(options, FakeReactor())
    assert [each.name for each in service.factory.observers[1:4]] == ["JSON", "ntfy", "JSON"]
