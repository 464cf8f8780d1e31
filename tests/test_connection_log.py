"""The connection log, on real files and pipes; a gate that a test opens is what a reader does."""

from __future__ import annotations

import errno
import json
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.logger import LogEvent, formatEvent, globalLogPublisher

from hello_listen import Connection, ConnectionLog
from hello_listen import connection_log as module

ADDRESS = IPv4Address("TCP", "192.0.2.7", 1)


def connection(sequence: int) -> Connection:
    """Return some connection."""
    return Connection(1795378774.5, sequence, ADDRESS, ADDRESS)


LENGTH = len(connection(1).json()) + 1


def sequences(text: str) -> list[int]:
    """Return the numbers of the records in a text of whole lines."""
    assert text.endswith("\n") or not text
    return [json.loads(line)["sequence"] for line in text.splitlines()]


class Said:
    """What Twisted's log was told, by whichever thread."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._changed = threading.Condition()
        self.texts: list[str] = []

    def __call__(self, event: LogEvent) -> None:
        """Take an event."""
        with self._changed:
            self.texts.append(formatEvent(event))
            self._changed.notify_all()

    def wait(self, beginning: str, count: int = 1) -> None:
        """Wait until this was said so often."""
        with self._changed:
            assert self._changed.wait_for(
                lambda: sum(text.startswith(beginning) for text in self.texts) >= count, 20
            ), self.texts


@pytest.fixture
def said() -> Iterator[Said]:
    """Return what is said while the test runs."""
    observer = Said()
    globalLogPublisher.addObserver(observer)
    yield observer
    globalLogPublisher.removeObserver(observer)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Try again at once; leave no thread behind that speaks while the next test listens."""
    monkeypatch.setattr(module, "RETRY", 0.001)
    monkeypatch.setattr(module, "CLOSING", 0.2)
    yield
    for thread in threading.enumerate():
        if thread.name == "connection log":
            thread.join(20)
            assert not thread.is_alive()


def test_records(tmp_path: Path, said: Said) -> None:
    """Each connection is a line, in order, whole at the end; closing twice says it once."""
    path = tmp_path / "log"
    log = ConnectionLog(path)
    for number in range(1, 101):
        log(connection(number))
    log.close()
    log.close()
    with pytest.raises(ValueError, match="closed"):
        log(connection(101))
    assert sequences(path.read_text()) == list(range(1, 101))
    assert said.texts == ["Connections: 100, recorded: 100, lost: 0"]


def test_nothing(tmp_path: Path, said: Said) -> None:
    """A log that never was called has nothing to write."""
    ConnectionLog(tmp_path / "log").close()
    assert (tmp_path / "log").read_bytes() == b""
    assert said.texts == ["Connections: 0, recorded: 0, lost: 0"]


def test_it_appends(tmp_path: Path) -> None:
    """What is there stays there."""
    path = tmp_path / "log"
    path.write_text("before\n")
    log = ConnectionLog(path)
    log(connection(1))
    log.close()
    assert path.read_text().startswith('before\n{"timestamp"')


@pytest.mark.unix
def test_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dash is descriptor 1, whatever sys.stdout has become."""
    reader, writer = os.pipe()
    before = os.dup(1)
    try:
        os.dup2(writer, 1)
        log = ConnectionLog("-")
        log(connection(1))
        log.close()
    finally:
        os.dup2(before, 1)
        os.close(before)
        os.close(writer)
    with open(reader) as output:
        assert sequences(output.read()) == [1]


@pytest.mark.unix
@pytest.mark.parametrize("how", ["rename", "remove"])
def test_rotation(tmp_path: Path, said: Said, how: str) -> None:
    """After a rename or removal, the next batch opens the path anew."""
    path, old = tmp_path / "log", tmp_path / "old"
    log = ConnectionLog(path)
    log(connection(1))
    untilSize(path, LENGTH)
    if how == "rename":
        path.rename(old)
    else:
        os.link(path, old)
        path.unlink()
    log(connection(2))
    log.close()
    assert sequences(old.read_text()) == [1]
    assert sequences(path.read_text()) == [2]


def untilSize(path: Path, size: int) -> None:
    """Wait until a file has grown so large."""
    for _ in range(2000):
        if path.stat().st_size >= size:
            return
        threading.Event().wait(0.01)
    raise AssertionError(f"{path} did not grow")


class Disk:
    """Stands in for os.write, as a disk does: with so much room, and an error beyond it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
        """Replace os.write."""
        self.room = room
        self._write = os.write
        monkeypatch.setattr(os, "write", self.write)

    def write(self, file: int, data: Any) -> int:
        """Write what there is room for."""
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = self._write(file, data[: self.room])
        self.room -= written
        return written


def test_full_disk(tmp_path: Path, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a line is taken back, for others may append to the file; each change is said once."""
    path = tmp_path / "log"
    disk = Disk(monkeypatch, room=LENGTH + 7)
    log = ConnectionLog(path)
    for number in range(1, 4):
        log(connection(number))
    said.wait("Connection log failed, records are kept in memory: No space left on device")
    assert path.stat().st_size == LENGTH
    disk.room = 10**6
    said.wait("Connection log works again")
    log.close()
    assert sequences(path.read_text()) == [1, 2, 3]
    assert len(said.texts) == 3


def test_half_a_line_that_cannot_be_taken_back(
    tmp_path: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is continued where it stopped."""
    path = tmp_path / "log"
    disk = Disk(monkeypatch, room=LENGTH + 7)
    monkeypatch.setattr(os, "ftruncate", lambda file, size: os.rmdir("no folder"))
    log = ConnectionLog(path)
    for number in range(1, 4):
        log(connection(number))
    said.wait("Connection log failed")
    assert path.stat().st_size == LENGTH + 7
    disk.room = 10**6
    said.wait("Connection log works again")
    log.close()
    assert sequences(path.read_text()) == [1, 2, 3]


def test_path_out_of_reach(tmp_path: Path, said: Said) -> None:
    """Where the file cannot be opened anew it is still written to, which is said once."""
    folder, moved = tmp_path / "folder", tmp_path / "moved"
    folder.mkdir()
    log = ConnectionLog(folder / "log")
    folder.rename(moved)
    for number in range(1, 4):
        log(connection(number))
        untilSize(moved / "log", number * LENGTH)
    (moved / "log").unlink()
    log(connection(4))
    said.wait("Connection log failed, records are kept in memory: No such file or directory")
    moved.rename(folder)
    said.wait("Connection log works again")
    log.close()
    assert sequences((folder / "log").read_text()) == [4]
    assert said.texts[0].startswith("Connection log cannot be opened anew, and goes on where it is")
    assert said.texts[3:] == ["Connections: 4, recorded: 4, lost: 0"]


def test_client_that_is_called_as_what_is_counted(
    tmp_path: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No address makes the counts at the end untrue."""
    Disk(monkeypatch, room=0)
    log = ConnectionLog(tmp_path / "log")
    name = UNIXAddress(b'"message": "Connections not recorded"')
    for number in range(1, 4):
        log(Connection(1795378774.5, number, name, name))
    log.close()
    assert said.texts[-1] == "Connections: 3, recorded: 0, lost: 3"


def test_thread_that_cannot_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried again with the next connection."""
    log = ConnectionLog(tmp_path / "log")
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", lambda thread: os.rmdir("no folder"))
        with pytest.raises(OSError, match="No such file"):
            log(connection(1))
    log(connection(2))
    log.close()
    assert sequences((tmp_path / "log").read_text()) == [1, 2]


def test_too_much_to_keep(tmp_path: Path, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    """What exceeds the bound is counted, and told in the log where it is missing."""
    path = tmp_path / "log"
    disk = Disk(monkeypatch, room=0)
    log = ConnectionLog(path, kept=3 * LENGTH)
    for number in range(1, 9):
        log(connection(number))
    said.wait("Connection log failed")
    disk.room = 10**6
    said.wait("Connection log works again")
    untilSize(path, 3 * LENGTH + 50)
    log(connection(9))
    log.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line.get("sequence") for line in lines] == [1, 2, 3, None, 9]
    assert lines[3].pop("timestamp").endswith("Z")
    assert lines[3] == {
        "message": "Connections not recorded", "count": 5, "sequence.first": 4, "sequence.last": 8,
    }  # fmt: skip
    assert said.texts[-1] == "Connections: 9, recorded: 4, lost: 5"


def test_room_before_the_batch_is_taken(tmp_path: Path, said: Said) -> None:
    """A shorter record that fits after one that did not is preceded by the count."""
    path = tmp_path / "log"
    log = ConnectionLog(path, kept=LENGTH + 10)
    log(connection(1))
    log(connection(2))
    log._kept = 10**6
    log(connection(3))
    log.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line.get("sequence", line.get("count")) for line in lines] == [1, 1, 3]


def test_closing_while_it_fails(
    tmp_path: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be written at the end is counted as lost, a torn line too."""
    Disk(monkeypatch, room=LENGTH + 7)
    log = ConnectionLog(tmp_path / "log", kept=3 * LENGTH)
    for number in range(1, 6):
        log(connection(number))
    said.wait("Connection log failed")
    log.close()
    assert said.texts[-1] == "Connections: 5, recorded: 1, lost: 4"


@pytest.mark.unix
def test_pipe_that_nobody_reads(fifo: Path) -> None:
    """It is an error at the start, instead of a process that waits for ever."""
    with pytest.raises(OSError, match="No such device or address"):
        ConnectionLog(fifo)


@pytest.mark.unix
def test_reader_that_stalls(fifo: Path, reader: int, said: Said) -> None:
    """Everything arrives, in order, when the reader goes on."""
    log = ConnectionLog(fifo)
    for number in range(1, 3001):
        log(connection(number))
    os.set_blocking(reader, True)
    closing = threading.Thread(target=log.close)
    with open(reader) as lines:
        for number in range(1, 3001):
            assert json.loads(lines.readline())["sequence"] == number
        closing.start()
        closing.join()
    assert said.texts == ["Connections: 3000, recorded: 3000, lost: 0"]


@pytest.mark.unix
def test_reader_that_stalls_for_ever(fifo: Path, reader: int, said: Said) -> None:
    """The log is closed all the same, and what is in the pipe is what it says is recorded."""
    log = ConnectionLog(fifo)
    for number in range(1, 3001):
        log(connection(number))
    log.close()
    recorded, lost = map(int, re.findall("recorded: (.*), lost: (.*)", said.texts[0])[0])
    assert recorded + lost == 3000
    assert lost > 0
    pending = b""
    while len(pending) < recorded * (LENGTH - 1):
        pending += os.read(reader, 65536)
    os.close(reader)
    assert sequences(pending.decode())[:recorded] == list(range(1, recorded + 1))


@pytest.mark.unix
def test_reader_that_goes_away(fifo: Path, reader: int, said: Said) -> None:
    """It is said once; the records are for the next reader."""
    log = ConnectionLog(fifo)
    os.close(reader)
    log(connection(1))
    said.wait("Connection log failed, records are kept in memory: Broken pipe")
    log(connection(2))
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    said.wait("Connection log works again")
    log.close()
    with open(reader) as lines:
        assert sequences(lines.read()) == [1, 2]
    assert len(said.texts) == 3


def test_system_without_nonblocking_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where files cannot be opened without waiting, they are opened as they are."""
    monkeypatch.delattr(os, "O_NONBLOCK", raising=False)
    log = ConnectionLog(tmp_path / "log")
    log(connection(1))
    log.close()
    assert sequences((tmp_path / "log").read_text()) == [1]
