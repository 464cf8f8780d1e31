"""UNIX sockets: the name of a dead process's socket is taken over, that of a living one never."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from twisted.python.failure import Failure

from hello_listen.log_file import lock


class UNIXReactor:
    """
    Listens in the place of a reactor, for L{twisted.internet.endpoints.UNIXServerEndpoint}.

    Twisted asks a lock file whether a path is in use. That names a process by its number, which
    after a crash may be another process's: in a container, it is always 1.
    """

    def listenUNIX(
        self, address: str, factory: Any, backlog: int = 50, mode: int = 0o666, wantPID: int = 0
    ) -> UNIXSocket:
        """
        Listen, as L{twisted.internet.interfaces.IReactorUNIX} does.

        @param address: a path, or NUL and a name in Linux's abstract namespace.
        @param factory: the factory to start; nothing is read here.
        @param backlog: the length of the accept queue.
        @param mode: the mode of the socket's file.
        @param wantPID: whether to remove the lock file of a dead process.

        @raise OSError: the address is in use, or cannot be bound.
        """
        port = UNIXSocket(os.fsencode(address), factory)
        try:
            port.bind(backlog, mode)
            factory.doStart()
        except BaseException:
            port.release()
            raise
        if wantPID:
            _removeLock(port.path + b".lock")
        return port


class UNIXSocket:
    """
    A UNIX socket, and its file where it has one.

    @ivar factory: the factory that serves it.
    @ivar path: its path, or NUL and a name.
    """

    def __init__(self, path: bytes, factory: Any) -> None:
        """
        Make a socket.

        @param path: where L{bind} binds it.
        @param factory: the factory that serves it.
        """
        self.path = path
        self.factory = factory
        self._listener = socket.socket(socket.AF_UNIX)
        self._file: os.stat_result | None = None

    def bind(self, backlog: int, mode: int) -> None:
        """
        Bind the socket and listen. A file that a dead process left is removed.

        @param backlog: the length of the accept queue.
        @param mode: the mode of the file.

        @raise OSError: the path is in use, or cannot be bound.
        """
        isFile = not self.path.startswith(b"\0")
        try:
            self._listener.bind(self.path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not isFile:
                raise
            # Between its two steps, another starter could bind a socket, and lose it.
            with _locked(os.path.dirname(self.path) or b"."):
                _removeDead(self.path)
                self._listener.bind(self.path)
        if isFile:
            self._file = os.lstat(self.path)
            os.chmod(self.path, mode)
        self._listener.listen(backlog)

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._listener.fileno()

    def stopReading(self) -> None:
        """Do nothing: this reads nothing."""

    def connectionLost(self, reason: Failure) -> None:
        """
        Release the socket, and stop the factory.

        @param reason: the reason that the reactor gives.

        @raise OSError: the file cannot be removed.
        """
        self.release()
        self.factory.doStop()

    def release(self) -> None:
        """
        Remove the file unless it is another's by now, and close the socket.

        @raise OSError: the file cannot be removed.
        """
        try:
            # As long as the socket is open, nobody takes its file for a dead process's.
            with suppress(FileNotFoundError):
                if self._file and os.path.samestat(os.lstat(self.path), self._file):
                    os.unlink(self.path)
        finally:
            self._listener.close()


@contextmanager
def _locked(folder: bytes) -> Iterator[None]:
    """Hold a lock on a folder."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if not lock(file):
            raise BlockingIOError(errno.EWOULDBLOCK, "in use, or its folder cannot be locked")
        yield
    finally:
        os.close(file)


def _removeDead(path: bytes) -> None:
    """
    Remove a socket's file if no process holds the socket.

    @raise OSError: a process does, or it is not a socket's, or it cannot be removed.
    """
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "exists and is not a socket")
        # A datagram socket is refused only where no process holds the path (EPROTOTYPE otherwise),
        # and is not noticed by a process that listens. Not every system does so: ask as a client.
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            with socket.socket(socket.AF_UNIX, kind) as probe:
                probe.setblocking(False)
                answer = probe.connect_ex(path)
            if answer == errno.EACCES:
                raise PermissionError(answer, "Permission denied to ask whether it is in use")
            if answer not in (errno.ECONNREFUSED, errno.ENOENT):
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        try:
            os.unlink(path)
        except PermissionError as error:
            reason = f"left by a process that has ended, and cannot be removed: {error.strerror}"
            raise PermissionError(error.errno, reason) from error


def _removeLock(path: bytes) -> None:
    """Remove a lock file of Twisted's: a link to the number of a process."""
    with suppress(OSError, ValueError):  # ValueError: an abstract name is no path.
        if os.readlink(path).isdigit():
            os.unlink(path)
