"""The connection log: numbers records, queues them, and counts what becomes of them."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from json import dumps, loads
from threading import Event, Lock, Thread
from time import monotonic, time
from typing import Any
from uuid import uuid4

from twisted.internet.defer import Deferred
from twisted.logger import Logger

import hello_listen
from hello_listen.connection import MESSAGE, SUMMARIZED, Connection, Summary, timestamp
from hello_listen.log_file import LogFile

KEPT = 16 * 2**20
"""Bytes of records that are kept in memory while they cannot be written, some 55,000 records."""

BATCH = 0.01
"""Seconds for which records are collected before they are written together."""

LINES = 5000
"""Most lines that are written together: while they are joined, connections wait."""

RETRY = 0.5
"""Seconds between attempts to write what could not be written."""

HELD = 2.0
"""Seconds without a failure after which the log works again."""

CLOSING = 5.0
"""Seconds that the log has at its end to write what is left."""

_RECORDED = f'"message": "{MESSAGE}"'.encode()
_SUMMARIZED = f'"message": "{SUMMARIZED}"'.encode()

_log = Logger(namespace="hello_listen")


class ConnectionLog:
    """
    An observer that appends each connection to a file, a pipe or standard output, as JSON.

    Its records are numbered from 1 and carry its C{id}, so that each is accounted for: a gap is a
    loss. They are written by a thread of their own, which starts when the reactor runs: a blocked
    write delays neither connections nor process exit.

    @ivar id: 12 random hexadecimal digits, in every line that this log writes.
    @ivar connections: how many it was told of so far; each is, or will be, one of the next three.
    @ivar recorded: how many have a written record of their own.
    @ivar summarized: how many are counted in a written summary.
    @ivar lost: how many were dropped.
    @ivar failing: why it cannot be written at the moment, or L{None}.
    """

    def __init__(self, path: str | os.PathLike[str], kept: int = KEPT, reactor: Any = None) -> None:
        """
        Open the log.

        @param path: a file, which is made if need be, and opened anew once it was renamed or
            removed; a pipe that somebody reads; or C{-} for standard output.
        @param kept: how many bytes of records to keep while they cannot be written.
        @param reactor: when it runs, the thread starts; by default the global reactor.

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
        self._numbered = f'"service.instance.id": "{self.id}", "sequence": '
        self._sequence = 0
        self._reopen = False
        self._failedAt = 0.0
        self._thread: Thread | None = None
        self._wake = Event()
        self._closing = Event()
        self._isOver = Event()
        self._closed: Deferred[ConnectionLog] = Deferred()
        self._limit: Any = None
        # What follows is shared with the thread, and the lock guards it.
        self._lock = Lock()
        self._lines: list[str] = []
        self._size = 0
        self._missing: tuple[int, int, int, int] | None = None
        self._batch = b""
        self._written = 0
        # No earlier: a daemonizing twistd forks, and threads do not survive that.
        reactor.callWhenRunning(self._start)

    @property
    def waiting(self) -> int:
        """How many bytes of records are kept in memory."""
        return self._size

    def __call__(self, record: Connection | Summary) -> None:
        """
        Take a connection, or a summary of several, to be recorded. This does not block.

        @param record: what to record.

        @raise ValueError: the log is closed.
        """
        if self._closing.is_set():
            raise ValueError("the connection log is closed")
        self._sequence += 1
        line = record.json(f"{self._numbered}{self._sequence}, ") + "\n"
        count = 1 if isinstance(record, Connection) else record.count
        with self._lock:
            self.connections += count
            if self._size + len(line) > self._kept:
                first, _, numbers, connections = self._missing or (self._sequence, 0, 0, 0)
                self._missing = first, self._sequence, numbers + 1, connections + count
                self.lost += count
            else:
                if self._missing:
                    self._tellMissing()
                self._lines.append(line)
                self._size += len(line)
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
                self._finish()
            else:
                self._limit = self._reactor.callLater(CLOSING, self._finish)
        return self._closed

    def _start(self) -> None:
        """Start the thread, unless there is one."""
        if self._thread is not None or self._closing.is_set():
            return
        opened = self._line(
            "Connection log opened",
            {
                "service.version": hello_listen.__version__,
                "process.pid": os.getpid(),
                "host.name": socket.gethostname(),
            },
        )
        thread = Thread(target=self._run, name="connection log", daemon=True)
        # A thread that is woken at once waits until its first line is there.
        with self._lock:
            thread.start()
            self._lines.insert(0, opened)
            self._size += len(opened)
        self._thread = thread
        self._wake.set()

    def _line(self, message: str, fields: dict[str, str | int]) -> str:
        """Return a line about the log itself."""
        head = {"timestamp": timestamp(time()), "message": message, "service.instance.id": self.id}
        return dumps(head | fields) + "\n"

    def _tellMissing(self) -> None:
        """Put a line where records are missing."""
        first, last, numbers, connections = self._missing or (0, 0, 0, 0)
        line = self._line(
            "Connections not recorded",
            {
                "count": numbers,
                "connections": connections,
                "sequence.first": first,
                "sequence.last": last,
            },
        )
        self._lines.append(line)
        self._size += len(line)
        self._missing = None

    def _run(self) -> None:
        """Write batch after batch, until the log is closed."""
        written, closing = True, False
        while written and not closing:
            self._wake.wait(HELD if self.failing else None)
            self._closing.wait(BATCH)
            self._wake.clear()
            closing = self._closing.is_set()
            while written and self._takeBatch():
                written = self._writeBatch()
            if self.failing and monotonic() >= self._failedAt + HELD:
                self.failing = None
                _log.info("Connection log works again: {path!r}", path=str(self._file))
            if self._reopen:
                self._follow()
        if written:
            counts: dict[str, str | int] = {
                "connections": self.connections,
                "recorded": self.recorded,
                "summarized": self.summarized,
                "lost": self.lost,
            }
            with self._lock:
                self._batch = self._line("Connection log closed", counts).encode()
                self._size += len(self._batch)
                self._written = 0
            self._writeBatch()
        self._file.close()
        self._reactor.callFromThread(self._finish)

    def _follow(self) -> None:
        """Open the file anew; where that fails, the next record tells."""
        self._reopen = False
        with suppress(OSError):
            self._file.reopen()

    def _takeBatch(self) -> bool:
        """Take what waits to be written, and say whether that is anything."""
        with self._lock:
            if self._missing:
                self._tellMissing()
            lines, self._lines = self._lines[:LINES], self._lines[LINES:]
            self._batch, self._written = "".join(lines).encode(), 0
        return bool(self._batch)

    def _writeBatch(self) -> bool:
        """Write the batch, retrying on errors. Return False if the time limit came first."""
        while self._written < len(self._batch):
            try:
                written = self._file.write(self._batch, self._written)
            except OSError as error:
                self._fail(error)
                self._isOver.wait(RETRY)
                written = 0
            with self._lock:
                if self._isOver.is_set():
                    return False
                self._written += written
                self._size -= written
        self._count()
        return True

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

    def _count(self) -> None:
        """Count what was written of the batch."""
        with self._lock:
            end = self._batch.rfind(b"\n", 0, self._written) + 1
            recorded, summarized = _weigh(self._batch[:end])
            self.recorded += recorded
            self.summarized += summarized
            self._batch, self._written = self._batch[end:], self._written - end

    def _finish(self) -> None:
        """Count what is left as lost, and log the counts."""
        if self._isOver.is_set():
            return
        with self._lock:
            self._isOver.set()
        if self._limit is not None and self._limit.active():
            self._limit.cancel()
        self._count()
        with self._lock:
            self.lost += sum(_weigh(self._batch + "".join(self._lines).encode()))
        _log.info(
            "Connections: {connections}, recorded: {recorded}, summarized: {summarized}, "
            "lost: {lost}",
            connections=self.connections,
            recorded=self.recorded,
            summarized=self.summarized,
            lost=self.lost,
        )
        self._closed.callback(self)


def _weigh(lines: bytes) -> tuple[int, int]:
    """Return how many connections are recorded in whole lines, and how many summarized."""
    # Quotes within a value are escaped, so no address looks like a message.
    recorded = lines.count(_RECORDED)
    if _SUMMARIZED not in lines:
        return recorded, 0
    summaries = [line for line in lines.splitlines() if _SUMMARIZED in line]
    return recorded, sum(loads(line)["count"] for line in summaries)
