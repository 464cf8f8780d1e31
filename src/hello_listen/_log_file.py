"""A file of whole lines that handles a full disk, rotation and other writers."""

from __future__ import annotations

import errno
import os
import re
import select
import stat
import sys
from contextlib import suppress
from importlib import import_module
from time import monotonic, sleep
from typing import Any

from twisted.logger import Logger

PIPE_TIMEOUT = 0.5
"""Most seconds to wait for room in a pipe before the caller is asked again."""

LOCK_TIMEOUT = 1.0
"""Lock timeout in seconds; then the file is written unlocked until reopened. It is shorter than the
log waits before it counts as failing."""

_REMOVED = "the file was removed"

# What is written to a pipe whole or not at all (pipe(7)), so that what is lost can be counted.
_PIPE_BUF = getattr(select, "PIPE_BUF", 4096)

_fcntl: Any = None
with suppress(ImportError):  # Windows has none.
    _fcntl = import_module("fcntl")

_log = Logger(namespace="hello_listen")


class LogFile:
    """
    Appends lines to a file, a pipe or standard output.

    It is opened anew once its path leads elsewhere, but never to a device, such as /dev/null. A
    line that a full disk cut short is taken back, so that no other process appends to half of it.

    @ivar stale: after a rotation, why the path cannot be opened, so that the renamed file is
        written; else L{None}.
    """

    def __init__(self, path: str | os.PathLike[str], umask: int | None = None) -> None:
        """
        Open it.

        @param path: a file, which is made if need be; a pipe that somebody reads; or C{-} for
            standard output.
        @param umask: the mode bits that new files lack; by default those of the process for the
            first file, whose mode later ones get.

        @raise OSError: it cannot be opened.
        """
        if os.fspath(path) == "":
            raise FileNotFoundError(errno.ENOENT, "a path is missing", "")
        self.stale: str | None = None
        self._file = -1
        self._umask = umask
        self._isSeen = self._isOutOfReach = False
        self._isNew = self._lockable = True
        if path != "-":
            # twistd may change the folder.
            self._path: str | None = os.path.abspath(path)
            self._file = self._open(self._path, isFirst=True)
            return
        self._path = None
        # twistd replaces sys.stdout by its log; Python has no sys.__stdout__ where
        # descriptor 1 was closed, and by now it may be anything.
        if sys.__stdout__ is None:
            raise OSError(errno.EBADF, "standard output is closed", "-")
        os.write(1, b"")  # Fails where it is open for reading only.
        self._file = 1
        self._hadName = os.fstat(1).st_nlink > 0

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
            file = self._open(self._path)
        except OSError as error:
            if self._file < 0 or not os.fstat(self._file).st_nlink:
                raise
            if self._isSeen:
                self.stale = (
                    f"its path cannot be opened anew ({error.strerror}), "
                    "and records go to the renamed file"
                )
            # After --uid or --chroot, the path may be out of reach.
            if not self._isOutOfReach:
                self._isOutOfReach = True
                text = "Connection log cannot be opened anew, and goes on: {reason}: {path!r}"
                _log.warn(text, reason=error.strerror, path=self._path)
        else:
            self.close()
            self._file = file
            self.stale = None
            self._isSeen, self._isOutOfReach = True, False
            self._isNew = self._lockable = True

    def close(self) -> None:
        """Close the file, but not standard output. Nothing may be written after that."""
        if self._path is not None and self._file >= 0:
            os.close(self._file)
            self._file = -1

    def write(self, lines: bytes, start: int, whole: bool = False) -> int:
        """
        Write as much as the system takes. It may block.

        @param lines: whole lines.
        @param start: where to begin, which may be within a line that was begun before.
        @param whole: write all of it, at most 512 bytes, or nothing.

        @return: how many bytes were written; 0 while a non-blocking pipe is full.

        @raise OSError: nothing can be written.
        """
        begins = start == 0 or lines[start - 1] == ord("\n")
        if self._path is not None and (self._file < 0 or (begins and self._moved(self._path))):
            self.reopen()
        status = os.fstat(self._file)
        if stat.S_ISREG(status.st_mode):
            if self._path is None and self._hadName and not status.st_nlink:
                raise FileNotFoundError(errno.ENOENT, _REMOVED)
            return self._writeFile(memoryview(lines)[start:], whole)
        end = len(lines)
        if end - start > _PIPE_BUF:
            end = lines.rfind(b"\n", start, start + _PIPE_BUF) + 1 or start + _PIPE_BUF
        try:
            return os.write(self._file, memoryview(lines)[start:end])
        except BlockingIOError:
            if whole:
                raise
            select.select([], [self._file], [], PIPE_TIMEOUT)
            return 0
        except BrokenPipeError:
            self.close()
            raise

    def _open(self, path: str, isFirst: bool = False) -> int:
        """Open the file, and return its descriptor."""
        # A pipe that nobody reads is an error, and nothing to wait for.
        nonblocking = getattr(os, "O_NONBLOCK", 0)
        flags = os.O_WRONLY | os.O_APPEND | nonblocking
        try:
            file = os.open(path, flags)
        except FileNotFoundError:
            file = os.open(path, flags | os.O_CREAT, 0o666 & ~(self._umask or 0))
            with suppress(OSError):  # Not every file system has modes.
                self._setMode(file)
        if file <= 2:
            # The standard descriptors were closed: a daemonizing twistd would replace this one.
            low, file = file, _fcntl.fcntl(file, _fcntl.F_DUPFD_CLOEXEC, 3)
            os.close(low)
        status = os.fstat(file)
        if stat.S_ISREG(status.st_mode) and not status.st_nlink:
            os.close(file)
            raise FileNotFoundError(errno.ENOENT, f"{_REMOVED}, and its path still leads to it")
        if stat.S_ISCHR(status.st_mode) and not isFirst and not self._isOpen(status):
            os.close(file)
            raise OSError(errno.ENODEV, "its path leads to a device")
        if nonblocking:
            os.set_blocking(file, True)
        return file

    def _setMode(self, file: int) -> None:
        """Set the mode of a new file."""
        if self._umask is not None:
            os.fchmod(file, 0o666 & ~self._umask)
        elif self._file >= 0:
            # A daemonizing twistd changes the umask once the first file is open.
            os.fchmod(file, stat.S_IMODE(os.fstat(self._file).st_mode))

    def _isOpen(self, status: os.stat_result) -> bool:
        """Say whether this is the file that is open."""
        return self._file >= 0 and os.path.samestat(status, os.fstat(self._file))

    def _moved(self, path: str) -> bool:
        """Say whether the path leads to another file than the open one, or to none."""
        status = os.fstat(self._file)
        if stat.S_ISREG(status.st_mode) and not status.st_nlink:
            # Removed; a file that is mounted by itself keeps its path.
            return True
        try:
            found = os.stat(path)
        except OSError:
            # A pipe without a name may still be read.
            return not stat.S_ISFIFO(status.st_mode)
        if not os.path.samestat(found, status):
            return True
        self._isSeen = True
        self.stale = None
        return False

    def _writeFile(self, data: memoryview, whole: bool) -> int:
        """Write to a regular file, and truncate a partial line if we hold the lock."""
        written = 0
        self._lockable = locked = self._lockable and lock(self._file)
        if whole and not locked:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))  # A part could not be removed.
        try:
            if self._path is not None and self._isNew:
                if _endsTorn(self._path):
                    os.write(self._file, b"\n")
                self._isNew = False
            while written < len(data):
                written += os.write(self._file, data[written:])
        except OSError:
            torn = written if whole else written - bytes(data[:written]).rfind(b"\n") - 1
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


def standardStream(path: str) -> int | None:
    """
    Return which standard descriptor a path stands for, by way of links if need be.

    @param path: such as C{-}, C{/dev/stdout} or C{/proc/self/fd/1}.

    @return: 0 to 2, or L{None} for any other path.
    """
    if path == "-":
        return 1
    own = re.escape(os.path.realpath("/proc/self"))
    for _ in range(40):  # As many links as Linux follows (path_resolution(7)).
        folder, name = os.path.split(path)
        folder = os.path.realpath(folder)
        if name in ("0", "1", "2") and re.fullmatch(rf"{own}(/task/\d+)?/fd|/dev/fd", folder):
            return int(name)
        try:
            path = os.path.join(folder, os.readlink(os.path.join(folder, name)))
        except OSError:
            break
    return None


def lock(file: int) -> bool:
    """Lock a file. Give up after L{LOCK_TIMEOUT} seconds: any reader can hold the lock."""
    end = monotonic() + LOCK_TIMEOUT
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
