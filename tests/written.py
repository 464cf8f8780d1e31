"""Connection logs that a test writes line by line, with known contents."""

from __future__ import annotations

import json
from collections import Counter
from datetime import datetime, timedelta, timezone
from pathlib import Path

START = datetime(2026, 11, 22, 20, 0, tzinfo=timezone.utc)


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
        known = {name: value for name, value in record.items() if value is not None}
        self.lines.append(json.dumps(known) + "\n")

    def connection(self, client: str | None = "192.0.2.7", **fields: object) -> Run:
        """Record a connection."""
        self.sequence += 1
        ends = {"network.transport": "tcp", "server.address": "192.0.2.1", "server.port": 7878}
        numbered = {"sequence": self.sequence, "client.address": client, **ends, **fields}
        self.write("Connection established!", **numbered)
        self.counts["recorded"] += 1
        self.clients[client] += 1
        return self

    def summary(self, count: int, client: str | None = "192.0.2.7", **fields: object) -> Run:
        """Record many connections of a client at once."""
        self.sequence += 1
        times = {"timestamp.first": at(self.now), "timestamp.last": at(self.now + 30)}
        numbered = {"sequence": self.sequence, "count": count, "network.transport": "tcp"}
        named = {"client.address": client}
        self.write("Connections summarized", **(numbered | times | named | fields))
        self.counts["summarized"] += count
        self.clients[client] += count
        return self

    def lose(self, count: int, connections: int) -> Run:
        """Write a gap record for this many numbers and connections."""
        first, self.sequence = self.sequence + 1, self.sequence + count
        numbers = {"sequence.first": first, "sequence.last": self.sequence}
        told = {"count": count, "connections": connections}
        self.write("Connections not recorded", **told, **numbers)
        self.counts["lost"] += connections
        return self

    def drop(self, packets: int, **fields: object) -> Run:
        """Write that an accept queue was full."""
        self.counts["packets"] += packets
        told = {"packets": packets, "packets.total": self.counts["packets"]}
        self.write("Accept queue was full", **{"server.port": 7878}, **(told | fields))
        return self

    def vanish(self, count: int = 1) -> Run:
        """Number records, and write none of them."""
        self.sequence += count
        return self

    def cutAnywhere(self) -> Run:
        """Leave each beginning of the last line, as a crash may; record a connection after each."""
        line = self.lines[-1]
        for end in range(1, len(line) - 1):
            self.lines.append(line[:end] + "\n")
            self.connection()
        return self

    def close(self, **fields: object) -> Run:
        """Write the closing line; without C{sequence.last}, as before 1.1, if that is L{None}."""
        counts = {name: self.counts[name] for name in ("recorded", "summarized", "lost")}
        last = {"sequence.last": self.sequence}
        self.write(
            "Connection log closed", connections=sum(counts.values()), **(counts | last | fields)
        )
        return self


def write(path: Path, *runs: Run, also: str = "") -> Path:
    """Write what the runs wrote, one after the other."""
    path.write_text("".join(line for run in runs for line in run.lines) + also)
    return path
