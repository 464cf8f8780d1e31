"""A file of whole lines that survives its disk, its rotation, and others who append to it."""

from __future__ import annotations

import errno
import os
import select
import stat
import sys
from contextlib import suppress
from importlib import import_module
from time import monotonic, sleep
from typing import Any

from twisted.logger import Logger

WAIT = 0.5
"""Most seconds to wait for room in a pipe before the caller is asked again."""

LOCKED = 2.0
"""Seconds after which a file that somebody else keeps locked is written without a lock, until it is
opened anew."""

# What is written to a pipe whole or not at all (pipe(7)), so that what is lost can be counted.
_PIPE_BUF = getattr(select, "PIPE_BUF", 4096)

_fcntl: Any = None
with suppress(ImportError):  # Windows has none.
    _fcntl = import_module("fcntl")

_log = Logger(namespace="hello_listen")


class LogFile:
    """
    Appends lines to a file, a pipe or standard output.

    A regular file is opened anew once it was renamed or removed. A line that a full disk cut
    short is taken back, so that no other process appends to half of it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """
        Open it.

        @param path: a file, which is made if need be; a pipe that somebody reads; or C{-} for
            standard output.

        @raise OSError: it cannot be opened.
        """
        if os.fspath(path) == "":
            raise FileNotFoundError(errno.ENOENT, "a path is missing", "")
        self._file = -1
        self._path = None
        self._outOfReach = False
        self._isNew = self._lockable = True
        if path != "-":
            # twistd may change the folder.
            self._path = os.path.abspath(path)
            self._open(self._path)
            return
        # twistd replaces sys.stdout by its log; Python has no sys.__stdout__ where
        # descriptor 1 was closed, and by now it may be anything.
        if sys.__stdout__ is None:
            raise OSError(errno.EBADF, "standard output is closed", "-")
        os.write(1, b"")  # Fails where it is open for reading only.
        self._file = 1

    def __str__(self) -> str:
        """Return the path."""
        return self._path or "-"

    def reopen(self) -> None:
        """
        Open the file anew.

        @raise OSError: it cannot be opened, and there is no old file to go on with.
        """
        if self._path is None:
            return
        try:
            self._open(self._path)
        except OSError as error:
            if self._file < 0 or not os.fstat(self._file).st_nlink:
                raise
            # After --uid or --chroot, the path may be out of reach.
            if not self._outOfReach:
                self._outOfReach = True
                text = "Connection log cannot be opened anew, and goes on: {reason}: {path!r}"
                _log.warn(text, reason=error.strerror, path=self._path)

    def close(self) -> None:
        """Close the file, but not standard output. Nothing may be written after that."""
        if self._path is not None and self._file >= 0:
            os.close(self._file)
            self._file = -1

    def write(self, lines: bytes, start: int) -> int:
        """
        Write as much as the system takes. It may block.

        @param lines: whole lines.
        @param start: where to begin, which may be within a line that was begun before.

        @return: how many bytes were written; 0 while a non-blocking pipe is full.

        @raise OSError: nothing could be written.
        """
        # A line is never begun in one file and ended in another.
        whole = start == 0 or lines[start - 1] == ord("\n")
        if self._path is not None and (self._file < 0 or (whole and self._moved(self._path))):
            self.reopen()
        if stat.S_ISREG(os.fstat(self._file).st_mode):
            return self._writeFile(memoryview(lines)[start:])
        end = len(lines)
        if end - start > _PIPE_BUF:
            end = lines.rfind(b"\n", start, start + _PIPE_BUF) + 1 or start + _PIPE_BUF
        try:
            return os.write(self._file, memoryview(lines)[start:end])
        except BlockingIOError:
            select.select([], [self._file], [], WAIT)
            return 0
        except BrokenPipeError:
            self.close()
            raise

    def _open(self, path: str) -> None:
        """Open the file; a new one gets the mode of the one before it."""
        # A pipe that nobody reads is an error, and nothing to wait for.
        nonblocking = getattr(os, "O_NONBLOCK", 0)
        flags = os.O_WRONLY | os.O_APPEND | nonblocking
        try:
            file = os.open(path, flags)
        except FileNotFoundError:
            file = os.open(path, flags | os.O_CREAT, 0o666)
            # A daemonizing twistd changes the umask once the first file is open.
            if self._file >= 0:
                os.fchmod(file, stat.S_IMODE(os.fstat(self._file).st_mode))
        if nonblocking:
            os.set_blocking(file, True)
        self.close()
        self._file = file
        self._outOfReach = False
        self._isNew = self._lockable = True

    def _moved(self, path: str) -> bool:
        """Say whether a regular file is no longer what its path leads to."""
        status = os.fstat(self._file)
        try:
            return stat.S_ISREG(status.st_mode) and not os.path.samestat(os.stat(path), status)
        except OSError:
            return True

    def _writeFile(self, data: memoryview) -> int:
        """Write to a regular file, and take half a line back if nobody can have appended to it."""
        written = 0
        self._lockable = locked = self._lockable and lock(self._file)
        try:
            if self._path is not None and self._isNew:
                if _endsTorn(self._path):
                    os.write(self._file, b"\n")
                self._isNew = False
            while written < len(data):
                written += os.write(self._file, data[written:])
        except OSError:
            torn = written - bytes(data[:written]).rfind(b"\n") - 1
            if torn and locked and self._takeBack(torn):
                written -= torn
            if not written:
                raise
        finally:
            if locked:
                _fcntl.flock(self._file, _fcntl.LOCK_UN)
        return written

    def _takeBack(self, count: int) -> bool:
        """Remove so many bytes from the end of the file, and say whether that was possible."""
        with suppress(OSError):
            end = os.lseek(self._file, 0, os.SEEK_CUR)
            if end == os.fstat(self._file).st_size:
                os.ftruncate(self._file, end - count)
                # Behind a shell's > there is no O_APPEND, and the next write would leave a hole.
                os.lseek(self._file, end - count, os.SEEK_SET)
                return True
        return False


def lock(file: int) -> bool:
    """Lock a file. Give up after L{LOCKED} seconds: any reader can hold the lock."""
    end = monotonic() + LOCKED
    while monotonic() < end:
        try:
            _fcntl.flock(file, _fcntl.LOCK_EX | _fcntl.LOCK_NB)
        except BlockingIOError:
            sleep(0.002)
        except (AttributeError, OSError):
            return False
        else:
            return True
    return False


def _endsTorn(path: str) -> bool:
    """Say whether a file ends in half a line, as a process leaves it that was killed."""
    with suppress(OSError), open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
    return False
