"""The connection log's file, on real files and pipes."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from twisted.logger import capturedLogs

from disks import Disk, isOpen
from events import texts
from hello_listen import _log_file as module
from hello_listen._log_file import LogFile, standardStream
from output import Output
from reactors import TIMEOUT


def full() -> OSError:
    """Return the error of a full disk."""
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_it_appends(tmp_path: Path) -> None:
    """A write appends, and may start anywhere in the data."""
    path = tmp_path / "log"
    path.write_bytes(b"before\n")
    file = LogFile(path)
    assert file.write(b"one\ntwo\n", 4) == 4
    assert path.read_bytes() == b"before\ntwo\n"
    assert str(file) == str(path)
    file.close()


@pytest.mark.parametrize("before", ["", "half a li", "whole\n"])
def test_half_a_line_of_a_process_that_was_killed(tmp_path: Path, before: str) -> None:
    """After a partial line of a killed process, the first write starts a new line."""
    path = tmp_path / "log"
    path.write_text(before)
    file = LogFile(path)
    for line in (b"one\n", b"two\n"):
        assert file.write(line, 0) == 4
    file.close()
    lines = before.splitlines()
    assert path.read_text().splitlines() == [*lines, "one", "two"]


def test_closing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """close() closes the descriptor, once."""
    disk = Disk(monkeypatch)
    file = LogFile(tmp_path / "log")
    assert isOpen(disk.file)
    file.close()
    assert not isOpen(disk.file)
    file.close()


@pytest.mark.parametrize(
    ("name", "reason"), [("", "Is a directory"), ("no/log", "No such file or directory")]
)
def test_file_that_cannot_be_opened(tmp_path: Path, name: str, reason: str) -> None:
    """An open that fails raises the system's error."""
    with pytest.raises(OSError, match=reason):
        LogFile(tmp_path / name)


def test_no_path() -> None:
    """An empty path is an error, not the current folder."""
    with pytest.raises(OSError, match="a path is missing"):
        LogFile("")


def test_other_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path keeps its meaning if the process changes its folder."""
    monkeypatch.chdir(tmp_path)
    file = LogFile("log")
    (tmp_path / "log").unlink()
    monkeypatch.chdir("/")
    file.write(b"one\n", 0)
    file.close()
    assert (tmp_path / "log").read_bytes() == b"one\n"


@pytest.mark.parametrize("how", ["rename", "remove"])
def test_rotation(tmp_path: Path, how: str) -> None:
    """A renamed or removed file is reopened, but never within a line."""
    path, old = tmp_path / "log", tmp_path / "old"
    file = LogFile(path)
    assert file.write(b"one\ntw", 0) == 6
    if how == "rename":
        path.rename(old)
    else:
        os.link(path, old)
        path.unlink()
    assert file.write(b"one\ntwo\n", 6) == 2
    assert file.write(b"one\ntwo\nthree\n", 8) == 6
    file.close()
    assert old.read_bytes() == b"one\ntwo\n"
    assert path.read_bytes() == b"three\n"


def test_reopening(tmp_path: Path) -> None:
    """reopen() opens the path anew at once."""
    path = tmp_path / "log"
    file = LogFile(path)
    path.rename(tmp_path / "old")
    file.reopen()
    assert path.read_bytes() == b""
    file.close()


def test_mode(tmp_path: Path) -> None:
    """A new file gets the mode of the one before it, whatever the umask is by then."""
    path = tmp_path / "log"
    before = os.umask(0o022)
    try:
        file = LogFile(path)
        os.umask(0o077)
        path.rename(tmp_path / "old")
        file.write(b"one\n", 0)
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        path.chmod(0o640)
        file.reopen()
        path.unlink()
        file.reopen()
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        file.close()
    finally:
        os.umask(before)


@pytest.mark.parametrize("mask", [0o077, 0o027, 0o000])
def test_mode_that_is_asked_for(tmp_path: Path, mask: int) -> None:
    """With an explicit umask, neither the process's umask nor the old file's mode counts."""
    path = tmp_path / "log"
    path.write_bytes(b"before\n")
    path.chmod(0o644)
    before = os.umask(0o022)
    try:
        file = LogFile(path, mask)
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        for _ in range(2):
            path.unlink()
            file.write(b"one\n", 0)
            assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
        file.close()
        path.unlink()
        LogFile(path, mask).close()
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
    finally:
        os.umask(before)


def test_file_system_without_modes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new file is written even if its mode cannot be set, as on FAT."""

    def fchmod(file: int, mode: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    file = LogFile(tmp_path / "log")
    (tmp_path / "log").unlink()
    monkeypatch.setattr(os, "fchmod", fchmod)
    assert file.write(b"one\n", 0) == 4
    assert (tmp_path / "log").read_bytes() == b"one\n"
    file.close()


@pytest.mark.parametrize("number", [0, 1, 2])
def test_standard_descriptor_that_is_free(tmp_path: Path, number: int) -> None:
    """The file never takes descriptor 0, 1 or 2, which a daemonizing twistd would replace."""
    before = os.dup(number)
    os.close(number)
    try:
        file = LogFile(tmp_path / "log")
        file.reopen()
        free = not isOpen(number)
    finally:
        os.dup2(before, number)
        os.close(before)
    assert free
    assert file.write(b"one\n", 0) == 4
    file.close()
    assert (tmp_path / "log").read_bytes() == b"one\n"


@pytest.mark.parametrize("device", ["/dev/full", "/dev/null"])
def test_path_that_leads_to_a_device_no_longer(tmp_path: Path, device: str) -> None:
    """If the first file was a device, the next write follows the path to another file."""
    path = tmp_path / "log"
    path.symlink_to(device)
    file = LogFile(path)
    file.reopen()
    if device == "/dev/full":
        with pytest.raises(OSError, match="No space left on device"):
            file.write(b"one\n", 0)
    else:
        assert file.write(b"one\n", 0) == 4
    assert file.stale is None
    path.unlink()
    path.symlink_to("target")
    assert file.write(b"one\ntwo\n", 4) == 4
    file.close()
    assert (tmp_path / "target").read_bytes() == b"two\n"


def test_path_that_leads_to_a_device(tmp_path: Path) -> None:
    """A path that now leads to a device is no rotation: the old file is written."""
    path, old = tmp_path / "log", tmp_path / "old"
    file = LogFile(path)
    assert file.write(b"one\n", 0) == 4
    path.rename(old)
    path.symlink_to("/dev/null")
    with capturedLogs() as events:
        for _ in range(2):
            assert file.write(b"two\n", 0) == 4
    assert texts(events) == [
        f"Connection log cannot be opened anew, and goes on: its path leads to a device: '{path}'"
    ]
    assert file.stale == (
        "its path cannot be opened anew (its path leads to a device), "
        "and records go to the renamed file"
    )
    assert old.read_bytes() == b"one\ntwo\ntwo\n"
    old.unlink()
    with pytest.raises(OSError, match="its path leads to a device"):
        file.write(b"three\n", 0)
    path.unlink()
    assert file.write(b"three\n", 0) == 6
    assert file.stale is None
    file.close()
    assert path.read_bytes() == b"three\n"


def test_rotation_that_is_undone(tmp_path: Path) -> None:
    """A path that leads to the open file again is not stale."""
    folder, moved = tmp_path / "folder", tmp_path / "moved"
    folder.mkdir()
    file = LogFile(folder / "log")
    file.write(b"one\n", 0)
    folder.rename(moved)
    file.write(b"two\n", 0)
    assert file.stale is not None
    moved.rename(folder)
    file.write(b"three\n", 0)
    assert file.stale is None
    file.close()
    assert (folder / "log").read_bytes() == b"one\ntwo\nthree\n"


def test_removed_file_that_its_path_still_leads_to(tmp_path: Path) -> None:
    """
    Nobody would find what is written there, so it fails, until the path leads to another file.

    A file that is mounted by itself is such a path, and so is a descriptor's.
    """
    target = tmp_path / "target"
    number = os.open(target, os.O_WRONLY | os.O_CREAT)
    path = f"/proc/self/fd/{number}"
    file = LogFile(path)
    assert file.write(b"one\n", 0) == 4
    target.unlink()
    for _ in range(2):
        with pytest.raises(OSError, match="the file was removed, and its path still leads to it"):
            file.write(b"two\n", 0)
    with pytest.raises(OSError, match="the file was removed"):
        LogFile(path)
    new = os.open(target, os.O_WRONLY | os.O_CREAT)
    os.dup2(new, number)
    assert file.write(b"two\n", 0) == 4
    file.close()
    os.close(new)
    os.close(number)
    assert target.read_bytes() == b"two\n"


def test_path_out_of_reach(tmp_path: Path) -> None:
    """If the path is out of reach, the open file is written until it is removed; logged once."""
    folder, moved = tmp_path / "folder", tmp_path / "moved"
    folder.mkdir()
    file = LogFile(folder / "log")
    folder.rename(moved)
    with capturedLogs() as events:
        file.write(b"one\n", 0)
        file.write(b"two\n", 0)
        file.reopen()
        assert (moved / "log").read_bytes() == b"one\ntwo\n"
        (moved / "log").unlink()
        with pytest.raises(FileNotFoundError):
            file.write(b"three\n", 0)
        with pytest.raises(FileNotFoundError):
            file.reopen()
        moved.rename(folder)
        file.write(b"three\n", 0)
    file.close()
    assert (folder / "log").read_bytes() == b"three\n"
    [said] = texts(events)
    assert said == (
        "Connection log cannot be opened anew, and goes on: "
        f"No such file or directory: '{folder}/log'"
    )


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk, a partial line is removed; if no whole line fits, the write fails."""
    path = tmp_path / "log"
    disk = Disk(monkeypatch, room=6)
    file = LogFile(path)
    assert file.write(b"one\ntwo\n", 0) == 4
    assert path.read_bytes() == b"one\n"
    disk.room = 2
    with pytest.raises(OSError, match="No space left on device"):
        file.write(b"one\ntwo\n", 4)
    disk.room = 100
    assert file.write(b"one\ntwo\n", 4) == 4
    file.close()
    assert path.read_bytes() == b"one\ntwo\n"


def test_disk_that_gets_full_between_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the disk is full at the end of a line, nothing is removed."""
    Disk(monkeypatch, room=4)
    file = LogFile(tmp_path / "log")
    assert file.write(b"one\ntwo\n", 0) == 4
    file.close()
    assert (tmp_path / "log").read_bytes() == b"one\n"


def cannotTruncate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make ftruncate fail, as on append-only files."""

    def ftruncate(file: int, size: int) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "ftruncate", ftruncate)


def cannotLock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make flock fail, as on a file system without locks."""

    def flock(file: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", flock)


@pytest.mark.parametrize("way", [cannotTruncate, cannotLock])
def test_half_a_line_that_cannot_be_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: Any
) -> None:
    """A partial line that cannot be removed safely stays, and the next write continues it."""
    path = tmp_path / "log"
    disk = Disk(monkeypatch, room=6)
    way(monkeypatch)
    file = LogFile(path)
    assert file.write(b"one\ntwo\n", 0) == 6
    disk.room = 100
    assert file.write(b"one\ntwo\n", 6) == 2
    file.close()
    assert path.read_bytes() == b"one\ntwo\n"


def test_rest_of_a_line_that_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only bytes of this write are removed, not those of the one before."""
    path = tmp_path / "log"
    file = LogFile(path)
    assert file.write(b"one", 0) == 3
    Disk(monkeypatch, room=2)
    with pytest.raises(OSError, match="No space"):
        file.write(b"oneone\n", 3)
    file.close()
    assert path.read_bytes() == b"one"


@pytest.mark.parametrize(("room", "written"), [(8, True), (7, False), (4, False), (3, False)])
def test_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int, written: bool
) -> None:
    """C{whole=True} writes all lines or none."""
    path = tmp_path / "log"
    file = LogFile(path)
    assert file.write(b"zero\n", 0) == 5
    Disk(monkeypatch, room=room)
    if written:
        assert file.write(b"one\ntwo\n", 0, whole=True) == 8
    else:
        with pytest.raises(OSError, match="No space left"):
            file.write(b"one\ntwo\n", 0, whole=True)
    file.close()
    assert path.read_bytes() == (b"zero\none\ntwo\n" if written else b"zero\n")


def test_whole_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C{whole=True} writes nothing without a lock, because a part could not be removed."""
    cannotLock(monkeypatch)
    file = LogFile(tmp_path / "log")
    with pytest.raises(OSError, match="No locks available"):
        file.write(b"one\n", 0, whole=True)
    file.close()
    assert (tmp_path / "log").read_bytes() == b""


def test_another_log_on_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock keeps other logs from appending while a partial line is removed."""
    path = tmp_path / "log"
    file, other = LogFile(path), LogFile(path)
    disk = Disk(monkeypatch, room=6)
    tried = threading.Event()

    def writeOther() -> None:
        """Append to the same file."""
        other.write(b"other\n", 0)
        tried.set()

    thread = threading.Thread(target=writeOther)
    flock, ftruncate = fcntl.flock, os.ftruncate

    def lock(descriptor: int, operation: int) -> None:
        """Signal that the other log waits for the lock."""
        if threading.current_thread() is thread:
            tried.set()
        flock(descriptor, operation)

    def truncate(descriptor: int, size: int) -> None:
        """Let the other log try to append between the check of the size and the truncation."""
        disk.room = 100
        thread.start()
        assert tried.wait(TIMEOUT)
        ftruncate(descriptor, size)

    monkeypatch.setattr(fcntl, "flock", lock)
    monkeypatch.setattr(os, "ftruncate", truncate)
    assert file.write(b"one\ntwo\n", 0) == 4
    thread.join(TIMEOUT)
    assert file.write(b"one\ntwo\n", 4) == 4
    assert path.read_bytes() == b"one\nother\ntwo\n"
    file.close()
    other.close()


def test_others_who_append_after_half_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes that another process appended without the lock are not cut off."""
    path = tmp_path / "log"
    writes = iter([2, 0])
    write = os.write

    def disturbed(file: int, data: Any) -> int:
        """Write a part; then fail, after another process has appended."""
        count = next(writes)
        if not count:
            with path.open("ab") as other:
                other.write(b"other\n")
            raise full()
        return write(file, data[:count])

    file = LogFile(path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", disturbed)
        assert file.write(b"one\n", 0) == 2
    assert file.write(b"one\n", 2) == 2
    file.close()
    assert path.read_bytes() == b"onother\ne\n"


def test_standard_output(output: Output) -> None:
    """C{-} is descriptor 1, whatever sys.stdout is; it is never closed or reopened."""
    reader, writer = os.pipe()
    output.become(writer)
    file = LogFile("-")
    assert str(file) == "-"
    file.reopen()
    assert file.write(b"one\n", 0) == 4
    file.close()
    assert isOpen(1)
    assert os.read(reader, 100) == b"one\n"
    os.close(reader)


def test_standard_output_that_was_removed(tmp_path: Path, output: Output) -> None:
    """A removed file behind a shell's > fails; a file that never had a name does not."""
    output.become(os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT))
    file = LogFile("-")
    assert file.write(b"one\n", 0) == 4
    (tmp_path / "log").unlink()
    with pytest.raises(OSError, match="the file was removed"):
        file.write(b"two\n", 0)
    assert LogFile("-").write(b"two\n", 0) == 4


def test_standard_output_that_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """If descriptor 1 was closed at the start, C{-} is an error, whatever descriptor 1 is now."""
    monkeypatch.setattr(sys, "__stdout__", None)
    with pytest.raises(OSError, match="standard output is closed"):
        LogFile("-")


def test_file_that_a_shell_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: Output
) -> None:
    """After a partial line was removed behind a shell's >, the next write leaves no hole."""
    path = tmp_path / "log"
    output.become(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
    file = LogFile("-")
    disk = Disk(monkeypatch, room=6)
    assert file.write(b"one\ntwo\n", 0) == 4
    disk.room = 100
    assert file.write(b"one\ntwo\n", 4) == 4
    assert path.read_bytes() == b"one\ntwo\n"


def test_pipe_that_does_not_block(monkeypatch: pytest.MonkeyPatch, output: Output) -> None:
    """A full non-blocking pipe takes 0 bytes, without an error."""
    monkeypatch.setattr(module, "PIPE_TIMEOUT", 0)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    output.become(writer)
    file = LogFile("-")
    count = 0
    while file.write(b"one\n", 0):
        count += 4
    assert file.write(b"one\n", 0) == 0
    with pytest.raises(BlockingIOError):
        file.write(b"one\n", 0, whole=True)
    assert len(os.read(reader, count)) == count
    assert file.write(b"one\n", 0) == 4
    os.close(reader)


def test_pipe_that_nobody_reads(fifo: Path) -> None:
    """A named pipe without a reader is an error at the start."""
    with pytest.raises(OSError, match="No such device or address"):
        LogFile(fifo)


def test_pipe_whose_name_is_gone(fifo: Path, reader: int) -> None:
    """A pipe without a name is written while it has a reader, or until another has its name."""
    file = LogFile(fifo)
    fifo.unlink()
    assert file.write(b"one\n", 0) == 4
    os.mkfifo(fifo)
    with pytest.raises(OSError, match="No such device or address"):
        file.write(b"two\n", 0)
    other = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    assert file.write(b"two\n", 0) == 4
    assert [os.read(each, 100) for each in (reader, other)] == [b"one\n", b"two\n"]
    file.close()
    os.close(reader)
    os.close(other)


def test_whole_lines_for_a_pipe(fifo: Path, reader: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe gets as many whole lines as fit at once, or a part of a line that is longer."""
    monkeypatch.setattr(module, "_PIPE_BUF", 10)
    file = LogFile(fifo)
    lines = b"one\ntwo\nthree\n" + b"x" * 15 + b"\n"
    writes: list[int] = []
    while sum(writes) < len(lines):
        writes.append(file.write(lines, sum(writes)))
    assert writes == [8, 6, 10, 6]
    assert os.read(reader, 100) == lines
    file.close()
    os.close(reader)


def test_reader_that_goes_away(fifo: Path, reader: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its reader has gone, a pipe is closed; the next reader gets the rest."""
    monkeypatch.setattr(module, "_PIPE_BUF", 3)
    file = LogFile(fifo)
    assert file.write(b"line\n", 0) == 3
    os.close(reader)
    with pytest.raises(BrokenPipeError):
        file.write(b"line\n", 3)
    with pytest.raises(OSError, match="No such device or address"):
        file.write(b"line\n", 3)
    with pytest.raises(OSError, match="No such device or address"):
        file.reopen()
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    assert file.write(b"line\n", 3) == 2
    assert os.read(reader, 100) == b"e\n"
    file.close()
    os.close(reader)


def test_somebody_else_who_locks_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that another process holds delays the first write only."""
    monkeypatch.setattr(module, "LOCK_TIMEOUT", 0.01)
    file = LogFile(tmp_path / "log")
    with open(tmp_path / "log") as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        for _ in range(2):
            assert file.write(b"hello\n", 0) == 6
    file.close()
    assert (tmp_path / "log").read_bytes() == 2 * b"hello\n"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("-", 1),
        ("/dev/stdin", 0),
        ("/dev/stdout", 1),
        ("/dev/stderr", 2),
        ("/dev/fd/1", 1),
        ("/proc/self/fd/2", 2),
        ("/proc/thread-self/fd/1", 1),
        ("/proc/{pid}/fd/1", 1),
        ("/proc/self/../self/fd/1", 1),
        ("link", 1),
        ("folder/link", 1),
        ("/proc/self/fd/10", None),
        ("/proc/1/fd/1", None),
        ("1", None),
        ("/dev/null", None),
        ("loop", None),
        ("missing/log", None),
    ],
)
def test_standard_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, expected: int | None
) -> None:
    """A path that leads to a standard descriptor by any links is recognized; others are not."""
    monkeypatch.chdir(tmp_path)
    Path("folder").symlink_to(".")
    Path("link").symlink_to("folder/other")
    Path("other").symlink_to("/dev/stdout")
    Path("loop").symlink_to("loop")
    Path("1").write_bytes(b"")
    assert standardStream(path.format(pid=os.getpid())) == expected
