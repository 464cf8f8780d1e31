"""The installed report on a day's worth of mixed logs, against independent counts by jq and awk."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import signal
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from expected import check
from fed import Feed
from logs import untilWritten
from processes import LOOPBACK, SCRIPTS, Start, run, tool, until, untilEnd
from written import Run, write

pytest.importorskip("duckdb")

ROOT = Path(__file__).parents[2]
REPORT = SCRIPTS / "hello-listen-report"
DAY = datetime(2026, 11, 22, tzinfo=timezone.utc)

JQ = """
def one: select(.message == "Connection established!");
def many: select(.message == "Connections summarized");
[inputs | fromjson?] as $all | [$all[] | select(.["service.instance.id"])] as $new | {
  recorded: [$new[] | one] | length,
  summarized: [$new[] | many | .count] | add,
  lost: [$new[] | select(.message == "Connections not recorded") | .connections] | add,
  missing: [$new | group_by(.["service.instance.id"])[] |
    ([.[] | .sequence // .["sequence.last"] // 0] | max) - ([.[] | select(.sequence)] | length)
    - ([.[] | select(.["sequence.first"]) | .count] | add // 0)] | add,
  clients: [$all[] | {c: .["client.address"], n: ((one | 1), (many | .count))}] | group_by(.c)
    | map({key: .[0].c, value: map(.n) | add}) | from_entries
}
"""
AWK = r"""
/"message": "Connection established!".*}$/ {
    n++; split(substr($0, 16), time, ":"); hours[time[1]]++
    match($0, /"client.address": "[^"]*"/); clients[substr($0, RSTART + 19, RLENGTH - 20)]++
}
END { print n; for (h in hours) print h, hours[h]; for (c in clients) print c, clients[c] }
"""


def day() -> Iterator[str]:
    """Yield a day's lines: two processes on one file, one killed in mid-write, older records."""
    chance = random.Random(9)
    sequences = {"0123456789ab": 0, "ba9876543210": 0, "5ca1ab1e0000": 0}
    names = list(sequences)
    for name in names[:2]:
        yield record(0, "Connection log opened", name, **{"process.pid": 1, "host.name": "canary"})
    for number in range(20_000):
        second = number * 4.3
        name = names[chance.random() < 0.3] if number < 12_000 else names[2]
        if number == 12_000:
            yield record(second, "Connection established!", names[0])[:70] + "\n"
            yield record(second, "Connection log opened", name)
        sequences[name] += 1
        client = f"198.51.100.{int(chance.paretovariate(1)) % 250}"
        one = {"client.address": client, "server.port": 7878}
        numbered = {"sequence": sequences[name]}
        kind = chance.random()
        if kind < 0.97:
            yield record(second, "Connection established!", name, **numbered, **one)
        elif kind < 0.98:
            yield record(second, "Connections summarized", name, **numbered, **one, count=number)
        elif kind < 0.985:
            last = sequences[name] = sequences[name] + 4
            told = {"count": 5, "connections": 7, "sequence.first": last - 4}
            yield record(
                second, "Connections not recorded", name, **told, **{"sequence.last": last}
            )
        elif kind < 0.99:
            old = {"sequence": 7, "client.address": "203.0.113.1"}
            sequences[name] -= 1
            yield record(second, "Connection established!", None, **old)
    for name in names:
        sequences[name] += 1
        yield record(86_000, "Connection established!", name, sequence=sequences[name], **one)


def record(second: float, message: str, name: str | None, **fields: object) -> str:
    """Return a line."""
    time = (DAY + timedelta(seconds=second)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    identity = {"service.instance.id": name} if name else {}
    return json.dumps({"timestamp": time, "message": message, **identity, **fields}) + "\n"


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a day's logs, rotated and compressed; all.jsonl is the day."""
    folder = tmp_path_factory.mktemp("day")
    lines = list(day())
    (folder / "all.jsonl").write_text("".join(lines))
    with gzip.open(folder / "connections.jsonl.2.gz", "wt") as file:
        file.writelines(lines[:7000])
    (folder / "connections.jsonl.1").write_text("".join(lines[7000:15_000]))
    (folder / "connections.jsonl").write_text("".join(lines[15_000:]))
    return folder


def report(*arguments: object) -> dict[str, Any]:
    """Return what the report prints for scripts, with something missing."""
    done = run(REPORT, "--json", *arguments)
    assert done.returncode == 1, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_jq(logs: Path) -> None:
    """The report says of rotated logs what jq counts over the whole day."""
    counted = json.loads(run(tool("jq"), "-nR", JQ, logs / "all.jsonl").stdout)
    found = report(logs / "connections.jsonl*", "--top", 1000)
    clients = {client["client.address"]: client["connections"] for client in found["clients"]}
    names = ("recorded", "summarized", "lost", "missing")
    assert {name: found[name] for name in names} | {"clients": clients} == counted
    assert found["missing"] > 0


def test_awk(logs: Path, tmp_path: Path) -> None:
    """Without summaries, bars and clients are what awk counts."""
    lines = (logs / "all.jsonl").read_text().splitlines(keepends=True)
    log = tmp_path / "log"
    log.write_text("".join(line for line in lines if "summarized" not in line))
    total, *counted = run(tool("awk"), AWK, log).stdout.split("\n")[:-1]
    done = run(REPORT, log, "--top", 1000)
    head, _runs, clients, _servers, bars = done.stdout.split("\n\n")
    found = [line.split()[:2] for line in clients.splitlines()[1:]]
    for line in bars.splitlines()[1:]:
        date, hour, _, count = line.split()
        found.append([f"{date}T{hour[:2]}", count])
    assert sorted(f"{name} {count.replace(',', '')}" for name, count in found) == sorted(counted)
    old = int(head.partition("clients only: ")[2].partition("\n")[0].replace(",", ""))
    assert int(head.split()[3].replace(",", "")) + old == int(total)
    assert "Lines that are no records (torn, or of another log): 1\n" in head


@pytest.mark.slow
def test_pipe(logs: Path) -> None:
    """Standard input may be a pipe, and standard output a pipe whose reader ends early."""
    command = f"zcat -f {logs}/connections.jsonl* | {REPORT} - | head -n 1; echo ${{PIPESTATUS[1]}}"
    done = run(tool("bash"), "-c", command)
    head = run(REPORT, logs / "all.jsonl").stdout.splitlines()[0]
    assert (done.stdout, done.stderr) == (f"{head}\n1\n", "")


@pytest.mark.slow
def test_leaves_nothing(logs: Path, tmp_path: Path) -> None:
    """The report leaves nothing in the temporary folder, even after errors."""
    for argument, status in (("--json", 1), ("none.jsonl", 2), ("--svg=none/x", 2)):
        done = run(REPORT, "all.jsonl", argument, cwd=logs, env={"TMPDIR": str(tmp_path)})
        assert done.returncode == status
        assert list(tmp_path.iterdir()) == []


def test_terminated(start: Start, tmp_path: Path) -> None:
    """SIGTERM ends the report, and its table in the temporary folder is gone."""
    (tmp_path / "temporary").mkdir()
    env = {**os.environ, "TMPDIR": f"{tmp_path}/temporary"}
    reader, writer = os.pipe()
    report = start("hello-listen-report", "-", stdin=reader, env=env)
    until(lambda: list((tmp_path / "temporary").glob("*/records")))
    report.kill(signal.SIGTERM)
    report.expect("^hello-listen-report: interrupted$")
    assert report.wait() == 2
    os.close(reader)
    os.close(writer)
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.slow
def test_live(hello: Start, tmp_path: Path) -> None:
    """The report of a log that is being written tells an open run from one that was killed."""
    log = tmp_path / "connections.jsonl"
    server = hello("-e", LOOPBACK, "-l", log)
    untilEnd(("127.0.0.1", server.port()))
    untilWritten(log, 2)
    found = [run(REPORT, "--json", log)]
    server.kill(signal.SIGKILL)
    server.wait()
    found.append(run(REPORT, "--json", log))
    told = [(done.returncode, json.loads(done.stdout)["runs"][0]["state"]) for done in found]
    assert told == [(0, "open"), (3, "killed")]


@pytest.mark.slow
def test_closed_descriptors(logs: Path) -> None:
    """Whichever standard descriptors are closed, the report is whole or says why there is none."""
    log = logs / "all.jsonl"
    whole = run(REPORT, "--json", log)
    for closed, status, out in (
        (">&-", 2, ""),
        ("<&-", 1, whole.stdout),
        ("2>&-", 1, whole.stdout),
        ("<&- 2>&-", 1, whole.stdout),
    ):
        done = run(tool("bash"), "-c", f"{REPORT} --json {log} {closed}")
        assert (done.returncode, done.stdout) == (status, out)
        assert "Traceback" not in done.stderr
    done = run(tool("bash"), "-c", f"{REPORT} {log} >&-")
    assert done.stderr == "hello-listen-report: standard output is closed\n"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["cat {0} | {1} --json -", "{1} --json {0}"])
def test_larger_than_memory(tmp_path: Path, command: str) -> None:
    """Logs that DuckDB does not read directly may be larger than its memory limit."""
    line = record(0, "Connection established!", None, **{"client.address": "192.0.2.1"})
    part = gzip.compress(line.encode() * 10_000, 1)
    (tmp_path / "log.gz").write_bytes(part * 500)
    done = run(tool("bash"), "-c", command.format(tmp_path / "log.gz", REPORT))
    [client] = json.loads(done.stdout)["clients"]
    assert client["connections"] == 5_000_000
    assert len(line) * 5_000_000 > 500_000_000


@pytest.mark.slow
def test_oldest_duckdb(logs: Path, tmp_path: Path) -> None:
    """The oldest DuckDB that is allowed gives the same answers as this one."""
    [oldest] = re.findall(r"duckdb>=([\d.]+)", (ROOT / "pyproject.toml").read_text())
    target = tmp_path / "packages"
    installed = run(SCRIPTS / "pip", "install", "-q", "--target", target, f"duckdb=={oldest}")
    assert installed.returncode == 0, installed.stderr
    there = {"PYTHONPATH": str(target)}
    code = "import duckdb; print(duckdb.__version__)"
    assert run(sys.executable, "-c", code, env=there).stdout == f"{oldest}\n"
    feeds = [Feed(tmp_path / str(seed), random.Random(seed)) for seed in range(20)]
    for feed in feeds:
        feed.make()
    torn = write(tmp_path / "torn", Run("0" * 12).connection().cutAnywhere())
    fed = [feed.files for feed in feeds if feed.files]
    for files in ([str(logs / "all.jsonl")], [str(torn)], *fed):
        told = [run(REPORT, "--json", *files, env=env) for env in ({}, there)]
        assert told[0].stdout == told[1].stdout
        assert told[0].returncode == told[1].returncode


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 2000, 100))
def test_counts_of_a_thousand(seed: int, tmp_path: Path) -> None:
    """Over a thousand random logs, the report agrees with the lines that were written."""
    for number in range(seed, seed + 100):
        check(number, tmp_path / str(number))
