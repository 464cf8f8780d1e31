"""A disk that a test can fill and break, by replacing the system calls that write to it."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

from reactors import TIMEOUT


class Disk:
    """
    Stands in for os.write and os.open, as a disk does: with so much room, and an error beyond it.

    @ivar room: how many bytes may still be written.
    @ivar reclaims: whether what is cut off makes room again.
    @ivar refusals: how many writes there was no room for.
    @ivar opened: how often something was opened, or could not be.
    @ivar writing: whether a write is going on.
    @ivar file: the descriptor that was opened last.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int = 10**9) -> None:
        self.room = room
        self.refusals = self.opened = 0
        self.reclaims = self.writing = False
        self.file = -1
        self._changed = threading.Condition()
        self._write, self._truncate, self._open = os.write, os.ftruncate, os.open
        monkeypatch.setattr(os, "write", self.write)
        monkeypatch.setattr(os, "ftruncate", self.truncate)
        monkeypatch.setattr(os, "open", self.open)

    def write(self, file: int, data: Any) -> int:
        """Write as much as fits."""
        self.writing = True
        self._tell()
        try:
            if not self.room:
                self.refusals += 1
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written = self._write(file, data[: self.room])
            self.room -= written
            return written
        finally:
            self.writing = False
            self._tell()

    def truncate(self, file: int, size: int) -> None:
        """Truncate a file."""
        if self.reclaims:
            self.room += os.fstat(file).st_size - size
        self._truncate(file, size)

    def open(self, *args: Any, **kwargs: Any) -> int:
        """Open a file, and keep its descriptor."""
        try:
            file = self.file = self._open(*args, **kwargs)
            return file
        finally:
            self.opened += 1
            self._tell()

    def until(self, condition: Callable[[], object]) -> None:
        """Wait for a condition that may become true before or after a write or an opening."""
        with self._changed:
            assert self._changed.wait_for(condition, TIMEOUT)

    def _tell(self) -> None:
        """Wake the waiting test."""
        with self._changed:
            self._changed.notify_all()


def isOpen(file: int) -> bool:
    """Return whether a descriptor is open."""
    try:
        os.fstat(file)
    except OSError:
        return False
    return True
