"""The report that random logs must have, computed from what was fed to it."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from random import Random
from typing import Any

from asked import run
from fed import V6, Feed, Line, Process, network
from written import at


class Expected:
    """What the report has to say of what it was fed, in a period or in all."""

    def __init__(self, feed: Feed, since: float | None, until: float | None) -> None:
        """Count the lines that were fed."""
        self.since, self.until = since, until
        self.times = {line: min(times) for line, times in feed.fed.items()}
        self.inside = [line for line, time in self.times.items() if self.isInside(line, time)]
        self.whole = since is until is None
        self.runs = {}
        for process in feed.processes:
            lines = [line for line in self.times if line.run is process]
            if any(line in self.inside for line in lines):
                self.runs[process.name] = self.run(process, lines)
        touched = {
            e.run for e, times in feed.fed.items() if any(self.isInside(e, t) for t in times)
        }
        self.repeated = any(len(times) > 1 for e, times in feed.fed.items() if e.run in touched)

    def isInside(self, line: Line, time: float) -> bool:
        """Return whether a line counts in the period. A summary counts by its first connection."""
        moment = line.time if line.kind == "summarized" else time
        return (self.since is None or moment >= self.since) and (
            self.until is None or moment < self.until
        )

    def run(self, process: Process, lines: list[Line]) -> dict[str, object]:
        """Return the expected facts of a run."""
        kinds = {line.kind for line in lines}
        present = {number for line in lines for number in line.numbers}
        lowest = 1 if "opened" in kinds else min(present, default=None)
        tellsLast = "closed" in kinds and process.tellsLast
        highest = process.last if tellsLast else max(present, default=0)
        absent = set(range(1, process.last + 1)) - present
        headless = kinds == {"full"} or (bool(absent) and (lowest is None or lowest > 1))
        between = {n for n in absent if lowest is not None and lowest <= n <= highest}
        if all(e in lines for e in process.lines if e.kind in ("recorded", "summarized")):
            # The closing line counts what was lost, and nothing else can be absent at the end.
            between -= set(range(max(present, default=0) + 1, process.last + 1))
        counts = Counter(dict.fromkeys(("recorded", "summarized", "lost"), 0))
        if self.whole and "closed" in kinds:
            counts.update({kind: process.totals[kind] for kind in counts})
        else:
            for line in lines:
                if line in self.inside and line.kind in counts:
                    counts[line.kind] += line.count
        moments = [line.time if line.kind == "summarized" else self.times[line] for line in lines]
        ends = [line.time + 30 if line.kind == "summarized" else self.times[line] for line in lines]
        unknown = []
        if headless and (self.since is None or self.since < min(moments)):
            unknown.append("beginning")
        ended = self.until is not None and max(ends) >= self.until
        vague = "closed" in kinds and not process.tellsLast and bool(absent)
        if ("closed" not in kinds or vague) and not ended:
            unknown.append("end")
        return {
            "state": "closed" if "closed" in kinds else "not closed",
            "counts": dict(counts),
            "missing": len(between),
            "unknown": unknown,
            "dropped": sum(e.count for e in lines if e.kind == "full" and e in self.inside),
            "first": at(min(moments)),
            "last": at(max(ends)),
            # How many lack is open where an earlier release closed the log.
            "open": absent if vague and not headless else set(),
        }

    def clients(self) -> list[tuple[Any, ...]]:
        """Return the clients as the report names them, in its order."""
        groups = defaultdict(list)
        for line in self.inside:
            if line.kind in ("recorded", "summarized"):
                groups[identity(line)].append(line)
        told = []
        for lines in groups.values():
            addresses = {e.client[1] for e in lines if e.client[1]}
            transport = min((e.client[0] for e in lines if e.client[0]), default=None)
            address = lines[0].client[1]
            if len(addresses) > 1:
                address = f"{network(address)}/64"
            recorded = {a for a in addresses if not a.endswith("/64")}
            ports = sorted({e.server[0] for e in lines if e.server[0]})
            servers = sorted({e.server[1] for e in lines if e.server[1]})
            count = sum(line.count for line in lines)
            told.append((address, transport, len(recorded), count, ports, servers))
        return told

    def groups(self, key: str) -> set[tuple[object, int, int]]:
        """Return the connections and clients of each server or error."""
        groups = defaultdict(list)
        for line in self.inside:
            if line.kind in ("recorded", "summarized"):
                groups[getattr(line, key)].append(line)
        return {
            (
                name,
                sum(line.count for line in lines),
                len({identity(line) for line in lines} - {(None, None)}),
            )
            for name, lines in groups.items()
        }


def identity(line: Line) -> tuple[str | None, str | None]:
    """Return the client's identity in a line."""
    transport, address = line.client
    if transport in ("unix", "pipe"):
        return transport, address
    if (transport, address) in V6 or str(address).endswith("/64"):
        return "ip", network(address)
    return (None if address is None else "ip"), address


def checkRun(told: dict[str, Any], want: dict[str, Any]) -> None:
    """Compare a reported run with the expected one."""
    assert {kind: told[kind] for kind in want["counts"]} == want["counts"]
    assert told["connections"] == sum(want["counts"].values())
    for name in ("state", "first", "last"):
        assert told[name] == want[name]
    assert told["unknown"] == want["unknown"]
    assert told["packets.dropped"] == want["dropped"]
    if want["open"]:
        assert max(want["missing"], 1) <= told["missing"] <= len(want["open"])
    else:
        assert told["missing"] == want["missing"]


def check(seed: int, folder: Path) -> None:
    """Feed the report with random logs, and compare what it says with what is expected."""
    random = Random(seed)
    feed = Feed(folder, random)
    feed.make()
    since, until = random.choice([(None, None)] * 3 + [(2000.5, None), (None, 4000.5), (1e3, 5e3)])
    period = [] if since is None else ["--since", at(since)]
    period += [] if until is None else ["--until", at(until)]
    if not feed.files:
        return
    status, out, notes = run("--json", "--top", 1000, *period, *feed.files)
    found = json.loads(out)
    expected = Expected(feed, since, until)

    runs = {each["service.instance.id"]: each for each in found["runs"]}
    assert runs.keys() == expected.runs.keys()
    for name, want in expected.runs.items():
        checkRun(runs[name], want)
    dropped = sum(run["packets.dropped"] for run in runs.values())
    for name in ("connections", "recorded", "summarized", "lost", "missing"):
        assert found[name] == sum(each[name] for each in runs.values())
    assert found["unknown"] == sum(bool(each["unknown"]) for each in runs.values())

    clients = expected.clients()
    fields = ("client.address", "network.transport", "addresses", "connections", "server.ports")
    named = [tuple(c[name] for name in (*fields, "server.addresses")) for c in found["clients"]]
    assert sorted(map(str, named)) == sorted(map(str, clients))
    assert found["clients.count"] == sum(c[:2] != (None, None) for c in clients)
    servers = {
        ((s["server.port"], s["server.address"]), s["connections"], s["clients"])
        for s in found["servers"]
    }
    assert servers == expected.groups("server")
    errors = {(e["error.type"], e["connections"], e["clients"]) for e in found["errors"]}
    assert errors == {group for group in expected.groups("error") if group[0]}
    seen = sum(client[3] for client in clients)
    assert sum(bar["connections"] for bar in found["timeline"]["bars"]) == seen

    assert found["lines.torn"] == feed.torn
    assert found["lines.repeated"] == expected.repeated
    assert len(found["problems"]) == feed.holes
    if feed.holes:
        assert status == 2
    elif found["missing"]:
        assert status == 1
    else:
        assert status == (3 if found["unknown"] or dropped else 0)
    reasons = (feed.torn, feed.holes, expected.repeated, found["unknown"], dropped)
    assert bool(notes) == any(reasons)
