"""A file of whole lines that handles a full disk, rotation and other writers."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import select
import stat
import sys
from contextlib import suppress
from time import monotonic, sleep

from twisted.logger import Logger

PIPE_TIMEOUT = 0.5
"""Seconds that a write waits for room in a non-blocking pipe before it returns 0."""

LOCK_TIMEOUT = 1.0
"""Lock timeout in seconds; then the file is written unlocked until reopened. It is shorter than the
connection log's MAX_WRITE_DELAY, so that waiting for a lock is no failure."""

_REMOVED = "the file was removed"

# A write of up to so many bytes to a pipe is atomic (pipe(7)), so that lost lines can be counted.
_PIPE_BUF = select.PIPE_BUF

_log = Logger(namespace="hello_listen")


class LogFile:
    """
    Appends lines to a file, a pipe or standard output.

    It reopens its path once that leads to another file, but not to a device, such as /dev/null. It
    truncates a line that a full disk cut short, so that no other process appends to half a line.

    @ivar stale: after a rotation, why the path cannot be opened, while the renamed file is still
        written; else L{None}.
    """

    def __init__(self, path: str | os.PathLike[str], umask: int | None = None) -> None:
        """
        Open the file.

        @param path: a file, which is created if it does not exist; a pipe with a reader; or C{-}
            for standard output.
        @param umask: the umask for new files. By default, the first file gets the umask of the
            process, and later files get the mode of the file before them.

        @raise OSError: the path cannot be opened.
        """
        if os.fspath(path) == "":
            raise FileNotFoundError(errno.ENOENT, "a path is missing", "")
        self.stale: str | None = None
        self._file = -1
        self._umask = umask
        self._isSeen = self._isOutOfReach = False
        self._isNew = self._lockable = True
        if path != "-":
            # twistd may change the working directory later.
            self._path: str | None = os.path.abspath(path)
            self._file = self._open(self._path, isFirst=True)
            return
        self._path = None
        # twistd replaces sys.stdout by its log. If descriptor 1 was closed at the start,
        # sys.__stdout__ is None, and the number may belong to another file now.
        if sys.__stdout__ is None:
            raise OSError(errno.EBADF, "standard output is closed", "-")
        os.write(1, b"")  # Raises an error if descriptor 1 is read-only.
        self._file = 1
        self._hadName = os.fstat(1).st_nlink > 0

    def __str__(self) -> str:
        """Return the path."""
        return self._path or "-"

    def reopen(self) -> None:
        """
        Reopen the file.

        @raise OSError: the path cannot be opened, and the old file is closed or removed.
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
            # Expected after --uid or --chroot, so warn only once.
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
        """Close the file, unless it is standard output."""
        if self._path is not None and self._file >= 0:
            os.close(self._file)
            self._file = -1

    def write(self, lines: bytes, start: int, whole: bool = False) -> int:
        """
        Write as many bytes as possible. This may block.

        @param lines: whole lines.
        @param start: the offset to write from, which may be within a line that was partly written.
        @param whole: write everything, at most 512 bytes, or nothing.

        @return: the number of bytes written; 0 while a non-blocking pipe is full.

        @raise OSError: nothing was written.
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
        # Opening a pipe without a reader is to fail, not to wait for one.
        flags = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK
        try:
            file = os.open(path, flags)
        except FileNotFoundError:
            file = os.open(path, flags | os.O_CREAT, 0o666 & ~(self._umask or 0))
            with suppress(OSError):  # Not every file system has modes.
                self._setMode(file)
        if file <= 2:
            # A daemonizing twistd replaces descriptors 0 to 2, which were closed at the start.
            low, file = file, fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, 3)
            os.close(low)
        status = os.fstat(file)
        if stat.S_ISREG(status.st_mode) and not status.st_nlink:
            os.close(file)
            raise FileNotFoundError(errno.ENOENT, f"{_REMOVED}, and its path still leads to it")
        if stat.S_ISCHR(status.st_mode) and not isFirst and not self._isOpen(status):
            os.close(file)
            raise OSError(errno.ENODEV, "its path leads to a device")
        os.set_blocking(file, True)
        return file

    def _setMode(self, file: int) -> None:
        """Set the mode of a new file."""
        if self._umask is not None:
            os.fchmod(file, 0o666 & ~self._umask)
        elif self._file >= 0:
            # A daemonizing twistd changes the umask after the first file was opened.
            os.fchmod(file, stat.S_IMODE(os.fstat(self._file).st_mode))

    def _isOpen(self, status: os.stat_result) -> bool:
        """Return whether a status is that of the open file."""
        return self._file >= 0 and os.path.samestat(status, os.fstat(self._file))

    def _moved(self, path: str) -> bool:
        """Return whether the path no longer leads to the open file."""
        status = os.fstat(self._file)
        if stat.S_ISREG(status.st_mode) and not status.st_nlink:
            # Removed, even if the path still leads to it, as to a bind-mounted file.
            return True
        try:
            found = os.stat(path)
        except OSError:
            # A removed named pipe may still have a reader.
            return not stat.S_ISFIFO(status.st_mode)
        if not os.path.samestat(found, status):
            return True
        self._isSeen = True
        self.stale = None
        return False

    def _writeFile(self, data: memoryview, whole: bool) -> int:
        """Write to a regular file. On an error, truncate a partial line if we hold the lock."""
        written = 0
        self._lockable = locked = self._lockable and lock(self._file)
        if whole and not locked:
            raise OSError(
                errno.ENOLCK, os.strerror(errno.ENOLCK)
            )  # Without it, a partial line must not be truncated.
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
                fcntl.flock(self._file, fcntl.LOCK_UN)
        return written

    def _takeBack(self, count: int) -> bool:
        """Truncate the file by so many bytes if nobody appended; return whether it did."""
        with suppress(OSError):
            end = os.lseek(self._file, 0, os.SEEK_CUR)
            if end == os.fstat(self._file).st_size:
                os.ftruncate(self._file, end - count)
                # A shell's > opens without O_APPEND, so the next write would leave a hole.
                os.lseek(self._file, end - count, os.SEEK_SET)
                return True
        return False


def standardStream(path: str) -> int | None:
    """
    Return which standard descriptor a path stands for, following symbolic links.

    @param path: a path such as C{-}, C{/dev/stdout} or C{/proc/self/fd/1}.

    @return: 0 to 2, or L{None} for any other path.
    """
    if path == "-":
        return 1
    own = re.escape(os.path.realpath("/proc/self"))
    for _ in range(40):  # Linux's own limit (path_resolution(7)).
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
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sleep(0.002)
        except OSError:
            return False
        else:
            return True
    return False


def _endsTorn(path: str) -> bool:
    """Return whether a file ends within a line, as after SIGKILL."""
    with suppress(OSError), open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
    return False
