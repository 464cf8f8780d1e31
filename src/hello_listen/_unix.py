"""UNIX sockets: takes over the path of a dead process, never that of a living one."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from twisted.internet.error import CannotListenError
from twisted.python.failure import Failure

from hello_listen._log_file import lock


class UNIXReactor:
    """
    The reactor of a L{twisted.internet.endpoints.UNIXServerEndpoint}, which binds the socket.

    Twisted looks into a lock file to see whether a path is in use. It contains a process ID, which
    after a crash another process may have: in a container, it is always 1.
    """

    def listenUNIX(
        self, address: str, factory: Any, backlog: int = 50, mode: int = 0o666, wantPID: int = 0
    ) -> UNIXSocket:
        """
        Listen, as L{twisted.internet.interfaces.IReactorUNIX} does.

        @param address: a path, or NUL and a name in Linux's abstract namespace.
        @param factory: the factory, which is started.
        @param backlog: the length of the accept queue.
        @param mode: the mode of the socket's file.
        @param wantPID: whether to create a lock file, for other programs that use Twisted.

        @raise CannotListenError: the address is in use, or cannot be bound.
        """
        port = UNIXSocket(os.fsencode(address), factory)
        try:
            port.bind(backlog, mode, bool(wantPID))
        except BaseException as error:
            port.release()
            if isinstance(error, OSError):
                raise CannotListenError(None, address, error) from error
            raise
        return port


class UNIXSocket:
    """
    A UNIX socket, with its file and its lock file.

    @ivar factory: the factory that serves it.
    """

    def __init__(self, path: bytes, factory: Any) -> None:
        """
        Make a socket.

        @param path: the path that L{bind} binds, or NUL and a name.
        @param factory: the factory that serves the socket.
        """
        self.factory = factory
        self._path = path
        self._listener = socket.socket(socket.AF_UNIX)
        self._status: os.stat_result | None = None
        self._files: list[bytes] = []

    def bind(self, backlog: int, mode: int, locks: bool) -> None:
        """
        Bind the socket, listen, and start the factory. Remove the socket of a dead process first.

        @param backlog: the length of the accept queue.
        @param mode: the mode of the file.
        @param locks: whether to create a lock file.

        @raise OSError: the path is in use, or cannot be bound.
        """
        isFile = not self._path.startswith(b"\0")
        try:
            self._listener.bind(self._path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not isFile:
                raise
            # Lock, or another process could bind its socket after the check, and have it removed.
            with _locked(os.path.dirname(self._path) or b"."):
                _removeDead(self._path)
                self._listener.bind(self._path)
        if isFile:
            self._status = os.lstat(self._path)
            self._files.append(self._path)
            os.chmod(self._path, mode)
            if locks and _makeLock(self._path + b".lock"):
                self._files.insert(0, self._path + b".lock")
        self._listener.listen(backlog)
        self.factory.doStart()

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._listener.fileno()

    def stopReading(self) -> None:
        """Do nothing: the port reads, not this."""

    def connectionLost(self, reason: Failure) -> None:
        """
        Release the socket, and stop the factory.

        @param reason: the reason that the reactor gives.

        @raise OSError: the file cannot be removed.
        """
        try:
            self.release()
        finally:
            self.factory.doStop()

    def release(self) -> None:
        """
        Close the socket, and remove its files unless another process has replaced them.

        @raise OSError: a file cannot be removed.
        """
        try:
            # Close the socket last: until then, no other process takes over its path.
            with suppress(FileNotFoundError):
                if self._status and not os.path.samestat(os.lstat(self._path), self._status):
                    self._files = []
            for file in self._files:
                with suppress(FileNotFoundError):
                    os.unlink(file)
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

    @raise OSError: a process holds it, the file is not a socket, or it cannot be removed.
    """
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "exists and is not a socket")
        # On Linux, a datagram socket gets ECONNREFUSED only if no process holds the path, else
        # EPROTOTYPE, and a listening process does not notice. For other systems, try a stream too.
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


def _makeLock(path: bytes) -> bool:
    """
    Create a lock file as Twisted does, and return whether that worked.

    Without it, another program that uses Twisted would take the socket for a dead process's.
    """
    with suppress(OSError):
        if os.readlink(path).isdigit():  # Stale: this process holds the socket.
            os.unlink(path)
    with suppress(OSError):
        os.symlink(str(os.getpid()), path)
        return True
    return False
