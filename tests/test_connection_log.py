"""The connection log, on real files and pipes. Tests open gates where a reader would read."""

from __future__ import annotations

import json
import os
import re
import select
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from zope.interface import implementer

from disks import Disk, isOpen
from hello_listen import (
    Connection,
    ConnectionLog,
    HelloFactory,
    HelloService,
    Summaries,
    __version__,
)
from hello_listen import connection_log as module
from hello_listen._clock import waitFor
from hello_listen._log_file import LogFile
from hello_listen.connection import Summary
from output import Output
from reactors import TIMEOUT, FakeReactor

ADDRESS = IPv4Address("TCP", "192.0.2.7", 1)
CONNECTION = Connection(1795378774.5, ADDRESS, ADDRESS)
SUMMARY = Summary(10, 1795378774.5, 1795378775.5, "192.0.2.7", "tcp", "ipv4")
NUMBERED = len(', "service.instance.id": "0123456789ab", "sequence": 1\n')
LENGTH = len(CONNECTION.json()) + NUMBERED
BEFORE = ["Connection log opened"]
AFTER = ["Connection log closed"]
FULL = "Accept queue was full"


@implementer(ILogObserver)
class Said:
    """Records the texts of Twisted's log, from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.texts: list[str] = []

    def __call__(self, event: LogEvent) -> None:
        """Keep the text of an event."""
        with self._changed:
            self.texts.append(formatEvent(event))
            self._changed.notify_all()

    def wait(self, beginning: str) -> None:
        """Wait until this was said."""
        with self._changed:
            assert self._changed.wait_for(
                lambda: any(text.startswith(beginning) for text in self.texts), TIMEOUT
            ), self.texts


@pytest.fixture
def said() -> Iterator[Said]:
    """Return the texts that are logged during the test."""
    observer = Said()
    globalLogPublisher.addObserver(observer)
    yield observer
    globalLogPublisher.removeObserver(observer)


@pytest.fixture
def reactor() -> FakeReactor:
    """Return a reactor that makes calls while a test waits for it."""
    return FakeReactor()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Retry at once; wait until the threads of the test's logs have ended."""
    monkeypatch.setattr(module, "RETRY_INTERVAL", 0.001)
    monkeypatch.setattr(module, "RECOVERY_TIME", 0.001)
    monkeypatch.setattr(module, "MAX_WRITE_DELAY", 3600)
    before = threading.enumerate()
    yield
    untilThreadsEnd(before)


def untilThreadsEnd(before: Sequence[threading.Thread]) -> None:
    """Wait until the threads of all logs have ended, except those of earlier tests that failed."""
    for thread in threading.enumerate():
        if thread.name.startswith("connection log") and thread not in before:
            thread.join(TIMEOUT)
            assert not thread.is_alive()


def close(log: ConnectionLog, reactor: FakeReactor) -> None:
    """Close a log, and wait until it is closed."""
    reactor.wait(log.close())


def giveUp(log: ConnectionLog, reactor: FakeReactor) -> None:
    """Close a log that cannot be written, and let its timeout pass."""
    closed = log.close()
    assert not closed.called
    reactor.advance(module.CLOSE_TIMEOUT)
    assert closed.called


def giveUpLines(log: ConnectionLog, reactor: FakeReactor) -> None:
    """Close a log that cannot be written, and wait until it has tried to write its last lines."""
    closed = log.close()
    reactor.advance(module.CLOSE_TIMEOUT - module.END_TIMEOUT)
    assert not closed.called
    reactor.wait(closed)


def test_drops(tmp_path: Path, reactor: FakeReactor, said: Said) -> None:
    """What a full accept queue dropped is a line without a number, and counts as no connection."""
    path = tmp_path / "log"
    log = ConnectionLog(path, reactor=reactor)
    log.dropped(ADDRESS, 20)
    log(CONNECTION)
    log.dropped(UNIXAddress(None), 3)
    close(log, reactor)
    with pytest.raises(ValueError, match="closed"):
        log.dropped(ADDRESS, 1)
    assert sequences(path) == [*BEFORE, FULL, 1, FULL, *AFTER]
    _, first, _, second, closed = records(path)
    assert first.pop("timestamp") <= second.pop("timestamp")
    known = {"message": FULL, "service.instance.id": log.id}
    ends = {"server.address": "192.0.2.7", "server.port": 1}
    assert first == {**known, **ends, "packets": 20, "packets.total": 20}
    assert second == {**known, "packets": 3, "packets.total": 23}
    assert (closed["connections"], closed["sequence.last"]) == (1, 1)
    assert said.texts[-1] == "Connections: 1, recorded: 1, summarized: 0, lost: 0"


def test_drops_in_a_full_queue(
    tmp_path: Path, reactor: FakeReactor, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the queue of lines is full, drops have no line, as a gap record will tell of losses."""
    path = tmp_path / "log"
    disk = Disk(monkeypatch, room=0)
    log = ConnectionLog(path, LENGTH, reactor=reactor)
    log(CONNECTION)
    said.wait("Connection log failed")
    for _ in range(3):
        log(CONNECTION)
        log.dropped(ADDRESS, 1)
    assert log.waiting < 1000
    disk.room = 10**6
    settle(log, disk)
    log.dropped(ADDRESS, 1)
    close(log, reactor)
    told = [record for record in records(path) if record["message"] == FULL]
    assert [(line["packets"], line["packets.total"]) for line in told] == [(1, 4)]


def test_room_while_it_closes(
    tmp_path: Path, reactor: FakeReactor, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log that is being closed retries until its timeout."""
    disk = Disk(monkeypatch, room=0)
    log = ConnectionLog(tmp_path / "log", reactor=reactor)
    log(CONNECTION)
    said.wait("Connection log failed")
    closed = log.close()
    tried = disk.refusals
    disk.until(lambda: disk.refusals > tried + 1)
    disk.room = 10**6
    reactor.wait(closed)
    assert said.texts[-1] == "Connections: 1, recorded: 1, summarized: 0, lost: 0"


def settle(log: ConnectionLog, disk: Disk) -> None:
    """Wait until everything is written and counted: only then is the file reopened."""
    disk.opened = 0
    log.reopen()
    disk.until(lambda: disk.opened)


def records(path: Path) -> list[dict[str, Any]]:
    """Return the records of a log, each of which is a whole line."""
    text = path.read_text("ascii")
    assert text.endswith("\n") or not text
    return [json.loads(line) for line in text.splitlines()]


def sequences(path: Path) -> list[int | str]:
    """Return the sequence number of each line, or its message if it has none."""
    return [record.get("sequence", record["message"]) for record in records(path)]


def test_records(tmp_path: Path, reactor: FakeReactor, said: Said) -> None:
    """Each connection is one line, in order, between an opening and a closing line."""
    path = tmp_path / "log"
    log = ConnectionLog(path, reactor=reactor)
    for _ in range(100):
        log(CONNECTION)
    assert log.close() is log.close()
    close(log, reactor)
    with pytest.raises(ValueError, match="closed"):
        log(CONNECTION)
    opened, *connections, closed = records(path)
    assert connections[0] == {
        "timestamp": "2026-11-22T20:19:34.500000Z",
        "message": "Connection established!",
        "service.instance.id": log.id,
        "sequence": 1,
        "network.transport": "tcp",
        "network.type": "ipv4",
        "client.address": "192.0.2.7",
        "client.port": 1,
        "server.address": "192.0.2.7",
        "server.port": 1,
    }
    assert [connection["sequence"] for connection in connections] == list(range(1, 101))
    assert opened.pop("timestamp") <= closed.pop("timestamp")
    assert opened == {
        "message": "Connection log opened",
        "service.instance.id": log.id,
        "service.version": __version__,
        "process.pid": os.getpid(),
        "host.name": socket.gethostname(),
        "host.boot.id": Path("/proc/sys/kernel/random/boot_id").read_text()[:-1],
        "process.pid_namespace": int(os.readlink("/proc/self/ns/pid")[len("pid:[") : -1]),
        "process.start_ticks": int(Path("/proc/self/stat").read_text().rsplit(")")[1].split()[19]),
    }
    assert closed == {
        "message": "Connection log closed",
        "service.instance.id": log.id,
        "connections": 100,
        "recorded": 100,
        "summarized": 0,
        "lost": 0,
        "sequence.last": 100,
    }
    assert said.texts == ["Connections: 100, recorded: 100, summarized: 0, lost: 0"]
    assert log.waiting == 0
    assert not reactor.getDelayedCalls()


def test_id(tmp_path: Path, reactor: FakeReactor) -> None:
    """Each log has an id of its own, which tells its records apart from others in the same file."""
    path = tmp_path / "log"
    logs = [ConnectionLog(path, reactor=reactor) for _ in range(2)]
    for log in logs:
        assert re.fullmatch("[0-9a-f]{12}", log.id)
        log(CONNECTION)
        close(log, reactor)
    ids = [record["service.instance.id"] for record in records(path)]
    assert ids == [logs[0].id] * 3 + [logs[1].id] * 3
    assert len(set(ids)) == 2


def test_nothing(tmp_path: Path, reactor: FakeReactor, said: Said) -> None:
    """A log whose reactor never ran, and that got no record, writes nothing."""
    log = ConnectionLog(tmp_path / "log", reactor=reactor)
    assert log.close().called
    reactor.run()
    assert (tmp_path / "log").read_bytes() == b""
    assert said.texts == ["Connections: 0, recorded: 0, summarized: 0, lost: 0"]


def test_it_opens_with_the_reactor(tmp_path: Path, reactor: FakeReactor) -> None:
    """A log without records writes its opening line once the reactor runs."""
    path = tmp_path / "log"
    log = ConnectionLog(path, reactor=reactor)
    reactor.run()
    log(CONNECTION)
    close(log, reactor)
    assert sequences(path) == [*BEFORE, 1, *AFTER]


def test_global_reactor(tmp_path: Path) -> None:
    """By default, a log uses the global reactor."""
    log = ConnectionLog(tmp_path / "log")
    assert log.close().called


def test_reactor_that_never_runs(tmp_path: Path, reactor: FakeReactor) -> None:
    """Records are written even if the reactor never runs."""
    before = threading.enumerate()
    path = tmp_path / "log"
    log = ConnectionLog(path, reactor=reactor)
    log(CONNECTION)
    closed = log.close()
    untilThreadsEnd(before)
    assert not closed.called
    assert sequences(path) == [*BEFORE, 1, *AFTER]


@pytest.mark.parametrize("before", [lambda log: log, lambda log: Summaries(log, 0)])
def test_service_that_starts_again(
    tmp_path: Path, reactor: FakeReactor, before: Callable[[ConnectionLog], Any]
) -> None:
    """Each start of a service is a new run in the log, also behind Summaries."""
    log = ConnectionLog(tmp_path / "log", reactor=reactor)
    service = HelloService(HelloFactory(before(log)), [], reactor)
    ids = []
    for _ in range(3):
        service.startService()
        service.factory.established(ADDRESS, ADDRESS)
        ids.append(log.id)
        reactor.wait(service.stopService())
        assert log.connections == log.recorded + log.summarized == 1
    lines = records(tmp_path / "log")
    assert [line["service.instance.id"] for line in lines] == [run for run in ids for _ in range(3)]
    assert [line.get("sequence", line["message"]) for line in lines] == [
        "Connection log opened", 1, "Connection log closed"
    ] * 3  # fmt: skip
    assert len(set(ids)) == 3


def test_log_that_is_open_stays_so(tmp_path: Path, reactor: FakeReactor) -> None:
    """To open a log that is open changes nothing."""
    log = ConnectionLog(tmp_path / "log", reactor=reactor)
    log(CONNECTION)
    run = log.id
    log.open()
    assert (log.id, log.connections) == (run, 1)
    close(log, reactor)


def test_open_while_a_write_is_stuck(
    tmp_path: Path, reactor: FakeReactor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log cannot be opened again while a write of the run before is stuck."""
    monkeypatch.setattr(module, "JOIN_TIMEOUT", 0.001)
    stuck, goesOn = threading.Event(), threading.Event()

    def write(file: LogFile, *_: object, **__: object) -> int:
        """Write to a disk that does not answer."""
        stuck.set()
        assert goesOn.wait(TIMEOUT)
        raise OSError

    monkeypatch.setattr(LogFile, "write", write)
    log = ConnectionLog(tmp_path / "log", reactor=reactor)
    reactor.run()
    assert stuck.wait(TIMEOUT)
    giveUp(log, reactor)
    with pytest.raises(OSError, match="busy: "):
        log.open()
    goesOn.set()


def test_two_factories(tmp_path: Path, reactor: FakeReactor) -> None:
    """One log numbers the records of several factories in one sequence."""
    path = tmp_path / "log"
    log = ConnectionLog(path, reactor=reactor)
    first, second = HelloFactory(log), HelloFactory(log)
    for factory in (first, second, first):
        factory.established(ADDRESS, ADDRESS)
    close(log, reactor)
    assert sequences(path) == [*BEFORE, 1, 2, 3, *AFTER]
    assert (first.connections, second.connections, log.connections) == (2, 1, 3)


def test_summaries(tmp_path: Path, reactor: FakeReactor, said: Said) -> None:
    """A summary has a sequence number, and its connections are counted as summarized."""
    path = tmp_path / "log"
    log = ConnectionLog(path, reactor=reactor)
    log(CONNECTION)
    log(SUMMARY)
    log(SUMMARY)
    close(log, reactor)
    *_, summary, closed = records(path)
    assert summary.pop("timestamp").endswith("Z")
    assert summary == {
        "message": "Connections summarized",
        "service.instance.id": log.id,
        "sequence": 3,
        "count": 10,
        "timestamp.first": "2026-11-22T20:19:34.500000Z",
        "timestamp.last": "2026-11-22T20:19:35.500000Z",
        "network.transport": "tcp",
        "network.type": "ipv4",
        "client.address": "192.0.2.7",
    }
    counts = {"connections": 21, "recorded": 1, "summarized": 20, "lost": 0}
    assert {name: closed[name] for name in counts} == counts
    assert {name: getattr(log, name) for name in counts} == counts
    assert said.texts == ["Connections: 21, recorded: 1, summarized: 20, lost: 0"]


def test_rotation(tmp_path: Path, reactor: FakeReactor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records after a renaming go to a new file."""
    path, old = tmp_path / "log", tmp_path / "old"
    disk = Disk(monkeypatch)
    log = ConnectionLog(path, reactor=reactor)
    log(CONNECTION)
    disk.until(lambda: path.read_bytes().count(b"\n") == 2)
    path.rename(old)
    log(CONNECTION)
    close(log, reactor)
    assert sequences(old) == [*BEFORE, 1]
    assert sequences(path) == [2, *AFTER]


def test_reopening(tmp_path: Path, reactor: FakeReactor, monkeypatch: pytest.MonkeyPatch) -> None:
    """reopen() opens the file anew at once; the next write reports a failure."""
    folder, old = tmp_path / "folder", tmp_path / "old"
    folder.mkdir()
    path = folder / "log"
    disk = Disk(monkeypatch)
    log = ConnectionLog(path, reactor=reactor)
    reactor.run()
    settle(log, disk)
    path.rename(old)
    disk.opened = 0
    log.reopen()
    # What is there is opened first, then a new file is made.
    disk.until(lambda: disk.opened == 2)
    path.unlink()
    folder.rmdir()
    disk.opened = 0
    log.reopen()
    disk.until(lambda: disk.opened == 2)
    folder.mkdir()
    log(CONNECTION)
    close(log, reactor)
    assert sequences(old) == BEFORE
    assert sequences(path) == [1, *AFTER]


def test_full_disk(
    tmp_path: Path, reactor: FakeReactor, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure is logged once; so is its end, after some time without another failure."""
    path = tmp_path / "log"
    now = 1000.0
    monkeypatch.setattr(module, "monotonic", lambda: now)
    monkeypatch.setattr(module, "RECOVERY_TIME", 10)
    disk = Disk(monkeypatch)
    log = ConnectionLog(path, reactor=reactor)
    log(CONNECTION)
    settle(log, disk)
    for _ in range(3):
        disk.room, disk.refusals = 7, 0
        log(CONNECTION)
        disk.until(lambda: disk.refusals > 1)
        assert log.failing == "No space left on device"
        assert path.read_bytes().endswith(b"\n")
        assert log.waiting == LENGTH
        disk.room = 10**6
        settle(log, disk)
    assert len(said.texts) == 1
    now += 10
    log(CONNECTION)
    said.wait("Connection log works again")
    assert log.failing is None
    close(log, reactor)
    assert sequences(path) == [*BEFORE, 1, 2, 3, 4, 5, *AFTER]
    assert said.texts == [
        "Connection log failed, records are kept in memory: No space left on device: "
        + repr(str(path)),
        f"Connection log works again: {str(path)!r}",
        "Connections: 5, recorded: 5, summarized: 0, lost: 0",
    ]


def test_works_again_without_anything_to_write(
    tmp_path: Path, reactor: FakeReactor, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log reports its recovery even if no client connects."""
    disk = Disk(monkeypatch, room=0)
    log = ConnectionLog(tmp_path / "log", reactor=reactor)
    reactor.run()
    said.wait("Connection log failed")
    disk.room = 10**6
    said.wait("Connection log works again")
    close(log, reactor)


def test_client_that_is_called_as_what_is_counted(
    tmp_path: Path, reactor: FakeReactor, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client whose name looks like a log message does not change the counts."""
    Disk(monkeypatch, room=0)
    log = ConnectionLog(tmp_path / "log", reactor=reactor)
    for message in (b"Connection established!", b"Connections summarized"):
        name = UNIXAddress(b'"message": "%b"' % message)
        log(Connection(1795378774.5, name, name))
    giveUp(log, reactor)
    assert said.texts[-1] == "Connections: 2, recorded: 0, summarized: 0, lost: 2"


def cannotStart(thread: threading.Thread) -> None:
    """Fail, as Thread.start does if the system has no thread left."""
    raise RuntimeError("can't start new thread")


def test_thread_that_cannot_start(
    tmp_path: Path, reactor: FakeReactor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next connection starts the thread again, and nothing is lost."""
    path = tmp_path / "log"
    log = ConnectionLog(path, reactor=reactor)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", cannotStart)
        with pytest.raises(RuntimeError):
            log(CONNECTION)
    log(CONNECTION)
    close(log, reactor)
    assert sequences(path) == [*BEFORE, 1, 2, *AFTER]


def test_thread_that_never_starts(
    tmp_path: Path, reactor: FakeReactor, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records that no thread could write are counted as lost."""
    log = ConnectionLog(tmp_path / "log", reactor=reactor)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", cannotStart)
        with pytest.raises(RuntimeError):
            log(CONNECTION)
        with pytest.raises(RuntimeError):
            log(SUMMARY)
    close(log, reactor)
    assert said.texts == ["Connections: 11, recorded: 0, summarized: 0, lost: 11"]


def test_too_much_to_keep(
    tmp_path: Path, reactor: FakeReactor, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records beyond the memory bound are counted, and a gap record stands in their place."""
    path = tmp_path / "log"
    disk = Disk(monkeypatch)
    log = ConnectionLog(path, kept=3 * LENGTH, reactor=reactor)
    reactor.run()
    settle(log, disk)
    disk.room = 0
    log(CONNECTION)
    said.wait("Connection log failed")
    for _ in range(6):
        log(CONNECTION)
    log(SUMMARY)
    assert log.lost == 14
    disk.room = 10**6
    settle(log, disk)
    log(CONNECTION)
    close(log, reactor)
    assert sequences(path) == [*BEFORE, 1, 2, 3, "Connections not recorded", 9, *AFTER]
    missing = records(path)[4]
    assert missing.pop("timestamp").endswith("Z")
    assert missing == {
        "message": "Connections not recorded",
        "service.instance.id": log.id,
        "count": 5,
        "connections": 14,
        "sequence.first": 4,
        "sequence.last": 8,
    }
    assert said.texts[-1] == "Connections: 18, recorded: 4, summarized: 0, lost: 14"


def test_room_before_the_batch_is_taken(
    tmp_path: Path, reactor: FakeReactor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gap record stands before a shorter record that fitted again."""
    path = tmp_path / "log"
    name = UNIXAddress(b"")
    short = Connection(1795378774.5, name, name)
    length = len(short.json()) + NUMBERED
    log = ConnectionLog(path, kept=LENGTH + length, reactor=reactor)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", cannotStart)
        for record in (CONNECTION, CONNECTION, short):
            with pytest.raises(RuntimeError):
                log(record)
    reactor.run()
    close(log, reactor)
    assert sequences(path) == [*BEFORE, 1, "Connections not recorded", 3, *AFTER]


def test_closing_while_it_fails(
    tmp_path: Path, reactor: FakeReactor, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records that cannot be written at the end are counted as lost, also a partly written line."""
    path = tmp_path / "log"
    disk = Disk(monkeypatch)
    log = ConnectionLog(path, kept=3 * LENGTH, reactor=reactor)
    reactor.run()
    settle(log, disk)
    disk.room = LENGTH + 7
    for _ in range(5):
        log(CONNECTION)
    said.wait("Connection log failed")
    giveUp(log, reactor)
    assert sequences(path) == [*BEFORE, 1]
    assert said.texts[-1] == "Connections: 5, recorded: 1, summarized: 0, lost: 4"
    assert (log.recorded, log.lost) == (1, 4)


def test_reader_that_stalls(fifo: Path, reader: int, reactor: FakeReactor, said: Said) -> None:
    """After a pipe's reader has stalled, all records arrive, in order."""
    log = ConnectionLog(fifo, reactor=reactor)
    for _ in range(3000):
        log(CONNECTION)
    closed = log.close()
    os.set_blocking(reader, True)
    with open(reader) as lines:
        read = [json.loads(line) for line in lines]
    reactor.wait(closed)
    assert [record["sequence"] for record in read[1:-1]] == list(range(1, 3001))
    assert said.texts == ["Connections: 3000, recorded: 3000, summarized: 0, lost: 0"]


def test_reader_that_stalls_for_ever(
    fifo: Path, reader: int, reactor: FakeReactor, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log closes at its timeout, and the pipe holds the records that it counts."""
    disk = Disk(monkeypatch)
    log = ConnectionLog(fifo, reactor=reactor)
    for _ in range(3000):
        log(CONNECTION)
    pipe = disk.file
    disk.until(lambda: disk.writing and not select.select([], [pipe], [], 0)[1])
    closed = log.close()
    reactor.advance(module.CLOSE_TIMEOUT / 2)
    assert not closed.called
    reactor.advance(module.CLOSE_TIMEOUT / 2)
    assert closed.called
    [text] = said.texts
    recorded, lost = map(int, re.findall("recorded: (.*), summ.*, lost: (.*)", text)[0])
    assert (recorded, lost) == (log.recorded, log.lost)
    assert recorded + lost == 3000
    assert lost > 0
    assert isOpen(pipe)
    # Room ends the write that is stuck, and with it the thread.
    os.set_blocking(reader, True)
    with open(reader) as lines:
        read = [json.loads(line).get("sequence") for line in lines]
    assert read[: recorded + 1] == [None, *range(1, recorded + 1)]
    reactor.callOne()
    assert not isOpen(pipe)
    assert said.texts == [text]
    assert (log.recorded, log.lost) == (recorded, lost)


def test_reader_that_goes_away(
    fifo: Path, reader: int, reactor: FakeReactor, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lost reader is logged once; the next reader gets the records."""
    disk = Disk(monkeypatch)
    log = ConnectionLog(fifo, reactor=reactor)
    reactor.run()
    settle(log, disk)
    os.close(reader)
    log(CONNECTION)
    said.wait("Connection log failed, records are kept in memory: Broken pipe")
    log(CONNECTION)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    said.wait("Connection log works again")
    close(log, reactor)
    with open(reader) as lines:
        assert [json.loads(line).get("sequence") for line in lines] == [1, 2, None]
    assert len(said.texts) == 3


def test_standard_output(reactor: FakeReactor, output: Output, said: Said) -> None:
    """C{-} is descriptor 1, which stays open; a non-blocking one loses nothing."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    output.become(writer)
    log = ConnectionLog("-", reactor=reactor)
    for _ in range(3000):
        log(CONNECTION)
    closed = log.close()
    with open(reader) as lines:
        read = [json.loads(lines.readline()).get("sequence") for _ in range(3002)]
    reactor.wait(closed)
    assert isOpen(1)
    assert read == [None, *range(1, 3001), None]
    assert said.texts == ["Connections: 3000, recorded: 3000, summarized: 0, lost: 0"]


@pytest.mark.parametrize("used", [True, False])
def test_closing_closes_the_file(
    tmp_path: Path, reactor: FakeReactor, monkeypatch: pytest.MonkeyPatch, used: bool
) -> None:
    """close() closes the file's descriptor, with or without records."""
    disk = Disk(monkeypatch)
    log = ConnectionLog(tmp_path / "log", reactor=reactor)
    if used:
        log(CONNECTION)
    assert isOpen(disk.file)
    close(log, reactor)
    assert not isOpen(disk.file)


def test_process_that_the_system_does_not_tell_of(
    tmp_path: Path, reactor: FakeReactor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a chroot without /proc, the opening line has only the facts that are known."""
    monkeypatch.setattr(module, "PROC", tmp_path / "proc")
    log = ConnectionLog(tmp_path / "log", reactor=reactor)
    reactor.run()
    close(log, reactor)
    opened, closed = records(tmp_path / "log")
    assert opened.keys() == {
        "timestamp",
        "message",
        "service.instance.id",
        "service.version",
        "process.pid",
        "host.name",
    }
    assert closed["sequence.last"] == 0


class Watched:
    """A clock that a test sets, and that signals each check for records that wait too long."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self._looks = threading.Semaphore(0)
        monkeypatch.setattr(module, "monotonic", self.read)
        monkeypatch.setattr(module, "MAX_WRITE_DELAY", 0.01)

    def read(self) -> float:
        """Return the time."""
        if threading.current_thread().name == "connection log watch":
            self._looks.release()
        return self.now

    def wait(self, count: int) -> None:
        """Wait until the log has looked so often."""
        for _ in range(count):
            assert self._looks.acquire(timeout=TIMEOUT)


def test_write_that_is_stuck(
    fifo: Path, reader: int, reactor: FakeReactor, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log whose records wait too long fails; that and its recovery are logged once."""
    watched = Watched(monkeypatch)
    log = ConnectionLog(fifo, reactor=reactor)
    for _ in range(3000):
        log(CONNECTION)
    watched.wait(2)
    assert log.failing is None
    watched.now += 1
    said.wait("Connection log failed")
    assert log.failing == "records have waited for 0.01 seconds"
    os.set_blocking(reader, True)
    with open(reader) as lines:
        for _ in range(3001):
            lines.readline()
        watched.now += 1
        said.wait("Connection log works again")
        assert log.failing is None
        close(log, reactor)
    assert said.texts == [
        "Connection log failed, records are kept in memory: "
        f"records have waited for 0.01 seconds: {str(fifo)!r}",
        f"Connection log works again: {str(fifo)!r}",
        "Connections: 3000, recorded: 3000, summarized: 0, lost: 0",
    ]


def test_end_just_after_a_look(
    tmp_path: Path, reactor: FakeReactor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watching thread ends with the log, even if that ends right after a check."""
    timedOut, ended = threading.Event(), threading.Event()
    before = threading.enumerate()

    def wait(event: threading.Event, seconds: float) -> bool:
        found = waitFor(event, seconds)
        if not found and threading.current_thread().name == "connection log watch":
            timedOut.set()
            ended.wait(TIMEOUT)
        return found

    monkeypatch.setattr(module, "waitFor", wait)
    Watched(monkeypatch)
    log = ConnectionLog(tmp_path / "log", reactor=reactor)
    log(CONNECTION)
    assert timedOut.wait(TIMEOUT)
    close(log, reactor)
    ended.set()
    untilThreadsEnd(before)


def test_log_that_has_nothing_to_write(
    tmp_path: Path, reactor: FakeReactor, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log without records to write does not fail."""
    watched = Watched(monkeypatch)
    disk = Disk(monkeypatch)
    log = ConnectionLog(tmp_path / "log", reactor=reactor)
    log(CONNECTION)
    for _ in range(2):
        settle(log, disk)
        watched.now += 3600
        watched.wait(1)
    close(log, reactor)
    assert said.texts == ["Connections: 1, recorded: 1, summarized: 0, lost: 0"]


def test_opening_that_is_stuck(
    tmp_path: Path, reactor: FakeReactor, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records that wait for the file to be reopened count as waiting, too."""
    log = ConnectionLog(tmp_path / "log", reactor=reactor)
    monkeypatch.setattr(module, "MAX_WRITE_DELAY", 0.01)
    stuck, goesOn = threading.Event(), threading.Event()

    def reopen(file: LogFile) -> None:
        """Open a file on a disk that does not answer."""
        stuck.set()
        assert goesOn.wait(TIMEOUT)

    monkeypatch.setattr(LogFile, "reopen", reopen)
    reactor.run()
    log.reopen()
    assert stuck.wait(TIMEOUT)
    log(CONNECTION)
    said.wait("Connection log failed, records are kept in memory: records have waited")
    goesOn.set()
    close(log, reactor)
    assert said.texts[-1] == "Connections: 1, recorded: 1, summarized: 0, lost: 0"


@pytest.mark.parametrize(
    ("room", "written"),
    [
        (10**6, ["Connections not recorded", "Connection log closed"]),
        (250, ["Connection log closed"]),
        (100, []),
    ],
)
def test_last_lines(
    tmp_path: Path,
    reactor: FakeReactor,
    said: Said,
    monkeypatch: pytest.MonkeyPatch,
    room: int,
    written: list[str],
) -> None:
    """The last lines tell what was lost, if whole lines still fit."""
    path = tmp_path / "log"
    disk = Disk(monkeypatch)
    log = ConnectionLog(path, kept=3 * LENGTH, reactor=reactor)
    reactor.run()
    settle(log, disk)
    monkeypatch.setattr(module, "RETRY_INTERVAL", 3600)
    disk.room = LENGTH + 7
    for _ in range(3):
        log(CONNECTION)
    said.wait("Connection log failed")
    log(SUMMARY)
    log(SUMMARY)
    disk.room, disk.reclaims = room, True
    giveUpLines(log, reactor)
    assert sequences(path) == [*BEFORE, 1, *written]
    assert said.texts[-1] == "Connections: 23, recorded: 1, summarized: 0, lost: 22"
    lines = {line.pop("message"): line for line in records(path)}
    if "Connections not recorded" in written:
        missing = lines["Connections not recorded"]
        del missing["timestamp"], missing["service.instance.id"]
        assert missing == {
            "count": 4,
            "connections": 22,
            "sequence.first": 2,
            "sequence.last": 5,
        }
    if written:
        closed = lines["Connection log closed"]
        del closed["timestamp"], closed["service.instance.id"]
        assert closed == {
            "connections": 23,
            "recorded": 1,
            "summarized": 0,
            "lost": 22,
            "sequence.last": 5,
        }


def test_last_line_after_all_records(
    tmp_path: Path, reactor: FakeReactor, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If only the closing line could not be written, no record is missing."""
    path = tmp_path / "log"
    disk = Disk(monkeypatch)
    log = ConnectionLog(path, reactor=reactor)
    log(CONNECTION)
    settle(log, disk)
    monkeypatch.setattr(module, "RETRY_INTERVAL", 3600)
    disk.room = 0
    closed = log.close()
    said.wait("Connection log failed")
    disk.room = 10**6
    reactor.advance(module.CLOSE_TIMEOUT - module.END_TIMEOUT)
    reactor.wait(closed)
    assert sequences(path) == [*BEFORE, 1, *AFTER]
    assert records(path)[-1]["lost"] == 0


def test_last_lines_after_half_a_line(
    fifo: Path, reader: int, reactor: FakeReactor, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a partly written line, the last lines begin on a new one."""
    disk = Disk(monkeypatch)
    log = ConnectionLog(fifo, reactor=reactor)
    reactor.run()
    settle(log, disk)
    monkeypatch.setattr(module, "RETRY_INTERVAL", 3600)
    disk.room = 7
    log(CONNECTION)
    said.wait("Connection log failed")
    disk.room = 10**6
    giveUpLines(log, reactor)
    with open(reader) as lines:
        opened, torn, missing, closed = lines.read().splitlines()
    assert torn == '{"times'
    assert [json.loads(line)["message"] for line in (opened, missing, closed)] == [
        *BEFORE,
        "Connections not recorded",
        *AFTER,
    ]


def test_path_that_cannot_be_opened_anew(
    tmp_path: Path, reactor: FakeReactor, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a rotation, the log fails until its path can be opened; no record is lost."""
    folder, old = tmp_path / "folder", tmp_path / "old"
    folder.mkdir()
    path = folder / "log"
    disk = Disk(monkeypatch)
    log = ConnectionLog(path, reactor=reactor)
    log(CONNECTION)
    settle(log, disk)
    path.rename(old)
    folder.rmdir()
    log(CONNECTION)
    said.wait("Connection log cannot be opened anew, and goes on")
    settle(log, disk)
    assert log.failing == (
        "its path cannot be opened anew (No such file or directory), "
        "and records go to the renamed file"
    )
    folder.mkdir()
    log(CONNECTION)
    disk.until(lambda: log.failing is None)  # The write after the opening wakes this.
    close(log, reactor)
    assert sequences(old) == [*BEFORE, 1, 2]
    assert sequences(path) == [3, *AFTER]


def test_thread_that_cannot_start_is_a_failure(
    tmp_path: Path, reactor: FakeReactor, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its thread, the log fails."""
    log = ConnectionLog(tmp_path / "log", reactor=reactor)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", cannotStart)
        with pytest.raises(RuntimeError):
            log(CONNECTION)
    assert log.failing == "can't start new thread"
    log(CONNECTION)
    said.wait("Connection log works again")
    assert log.failing is None
    close(log, reactor)
