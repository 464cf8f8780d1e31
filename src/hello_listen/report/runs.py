"""Computes the counts of a run, its missing records, and what is unknown."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from hello_listen.report.facts import Run
from hello_listen.report.states import state


def makeRun(row: dict[str, Any], both: int, since: datetime | None, until: datetime | None) -> Run:
    """
    Return a run.

    @param row: a row of C{queries/runs.sql}.
    @param both: the number of sequence numbers with a record that a gap record covers too.
    @param since: the start of the period to report, or L{None}.
    @param until: the end of the period, exclusive, or L{None}.
    """
    found = row["lowest"] is not None
    short = _shortage(row)
    # The closing line also counts losses at the end that no gap record could be written for.
    highest = max(row["highest"] or 0, row["final"] or 0)
    end = (row["highest"] or 0) if short == (0, 0, 1) else highest
    lowest = 1 if row["opened"] else row["lowest"] or highest + 1
    missing = max(end - lowest + 1 - row["numbers"] - row["told"] + both, 0)
    # Closing lines of earlier releases lack the last number.
    less = sum(short) if row["final"] is None else 0
    if lowest == 1 and (found or row["opened"]):
        missing = max(missing, less)
    now = state(row)
    # What is unknown outside the period does not matter.
    started = since is not None and row["first"] is not None and row["first"] <= since
    ended = until is not None and row["last"] is not None and row["last"] >= until
    unknown = []
    # A line about a full accept queue tells neither the first number nor the last.
    hasNumber = found or row["opened"] or row["closed"]
    if (lowest > 1 or (less and not missing) or not hasNumber) and not started:
        unknown.append("beginning")
    if (now in ("killed", "not closed") or less) and not ended:
        unknown.append("end")
    names = "connections", "recorded", "summarized", "lost"
    return Run(
        id=row["id"],
        host=row["host"],
        pid=row["pid"],
        first=row["first"],
        last=row["last"],
        state=now,
        lowest=lowest,
        highest=highest or row["final"],
        **dict(zip(names, _counts(row, whole=since is until is None), strict=True)),
        missing=missing,
        dropped=int(row["dropped"] or 0),
        unknown=tuple(unknown),
    )


def _shortage(row: dict[str, Any]) -> tuple[int, int, int]:
    """
    Return the number of records that the files lack, by the counts of the closing line.

    The first, of connections, is exact. The others, of summaries and gap records, are 1 if the
    files lack any.
    """
    if not row["closed"]:
        return 0, 0, 0
    return (
        max((row["recorded"] or 0) - row["records"], 0),
        int((row["summarized"] or 0) > (row["inSummaries"] or 0)),
        int((row["lost"] or 0) > (row["inLosses"] or 0)),
    )


def _counts(row: dict[str, Any], whole: bool) -> list[int]:
    """Return the numbers of connections, and of recorded, summarized and lost ones."""
    if whole and row["closed"]:
        return [row[name] or 0 for name in ("connections", "recorded", "summarized", "lost")]
    counts = [row[name] or 0 for name in ("cameRecorded", "cameSummarized", "cameLost")]
    return [sum(counts), *counts]
