"""The fleet of fleet.sh loses no client while each of its parts fails in turn."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from crowd import Crowd
from processes import (
    DEPLOY,
    PATIENCE,
    SCRIPTS,
    Process,
    Start,
    deployed,
    run,
    tool,
    until,
    untilEnd,
    untilListening,
)

pytestmark = pytest.mark.fleet
WHO = 'log stdout format raw local0\n    log-format "ended %ci:%cp %s %ts"\n'
"""Further configuration of HAProxy: log which node answered a client, and how that ended."""

MAX_AGE = 0.5
"""Seconds for which the status caches a snapshot."""

BATCH = 0.01
"""Seconds of records that SIGKILL may lose."""

OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Opens URLs of this machine, without the environment's proxy."""

Record = dict[str, Any]


class Fleet:
    """The fleet, in a folder and a network of loopback addresses of its own."""

    def __init__(self, start: Start, folder: Path) -> None:
        """Write the files, with addresses that no other test has."""
        self._start = start
        for name in ("haproxy", "prometheus", "rsyslogd", "logrotate"):
            tool(name)
        self.folder = folder
        self.network = f"127.{os.getpid() // 200 % 200 + 1}.{os.getpid() % 200 + 1}"
        self.front = f"{self.network}.10"
        self.parts: dict[str, Process] = {}
        self.pids: dict[int, list[int]] = defaultdict(list)
        changes = {
            "fleet/fleet.sh": [("ip=127.0.0", f"ip={self.network}")],
            "haproxy/fleet.cfg": [("listen hello\n", f"listen hello\n    {WHO}")],
            "prometheus/fleet-rules.yml": [],
            "prometheus/prometheus.yml": [("_interval: 5s", "_interval: 1s")],
            "rsyslog/central.conf": [],
            "rsyslog/node.conf": [],
        }
        for name, replacements in changes.items():
            path = folder / "deploy" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(deployed(name, *replacements))

    def script(self, *arguments: str, files: Sequence[str]) -> Process:
        """Run the fleet's script, whose parts write their output to files."""
        return self._start(
            "sh", "deploy/fleet/fleet.sh", *arguments, patience=20 * PATIENCE, files=files,
            env={**os.environ, "PATH": f"{SCRIPTS}:{os.environ['PATH']}"},
        )  # fmt: skip

    def run(self, part: str) -> Process:
        """Start a part."""
        file = f"{part.replace(' ', '')}.out"
        self.parts[part] = process = self.script(*part.split(), files=[file])
        if part.startswith("node"):
            number = int(part[-1])
            self.pids[number].append(process.pid)
            until(lambda: self.get(f"{self.network}.1{number}:7880/healthz"))
        return process

    def stop(self, part: str, number: int = signal.SIGTERM) -> None:
        """Stop a part, and wait for its end."""
        self.parts.pop(part).stop(number)

    def get(self, location: str, **query: str) -> str:
        """Return the contents of a URL, or nothing while the server does not answer."""
        try:
            url = f"http://{location}?{urllib.parse.urlencode(query)}"
            with OPENER.open(url, timeout=PATIENCE) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            error.close()
        except OSError:
            pass
        return ""

    def ask(self, query: str) -> list[dict[str, Any]]:
        """Return Prometheus's result of a query, or nothing while there is none."""
        answer = self.get(f"{self.front}:9091/api/v1/query", query=query)
        return json.loads(answer)["data"]["result"] if answer else []

    def lines(self, pattern: str) -> Counter[str]:
        """Return the lines of connection logs."""
        files = self.folder.glob(pattern)
        return Counter(line for file in files for line in file.read_text().splitlines())

    def said(self, file: str, pattern: str) -> list[Any]:
        """Return what a part said in its output or its errors, which it may not have yet."""
        path = self.folder / file
        return re.findall(pattern, path.read_text()) if path.exists() else []


@pytest.fixture
def fleet(start: Start, tmp_path: Path) -> Iterator[Fleet]:
    """Start the fleet; in the end, tell each part to end."""
    fleet = Fleet(start, tmp_path)
    with socket.socket() as package:
        # As the service that Debian's package starts does, where this machine has none.
        with suppress(OSError):
            package.bind(("", 9090))
            package.listen()
        for number in (1, 2, 3):
            fleet.run(f"node {number}")
            fleet.run(f"shipper {number}")
        fleet.run("central")
        fleet.run("front")
        fleet.run("prometheus")
        until(lambda: fleet.said("front.out", "Loading success"))
        until(lambda: len(fleet.ask("up == 1")) == 3)
        yield fleet
        for part in reversed(list(fleet.parts)):
            fleet.stop(part)


def test_fleet(fleet: Fleet) -> None:
    """All of 100,000 clients but SIGKILL's losses are in one file, and Prometheus agrees."""
    sources = [f"{fleet.network}.{number}" for number in range(20, 28)]
    crowd = Crowd((fleet.front, 7878), sources)
    crowd.start()
    try:
        crowd.untilEnded(10_000)
        fleet.stop("node 1")
        fleet.run("node 1")

        crowd.untilEnded(25_000)
        killed = fleet.pids[2][0]
        fleet.stop("node 2", signal.SIGKILL)
        fleet.run("node 2")

        crowd.untilEnded(40_000)
        fleet.stop("central")
        away = time.monotonic()
        until(lambda: time.monotonic() >= away + 10)
        fleet.run("central")

        crowd.untilEnded(60_000)
        log = fleet.folder / "logs3" / "connections.jsonl"
        rules = fleet.folder / "logrotate.conf"
        rules.write_text(
            deployed("logrotate/hello-listen", ("/var/log/hello-listen", str(log.parent)))
        )
        rotated = run(tool("logrotate"), "-f", "-s", fleet.folder / "state", rules)
        assert (rotated.returncode, rotated.stdout, rotated.stderr) == (0, "", "")
        until(log.exists)
        assert len(list(log.parent.glob("connections.jsonl*"))) == 2

        crowd.untilEnded(75_000)
        fleet.parts["front"].kill(signal.SIGUSR2)
        until(lambda: fleet.said("front.out", "Former worker .* exited"))

        crowd.untilEnded(100_000)
    finally:
        crowd.finish()
    finished = time.time()
    assert crowd.failed == {}
    assert crowd.ended >= 100_000

    # The last scrapes, and the last record of each node; the metrics may be half a second old.
    counted = f'hello_listen_connections_total{{server="{fleet.front}:7878"}}'
    for number in (1, 2, 3):
        node = f"{fleet.network}.1{number}:7880"
        until(lambda node=node: moment(json.loads(fleet.get(f"{node}/status.json"))) > finished)
        [count] = re.findall(
            rf'^hello_listen_connections_total{{.*"{fleet.front}:7878".*}} (\S+)$',
            fleet.get(f"{node}/metrics"), re.MULTILINE,
        )  # fmt: skip
        until(
            lambda node=node, count=count: (
                [
                    float(series["value"][1])
                    for series in fleet.ask(f'{counted} and {{instance="{node}"}}')
                ]
                == [float(count)]
            )
        )
    samples = fleet.ask(f"{counted}[10m]")
    starts = fleet.ask("process_start_time_seconds[10m]")
    for number in (1, 2, 3):
        fleet.stop(f"node {number}")
    written = fleet.lines("logs[123]/*")
    until(lambda: set(fleet.lines("logs/central.jsonl")) == set(written))
    assert max(written.values()) == 1

    records = [json.loads(line) for line in written]
    runs = {r["service.instance.id"]: r["process.pid"] for r in records if "process.pid" in r}
    named = [r for r in records if r.get("server.port") == 7878]
    assert {record["network.peer.address"] for record in named} == {fleet.front}
    recorded = Counter((r["client.address"], r["client.port"]) for r in named)

    # Each client is named, but for those of the node that was killed.
    assert recorded - crowd.answered == Counter()
    absent = crowd.answered - recorded
    ends = defaultdict(list)
    for name, port, server, state in fleet.said("front.out", r"ended (\S+):(\d+) (\S+) (\S\S)"):
        ends[name, int(port)].append((server, state))
    assert all(("node2", "--") in ends[name] or ("node2", "SD") in ends[name] for name in absent), [
        (name, ends[name]) for name in absent
    ]
    taken = [name for name in absent if ("node2", "SD") not in ends[name]]
    times = {
        pid: sorted(moment(r) for r in named if runs[r["service.instance.id"]] == pid)
        for pid in runs.values()
    }
    busiest = max(
        bisect(seen, t + BATCH) - n for seen in times.values() for n, t in enumerate(seen)
    )
    rate = sum(t > times[killed][-1] - 1 for t in times[killed])
    print(f"{crowd.ended} clients, {rate}/s on the node that was killed: {len(taken)} records lost")
    print(f"{len(absent)} absent, {busiest} in the busiest hundredth of a second")
    assert len(taken) <= busiest

    # The report counts as much.
    told = run(SCRIPTS / "hello-listen-report", "--json", fleet.folder / "logs" / "central.jsonl")
    report = json.loads(told.stdout)
    assert (told.returncode, report["missing"], report["lost"]) == (3, 0, 0)
    assert {r["process.pid"]: r["state"] for r in report["runs"]} == {
        pid: "killed" if pid == killed else "closed" for pid in runs.values()
    }
    assert report["recorded"] == len(named) == crowd.ended - len(absent)
    lost = Counter(name for name, _ in absent.elements())
    answered = Counter(name for name, _ in crowd.answered.elements())
    said = {c["client.address"]: c["connections"] for c in report["clients"]}
    assert {source: said[source] for source in sources} == answered - lost
    assert set(said) == {*sources, fleet.front}

    # What Prometheus lacks came after the last scrape of a process that ended.
    for number, pids in fleet.pids.items():
        node = f"{fleet.network}.1{number}:7880"
        [begun] = [dict(s["values"]) for s in starts if s["metric"]["instance"] == node]
        [values] = [s["values"] for s in samples if s["metric"]["instance"] == node]
        last = {begun[when]: (when, int(value)) for when, value in values}
        assert len(last) == len(pids)
        for pid, (_, (scraped, count)) in zip(pids, sorted(last.items()), strict=True):
            later = sum(t > scraped - MAX_AGE for t in times[pid])
            ended = pid != pids[-1]
            print(f"node {number}: {len(times[pid])} recorded, {count} scraped, {later} later")
            assert count <= len(times[pid]) + (len(taken) if pid == killed else 0)
            assert len(times[pid]) - count <= (later if ended else 0)


def moment(record: Record) -> float:
    """Return when a connection was, in seconds since the epoch."""
    return datetime.fromisoformat(record["timestamp"].replace("Z", "+00:00")).timestamp()


def test_trial(start: Start, tmp_path: Path) -> None:
    """Each part tells its process ID and its output file; one signal ends all of them."""
    fleet = Fleet(start, tmp_path)
    nodes, shippers = ([f"{part} {n}" for n in (1, 2, 3)] for part in ("node", "shipper"))
    parts = {"front": "haproxy", "central": "rsyslogd", "prometheus": "prometheus"}
    parts |= dict.fromkeys(nodes, "twistd") | dict.fromkeys(shippers, "rsyslogd")
    files = [f"{part.replace(' ', '')}.out" for part in parts]
    trial = fleet.script(files=files)
    told = [trial.expect(r"^(.*): process (\d+), writes to (.*)$").groups() for _ in parts]
    assert sorted(file for _, _, file in told) == sorted(files)
    pids = {part: int(pid) for part, pid, _ in told}
    assert set(pids) == set(parts)
    commands = {part: Path(f"/proc/{pid}/cmdline") for part, pid in pids.items()}
    for part, program in parts.items():
        until(lambda part=part, program=program: program in commands[part].read_text())
    until(lambda: len(fleet.ask("up == 1")) == 3)
    os.kill(pids["node 2"], signal.SIGTERM)
    until(lambda: not commands["node 2"].exists())
    assert untilEnd((fleet.front, 7878))[1] == b""
    trial.stop()
    assert not [part for part, command in commands.items() if command.exists()]
    records = [json.loads(line) for line in fleet.lines("logs[123]/*")]
    said = Counter(record["message"] for record in records)
    assert (said["Connection log closed"], said["Connection established!"]) == (3, 1)


def test_kafka(start: Start, tmp_path: Path) -> None:
    """Records reach a topic of Kafka's by the command that is shown."""
    tool("kcat")
    command = (
        "twistd -n --logfile twistd.log hello-listen -l - | kcat -P -b kafka:9092 -t connections"
    )
    assert f"\n{command}\n" in (DEPLOY / "README.md").read_text()
    broker = "127.0.0.1:1 -X test.mock.num.brokers=1 -X debug=mock"
    command = command.replace("kafka:9092", broker)
    command = command.replace("-l -", f"-l - -e unix:{tmp_path}/s").replace(
        "twistd ", f"{SCRIPTS}/twistd --pidfile=twistd.pid ", 1
    )
    producer = start("sh", "-c", f"{command} 2>kcat.log", files=["kcat.log"])
    untilListening(tmp_path / "s")
    servers = re.compile(r"bootstrap.servers=(\S+)")
    until(lambda: servers.search((tmp_path / "kcat.log").read_text()))
    [broker] = servers.findall((tmp_path / "kcat.log").read_text())
    for _ in range(20):  # kcat reads a kilobyte at a time.
        untilEnd(f"{tmp_path}/s")
    consumer = start("kcat", "-C", "-u", "-b", broker, "-t", "connections")
    consumer.expect("Connection log opened")
    for number in (1, 2, 3):
        consumer.expect(f'"sequence": {number}')
    os.kill(int((tmp_path / "twistd.pid").read_text()), signal.SIGTERM)
    producer.wait()
