"""Connections as JSON Lines, written beside the reactor's thread, with nothing lost in silence."""

from __future__ import annotations

import atexit
import os
import select
import stat
from contextlib import suppress
from json import dumps
from threading import Event, Lock, Thread
from time import time

from twisted.logger import Logger

from hello_listen.connection import Connection, timestamp

KEPT = 16 * 2**20
"""Bytes of records that are kept in memory while they cannot be written, some 65,000 records."""

BATCH = 0.01
"""Seconds for which records are collected before they are written together."""

RETRY = 0.5
"""Seconds between attempts to write what could not be written."""

CLOSING = 5.0
"""Seconds that the log has at its end to write what is left."""

# What is written to a pipe whole or not at all (pipe(7)), so that what is lost can be counted.
_PIPE_BUF = getattr(select, "PIPE_BUF", 4096)
_NOT_RECORDED = "Connections not recorded"

_log = Logger(namespace="hello_listen")


class ConnectionLog:
    """
    An observer that appends each connection to a file, a pipe or standard output.

    Give it to one factory, whose numbers stand in the records: a gap is a loss. Records are handed
    to a thread that is not one of the reactor's pool, so that a write that takes for ever keeps
    neither a connection waiting nor the process from its end.
    """

    def __init__(self, path: str | os.PathLike[str], kept: int = KEPT) -> None:
        """
        Open the log.

        @param path: a file, which is made if need be, and opened anew once it was renamed or
            removed; a pipe that somebody reads; or C{-} for standard output.
        @param kept: how many bytes of records to keep while they cannot be written.

        @raise OSError: it cannot be opened.
        """
        # twistd replaces sys.stdout by its log, and may change the folder.
        self._path = None if path == "-" else os.path.abspath(path)
        self._file = 1 if self._path is None else _open(self._path)
        self._kept = kept
        self._failing = self._stuck = False
        self._thread: Thread | None = None
        self._wake = Event()
        self._closing = Event()
        # What follows is shared with the thread, and the lock guards it.
        self._lock = Lock()
        self._lines: list[str] = []
        self._batch = b""
        self._written = 0
        self._size = 0
        self._missing: tuple[int, int, int] | None = None
        self._taken = self._lost = 0

    def __call__(self, connection: Connection) -> None:
        """
        Take a connection to be recorded.

        @param connection: what to record.

        @raise ValueError: the log is closed.
        """
        if self._closing.is_set():
            raise ValueError("the connection log is closed")
        line = connection.json() + "\n"
        with self._lock:
            if self._size + len(line) > self._kept:
                first, count = self._missing[::2] if self._missing else (connection.sequence, 0)
                self._missing = first, connection.sequence, count + 1
                self._lost += 1
                return
            if self._missing:
                self._tellMissing()
            self._lines.append(line)
            self._size += len(line)
            self._taken += 1
        if self._thread is None:
            # No earlier: a daemonizing twistd forks, and threads do not survive that.
            thread = Thread(target=self._run, name="connection log", daemon=True)
            thread.start()
            self._thread = thread
            atexit.register(self.close)
        if not self._wake.is_set():
            self._wake.set()

    def close(self) -> None:
        """Write what is left, for L{CLOSING} seconds at most, and log how much was recorded."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(CLOSING)
        with self._lock:
            left = self._batch[self._written :] + "".join(self._lines).encode()
            # Quotes within a value are escaped, so no address looks like this.
            told = left.count(f'"message": "{_NOT_RECORDED}"'.encode())
            unwritten = left.count(b"\n") - told
            recorded, lost = self._taken - unwritten, self._lost + unwritten
        _log.info(
            "Connections: {connections}, recorded: {recorded}, lost: {lost}",
            connections=recorded + lost,
            recorded=recorded,
            lost=lost,
        )

    def _tellMissing(self) -> None:
        """Put a record where others are missing."""
        first, last, count = self._missing or (0, 0, 0)
        record = {
            "timestamp": timestamp(time()),
            "message": _NOT_RECORDED,
            "count": count,
            "sequence.first": first,
            "sequence.last": last,
        }
        line = dumps(record) + "\n"
        self._lines.append(line)
        self._size += len(line)
        self._missing = None

    def _run(self) -> None:
        """Write batch after batch, until the log is closed."""
        closing = False
        while not closing:
            self._wake.wait()
            self._closing.wait(BATCH)
            self._wake.clear()
            closing = self._closing.is_set()
            while self._takeBatch():
                if not self._writeBatch():
                    return

    def _takeBatch(self) -> bool:
        """Take what waits to be written, and say whether that is anything."""
        with self._lock:
            if self._missing:
                self._tellMissing()
            self._batch, self._written = "".join(self._lines).encode(), 0
            self._lines = []
        return bool(self._batch)

    def _writeBatch(self) -> bool:
        """Write a batch, however often that takes; say if it was, before the log was closed."""
        while self._written < len(self._batch):
            try:
                written = self._write()
            except OSError as error:
                self._takeBack()
                self._failed(error)
                if self._closing.is_set():
                    return False
                self._closing.wait(RETRY)
                continue
            with self._lock:
                self._written += written
                self._size -= written
            if self._failing:
                self._failing = False
                _log.info("Connection log works again: {path!r}", path=self._path or "-")
        return True

    def _write(self) -> int:
        """Write as much of the batch as the system takes, and return how many bytes that was."""
        # A line is never begun in one file and ended in another.
        whole = self._written == 0 or self._batch[self._written - 1] == ord("\n")
        if self._path is not None and (
            self._file < 0 or (whole and _moved(self._path, self._file))
        ):
            self._reopen(self._path)
        end = len(self._batch)
        if end - self._written > _PIPE_BUF and not stat.S_ISREG(os.fstat(self._file).st_mode):
            most = self._written + _PIPE_BUF
            end = self._batch.rfind(b"\n", self._written, most) + 1 or most
        return os.write(self._file, memoryview(self._batch)[self._written : end])

    def _reopen(self, path: str) -> None:
        """Open the file anew, or stay with what is open, if that is still somewhere."""
        try:
            file = _open(path)
        except OSError as error:
            if self._file < 0 or not os.fstat(self._file).st_nlink:
                raise
            # After --uid or --chroot, the path may be out of reach.
            if not self._stuck:
                self._stuck = True
                _log.warn(
                    "Connection log cannot be opened anew, and goes on where it is: "
                    "{reason}: {path!r}",
                    reason=error.strerror,
                    path=path,
                )
            return
        if self._file >= 0:
            os.close(self._file)
        self._file = file
        self._stuck = False

    def _takeBack(self) -> None:
        """Remove half a line from the end of a file, lest another process append to it."""
        begun = self._written - self._batch.rfind(b"\n", 0, self._written) - 1
        # Pipes cannot seek; files may be append-only. What stays is continued where it stopped.
        with suppress(OSError):
            end = os.lseek(self._file, 0, os.SEEK_CUR)
            if begun and end == os.fstat(self._file).st_size:
                os.ftruncate(self._file, end - begun)
                with self._lock:
                    self._written -= begun
                    self._size += begun

    def _failed(self, error: OSError) -> None:
        """Say once that nothing can be written, and let go of a pipe that nobody reads any more."""
        if not self._failing:
            self._failing = True
            _log.critical(
                "Connection log failed, records are kept in memory: {reason}: {path!r}",
                reason=error.strerror,
                path=self._path or "-",
            )
        if isinstance(error, BrokenPipeError) and self._path is not None:
            os.close(self._file)
            self._file = -1


def _open(path: str) -> int:
    """Open a file for appending. A pipe that nobody reads is an error, and nothing to wait for."""
    nonblocking = getattr(os, "O_NONBLOCK", 0)
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | nonblocking, 0o666)
    if nonblocking:
        os.set_blocking(file, True)
    return file


def _moved(path: str, file: int) -> bool:
    """Say whether a regular file is no longer what its path leads to."""
    status = os.fstat(file)
    try:
        return stat.S_ISREG(status.st_mode) and not os.path.samestat(os.stat(path), status)
    except OSError:
        return True
