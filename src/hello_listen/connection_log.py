"""The connection log: numbers records, queues them, and counts what becomes of them."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from json import dumps, loads
from threading import Event, Lock, Thread
from time import monotonic, time
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from twisted.internet.defer import Deferred
from twisted.logger import Logger

import hello_listen
from hello_listen.connection import MESSAGE, SUMMARIZED, Connection, timestamp
from hello_listen.log_file import LogFile

if TYPE_CHECKING:
    from hello_listen.summaries import Summary

KEPT = 16 * 2**20
"""Bytes of records that are kept in memory while they cannot be written, some 55,000 records."""

BATCH = 0.01
"""Seconds for which records are collected before they are written together."""

LINES = 5000
"""Most lines that are written together: while they are joined, the reactor's thread waits."""

RETRY = 0.5
"""Seconds between attempts to write what could not be written."""

HELD = 2.0
"""Seconds without a failure after which the log says that it works again."""

CLOSING = 5.0
"""Seconds that the log has at its end to write what is left."""

_RECORDED = f'"message": "{MESSAGE}"'.encode()
_SUMMARIZED = f'"message": "{SUMMARIZED}"'.encode()

_COUNTS = "Connections: {connections}, recorded: {recorded}, summarized: {summarized}, lost: {lost}"

_log = Logger(namespace="hello_listen")


class ConnectionLog:
    """
    An observer that appends each connection to a file, a pipe or standard output, as JSON.

    Its records are numbered from 1 and carry its C{id}, so that each is accounted for: a gap is a
    loss. They are written by a thread of their own, which starts with the reactor or the first
    record: a blocked write delays neither connections nor process exit.

    @ivar id: 12 random hexadecimal digits, in every line that this log writes.
    @ivar connections: how many it was told of so far; each is, or will be, one of the next three.
    @ivar recorded: how many have a written record of their own.
    @ivar summarized: how many are counted in a written summary.
    @ivar lost: how many were dropped.
    @ivar waiting: how many bytes of records are kept in memory.
    @ivar failing: why it cannot be written at the moment, or L{None}.
    """

    def __init__(self, path: str | os.PathLike[str], kept: int = KEPT, reactor: Any = None) -> None:
        """
        Open the log.

        @param path: a file, which is made if need be, and opened anew once it was renamed or
            removed; a pipe that somebody reads; or C{-} for standard output.
        @param kept: how many bytes of records to keep while they cannot be written.
        @param reactor: when it runs, the log is opened; by default the global reactor.

        @raise OSError: it cannot be opened.
        """
        if reactor is None:
            from twisted.internet import reactor
        self.id = uuid4().hex[-12:]
        self.connections = self.recorded = self.summarized = self.lost = 0
        self.failing: str | None = None
        self._file = LogFile(path)
        self._reactor = reactor
        self._kept = kept
        self._identity = f', "service.instance.id": "{self.id}", "sequence": '
        self._sequence = 0
        self._reopen = False
        self._failedAt = 0.0
        self._thread: Thread | None = None
        self._wake = Event()
        self._closing = Event()
        self._givenUp = Event()
        self._closed: Deferred[ConnectionLog] = Deferred()
        # What follows is shared with the thread, and the lock guards it.
        self._lock = Lock()
        self._lines: list[str] = []
        self.waiting = 0
        self._missing: dict[str, int] = {}
        # Not now: a daemonizing twistd forks, and threads do not survive that.
        reactor.callWhenRunning(self._start)

    def __call__(self, record: Connection | Summary) -> None:
        """
        Take a connection, or a summary of several, to be recorded. This does not block.

        @param record: what to record.

        @raise ValueError: the log is closed.
        """
        if self._closing.is_set():
            raise ValueError("the connection log is closed")
        self._sequence += 1
        line = f"{record.json()[:-1]}{self._identity}{self._sequence}}}\n"
        count = record.count
        with self._lock:
            self.connections += count
            if self.waiting + len(line) > self._kept:
                self.lost += count
                self._miss(count)
            else:
                if self._missing:
                    self._endMissing()
                self._lines.append(line)
                self.waiting += len(line)
        if self._thread is None:
            self._start()
        if not self._wake.is_set():
            self._wake.set()

    def reopen(self) -> None:
        """Have the thread open the file anew, as logrotate wants. This does not block."""
        self._reopen = True
        self._wake.set()

    def close(self) -> Deferred[ConnectionLog]:
        """
        Take no more records, write what is left, close the file, and log how much was recorded.

        @return: a L{Deferred} that fires with this log when that is done, after 5 seconds at most.
            A write that is stuck for longer closes the file when it ends.
        """
        if not self._closing.is_set():
            self._closing.set()
            self._wake.set()
            if self._thread is None:
                self._file.close()
                self._closed.callback(self)
            self._closed.addTimeout(CLOSING, self._reactor).addBoth(self._finish)
        return self._closed

    def _start(self) -> None:
        """Start the thread, unless there is one."""
        if self._thread is None and not self._closing.is_set():
            thread = Thread(target=self._run, name="connection log", daemon=True)
            thread.start()
            self._thread = thread

    def _miss(self, count: int) -> None:
        """Count a record that there is no room for; those that are missing follow each other."""
        missing = self._missing
        missing["count"] = missing.get("count", 0) + 1
        missing["connections"] = missing.get("connections", 0) + count
        missing.setdefault("sequence.first", self._sequence)
        missing["sequence.last"] = self._sequence

    def _endMissing(self) -> None:
        """Put a line where records are missing."""
        self._tell("Connections not recorded", self._missing, len(self._lines))
        self._missing = {}

    def _tell(self, message: str, fields: Mapping[str, str | int], index: int = 0) -> None:
        """Put a line about the log itself among those that wait."""
        head = {"timestamp": timestamp(time()), "message": message, "service.instance.id": self.id}
        self._lines.insert(index, dumps({**head, **fields}) + "\n")
        self.waiting += len(self._lines[index])

    def _counts(self) -> dict[str, int]:
        """Return what has become of the connections so far."""
        names = "connections", "recorded", "summarized", "lost"
        return {name: getattr(self, name) for name in names}

    def _run(self) -> None:
        """Write batch after batch, between two lines about the log, until it is closed."""
        opened: dict[str, str | int] = {"service.version": hello_listen.__version__}
        opened |= {"process.pid": os.getpid(), "host.name": socket.gethostname()}
        with self._lock:
            self._tell("Connection log opened", opened)
        written, closing = True, False
        while written and not closing:
            closing = self._closing.is_set()
            while written and (batch := self._takeBatch()):
                written = self._write(batch)
            if written and self.failing and monotonic() >= self._failedAt + HELD:
                self.failing = None
                _log.info("Connection log works again: {path!r}", path=str(self._file))
            if self._reopen:
                self._reopen = False
                with suppress(OSError):  # The next record will tell.
                    self._file.reopen()
            if not closing:
                self._wake.wait(HELD if self.failing else None)
                self._closing.wait(BATCH)
                self._wake.clear()
        if written:
            with self._lock:
                self._tell("Connection log closed", self._counts())
            self._write(self._takeBatch())
        self._file.close()
        self._reactor.callFromThread(self._closed.callback, self)

    def _takeBatch(self) -> bytes:
        """Return the next lines to be written."""
        with self._lock:
            if self._missing:
                self._endMissing()
            lines, self._lines = self._lines[:LINES], self._lines[LINES:]
        return "".join(lines).encode()

    def _write(self, batch: bytes) -> bool:
        """Write a batch, retrying on errors. Return False if the time limit came first."""
        start = counted = 0
        while start < len(batch):
            try:
                written = self._file.write(batch, start)
            except OSError as error:
                self._fail(error)
                self._givenUp.wait(RETRY)
                written = 0
            with self._lock:
                if self._givenUp.is_set():
                    return False
                start += written
                self.waiting -= written
                whole = batch.rfind(b"\n", 0, start) + 1
                self._count(batch[counted:whole])
                counted = whole
        return True

    def _count(self, lines: bytes) -> None:
        """Count the connections in lines that were written."""
        # Quotes within a value are escaped, so no address looks like a message.
        self.recorded += lines.count(_RECORDED)
        if _SUMMARIZED in lines:
            summaries = [line for line in lines.splitlines() if _SUMMARIZED in line]
            self.summarized += sum(loads(line)["count"] for line in summaries)

    def _fail(self, error: OSError) -> None:
        """Say once that nothing can be written."""
        self._failedAt = monotonic()
        if self.failing is None:
            self.failing = error.strerror
            _log.critical(
                "Connection log failed, records are kept in memory: {reason}: {path!r}",
                reason=error.strerror,
                path=str(self._file),
            )

    def _finish(self, _: object) -> ConnectionLog:
        """Count what is left as lost, and log the counts."""
        with self._lock:
            self._givenUp.set()
            self.lost = self.connections - self.recorded - self.summarized
        _log.info(_COUNTS, **self._counts())
        return self
