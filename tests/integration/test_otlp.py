"""Records on their way to an OpenTelemetry collector."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from calendar import timegm
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from processes import DEPLOY, LOOPBACK, SCRIPTS, Start, lacking, until, untilEnd

pytestmark = pytest.mark.slow

SENDER = DEPLOY / "examples" / "otlp.py"


class Collector(HTTPServer):
    """Reads OTLP by OpenTelemetry's own protobuf messages, and answers as a test wants."""

    def __init__(self) -> None:
        """Listen."""
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1/logs"
        self.answers: list[tuple[int, bytes]] = []
        self.resources: list[dict[str, object]] = []
        self.records: list[dict[str, object]] = []

    def take(self, body: bytes) -> None:
        """Take the records of a request."""
        message = "opentelemetry.proto.collector.logs.v1.logs_service_pb2"
        request = import_module(message).ExportLogsServiceRequest()
        for logs in import_module("google.protobuf.json_format").Parse(body, request).resource_logs:
            self.resources.append(decoded(logs.resource.attributes))
            for record in logs.scope_logs[0].log_records:
                text = {"message": record.body.string_value, "time": record.time_unix_nano}
                self.records.append(text | decoded(record.attributes))


class Handler(BaseHTTPRequestHandler):
    """Answers a request with the next of the collector's answers, or with success."""

    server: Collector

    def do_POST(self) -> None:
        """Answer."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert (self.path, self.headers["Content-Type"]) == ("/v1/logs", "application/json")
        status, answer = self.server.answers.pop(0) if self.server.answers else (200, b"{}")
        if status == 200:
            self.server.take(body)
        self.send_response(status)
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """No access log."""


def decoded(attributes: Any) -> dict[str, object]:
    """Return attributes as a record has them."""
    values: dict[str, object] = {}
    for each in attributes:
        kind = each.value.WhichOneof("value")
        value = getattr(each.value, kind)
        values[each.key] = decoded(value.values) if kind == "kvlist_value" else value
    return values


@pytest.fixture
def collector() -> Iterator[Collector]:
    """Run a collector."""
    try:
        import_module("opentelemetry.proto.collector.logs.v1.logs_service_pb2")
    except ImportError:
        lacking("opentelemetry-proto is not installed")
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def expected(line: str) -> dict[str, object]:
    """Return what a collector gets of a line of the log."""
    fields: dict[str, Any] = json.loads(line)
    when = fields.pop("timestamp")
    seconds = timegm(time.strptime(when[:19], "%Y-%m-%dT%H:%M:%S"))
    return fields | {"time": seconds * 10**9 + int(when[20:26]) * 1000}


def test_records(start: Start, tmp_path: Path, collector: Collector) -> None:
    """Each line arrives once, in order and with all its fields, though the collector is busy."""
    collector.answers += [(503, b""), (429, b""), (200, b"")]
    pipeline = start(
        "sh", "-c",
        f"{SCRIPTS}/twistd -n --logfile=twistd.log --pidfile=twistd.pid hello-listen -l - "
        f"-e {LOOPBACK} -e unix:s --per-client 2 | tee lines | "
        f"{sys.executable} {SENDER} {collector.url}",
        env={**os.environ, "no_proxy": "*"}, files=["twistd.log"],
    )  # fmt: skip
    until(lambda: (tmp_path / "s").exists() and (tmp_path / "twistd.pid").exists())
    for _ in range(5):
        untilEnd(str(tmp_path / "s"))
    os.kill(int((tmp_path / "twistd.pid").read_text()), signal.SIGTERM)
    assert pipeline.wait() == 0
    lines = (tmp_path / "lines").read_text().splitlines()
    assert len(lines) == 5
    assert collector.records == [expected(line) for line in lines]
    assert collector.resources[0]["host.name"] == socket.gethostname()
    assert "Traceback" not in pipeline.said()


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        ((400, b""), 1, "HTTP Error 400"),
        ((200, b'{"partialSuccess": {"rejectedLogRecords": "1"}}'), 0, "1 records were rejected"),
    ],
)
def test_refused(
    start: Start, tmp_path: Path, collector: Collector, answer: tuple[int, bytes], status: int,
    said: str,
) -> None:  # fmt: skip
    """A collector that rejects records is told of, and one that always would ends the sender."""
    collector.answers.append(answer)
    line = {"timestamp": "2026-11-24T20:19:34.123456Z", "message": "m", "server.ports": {"22": 3}}
    (tmp_path / "line").write_text(json.dumps(line) + "\n")
    with (tmp_path / "line").open() as lines:
        sender = start(
            sys.executable, SENDER, collector.url, stdin=lines,
            env={**os.environ, "no_proxy": "*"},
        )  # fmt: skip
    assert sender.wait() == status
    assert said in sender.said()
    assert "Traceback" not in sender.said()
    if status == 0:
        [record] = collector.records
        assert record["server.ports"] == {"22": 3}
        assert record["time"] == 1_795_551_574_123_456_000
