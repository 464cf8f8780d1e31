"""What is told of a run: its counts, what is missing of it, and what cannot be known."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from hello_listen.report.facts import Run
from hello_listen.report.states import state


def makeRun(row: dict[str, Any], both: int, since: datetime | None, until: datetime | None) -> Run:
    """
    Return what is told of a run.

    @param row: a row of C{queries/runs.sql}.
    @param both: how many numbers have a record and are told of as not recorded.
    @param since: the first moment of the period to report, or L{None}.
    @param until: the first moment after it, or L{None}.
    """
    found = row["lowest"] is not None
    short = _shortage(row)
    # A closing line accounts for what was lost at the end, where nothing could be written any more.
    highest = max(row["highest"] or 0, row["final"] or 0)
    end = (row["highest"] or 0) if short == (0, 0, 1) else highest
    lowest = 1 if row["opened"] else row["lowest"] or highest + 1
    missing = max(end - lowest + 1 - row["numbers"] - row["told"] + both, 0)
    # Closing lines of earlier releases do not tell the last number.
    less = sum(short) if row["final"] is None else 0
    if lowest == 1 and (found or row["opened"]):
        missing = max(missing, less)
    now = state(row)
    # What came before or after the period does not matter to it.
    started = since is not None and row["first"] is not None and row["first"] <= since
    ended = until is not None and row["last"] is not None and row["last"] >= until
    unknown = []
    if (lowest > 1 or (less and not missing)) and not started:
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
        unknown=tuple(unknown),
    )


def _shortage(row: dict[str, Any]) -> tuple[int, int, int]:
    """
    Return how many records the files lack, by the counts of the closing line.

    That is exact for those of one connection. Of summaries, and of lines that tell of losses, it is
    1 where any is lacking.
    """
    if not row["closed"]:
        return 0, 0, 0
    return (
        max((row["recorded"] or 0) - row["records"], 0),
        int((row["summarized"] or 0) > (row["inSummaries"] or 0)),
        int((row["lost"] or 0) > (row["inLosses"] or 0)),
    )


def _counts(row: dict[str, Any], whole: bool) -> list[int]:
    """Return the connections, and how many of them were recorded, summarized and lost."""
    if whole and row["closed"]:
        return [row[name] or 0 for name in ("connections", "recorded", "summarized", "lost")]
    counts = [row[name] or 0 for name in ("cameRecorded", "cameSummarized", "cameLost")]
    return [sum(counts), *counts]
