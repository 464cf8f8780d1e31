"""The connection log: numbers records, queues them, and counts what becomes of them."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from json import dumps
from pathlib import Path
from threading import Event, Lock, Thread
from time import monotonic, time
from typing import Any, NamedTuple
from uuid import uuid4

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from hello_listen._clock import monotonicClock, waitFor
from hello_listen._log_file import LogFile
from hello_listen._version import __version__
from hello_listen.connection import (
    GAP_MESSAGE,
    LOG_CLOSED_MESSAGE,
    LOG_OPENED_MESSAGE,
    Connection,
    Summary,
    timestamp,
)

MAX_QUEUED_BYTES = 16 * 2**20
"""Bytes of records that are kept in memory while they cannot be written, some 55,000 records."""

JOIN_TIMEOUT = 0.1
"""Seconds that the threads of a closed log have for their last step when it is opened again."""

BATCH_INTERVAL = 0.01
"""Seconds for which records are collected before they are written together."""

MAX_BATCH_LINES = 5000
"""Most lines that are written together: while they are joined, the reactor's thread waits."""

RETRY_INTERVAL = 0.5
"""Seconds between attempts to write what could not be written."""

MAX_WRITE_DELAY = 2.0
"""Seconds that a record may wait before the log counts as failing."""

RECOVERY_TIME = 2.0
"""Seconds without a failure after which the log says that it works again."""

CLOSE_TIMEOUT = 5.0
"""Seconds that the log has at its end to write what is left."""

END_TIMEOUT = 0.5
"""Of these, the seconds reserved for the lines that say what was lost."""

PROC = Path("/proc")
"""Where Linux tells of processes (proc(5))."""

_TOTALS = "Connections: {connections}, recorded: {recorded}, summarized: {summarized}, lost: {lost}"

_log = Logger(namespace="hello_listen")


class Counts(NamedTuple):
    """What a line accounts for: sequence numbers, and connections by what became of them."""

    numbers: int
    recorded: int = 0
    summarized: int = 0
    lost: int = 0


_ONE_RECORD = Counts(1, recorded=1)
_NOTHING = Counts(0)


class ConnectionLog:
    """
    An observer that appends each connection to a file, a pipe or standard output, as JSON.

    Its records are numbered from 1 and carry its C{id}, so that each is accounted for: a gap is a
    loss. They are written by a thread of their own, which starts with the reactor or the first
    record: a blocked write delays neither connections nor process exit. A second thread reports
    records that wait for too long. L{HelloService} closes it; without a service, C{await
    log.close()} after the port has stopped.

    @ivar id: 12 random hexadecimal digits, in every line that this log writes.
    @ivar connections: how many it was told of so far; each is, or will be, one of the next three.
    @ivar recorded: how many have a written record of their own.
    @ivar summarized: how many are counted in a written summary.
    @ivar lost: how many were dropped.
    @ivar waiting: how many bytes of records are kept in memory.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        kept: int = MAX_QUEUED_BYTES,
        reactor: Any = None,
        umask: int | None = None,
    ) -> None:
        """
        Open the log.

        @param path: a file, which is made if need be, and opened anew once it was renamed or
            removed; a pipe that somebody reads; or C{-} for standard output.
        @param kept: how many bytes of records to keep while they cannot be written.
        @param reactor: the thread starts when it runs; by default the global reactor.
        @param umask: the mode bits that new files lack; by default those of the process for the
            first file, whose mode later ones get.

        @raise OSError: it cannot be opened.
        """
        if reactor is None:
            from twisted.internet import reactor
        self._reactor = reactor
        self._kept = kept
        self._umask = umask
        self._begin(path)

    def open(self) -> None:
        """
        Open the log again after L{close}, as a new run: with another C{id}, and counts from 0.

        A log that is open stays as it is.

        @raise OSError: it cannot be opened, or a write of the run before is still stuck.
        """
        if not self._closing.is_set():
            return
        for thread in filter(None, (self._thread, self._watcher)):
            thread.join(JOIN_TIMEOUT)
            if thread.is_alive():
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(self._file))
        self._begin(str(self._file))

    def _begin(self, path: str | os.PathLike[str]) -> None:
        """Open the file, and begin a run."""
        self.id = uuid4().hex[-12:]
        self.connections = self.recorded = self.summarized = self.lost = 0
        self._file = LogFile(path, self._umask)
        self._identity = f', "service.instance.id": "{self.id}", "sequence": '
        self._sequence = 0
        self._reopen = False
        self._failure: str | None = None
        self._failedAt = 0.0
        self._telling = Lock()
        self._watcher: Thread | None = None
        self._thread: Thread | None = None
        self._wake = Event()
        self._busy = Event()
        self._closing = Event()
        self._givenUp = Event()
        self._ended = Event()
        self._limit: Any = None
        self._closed: Deferred[ConnectionLog] = Deferred()
        # What follows is shared with the threads, and the lock guards it.
        self._lock = Lock()
        self._lines: list[str] = []
        self._counts: list[Counts] = []
        self.waiting = 0
        self._missing: dict[str, int] = {}
        # Arrival of the first queued line, and of the first line that is being written.
        self._queuedAt = 0.0
        self._takenAt: float | None = None
        self._isTorn = False
        # Not now: a daemonizing twistd forks, and threads do not survive that.
        self._reactor.callWhenRunning(self._start)

    @property
    def failing(self) -> str | None:
        """Why the log, or the file that its path leads to, cannot be written; or L{None}."""
        return self._failure or self._file.stale

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
                isFirst = not self._missing
                self._miss(count)
            else:
                if self._missing:
                    self._endMissing()
                isFirst = not self._lines
                if isFirst:
                    self._queuedAt = monotonic()
                self._lines.append(line)
                self._counts.append(
                    _ONE_RECORD if isinstance(record, Connection) else Counts(1, summarized=count)
                )
                self.waiting += len(line)
        if self._thread is None:
            self._start()
        if isFirst:
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
            clock = monotonicClock(self._reactor)
            if self._thread is None:
                self._file.close()
                self._closed.callback(self)
            else:
                self._limit = clock.callLater(CLOSE_TIMEOUT - END_TIMEOUT, self._givenUp.set)
            self._closed.addTimeout(CLOSE_TIMEOUT, clock).addBoth(self._finish)
        return self._closed

    def _start(self) -> None:
        """Start the threads, unless they are there."""
        if self._thread is None and not self._closing.is_set():
            try:
                self._watcher = self._watcher or _started(self._watch, "connection log watch")
                self._thread = _started(self._run, "connection log")
            except RuntimeError as error:
                self._failure = str(error)
                raise

    def _miss(self, count: int) -> None:
        """Count a record that there is no room for; gaps are contiguous."""
        missing = self._missing
        missing["count"] = missing.get("count", 0) + 1
        missing["connections"] = missing.get("connections", 0) + count
        missing.setdefault("sequence.first", self._sequence)
        missing["sequence.last"] = self._sequence

    def _endMissing(self) -> None:
        """Queue a gap record."""
        counts = Counts(self._missing["count"], lost=self._missing["connections"])
        self._tell(GAP_MESSAGE, self._missing, counts)
        self._missing = {}

    def _tell(
        self, message: str, fields: Mapping[str, str | int], counts: Counts = _NOTHING
    ) -> None:
        """Queue a line about the log itself."""
        line = self._about(message, fields)
        if not self._lines:
            self._queuedAt = monotonic()
        self._lines.append(line)
        self._counts.append(counts)
        self.waiting += len(line)

    def _about(self, message: str, fields: Mapping[str, str | int]) -> str:
        """Return a line about the log itself."""
        head = {"timestamp": timestamp(time()), "message": message, "service.instance.id": self.id}
        return dumps({**head, **fields}) + "\n"

    def _total(self) -> dict[str, int]:
        """Return what has become of the connections so far, and the last number given out."""
        names = "connections", "recorded", "summarized", "lost"
        return {name: getattr(self, name) for name in names} | {"sequence.last": self._sequence}

    def _run(self) -> None:
        """Write batch after batch, between two lines about the log, until it is closed."""
        opened: dict[str, str | int] = {"service.version": __version__}
        opened |= {"process.pid": os.getpid(), "host.name": socket.gethostname(), **_process()}
        with self._lock:
            self._tell(LOG_OPENED_MESSAGE, opened)
            for queue in (self._lines, self._counts):
                queue.insert(0, queue.pop())  # type: ignore[arg-type]
        written, closing = True, False
        while written and not closing:
            closing = self._closing.is_set()
            if not self._busy.is_set():
                self._busy.set()
            written = self._writeLines()
            if written and self._failure:
                self._recover()
            if self._reopen:
                self._reopen = False
                with suppress(OSError):  # The next write reports it.
                    self._file.reopen()
            if not closing:
                if self._failure:
                    waitFor(self._wake, RECOVERY_TIME)
                else:
                    self._wake.wait()
                waitFor(self._closing, BATCH_INTERVAL)
                self._wake.clear()
        if written:
            with self._lock:
                self._tell(LOG_CLOSED_MESSAGE, self._total())
            written = self._writeLines()
        if not written:
            self._writeLast()
        self._file.close()
        self._end()
        self._reactor.callFromThread(self._closed.callback, self)

    def _writeLines(self) -> bool:
        """Write the lines that wait. Return False if the time limit came first."""
        while True:
            batch, counts = self._takeBatch()
            if not batch:
                return True
            if not self._write(batch, counts):
                return False

    def _takeBatch(self) -> tuple[bytes, list[Counts]]:
        """Return the next lines to be written, and what each counts."""
        with self._lock:
            if self._missing:
                self._endMissing()
            self._takenAt = self._queuedAt if self._lines else None
            lines, self._lines = self._lines[:MAX_BATCH_LINES], self._lines[MAX_BATCH_LINES:]
            counts, self._counts = self._counts[:MAX_BATCH_LINES], self._counts[MAX_BATCH_LINES:]
        return "".join(lines).encode(), counts

    def _write(self, batch: bytes, counts: list[Counts]) -> bool:
        """Write a batch, retrying on errors. Return False if the time limit came first."""
        start = counted = 0
        while start < len(batch):
            try:
                written = self._file.write(batch, start)
            except OSError as error:
                self._fail(error.strerror or str(error))
                waitFor(self._givenUp, RETRY_INTERVAL)
                written = 0
            with self._lock:
                if self._ended.is_set():
                    return False
                begun, start = start, start + written
                self.waiting -= written
                # Counting the lines takes 0.09 µs for each, so do that for parts only.
                isPart = start < len(batch)
                whole = counted + batch.count(b"\n", begun, start) if isPart else len(counts)
                self._count(counts[counted:whole])
                counted = whole
                if isPart and self._givenUp.is_set():
                    self._counts[:0] = counts[counted:]
                    self._isTorn = start > 0 and batch[start - 1] != ord("\n")
                    return False
        return True

    def _writeLast(self) -> None:
        """Write the end without retrying: a full disk may have room for a shorter line."""
        with self._lock:
            if self._ended.is_set():
                return
            self.lost = self.connections - self.recorded - self.summarized
            numbers = self._missing.get("count", 0) + sum(each.numbers for each in self._counts)
            missing = {
                "count": numbers,
                "connections": self._missing.get("connections", 0)
                + sum(sum(each[1:]) for each in self._counts),
                "sequence.first": self._sequence - numbers + 1,
                "sequence.last": self._sequence,
            }
            closed = self._about(LOG_CLOSED_MESSAGE, self._total())
        told = self._about(GAP_MESSAGE, missing) if numbers else ""
        before = "\n" if self._isTorn else ""
        for text in (told + closed, closed):
            with suppress(OSError):
                self._file.write((before + text).encode(), 0, whole=True)
                return

    def _count(self, counts: list[Counts]) -> None:
        """Count the connections in lines that were written."""
        records = counts.count(_ONE_RECORD)
        self.recorded += records
        if records < len(counts):
            self.summarized += sum(each.summarized for each in counts)

    def _fail(self, reason: str) -> None:
        """Log the first failure only."""
        with self._telling:
            self._failedAt = monotonic()
            if self._failure is None:
                self._failure = reason
                _log.critical(
                    "Connection log failed, records are kept in memory: {reason}: {path!r}",
                    reason=reason,
                    path=str(self._file),
                )

    def _recover(self) -> None:
        """Log that nothing has failed for a while."""
        with self._telling:
            if monotonic() >= self._failedAt + RECOVERY_TIME:
                self._failure = None
                _log.info("Connection log works again: {path!r}", path=str(self._file))

    def _watch(self) -> None:
        """Report records that wait for too long; the other thread may be stuck in a write."""
        pause = MAX_WRITE_DELAY
        while True:
            self._busy.wait()
            self._busy.clear()
            if waitFor(self._ended, pause):
                return
            now = monotonic()
            with self._lock:
                oldest = self._queuedAt if self._lines else None
                if self._takenAt is not None:
                    oldest = self._takenAt
            if oldest is None:
                pause = MAX_WRITE_DELAY
                continue
            self._busy.set()
            pause = oldest + MAX_WRITE_DELAY - now
            if pause <= 0:
                pause = RETRY_INTERVAL
                self._fail(f"records have waited for {MAX_WRITE_DELAY:g} seconds")
                self._wake.set()

    def _end(self) -> None:
        """Count no more, and end the thread that watches."""
        with self._lock:
            self._ended.set()
        self._busy.set()

    def _finish(self, _: object) -> ConnectionLog:
        """Count what is left as lost, and log the counts."""
        if self._limit is not None and self._limit.active():
            self._limit.cancel()
        self._givenUp.set()
        self._end()
        self.lost = self.connections - self.recorded - self.summarized
        _log.info(_TOTALS, **self._total())
        return self


def _started(target: Callable[[], None], name: str) -> Thread:
    """Start a thread that does not delay the end of the process."""
    thread = Thread(target=target, name=name, daemon=True)
    thread.start()
    return thread


def _process() -> dict[str, str | int]:
    """Return what tells this process from all others, as far as the system tells: see proc(5)."""
    found: dict[str, str | int] = {}
    with suppress(OSError):
        found["host.boot.id"] = (PROC / "sys/kernel/random/boot_id").read_text().strip()
    with suppress(OSError):
        found["process.pid_namespace"] = (PROC / "self/ns/pid").stat().st_ino
    with suppress(OSError, IndexError, ValueError):
        # The name, in parentheses, may hold anything; the third field follows it.
        fields = (PROC / "self/stat").read_bytes().rpartition(b")")[2].split()
        found["process.start_ticks"] = int(fields[22 - 3])
    return found
