"""The report's command line, and how it ends."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from asked import answer, run
from hello_listen import report
from hello_listen.report.drawing import writeDrawing
from hello_listen.report.facts import BAR_UNITS, Bar, Report
from hello_listen.report.inputs import findInputs
from written import START, Run, write

duckdb = pytest.importorskip("duckdb")
database = pytest.importorskip("hello_listen.report.database")
readLogs = pytest.importorskip("hello_listen.report.reading").readLogs


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Return a log without any fault."""
    return write(tmp_path / "connections.jsonl", Run().connection().connection().close())


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["{0}/none.jsonl"], "none.jsonl: No such file"),
        (["{0}/none*.jsonl"], "none*.jsonl: No such file"),
        (["{0}"], "{0}: a folder"),
        (["{0}/log", "--svg", "{0}/none/x.svg"], "No such file or directory: '{0}/none/x.svg'"),
        (["{0}/log", "--top", "-1"], "argument --top: not a number of clients: '-1'"),
        (["{0}/log", "--top", "x"], "argument --top: not a number of clients: 'x'"),
        (["{0}/log", "--sort", "x"], "argument --sort: invalid choice: 'x'"),
        (
            ["{0}/log", "--since", "tomorrow"],
            "argument --since: not a time: 'tomorrow', but 24h, 7d, yesterday, 2026-11-24 or "
            "2026-11-24T20:19 are",
        ),
        (["{0}/log", "--until", "0001-01-01T00:00+14:00"], "argument --until: not a time"),
        (["{0}/log", "--since", "9999999999d"], "argument --since: not a time"),
        (["{0}/log", "--since", "24h", "--until", "2d"], "--until is not after --since"),
        ([], "FILE"),
        (["{0}/log", "--mmdb", "{0}/none"], "No such file or directory: '{0}/none'"),
        (["{0}/log", "--mmdb", "{0}/log"], "--mmdb: not a MaxMind database: '{0}/log'"),
        (["{0}/log", "--mmdb", "{0}"], "--mmdb: not a file: '{0}'"),
    ],
)
def test_errors(tmp_path: Path, arguments: list[str], reason: str) -> None:
    """If no report can be made, one line says why, and the status is 2."""
    write(tmp_path / "log", Run().connection())
    status, out, err = run(*(argument.format(tmp_path) for argument in arguments))
    *usage, line = err.splitlines()
    assert (status, out) == (2, "")
    assert line.startswith("hello-listen-report: ")
    assert reason.format(tmp_path) in line
    assert not usage or usage[0].startswith("usage: ")


def test_times(tmp_path: Path) -> None:
    """--since takes durations and dates."""
    now = datetime.now(timezone.utc)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    moments = {
        "old": now - timedelta(days=99),
        "days": midnight - timedelta(days=1),
        "yesterday": midnight - timedelta(seconds=1),
        "hours": now - timedelta(hours=2),
        "minutes": now - timedelta(minutes=2),
    }
    process = Run(None)
    for client, moment in moments.items():
        time = moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
        process.connection(client, timestamp=time)
    log = write(tmp_path / "log", process)
    assert {c["client.address"] for c in answer(log)["clients"]} == set(moments)
    for since, until, least in (
        ("99w", "30d", {"old"}),
        ("7d", None, {"days", "yesterday", "hours", "minutes"}),
        ("3h", None, {"hours", "minutes"}),
        ("3m", None, {"minutes"}),
        ("yesterday", "today", {"days", "yesterday"}),
        (str(midnight.date()), None, set()),
    ):
        period = ["--since", since, *(["--until", until] if until else [])]
        told = {c["client.address"] for c in answer(log, *period)["clients"]}
        assert least <= told
        assert told & {"old", "days"} == least & {"old", "days"}


def test_help() -> None:
    """--help explains each exit status and the forms of a time."""
    status, out, _ = run("--help")
    assert status == 0
    assert re.findall(r"^  (\d)  ", out, re.MULTILINE) == ["0", "1", "2", "3"]
    assert "yesterday" in out


def test_without_extra(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without DuckDB, one line says what to install."""
    monkeypatch.setitem(sys.modules, "duckdb", None)
    for name in ("asking", "database", "reading"):
        monkeypatch.delitem(sys.modules, f"hello_listen.report.{name}", raising=False)
    needs = "hello-listen-report: needs DuckDB: pip install duckdb\n"
    assert run(log) == (2, "", needs)


def test_without_geo_extra(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without maxminddb, one line says what to install."""
    monkeypatch.setitem(sys.modules, "maxminddb", None)
    monkeypatch.delitem(sys.modules, "hello_listen.geo", raising=False)
    needs = "hello-listen-report: --mmdb needs maxminddb: pip install maxminddb\n"
    assert run(log, "--mmdb", "x.mmdb") == (2, "", needs)


def test_drawing_over_something_else(log: Path, tmp_path: Path) -> None:
    """--svg overwrites drawings only: a shell may expand --svg connections.jsonl* to a log."""
    before = log.read_bytes()
    other = write(tmp_path / "other", Run())
    (tmp_path / "link").symlink_to(log)
    (tmp_path / "dangling").symlink_to("nowhere")
    os.link(log, tmp_path / "hard")
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "fifo")
    for target in (log, other, *(tmp_path / n for n in ("link", "dangling", "hard", "empty"))):
        told = f"hello-listen-report: exists, and is not an SVG drawing: '{target}'\n"
        assert run("--svg", target, other, log) == (2, "", told)
    assert run("--svg", tmp_path, log)[0] == 2
    assert run("--svg", tmp_path / "fifo", log)[0] == 2
    assert log.read_bytes() == before
    assert not (tmp_path / "nowhere").exists()


def test_drawing_anew(log: Path, tmp_path: Path) -> None:
    """A drawing is overwritten, whoever drew it."""
    target = tmp_path / "x.svg"
    assert run("--svg", target, log)[0] == 0
    drawn = target.read_text()
    for start in ("", "<?xml version='1.0'?>\n<!-- a\n b -->\n<!DOCTYPE svg PUBLIC 'x'>\n"):
        target.write_text(f'{start}<svg width="5"></svg>')
        assert run("--svg", target, log)[0] == 0
        assert target.read_text() == drawn


@contextmanager
def fileSize(limit: int) -> Iterator[None]:
    """Limit the size of files, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_no_half_drawing(tmp_path: Path) -> None:
    """A drawing that cannot be written leaves nothing behind."""
    bars = [Bar(START + timedelta(minutes=n), n) for n in range(1, 100)]
    drawing = Report([], [], 0, 0, 0, [], [], BAR_UNITS[0], bars, 0, 0, False, [])
    with fileSize(1000), pytest.raises(OSError, match="too large"):
        writeDrawing(drawing, f"{tmp_path}/x.svg")
    assert os.listdir(tmp_path) == []


def test_no_room(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the temporary table does not fit, one line says so, and it is removed."""
    process = Run()
    for number in range(20_000):
        process.connection(f"192.0.2.{number * 7919 % 251}")
    write(log, process)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", f"{tmp_path}/temporary")
    with fileSize(100_000):
        status, out, err = run(log)
    assert (status, out) == (2, "")
    assert re.fullmatch(r"hello-listen-report: [^\n]+\n", err)
    assert os.listdir(tmp_path / "temporary") == []


def test_no_standard_output(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed standard output is an error."""
    err = io.StringIO()
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setattr(sys, "stdout", None)
    assert report.main([str(log)]) == 2
    assert err.getvalue() == "hello-listen-report: standard output is closed\n"


def test_no_standard_error(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a closed standard error, notes do not go into the JSON."""
    log.write_text(f"torn\n{log.read_text()}")
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", None)
    assert report.main(["--json", str(log)]) == 0
    assert json.loads(out.getvalue())["recorded"] == 2


def test_full_output(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report that cannot be written is an error."""
    err = io.StringIO()
    with open("/dev/full", "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        monkeypatch.setattr(sys, "stderr", err)
        assert report.main([str(log)]) == 2
    assert err.getvalue() == "hello-listen-report: No space left on device\n"


def test_reader_gone(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that closes the pipe, as head does, ends the report quietly."""
    write(log, Run().connection().vanish().connection())
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert report.main([str(log)]) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted(
    tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal ends the report, also in a wait for a pipe; temporary files are removed."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = signal.getsignal(number)
    reader, writer = os.pipe()

    def interrupt() -> None:
        # More than a pipe takes: when all is written, the report has begun to read.
        with open(os.dup(writer), "wb") as file:
            file.write(b"torn\n" * 2**19)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert run(f"/dev/fd/{reader}") == (2, "", "hello-listen-report: interrupted\n")
    thread.join()
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(number) is before
    os.close(reader)
    os.close(writer)


def test_stopped(tmp_path: Path) -> None:
    """A signal between two queries ends the report."""
    with closing(database.Database(str(tmp_path))) as stopped:
        stopped.stop()
        with pytest.raises(duckdb.InterruptException):
            stopped.run("torn")


def test_ignored_signal(log: Path) -> None:
    """A signal that the process was started to ignore, as nohup does it, stays ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run(log)[0] == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_stopped_between_rows(tmp_path: Path) -> None:
    """A signal ends the report while it fetches rows, which may be millions."""
    process = Run()
    for number in range(10_001):
        process.connection(f"10.0.{number >> 8}.{number & 255}")
    inputs, _ = findInputs([str(write(tmp_path / "log", process))])
    with closing(database.Database(str(tmp_path))) as stopped:
        assert list(readLogs(stopped, inputs, None, None)) == []
        stopped.run("visits")
        rows = stopped.tuples("places")
        next(rows)
        stopped.stop()
        with pytest.raises(duckdb.InterruptException):
            list(rows)
