"""Reads logs into the database."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import count

import duckdb

from hello_listen.connection import (
    CONNECTION_MESSAGE,
    GAP_MESSAGE,
    LOG_CLOSED_MESSAGE,
    LOG_OPENED_MESSAGE,
    QUEUE_FULL_MESSAGE,
    SUMMARY_MESSAGE,
)
from hello_listen.report.database import Database
from hello_listen.report.facts import Problem
from hello_listen.report.inputs import Input
from hello_listen.report.lines import Lines

PART_SIZE = 128 * 2**20
"""Bytes of a temporary file for DuckDB, which would keep the contents of a pipe in memory."""

_MESSAGES = {
    "connection": CONNECTION_MESSAGE,
    "summary": SUMMARY_MESSAGE,
    "gap": GAP_MESSAGE,
    "full": QUEUE_FULL_MESSAGE,
    "opened": LOG_OPENED_MESSAGE,
    "closed": LOG_CLOSED_MESSAGE,
}


def readLogs(
    database: Database, inputs: Sequence[Input], since: datetime | None, until: datetime | None
) -> list[Problem]:
    """
    Read logs, and return their problems.

    DuckDB reads plain files itself, which is faster. It fails at long lines, and loses records next
    to NUL bytes and torn lines, so files with any of these are read again, line by line.

    @param database: the database that gets the records.
    @param inputs: the logs.
    @param since: the start of the period in which connections are counted, or L{None}.
    @param until: the end of the period, exclusive, or L{None}.

    @raise duckdb.Error: the records cannot be stored.
    """

    def load(paths: Iterable[str]) -> None:
        names = [glob.escape(path) for path in paths]
        if names:
            database.run("read", files=names, since=since, until=until, **_MESSAGES)

    links = {}
    for number, each in enumerate(inputs):
        if each.isPlain:
            # DuckDB rejects names that are not UTF-8, and takes some for patterns.
            links[each] = f"{database.folder}/{number}.jsonl"
            os.symlink(os.path.abspath(each.name), links[each])
    failure = None
    try:
        load(links.values())
    except duckdb.Error as error:
        failure = error
    damaged = []
    if failure or database.rows("torn")[0]["torn"]:
        damaged = [each for each in links if _isDamaged(database, each)]
    if failure and not damaged:
        raise failure
    if damaged:
        database.run("clear")
        load(link for each, link in links.items() if each not in damaged)
    problems = []
    numbers = count()
    for each in inputs:
        if not each.isPlain or each in damaged:
            lines = Lines(each.chunks(database.stopped))
            [before] = database.rows("last")
            for path in _parts(database.folder, lines, numbers):
                load([path])
            if lines.isFalse:
                database.run("remove", **before)
            if lines.damage:
                problems.append(Problem(each.name, lines.damage))
    return problems


def _isDamaged(database: Database, log: Input) -> bool:
    """Return whether a log must be read line by line."""
    lines = Lines(log.chunks(database.stopped))
    for _ in lines:
        pass
    return lines.hasTorn or lines.damage is not None


def _parts(folder: str, lines: Lines, numbers: Iterator[int]) -> Iterator[str]:
    """Write a log's lines to temporary files, and yield their paths; each exists until the next."""
    pieces = iter(lines)
    while _writePart(path := f"{folder}/part{next(numbers)}.jsonl", pieces):
        yield path
        os.unlink(path)


def _writePart(path: str, pieces: Iterator[bytes]) -> int:
    """Write the next lines to a file, and return its size in bytes."""
    size = 0
    with open(path, "wb") as file:
        for piece in pieces:
            size += file.write(piece)
            if size >= PART_SIZE:
                break
    return size
