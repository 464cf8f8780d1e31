"""The connection log: numbers records, queues them, writes them in a thread, counts losses."""

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
from twisted.internet.interfaces import IAddress
from twisted.logger import Logger

from hello_listen._addresses import hostAndPort
from hello_listen._clock import monotonicClock, waitFor
from hello_listen._log_file import LogFile
from hello_listen._version import __version__
from hello_listen.connection import (
    GAP_MESSAGE,
    LOG_CLOSED_MESSAGE,
    LOG_OPENED_MESSAGE,
    QUEUE_FULL_MESSAGE,
    Connection,
    Summary,
    timestamp,
    withoutNone,
)

MAX_QUEUED_BYTES = 16 * 2**20
"""Upper bound of the queue in memory, in bytes: some 55,000 records."""

JOIN_TIMEOUT = 0.1
"""Seconds that L{ConnectionLog.open} waits for each thread of the previous run to end."""

BATCH_INTERVAL = 0.01
"""Seconds for which records are collected into a batch."""

MAX_BATCH_LINES = 5000
"""Upper bound of a batch, in lines: the thread that joins them holds the interpreter's lock."""

RETRY_INTERVAL = 0.5
"""Seconds between attempts after a write has failed."""

MAX_WRITE_DELAY = 2.0
"""Seconds that a record may stay in the queue before the log counts as failing."""

RECOVERY_TIME = 2.0
"""Seconds without a failure after which the log counts as working again."""

CLOSE_TIMEOUT = 5.0
"""Upper bound of L{ConnectionLog.close}, in seconds."""

END_TIMEOUT = 0.5
"""Seconds of the close timeout that are reserved for the lines that count losses."""

PROC = Path("/proc")
"""Linux's files about processes (proc(5))."""

_TOTALS = "Connections: {connections}, recorded: {recorded}, summarized: {summarized}, lost: {lost}"

_log = Logger(namespace="hello_listen")


class Counts(NamedTuple):
    """The sequence numbers and the connections, by outcome, that a line accounts for."""

    numbers: int
    recorded: int = 0
    summarized: int = 0
    lost: int = 0


_ONE_RECORD = Counts(1, recorded=1)
_NOTHING = Counts(0)


class ConnectionLog:
    """
    An observer that appends each connection to a file, a pipe or standard output, as JSON.

    It numbers its records from 1 and adds its C{id} to each, so that a gap in the numbers shows a
    loss. A thread writes them, so that a blocked write delays no connection, nor the end of the
    process unless the kernel cannot interrupt it; the thread starts with the reactor or the first
    record. A second thread reports records that wait too
    long. L{HelloService} closes the log; without a service, C{await log.close()} after the port has
    stopped.

    >>> from twisted.internet.address import IPv4Address
    >>> from hello_listen import Connection, ConnectionLog
    >>> client = IPv4Address("TCP", "203.0.113.7", 51974)
    >>> connection = Connection(1795348800.0, client, IPv4Address("TCP", "192.0.2.1", 7878))
    >>> log = ConnectionLog("connections.jsonl")
    >>> log(connection)
    >>> closed = log.close()

    @ivar id: 12 random hexadecimal digits, in every line that this log writes.
    @ivar connections: number of connections that it was called with; each ends up in one of the
        next three counts.
    @ivar recorded: number of connections with a written record of their own.
    @ivar summarized: number of connections that a written summary counts.
    @ivar lost: number of connections that will never be in the log.
    @ivar waiting: bytes of records in memory.
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

        @param path: a file, which is created if it does not exist, and reopened after it was
            renamed or removed; a pipe with a reader; or C{-} for standard output.
        @param kept: the upper bound of the queue in memory, in bytes.
        @param reactor: the thread starts when this runs; by default the global reactor.
        @param umask: the umask for new files. By default, the first file gets the umask of the
            process, and later files get the mode of the file before them.

        @raise OSError: the path cannot be opened.
        """
        if reactor is None:
            from twisted.internet import reactor
        self._reactor = reactor
        self._kept = kept
        self._umask = umask
        self._begin(path)

    def open(self) -> None:
        """
        Open the log again after L{close}, as a new run, with a new C{id} and all counts at 0.

        On an open log, this does nothing.

        @raise OSError: the path cannot be opened, or a write of the previous run is still blocked.
        """
        if not self._closing.is_set():
            return
        for thread in filter(None, (self._thread, self._watcher)):
            thread.join(JOIN_TIMEOUT)
            if thread.is_alive():
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(self._file))
        self._begin(str(self._file))

    def _begin(self, path: str | os.PathLike[str]) -> None:
        """Open the file and start a run."""
        self.id = uuid4().hex[-12:]
        self.connections = self.recorded = self.summarized = self.lost = 0
        self._file = LogFile(path, self._umask)
        self._identity = f', "service.instance.id": "{self.id}", "sequence": '
        self._sequence = 0
        self._packets = 0
        self._reopen = False
        self._failure: str | None = None
        self._failedAt = 0.0
        self._telling = Lock()
        self._watcher: Thread | None = None
        self._thread: Thread | None = None
        self._wake = Event()
        self._busy = Event()
        self._isClosed = False
        self._closing = Event()
        self._givenUp = Event()
        self._ended = Event()
        self._limit: Any = None
        self._closed: Deferred[ConnectionLog] = Deferred()
        # The lock guards all attributes from here on, which the threads share.
        self._lock = Lock()
        self._lines: list[str] = []
        self._counts: list[Counts] = []
        self.waiting = 0
        self._missing: dict[str, int] = {}
        # When the oldest line of the queue was added, and the oldest line of the current batch.
        self._queuedAt = 0.0
        self._takenAt: float | None = None
        self._isTorn = False
        # Not yet: threads do not survive the fork of a daemonizing twistd.
        self._reactor.callWhenRunning(self._start)

    @property
    def failing(self) -> str | None:
        """Why the log, or the file at its path, cannot be written; or L{None}."""
        return self._failure or self._file.stale

    def __call__(self, record: Connection | Summary) -> None:
        """
        Queue a connection, or a summary of several. This does not block.

        @param record: the connection or summary.

        @raise ValueError: the log is closed.
        """
        if self._isClosed:
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

    def dropped(self, server: IAddress, packets: int) -> None:
        """
        Queue a line, without a sequence number, that clients may be missing. This does not block.

        If the queue has no room, there is no line: the next gap record says that some are missing.

        @param server: the address of a port whose accept queue was full.
        @param packets: the upper bound of the packets of clients that the system dropped.

        @raise ValueError: the log is closed.
        """
        if self._isClosed:
            raise ValueError("the connection log is closed")
        address, port = hostAndPort(server)
        self._packets += packets
        fields: dict[str, str | int | None] = {
            "server.address": address,
            "server.port": port,
            "packets": packets,
            "packets.total": self._packets,
        }
        with self._lock:
            if self.waiting < self._kept:
                self._tell(QUEUE_FULL_MESSAGE, withoutNone(fields))
        if self._thread is None:
            self._start()
        self._wake.set()

    def reopen(self) -> None:
        """Have the thread reopen the file, for logrotate. This does not block."""
        self._reopen = True
        self._wake.set()

    def close(self) -> Deferred[ConnectionLog]:
        """
        Refuse further records, write the queue, close the file, and log the counts.

        @return: a L{twisted.internet.defer.Deferred} that fires with this log when that is done,
            within 5 seconds. If a write is still blocked then, the thread closes the file when the
            write ends.
        """
        if not self._closing.is_set():
            self._isClosed = True  # Read for each record: faster than the event.
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
        """Start the threads that do not run yet."""
        if self._thread is None and not self._closing.is_set():
            try:
                self._watcher = self._watcher or _started(self._watch, "connection log watch")
                self._thread = _started(self._run, "connection log")
            except RuntimeError as error:
                self._failure = str(error)
                raise

    def _miss(self, count: int) -> None:
        """Count a record for which the queue has no room; gaps are contiguous."""
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
        """Return the counts of connections so far, and the last sequence number."""
        names = "connections", "recorded", "summarized", "lost"
        return {name: getattr(self, name) for name in names} | {"sequence.last": self._sequence}

    def _run(self) -> None:
        """Write the opening line, batches until the log is closed, and the closing line."""
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
        """Write the queue. Return False if the timeout came first."""
        while True:
            batch, counts = self._takeBatch()
            if not batch:
                return True
            if not self._write(batch, counts):
                return False

    def _takeBatch(self) -> tuple[bytes, list[Counts]]:
        """Remove a batch from the queue, and return it with the counts of its lines."""
        with self._lock:
            if self._missing:
                self._endMissing()
            self._takenAt = self._queuedAt if self._lines else None
            lines, self._lines = self._lines[:MAX_BATCH_LINES], self._lines[MAX_BATCH_LINES:]
            counts, self._counts = self._counts[:MAX_BATCH_LINES], self._counts[MAX_BATCH_LINES:]
        return "".join(lines).encode(), counts

    def _write(self, batch: bytes, counts: list[Counts]) -> bool:
        """Write a batch, retrying on errors. Return False if the timeout came first."""
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
                # After a whole batch, the number of lines is known, and counting takes time.
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
        """Write the last lines without retrying: a full disk may have room for the shorter text."""
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
        """Add the connections of written lines to the counts."""
        records = counts.count(_ONE_RECORD)
        self.recorded += records
        if records < len(counts):
            self.summarized += sum(each.summarized for each in counts)

    def _fail(self, reason: str) -> None:
        """Record a failure, and log the first only."""
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
        """Log that the log works again, if nothing has failed for long enough."""
        with self._telling:
            if monotonic() >= self._failedAt + RECOVERY_TIME:
                self._failure = None
                _log.info("Connection log works again: {path!r}", path=str(self._file))

    def _watch(self) -> None:
        """Report records that wait too long: the writing thread may be blocked."""
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
        """Stop counting, and end the watching thread."""
        with self._lock:
            self._ended.set()
        self._busy.set()

    def _finish(self, _: object) -> ConnectionLog:
        """Count unwritten connections as lost, and log the counts."""
        if self._limit is not None and self._limit.active():
            self._limit.cancel()
        self._givenUp.set()
        self._end()
        self.lost = self.connections - self.recorded - self.summarized
        _log.info(_TOTALS, **self._total())
        return self


def _started(target: Callable[[], None], name: str) -> Thread:
    """Start a daemon thread, which does not delay the end of the process."""
    thread = Thread(target=target, name=name, daemon=True)
    thread.start()
    return thread


def _process() -> dict[str, str | int]:
    """Return the fields that identify this process among all, as far as proc(5) has them."""
    found: dict[str, str | int] = {}
    with suppress(OSError):
        found["host.boot.id"] = (PROC / "sys/kernel/random/boot_id").read_text().strip()
    with suppress(OSError):
        found["process.pid_namespace"] = (PROC / "self/ns/pid").stat().st_ino
    with suppress(OSError, IndexError, ValueError):
        # Field 2, the name in parentheses, may contain spaces and parentheses; field 3 follows.
        fields = (PROC / "self/stat").read_bytes().rpartition(b")")[2].split()
        found["process.start_ticks"] = int(fields[22 - 3])
    return found
