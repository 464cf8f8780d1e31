"""Read connection logs, and check that they account for each connection."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from processes import until

Record = dict[str, Any]


def lines(*logs: Path) -> list[Record]:
    """Return everything in logs, of which each line must be whole and printable ASCII."""
    found = []
    for log in logs:
        data = log.read_bytes()
        assert data.endswith(b"\n") or not data, data[-300:]
        for line in data.splitlines():
            assert re.fullmatch(rb"\{[ -~]+\}", line), line
            found.append(json.loads(line))
    return found


def recorded(*logs: Path) -> list[Record]:
    """Return the records of single connections in logs."""
    return [line for line in lines(*logs) if line["message"] == "Connection established!"]


def account(*logs: Path) -> tuple[int, int]:
    """
    Return how many connections logs record, and how many they say are missing.

    For each process that wrote to them, the numbers from 1 on must occur once each.
    """
    spans = defaultdict(list)
    for line in lines(*logs):
        instance = line.get("service.instance.id")
        if line["message"] == "Connection established!":
            spans[instance].append((line["sequence"], line["sequence"], False))
        elif line["message"] == "Connections not recorded":
            first, last = line["sequence.first"], line["sequence.last"]
            assert line["count"] == last - first + 1
            spans[instance].append((first, last, True))
    totals = {False: 0, True: 0}
    for found in spans.values():
        expected = 1
        for first, last, missing in sorted(found):
            assert first == expected, f"sequence {expected} is missing, or {first} is a duplicate"
            expected = last + 1
            totals[missing] += last - first + 1
    return totals[False], totals[True]


def untilWritten(log: Path, count: int) -> None:
    """Wait until a log has so many lines."""
    until(lambda: log.exists() and log.read_bytes().count(b"\n") >= count)


def counted(output: str) -> tuple[int, int, int]:
    """Return the connections, records and losses of the last line that counts them."""
    found = re.findall(r"Connections: (\d+), recorded: (\d+),.* lost: (\d+)$", output, re.MULTILINE)
    assert found, f"no line counts the connections in\n{output}"
    connections, records, lost = map(int, found[-1])
    return connections, records, lost
