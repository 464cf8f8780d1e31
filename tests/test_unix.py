"""UNIX sockets: which paths are taken over, and which files are removed."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from twisted.internet.testing import MemoryReactorClock

from hello_listen import HelloEndpoint, HelloFactory, ListenError, _log_file
from hello_listen._port import HelloPort


class Listener:
    """A port on a UNIX endpoint, in a reactor that does not run."""

    def __init__(self, description: str, factory: object = None) -> None:
        """Listen, or raise the error."""
        self.reactor = MemoryReactorClock()
        results: list[Any] = []
        endpoint = HelloEndpoint(self.reactor, description)
        endpoint.listen(factory or HelloFactory()).addBoth(results.append)
        [self.port] = results
        if not isinstance(self.port, HelloPort):
            self.port.raiseException()

    def stop(self) -> None:
        """Stop the port."""
        stopped = self.port.stopListening()
        self.reactor.pump([0] * 3)
        assert stopped.called


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a path for a socket, in a folder of its own."""
    (tmp_path / "run").mkdir()
    return tmp_path / "run" / "s"


def bound(path: Path | bytes, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """Return a bound socket."""
    made = socket.socket(socket.AF_UNIX, kind)
    made.bind(str(path) if isinstance(path, Path) else path)
    return made


def leave(path: Path, owner: int | None = None) -> None:
    """Leave a dead process's socket, and a lock whose process id now belongs to another process."""
    bound(path).close()
    if owner is not None:
        os.symlink(str(owner), f"{path}.lock")


def listens(path: Path | bytes) -> bool:
    """Return whether a socket accepts connections."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path) if isinstance(path, Path) else path) == 0


@pytest.mark.parametrize("options", ["", ":lockfile=0", ":mode=600"])
@pytest.mark.parametrize("prefix", ["", "haproxy:"])
@pytest.mark.parametrize(
    "owner",
    [None, 1, os.getpid(), os.getppid(), 2**22 - 1],
    ids=["no lock", "first", "own", "living", "dead"],
)
def test_left_by_a_dead_process(path: Path, prefix: str, options: str, owner: int | None) -> None:
    """A socket that no process has open is taken over, whatever process id its lock has."""
    leave(path, owner)
    listener = Listener(f"{prefix}unix:{path}{options}")
    assert listens(path)
    assert stat.S_IMODE(path.stat().st_mode) == (0o600 if "mode" in options else 0o666)
    if "lockfile" not in options:
        assert os.readlink(f"{path}.lock") == str(os.getpid())
    listener.stop()
    kept = [f"{path.name}.lock"] if owner is not None and "lockfile" in options else []
    assert os.listdir(path.parent) == kept


def test_a_lock_without_a_socket(path: Path) -> None:
    """A lock without a socket is taken over, too."""
    os.symlink("1", f"{path}.lock")
    Listener(f"unix:{path}").stop()
    assert not os.listdir(path.parent)


def test_a_lock_that_somebody_has_removed(path: Path) -> None:
    """If the lock was removed, the port still removes its socket at the end."""
    listener = Listener(f"unix:{path}")
    os.unlink(f"{path}.lock")
    listener.stop()
    assert not os.listdir(path.parent)


def test_a_lock_that_is_none_of_ours(path: Path) -> None:
    """A file with the lock's name that is no lock of Twisted's is kept."""
    leave(path)
    path.with_suffix(".lock").write_text("1")
    Listener(f"unix:{path}").stop()
    assert path.with_suffix(".lock").read_text() == "1"
    path.with_suffix(".lock").unlink()
    path.with_suffix(".lock").symlink_to("elsewhere")
    Listener(f"unix:{path}").stop()
    assert os.listdir(path.parent) == ["s.lock"]


def keepers(path: Path, stack: ExitStack) -> dict[str, Callable[[], socket.socket]]:
    """Return functions that make what a living process may have at a path."""

    def listening(kind: int = socket.SOCK_STREAM) -> socket.socket:
        made = stack.enter_context(bound(path, kind))
        made.listen(0)
        made.setblocking(False)
        return made

    def full() -> socket.socket:
        made = listening()
        client = stack.enter_context(socket.socket(socket.AF_UNIX))
        client.connect(str(path))
        return made

    def stopping() -> socket.socket:
        made = listening()
        made.shutdown(socket.SHUT_RD)
        return made

    return {
        "listens": listening,
        "listens for packets": lambda: listening(socket.SOCK_SEQPACKET),
        "its queue is full": full,
        "does not listen yet": lambda: stack.enter_context(bound(path)),
        "refuses clients as it stops": stopping,
        "datagrams": lambda: stack.enter_context(bound(path, socket.SOCK_DGRAM)),
    }


@pytest.mark.parametrize("owner", [None, 2**22 - 1])
@pytest.mark.parametrize("options", ["", ":lockfile=0"])
def test_what_a_living_process_has(path: Path, options: str, owner: int | None) -> None:
    """A path that a living process has open is in use, whatever its lock says."""
    for what in keepers(path, ExitStack()):
        with ExitStack() as stack:
            kept = keepers(path, stack)[what]()
            if owner is not None:
                os.symlink(str(owner), f"{path}.lock")
            files, number = sorted(os.listdir(path.parent)), path.stat().st_ino
            with pytest.raises(ListenError) as raised:
                Listener(f"unix:{path}{options}")
            assert str(raised.value) == f"Address already in use: 'unix:{path}{options}'", what
            assert sorted(os.listdir(path.parent)) == files, what
            assert path.stat().st_ino == number, what
            if what == "listens":
                with pytest.raises(BlockingIOError):  # Nobody connected to ask.
                    kept.accept()
        for file in path.parent.iterdir():
            file.unlink()


def test_two_endpoints_of_one_path(path: Path) -> None:
    """A second endpoint of a path is refused, and the first continues."""
    first = Listener(f"unix:{path}")
    with pytest.raises(ListenError, match="Address already in use"):
        Listener(f"unix:{path}")
    assert listens(path)
    first.stop()
    Listener(f"unix:{path}").stop()


def test_other_files(path: Path) -> None:
    """Files, folders and links are kept."""
    message = re.escape(f"exists and is not a socket: 'unix:{path}'")
    for make in (
        path.touch,
        path.mkdir,
        lambda: path.symlink_to("elsewhere"),
        lambda: path.symlink_to(path.with_name("live")),
    ):
        make()
        with bound(path.with_name("live")), pytest.raises(ListenError, match=f"^{message}$"):
            Listener(f"unix:{path}")
        path.with_name("live").unlink()
        assert os.path.lexists(path)
        (path.rmdir if path.is_dir() else path.unlink)()


def test_abstract_names(path: Path) -> None:
    """A name in Linux's abstract namespace is served, and leaves no file."""
    name = b"\0" + bytes(path)
    listener = Listener(f"unix:\0{path}")
    assert listens(name)
    with pytest.raises(ListenError, match="Address already in use"):
        Listener(f"unix:\0{path}")
    assert not os.listdir(path.parent)
    listener.stop()
    assert not listens(name)


def test_a_relative_path(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path is recorded as given, and taken over as well."""
    monkeypatch.chdir(path.parent)
    leave(path, 1)
    listener = Listener("unix:s")
    assert listener.port.getHost().name == b"s"
    listener.stop()
    assert not os.listdir()


@pytest.mark.parametrize("replaced", [True, False])
def test_a_file_that_somebody_has_removed(path: Path, replaced: bool) -> None:
    """If another process now has the path, the end of the port leaves its socket alone."""
    first = Listener(f"unix:{path}")
    path.unlink()
    if replaced:
        second = Listener(f"unix:{path}")
    first.stop()
    assert sorted(os.listdir(path.parent)) == (["s", "s.lock"] if replaced else [])
    if replaced:
        assert listens(path)
        second.stop()


def test_a_locked_folder(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock on the folder delays the start only briefly."""
    monkeypatch.setattr(_log_file, "LOCK_TIMEOUT", 0.01)
    leave(path)
    folder = os.open(path.parent, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_SH)
    with pytest.raises(ListenError, match=r"^in use, or its folder cannot be locked: 'unix:"):
        Listener(f"unix:{path}")
    os.close(folder)
    Listener(f"unix:{path}").stop()


@pytest.fixture
def theirs() -> Iterator[Path]:
    """Become an ordinary user, and return the path of that user's dead socket."""
    with TemporaryDirectory() as folder:
        mine = os.geteuid() == 0
        if mine:
            os.chown(folder, 65534, 65534)
            os.seteuid(65534)
        leave(Path(folder) / "s", 1)
        try:
            yield Path(folder) / "s"
        finally:
            os.chmod(folder, 0o700)
            if mine:
                os.seteuid(0)


def test_a_socket_that_may_not_be_asked(theirs: Path) -> None:
    """A socket that may not be connected to is kept."""
    theirs.chmod(0)
    with pytest.raises(
        ListenError, match=r"^Permission denied to ask whether it is in use: 'unix:"
    ):
        Listener(f"unix:{theirs}")
    theirs.chmod(0o666)
    Listener(f"unix:{theirs}").stop()


def test_a_socket_that_may_not_be_removed(theirs: Path) -> None:
    """The error for a dead socket that may not be removed says that no process has it open."""
    theirs.parent.chmod(0o555)
    reason = "left by a process that has ended, and cannot be removed: Permission denied: 'unix:"
    with pytest.raises(ListenError, match=f"^{reason}"):
        Listener(f"unix:{theirs}")
    assert sorted(os.listdir(theirs.parent)) == ["s", "s.lock"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [("no/such/folder/s", "No such file or directory"), ("s" * 200, "AF_UNIX path too long")],
)
def test_paths_that_cannot_be_bound(path: Path, name: str, reason: str) -> None:
    """A path that cannot be bound gives the system's reason."""
    with pytest.raises(ListenError, match=f"^{reason}: "):
        Listener(f"unix:{path.parent}/{name}")
    assert not os.listdir(path.parent)


@pytest.mark.parametrize(
    "error", [OSError(2, "No such file or directory"), ValueError("No such file or directory")]
)
def test_a_factory_that_does_not_start(path: Path, error: Exception) -> None:
    """If the factory does not start, the path is released."""

    class Failing(HelloFactory):
        def startFactory(self) -> None:
            raise error

    with pytest.raises(ListenError, match=r"^No such file or directory: 'unix:"):
        Listener(f"unix:{path}", Failing())
    assert not os.listdir(path.parent)


@pytest.mark.parametrize(("options", "most"), [("", 60), (":backlog=5", 6)])
def test_accept_queue(path: Path, options: str, most: int) -> None:
    """The accept queue has the system's maximum length, unless the description has one."""
    listener = Listener(f"unix:{path}{options}")
    with ExitStack() as stack:
        answers = []
        for _ in range(60):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            answers.append(client.connect_ex(str(path)))
        assert answers == [0] * most + [errno.EAGAIN] * (60 - most)
        listener.port.doRead()
    listener.stop()
