"""The installed report on a day's worth of mixed logs, against independent counts by jq and awk."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from processes import SCRIPTS, run, tool

pytest.importorskip("duckdb")

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
    head, _runs, clients, bars = done.stdout.split("\n\n")
    found = [line.split()[:2] for line in clients.splitlines()[1:]]
    for line in bars.splitlines()[1:]:
        date, hour, _, count = line.split()
        found.append([f"{date}T{hour[:2]}", count])
    assert sorted(f"{name} {count.replace(',', '')}" for name, count in found) == sorted(counted)
    old = int(head.partition("clients only: ")[2].replace(",", ""))
    assert int(head.split()[3].replace(",", "")) + old == int(total)
    assert "Lines that are no records (torn, or of another log): 1\n" in head


@pytest.mark.slow
def test_pipe(logs: Path) -> None:
    """Standard input may be a pipe, and standard output one whose reader has enough."""
    command = f"zcat -f {logs}/connections.jsonl* | {REPORT} - | head -n 1; echo ${{PIPESTATUS[1]}}"
    done = run(tool("bash"), "-c", command)
    head = run(REPORT, logs / "all.jsonl").stdout.splitlines()[0]
    assert (done.stdout, done.stderr) == (f"{head}\n1\n", "")


@pytest.mark.slow
def test_leaves_nothing(logs: Path, tmp_path: Path) -> None:
    """What was kept in the temporary folder is gone at the end, after errors too."""
    for argument, status in (("--json", 1), ("none.jsonl", 2), ("--top=-1", 2)):
        done = run(REPORT, "all.jsonl", argument, cwd=logs, env={"TMPDIR": str(tmp_path)})
        assert done.returncode == status
        assert list(tmp_path.iterdir()) == []
