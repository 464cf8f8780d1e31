"""Random connection logs, with a record of every line that the report is given."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from written import at

NAMES = (
    "connections.jsonl",
    "kind=canary",
    "timestamp=2026-01-01.jsonl",
    "it's [1]*.jsonl",
    "a\\b?.jsonl",
    "{x,y} %41.jsonl",
    "client=1/sequence=5/c.jsonl",
    "plain.gz.jsonl",
    "\udcff\u05d0.jsonl",
)
"""Names of files: patterns, what DuckDB takes for columns, and no UTF-8."""

V4 = [("tcp", f"192.0.2.{n}") for n in range(1, 4)] + [("udp", "192.0.2.1"), ("tcp", "127.0.0.1")]
V6 = [("tcp", f"2001:db8:{net}::{host}") for net in (1, 2, 3) for host in ("1", "2", "a:b")]
OWN = [("tcp", a) for a in ("fe80::1%eth0", "fe80::1%eth1", "fe80::2%eth0", "::1", "64:ff9b::1")]
UNIX = [("unix", "127.0.0.1"), ("unix", "/run/a:b"), ("unix", None), ("pipe", None)]
CLIENTS = [*V4, *V6, *OWN, *UNIX]
SERVERS = [(80, None), (443, None), (7878, None), (50001, None), (None, "/run/hello.sock")]
ERRORS = ["proxy_header_invalid", "proxy_header_timeout"]


@dataclass(eq=False)
class Line:
    """
    A line of a log.

    @ivar numbers: the sequence numbers that it accounts for.
    @ivar count: how many connections it tells of, or how many dropped packets.
    """

    run: Process
    kind: str
    time: float
    fields: dict[str, object]
    numbers: range = range(0)
    count: int = 0
    client: tuple[str | None, str | None] = (None, None)
    server: tuple[int | None, str | None] = (None, None)
    error: str | None = None

    def text(self, time: float) -> str:
        """Return the line as the file has it; a carrier may have changed its timestamp."""
        line = {"timestamp": at(time), **self.fields}
        return json.dumps({name: value for name, value in line.items() if value is not None}) + "\n"


class Process:
    """A process that writes a log, until it is stopped or killed."""

    def __init__(self, name: str, random: Random) -> None:
        """Write the lines of the process's whole life."""
        self.name = name
        self.lines: list[Line] = []
        self.last = 0
        self.totals: Counter[str] = Counter()
        self.tellsLast = random.random() < 0.8
        self._random = random
        self._now = random.uniform(0, 5000)
        self._write("opened", "Connection log opened", **{"host.name": "elsewhere"})
        for _ in range(random.choice((0, 1, 3, 30))):
            self._now += random.uniform(0, random.choice((1, 200)))
            random.choice((self._connection,) * 6 + (self._summary, self._lose, self._drop))()
        if random.random() < 0.6:
            if self.tellsLast and random.random() < 0.2:
                # A disk that is full at the end has room for the closing line only.
                self._lose()
                self.lines.pop()
            counts = {name: self.totals[name] for name in ("recorded", "summarized", "lost")}
            last = {"sequence.last": self.last if self.tellsLast else None}
            total = sum(counts.values())
            self._write("closed", "Connection log closed", connections=total, **counts, **last)

    def _write(self, kind: str, message: str, **fields: object) -> Line:
        """Write a line."""
        head = {"message": message, "service.instance.id": self.name}
        self.lines.append(Line(self, kind, self._now, head | fields))
        return self.lines[-1]

    def _connection(self) -> None:
        """Record a connection."""
        self.last += 1
        client, server = self._random.choice(CLIENTS), self._random.choice(SERVERS)
        error = self._random.choice([*ERRORS, *[None] * 8])
        names = {"network.transport": client[0], "client.address": client[1]}
        ends = {"server.port": server[0], "server.address": server[1] or "192.0.2.99"}
        told = {"error.type": error, "network.peer.address": "192.0.2.200", "sequence": self.last}
        line = self._write("recorded", "Connection established!", **names, **ends, **told)
        line.numbers, line.count = range(self.last, self.last + 1), 1
        line.client, line.server, line.error = client, server, error
        self.totals["recorded"] += 1

    def _summary(self) -> None:
        """Record several connections at once."""
        self.last += 1
        transport, address = self._random.choice([*CLIENTS, (None, None)])
        if (transport, address) in V6:
            address = f"{network(address)}/64"
        server = self._random.choice([(None, None), *SERVERS[:4]])
        count = self._random.choice((1, 7, 10**6))
        line = self._write(
            "summarized",
            "Connections summarized",
            count=count,
            sequence=self.last,
            **{"network.transport": transport, "client.address": address},
            **{"timestamp.first": at(self._now), "timestamp.last": at(self._now + 30)},
            **{"server.port": server[0], "ports": [1, 2]},
        )
        line.numbers, line.count = range(self.last, self.last + 1), count
        line.client, line.server = (transport, address), server
        self.totals["summarized"] += count

    def _lose(self) -> None:
        """Write a gap record."""
        count = self._random.randint(1, 5)
        connections = count + self._random.choice((0, 100))
        first, self.last = self.last + 1, self.last + count
        line = self._write(
            "lost",
            "Connections not recorded",
            count=count,
            connections=connections,
            **{"sequence.first": first, "sequence.last": self.last},
        )
        line.numbers, line.count = range(first, self.last + 1), connections
        self.totals["lost"] += connections

    def _drop(self) -> None:
        """Write that an accept queue was full."""
        packets = self._random.choice((1, 1, 23))
        self.totals["packets"] += packets
        line = self._write(
            "full",
            "Accept queue was full",
            packets=packets,
            **{"packets.total": self.totals["packets"], "server.port": 7878},
        )
        line.count = packets


def network(address: str | None) -> str:
    """Return the prefix of a /64's addresses in these logs."""
    return f"{str(address).partition('::')[0]}::"


@dataclass
class Feed:
    """
    What the report is given, and what stands in there.

    @ivar fed: the lines in the files, each with the times that it has there.
    """

    folder: Path
    random: Random
    files: list[str] = field(default_factory=list)
    fed: dict[Line, list[float]] = field(default_factory=dict)
    torn: int = 0
    holes: int = 0

    def make(self) -> None:
        """Run processes, and give some of what they wrote to the report."""
        random = self.random
        self.processes = [
            Process(f"{n:012x}", random) for n in range(random.choice((0, 1, 2, 3, 5)))
        ]
        waiting = [process.lines.copy() for process in self.processes]
        log: list[Line] = []
        while waiting := [lines for lines in waiting if lines]:
            log.append(random.choice(waiting).pop(0))
        if random.random() < 0.3:
            del log[: random.randint(1, 20)]  # Rotated away.
        names = random.sample(NAMES, len(NAMES))
        cuts = sorted(random.randint(0, len(log)) for _ in range(random.choice((0, 1, 4))))
        for start, stop in zip([0, *cuts], [*cuts, len(log)], strict=True):
            if random.random() < 0.8:  # Else this file is left out.
                kept = random.choice((1, 1, 0.9))  # Of the others, some lines are.
                self._hand(names.pop(), [e for e in log[start:stop] if random.random() < kept])
        if random.random() < 0.4:
            part = [line for line in log if random.random() < 0.4]
            self._hand(names.pop(), part, delay=random.choice((0, 2.5)))
        if random.random() < 0.1:
            self.files += self.files[:1]

    def _hand(self, name: str, lines: list[Line], delay: float = 0) -> None:
        """Write a file of the report's input."""
        content = b""
        for line in lines:
            self.fed.setdefault(line, []).append(line.time + delay)
            content += line.text(line.time + delay).encode()
            chance = self.random.random()
            if chance < 0.02:
                self.torn += 1
                content += line.text(0)[: self.random.randint(2, 30)].encode() + b"\n"
            elif chance < 0.03:
                self.holes += not content.count(b"\0")
                content += b"\0" * self.random.choice((1, 5000))
        path = self.folder / name
        if self.random.random() < 0.3:
            path = path.with_name(path.name + ".gz")
            content = gzip.compress(content)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        self.files.append(str(path))
