"""The DuckDB database of the logs' lines, and the queries over it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.resources import files
from threading import Event
from typing import Any

import duckdb

MAX_MEMORY = "400MB"
"""Memory for DuckDB's tables, without its buffers; beyond it, DuckDB uses the temporary folder."""

MAX_THREADS = 4
"""Threads that read, each with a buffer of 32 MiB."""

_QUERIES = files("hello_listen.report") / "queries"


class Database:
    """
    A database in a temporary folder, and the queries of the folder C{queries}.

    @ivar folder: the temporary folder.
    @ivar stopped: set by L{stop}.
    """

    def __init__(self, folder: str) -> None:
        """
        Make the tables.

        @raise duckdb.Error: the folder cannot be written.
        """
        self.folder = folder
        self.stopped = Event()
        config: dict[str, Any] = {
            "memory_limit": MAX_MEMORY,
            "threads": min(MAX_THREADS, os.cpu_count() or 1),
            "preserve_insertion_order": False,
            "autoinstall_known_extensions": False,
            "temp_directory": folder,
        }
        self._connection = duckdb.connect(f"{folder}/records", config=config)
        self._connection.execute(f"SET enable_progress_bar = {sys.stdout.isatty()}")
        self.run("tables")

    def close(self) -> None:
        """Close the database."""
        self._connection.close()

    def stop(self) -> None:
        """Make the running query and all later ones fail. Any thread may call this."""
        self.stopped.set()
        self._connection.interrupt()

    def run(self, query: str, **values: object) -> None:
        """
        Run a query.

        @param query: its name.
        @param values: its parameters.

        @raise duckdb.Error: the query failed.
        """
        if self.stopped.is_set():
            raise duckdb.InterruptException("stopped")
        self._connection.execute((_QUERIES / f"{query}.sql").read_text(), values or None)

    def rows(self, query: str, **values: object) -> list[dict[str, Any]]:
        """Run a query, and return its rows as dictionaries."""
        self.run(query, **values)
        names = [column[0] for column in self._connection.description or ()]
        return [dict(zip(names, row, strict=True)) for row in self._connection.fetchall()]

    def tuples(self, query: str) -> Iterator[tuple[Any, ...]]:
        """Run a query, and yield its rows as tuples. Run no other query until it ends."""
        self.run(query)
        while rows := self._connection.fetchmany(10_000):
            yield from rows
