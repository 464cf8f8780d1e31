"""The report, over logs that are written here line by line and counted independently."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hello_listen import report

pytest.importorskip("duckdb")

START = datetime(2026, 11, 22, 20, 0, tzinfo=timezone.utc)
HOSTILE = "\x1b[31m\u202e\u0007\x00\u05d0\u200b"
"""Colour, right-to-left override, bell, NUL, a Hebrew letter and a space of no width."""


def at(seconds: float) -> str:
    """Return the timestamp of so many seconds after L{START}."""
    return (START + timedelta(seconds=seconds)).isoformat(timespec="microseconds")[:26] + "Z"


class Run:
    """What one process writes, and what it knows of that."""

    def __init__(self, name: str | None = "0123456789ab", **opened: object) -> None:
        """Open the log."""
        self.name = name
        self.lines: list[str] = []
        self.counts: Counter[str] = Counter()
        self.clients: Counter[str | None] = Counter()
        self.sequence = 0
        self.now = 0.0
        if name:
            fields = {"service.version": "1.0.0", "process.pid": 1, "host.name": "elsewhere"}
            self.write("Connection log opened", **(fields | opened))

    def write(self, message: str, **fields: object) -> None:
        """Append a line."""
        identity = {"service.instance.id": self.name} if self.name else {}
        record = {"timestamp": at(self.now), "message": message, **identity, **fields}
        self.lines.append(json.dumps(record) + "\n")

    def connection(self, client: str | None = "192.0.2.7", **fields: object) -> Run:
        """Record a connection."""
        self.sequence += 1
        named = {} if client is None else {"client.address": client}
        ends = {"network.transport": "tcp", "server.address": "192.0.2.1", "server.port": 7878}
        numbered = {"sequence": self.sequence, **ends, **named, **fields}
        self.write("Connection established!", **numbered)
        self.counts["recorded"] += 1
        self.clients[client] += 1
        return self

    def summary(self, count: int, client: str | None = "192.0.2.7", **fields: object) -> Run:
        """Record many connections of a client at once."""
        self.sequence += 1
        named = {} if client is None else {"client.address": client}
        times = {"timestamp.first": at(self.now), "timestamp.last": at(self.now + 30)}
        numbered = {"sequence": self.sequence, "count": count, "network.transport": "tcp"}
        self.write("Connections summarized", **(numbered | times | named | fields))
        self.counts["summarized"] += count
        self.clients[client] += count
        return self

    def lose(self, count: int, connections: int) -> Run:
        """Tell that so many numbers are not recorded."""
        first, self.sequence = self.sequence + 1, self.sequence + count
        numbers = {"sequence.first": first, "sequence.last": self.sequence}
        told = {"count": count, "connections": connections}
        self.write("Connections not recorded", **told, **numbers)
        self.counts["lost"] += connections
        return self

    def vanish(self, count: int = 1) -> Run:
        """Number records that reach no file."""
        self.sequence += count
        return self

    def close(self) -> Run:
        """Close the log."""
        counts = {name: self.counts[name] for name in ("recorded", "summarized", "lost")}
        self.write("Connection log closed", connections=sum(counts.values()), **counts)
        return self


def text(*lines: str) -> str:
    """Return the lines as a file has them."""
    return "".join(lines)


def run(*arguments: object) -> tuple[int, str, str]:
    """Return the status, the output and the errors of the report."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = report.main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = int(end.code or 0)
    return status, out.getvalue(), err.getvalue()


def answer(*arguments: object) -> dict[str, Any]:
    """Return what C{--json} prints."""
    status, out, _ = run("--json", *arguments)
    found: dict[str, Any] = json.loads(out)
    assert status == (1 if found["missing"] else 0)
    return found


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Return the path of a log."""
    return tmp_path / "connections.jsonl"


def write(path: Path, *runs: Run, also: str = "") -> Path:
    """Write what the runs wrote, one after the other."""
    path.write_text(text(*(line for run in runs for line in run.lines)) + also)
    return path


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("connection"), st.sampled_from("abc")),
        st.tuples(st.just("summary"), st.integers(1, 2**40), st.sampled_from("abc")),
        st.tuples(st.just("lose"), st.integers(1, 9), st.integers(9, 99)),
        st.tuples(st.just("vanish"), st.integers(1, 9)),
    ),
    max_size=12,
)
END = st.sampled_from(["close", "kill", "tear"])


@settings(max_examples=20)
@given(
    st.lists(st.tuples(STEPS, END), max_size=5),
    st.randoms(use_true_random=False),
    st.integers(1, 4),
    st.booleans(),
)
def test_counts(
    histories: list[tuple[list[tuple[Any, ...]], str]], random: Any, files: int, copied: bool
) -> None:
    """Whatever runs write, in one file or in rotated ones, the report says what they know."""
    totals: Counter[str] = Counter()
    clients: Counter[str | None] = Counter()
    pending, torn = [], 0
    for number, (steps, end) in enumerate(histories):
        process = Run(f"{number:012x}")
        vanished = unseen = 0
        for name, *values in steps:
            getattr(process, name)(*values)
            unseen = unseen + values[0] if name == "vanish" else 0
            vanished += values[0] if name == "vanish" else 0
        if end == "close":
            process.connection("a").close()
            unseen = 0
        totals += process.counts
        totals["missing"] += vanished - unseen
        clients += process.clients
        pending.append(process.lines)
        if end == "tear":
            torn += 1
            process.lines.append('{"timestamp": "2026-11-2\n')
    lines = []
    while pending:
        chosen = random.choice(pending)
        lines.append(chosen.pop(0))
        pending = [rest for rest in pending if rest]
    with tempfile.TemporaryDirectory() as folder:
        cuts = sorted(random.randint(0, len(lines)) for _ in range(files - 1))
        for n, (start, stop) in enumerate(zip([0, *cuts], [*cuts, len(lines)], strict=True)):
            with (gzip.open if n % 2 else open)(f"{folder}/c.{n}{'.gz' * (n % 2)}", "wt") as file:
                file.write(text(*lines[start:stop]))
        if copied:
            Path(folder, "c.copy").write_bytes(Path(folder, "c.0").read_bytes())
        status, out, notes = run("--json", f"{folder}/c.*")
    found = json.loads(out)
    assert status == (1 if found["missing"] else 0)
    expected = {name: totals[name] for name in ("recorded", "summarized", "lost", "missing")}
    assert {name: found[name] for name in expected} == expected
    assert found["connections"] == sum(expected.values()) - expected["missing"]
    assert len(found["runs"]) == len(histories)
    told = [(client["client.address"], client["connections"]) for client in found["clients"]]
    assert told == sorted(clients.items(), key=lambda item: (-item[1], item[0]))
    if torn and not copied:
        assert f"Lines that are no records (torn, or of another log): {torn}\n" in notes


def test_closed(log: Path) -> None:
    """A closed run has the counts that it closed with, though records were rotated away."""
    process = Run().connection().summary(5).lose(2, 7).connection().close()
    log.write_text(text(*process.lines[3:]))
    found = answer(log)
    assert found["runs"] == [
        {
            "service.instance.id": "0123456789ab",
            "host.name": None,
            "process.pid": None,
            "first": "2026-11-22T20:00:00.000000Z",
            "last": "2026-11-22T20:00:00.000000Z",
            "state": "closed",
            "sequence.first": 3,
            "sequence.last": 5,
            "connections": 14,
            "recorded": 2,
            "summarized": 5,
            "lost": 7,
            "missing": 0,
        }
    ]
    note = "Run 0123456789ab began before these files: they hold its numbers from 3 on.\n"
    assert note in run(log)[1]
    assert run("--json", log)[2] == note


def test_missing_end(log: Path) -> None:
    """What a closed run says it recorded after the last record in the files is missing."""
    process = Run().connection().connection().connection().close()
    log.write_text(text(*process.lines[:2], process.lines[-1]))
    assert answer(log)["missing"] == 2
    log.write_text(text(process.lines[0], process.lines[-1]))
    assert answer(log)["missing"] == 3


def test_told_beginning(log: Path) -> None:
    """Numbers told as not recorded are not missing, even if they come first."""
    process = Run().lose(3, 3).connection()
    log.write_text(text(*process.lines[1:]))
    found = answer(log)
    assert (found["missing"], found["lost"], found["connections"]) == (0, 3, 4)
    assert found["runs"][0]["sequence.first"] == 1


def test_status(log: Path) -> None:
    """The status is 0 where nothing is missing, and 1 where something is."""
    assert run(write(log, Run().connection()))[0] == 0
    assert run(write(log, Run().connection().vanish().connection()))[0] == 1


def test_twice(log: Path, tmp_path: Path) -> None:
    """What stands in a log and in its copy counts once, and that is said."""
    write(log, Run().connection().summary(5).lose(2, 3).vanish().connection().close())
    once = answer(log)
    write(tmp_path / "copy", Run().connection().summary(5).lose(2, 3).vanish().connection().close())
    assert answer(log, tmp_path / "copy") == once
    assert "Records that were read twice count once.\n" in run(log, tmp_path / "copy")[1]
    assert answer(log, log) == once
    assert "twice" not in run(log, log)[1]


def test_marks_twice(log: Path, tmp_path: Path) -> None:
    """What counts once may be the last or the first line alone."""
    process = Run().lose(2, 3).close()
    write(log, process)
    for line in (process.lines[0], process.lines[-1]):
        (tmp_path / "copy").write_text(line)
        assert answer(log, tmp_path / "copy")["runs"] == answer(log)["runs"]


def test_without_id(log: Path) -> None:
    """Records of earlier releases, without an id, count among the clients and in the bars only."""
    process = Run(None).connection("192.0.2.9").vanish().connection("192.0.2.9").lose(2, 2)
    found = answer(write(log, process))
    assert [found[name] for name in report.COUNTS] == [0, 0, 0, 0, 0]
    assert found["runs"] == []
    assert [client["connections"] for client in found["clients"]] == [2]
    _, out, _ = run(log)
    assert "Records without an id, counted among the clients only: 2\n" in out
    assert re.search(r"^2026-11-22 20:00  #+  2$", out, re.MULTILINE)


def test_clients(log: Path) -> None:
    """Clients stand by their connections, with first, last, and the ports that they reached."""
    process = Run()
    for second, port in enumerate((80, 7878, 443, 80)):
        process.now = second * 60
        process.connection("198.51.100.1", **{"server.port": port})
    process.summary(3, "2001:db8:1:2::/64")
    process.connection(None, **{"network.transport": "unix", "server.port": None})
    process.summary(2, None, **{"network.transport": "unix"})
    process.summary(2, None)
    _, out, _ = run(write(log, process))
    rows = [line.split("  ") for line in out.split("\n\n")[2].splitlines()]
    assert [[cell.strip() for cell in row if cell] for row in rows] == [
        ["client", "connections", "first", "last", "server ports"],
        ["198.51.100.1", "4", "2026-11-22 20:00", "2026-11-22 20:03", "80 443 7878"],
        ["2001:db8:1:2::/64", "3", "2026-11-22 20:03", "2026-11-22 20:03"],
        ["unix:", "3", "2026-11-22 20:03", "2026-11-22 20:03", "192.0.2.1"],
        ["others", "2", "2026-11-22 20:03", "2026-11-22 20:03"],
    ]
    assert answer("--top", 1, log)["clients"] == [
        {
            "client.address": "198.51.100.1",
            "connections": 4,
            "first": "2026-11-22T20:00:00.000000Z",
            "last": "2026-11-22T20:03:00.000000Z",
        }
    ]


def test_period(log: Path) -> None:
    """A period counts what the records in it say; what is missing is the whole run's."""
    early, late = Run("0" * 12).connection(), Run("1" * 12).connection("192.0.2.1")
    late.vanish()
    for hour, client in enumerate(("192.0.2.2", "192.0.2.3", "192.0.2.4")):
        late.now = hour * 3600
        late.connection(client).lose(1, 2)
    write(log, early.close(), late.close())
    whole = answer(log)
    assert [whole[name] for name in report.COUNTS] == [11, 5, 0, 6, 1]
    assert [run["connections"] for run in whole["runs"]] == [1, 10]
    for since, until in (
        ("2026-11-22T21:00", "2026-11-22T22:00:00Z"),
        ("2026-11-22 22:00+01:00", "2026-11-22T21:00:01"),
    ):
        found = answer(log, "--since", since, "--until", until)
        assert [found[name] for name in report.COUNTS] == [3, 1, 0, 2, 1]
        assert [run["service.instance.id"] for run in found["runs"]] == ["1" * 12]
        assert [client["client.address"] for client in found["clients"]] == ["192.0.2.3"]
    assert answer(log, "--since", "2027-01-01")["runs"] == []
    assert answer(log, "--until", "2027-01-01")["connections"] == 11


@pytest.mark.parametrize(
    ("step", "count", "unit", "first", "last"),
    [
        (60, 100, "minute", "2026-11-22 20:00", "2026-11-22 21:39"),
        (3600, 90, "hour", "2026-11-22 20:00", "2026-11-26 13:00"),
        (86400, 100, "day", "2026-11-22", "2027-03-01"),
        (86400 * 365, 9, "year", "2026", "2034"),
    ],
)
def test_bars(log: Path, step: int, count: int, unit: str, first: str, last: str) -> None:
    """The span chooses what a bar is; the longest is the most; empty times in between are short."""
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


@pytest.mark.parametrize("content", ["", "\n"])
def test_nothing(log: Path, content: str) -> None:
    """A log without a record is no error, and its drawing is one without bars."""
    log.write_text(content)
    assert answer(log) == dict.fromkeys(report.COUNTS, 0) | {"runs": [], "clients": []}
    status, out, err = run(log, "--svg", log.with_suffix(".svg"))
    totals = "Connections: 0, recorded: 0, summarized: 0, lost: 0, missing: 0\n"
    assert (status, out, err) == (0, totals, "")
    assert len(ElementTree.parse(log.with_suffix(".svg")).getroot()) == 1


@pytest.mark.parametrize("content", ["garbage\n", "{}\n[1]\n", '{"message": "of another log"}\n'])
def test_another_log(log: Path, content: str) -> None:
    """A file in which no line is a record is no connection log, and no proof that nothing came."""
    log.write_text(content)
    assert run(log) == (2, "", f"hello-listen-report: no connection log: {log}\n")


def test_many_runs(log: Path) -> None:
    """Of many runs, the text has the newest and those with something missing."""
    runs = []
    for number in range(30):
        runs.append(Run(f"{number:012}").connection().vanish(number == 3).connection())
    _, out, _ = run(write(log, *runs))
    assert re.findall(r"^(\d{12}) ", out, re.MULTILINE) == [
        f"{number:012}" for number in (3, *range(10, 30))
    ]
    assert "Older runs, with nothing missing: 9\n" in out
    assert len(answer(log)["runs"]) == 30


@pytest.mark.unix
def test_state(log: Path) -> None:
    """A run is open while its process lives, killed if not, and unknown on another host."""
    host = socket.gethostname()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    now = (datetime.now(timezone.utc) - START).total_seconds()
    runs = {
        "open": Run("0" * 12, **{"host.name": host, "process.pid": os.getpid()}),
        "killed": Run("1" * 12, **{"host.name": host, "process.pid": dead.pid}),
        "killed, and its number is ours": Run(
            "2" * 12, **{"host.name": host, "process.pid": os.getpid(), "timestamp": at(-1e6)}
        ),
        "not closed: elsewhere": Run("3" * 12),
        "not closed: by no process": Run("4" * 12, **{"host.name": host, "process.pid": "x"}),
        "closed": Run("5" * 12, **{"host.name": host, "process.pid": dead.pid}).close(),
    }
    log.write_text("")
    with log.open("a") as file:
        for process in runs.values():
            process.lines[0] = process.lines[0].replace(at(0), at(now))
            file.writelines(process.lines)
    states = {run["service.instance.id"][0]: run["state"] for run in answer(log)["runs"]}
    told = [re.split("[:,]", name)[0] for name in runs]
    assert [states[str(number)] for number in range(6)] == told


def test_hostile(log: Path) -> None:
    """Nothing in a log can break the terminal or the drawing; scripts get it whole."""
    process = Run(HOSTILE, **{"host.name": HOSTILE * 99})
    process.connection(HOSTILE, **{"server.port": None, "server.address": HOSTILE})
    process.connection("<&>" + "x" * 10_000)
    raw = process.lines[-1].replace("192.0.2.1", HOSTILE)
    status, out, err = run(write(log, process, also=raw), "--svg", log.with_suffix(".svg"))
    assert (status, err) == (0, "")
    assert re.fullmatch(r"[ -~\n]*", out)
    assert r"\x1b[31m\u202e\x07\x00\u05d0\u200b" in out
    assert max(map(len, out.splitlines())) < 250
    assert HOSTILE in [client["client.address"] for client in answer(log)["clients"]]
    ElementTree.parse(log.with_suffix(".svg"))
    status, out, err = run(f"{log}{HOSTILE.replace(chr(0), '')}")
    assert (status, out) == (2, "")
    assert re.fullmatch(r"[ -~]*\n", err)


def test_forged(log: Path) -> None:
    """Forged records change what is counted, and keep nobody from the report."""
    process = Run()
    for name, values in {
        "timestamp": ["infinity", "290000-01-01", "0044-03-15 (BC)", "0001-01-01", 5],
        "sequence": [2**63 - 1, -(2**63), 10**40, {"a": 1}],
        "service.instance.id": [["x"], ""],
        "client.address": [{"a": [None, "\ud800"]}, 7, ""],
        "server.port": [-1e300, "http"],
        "process.pid": [-1, 2**62],
    }.items():
        for value in values:
            process.connection(**{name: value})
    process.connection(timestamp="9999-12-31T23:59:59.999999Z")
    for number, count in enumerate((-5, 0, 2**63 - 1, 10**40, "many", None)):
        forged = Run(f"{number}")
        forged.write("Connections summarized", sequence=1, count=count)
        numbers = {"sequence.first": count, "sequence.last": count}
        forged.write("Connections not recorded", count=count, connections=count, **numbers)
        forged.write("Connection log closed", connections=count, recorded=count, lost=count)
        process.lines += forged.lines
    for arguments in (["--svg", log.with_suffix(".svg")], ["--json"], ["--since", "1000-01-01"]):
        status, out, _ = run(*arguments, write(log, process))
        assert status == 1
        assert out


def test_torn(log: Path) -> None:
    """Lines that no JSON parser takes are counted and told, and the others still count."""
    process = Run().connection().connection().connection()
    whole = "".join(process.lines).encode()
    torn = b"\0" * 5000 + b"\n\xff\xfe\n" + b"[" * 100 + b"\n" + whole[:40]
    log.write_bytes(whole + torn)
    status, out, _ = run(log)
    assert status == 0
    assert "Lines that are no records (torn, or of another log): 4\n" in out
    assert answer(log)["recorded"] == 3


@pytest.mark.parametrize("name", ["it's [1]*.jsonl", "a?b.jsonl", "%41 $x {y}.jsonl"])
def test_names(tmp_path: Path, name: str) -> None:
    """A file's name is its name, even where it could be a pattern."""
    write(tmp_path / name, Run("0" * 12).connection())
    write(tmp_path / "it's 1.jsonl", Run("1" * 12).connection())
    write(tmp_path / "aXb.jsonl", Run("2" * 12).connection())
    assert [run["service.instance.id"] for run in answer(tmp_path / name)["runs"]] == ["0" * 12]


@pytest.mark.unix
def test_standard_input(log: Path) -> None:
    """A log can come from standard input."""
    write(log, Run().connection().connection())
    kept = os.dup(0)
    with log.open() as file:
        os.dup2(file.fileno(), 0)
    try:
        assert answer("-")["connections"] == 2
    finally:
        os.dup2(kept, 0)
        os.close(kept)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["{0}/none.jsonl"], "none.jsonl"),
        (["{0}/log", "{0}/none*.jsonl"], "none*.jsonl"),
        (["{0}"], "Is a directory: '{0}'"),
        (["{0}/bad.gz"], "GZIP"),
        (["{0}/log", "--svg", "{0}/none/x.svg"], "No such file or directory: '{0}/none/x.svg'"),
        (["{0}/log", "--top", "-1"], "negative"),
        (["{0}/log", "--since", "yesterday"], "argument --since: no time: 'yesterday'"),
        (["{0}/log", "--until", "0001-01-01T00:00+14:00"], "argument --until: no time"),
        ([], "FILE"),
        (["http://127.0.0.1/x.jsonl"], "http"),
    ],
)
def test_errors(tmp_path: Path, arguments: list[str], reason: str) -> None:
    """What keeps the report from being made is one line that names it, and status 2."""
    write(tmp_path / "log", Run().connection())
    (tmp_path / "bad.gz").write_text("no gzip")
    status, out, err = run(*(argument.format(tmp_path) for argument in arguments))
    *usage, line = err.splitlines()
    assert (status, out) == (2, "")
    assert line.startswith("hello-listen-report: ")
    assert reason.format(tmp_path) in line
    assert not usage or usage[0].startswith("usage: ")


def test_without_extra(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without DuckDB, one line says what to install."""
    monkeypatch.setitem(sys.modules, "duckdb", None)
    assert run(log) == (
        2,
        "",
        "hello-listen-report: needs DuckDB: pip install duckdb\n",
    )


@pytest.mark.unix
def test_reader_gone(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that has enough, as head, ends the report quietly."""
    write(log, Run().connection().vanish().connection())
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert report.main([str(log)]) == 1


@pytest.mark.unix
def test_interrupted(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends the report, and nothing is left of it."""
    os.mkfifo(log)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def interrupt() -> None:
        with log.open("w"):  # Which waits for the reader.
            os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    assert run(log) == (2, "", "hello-listen-report: interrupted\n")
    assert list(tmp_path.iterdir()) == [log]
