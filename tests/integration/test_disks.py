"""A connection log whose disk fills, whose file is rotated, or whose reader is slow."""

from __future__ import annotations

import fcntl
import gzip
import os
import re
import resource
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from logs import account, counted, recorded, untilWritten
from processes import (
    LOOPBACK,
    SCRIPTS,
    Process,
    Start,
    clientsWithoutEnd,
    lacking,
    load,
    run,
    slow,
    tool,
    until,
    untilEnd,
    untilListening,
)

TWISTD = SCRIPTS / "twistd", "-n", "--pidfile="
needsRoot = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")


class Disk:
    """A small disk that fills and empties."""

    def __init__(self, folder: Path) -> None:
        """Take where it is mounted."""
        self.log = folder / "log"
        self.filler = folder / "filler"

    def fill(self, spare: int = 0) -> None:
        """Leave so many bytes of room, and no more."""
        with open(self.filler, "wb", buffering=0) as filler:
            size = 0
            try:
                while True:
                    size += filler.write(bytes(4096))
            except OSError:
                filler.truncate(size - spare)

    def empty(self) -> None:
        """Make room."""
        self.filler.unlink()


@contextmanager
def mounted(kind: str, folder: Path) -> Iterator[Disk]:
    """Return a small disk, which is a tmpfs or an ext4 in a file."""
    mount = folder / kind
    mount.mkdir()
    if kind == "tmpfs":
        options = ["-o", "size=256k"]
        what = "none"
    else:
        image = folder / "image"
        image.write_bytes(b"")
        os.truncate(image, 4 * 2**20)
        made = run(tool("mkfs.ext4"), "-q", "-m", "0", "-O", "^has_journal", image)
        assert made.returncode == 0, made.stderr
        options, what = ["-o", "loop"], str(image)
    attached = run(tool("mount"), "-t", kind, *options, what, mount)
    if attached.returncode:
        lacking(f"cannot mount {kind}: {attached.stderr}")
    try:
        yield Disk(mount)
    finally:
        assert run(tool("umount"), "-l", mount).returncode == 0


def untilTried(pid: int, times: int) -> None:
    """Wait until a process has called write(2) so many times more, with success or without."""

    def tries() -> int:
        return int(Path(f"/proc/{pid}/io").read_text().split("syscw: ")[1].split()[0])

    target = tries() + times
    until(lambda: tries() >= target)


def limit(server: Process, size: int) -> None:
    """Let no file of a process grow beyond a size; the process may be an ordinary user's."""
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@needsRoot
@pytest.mark.parametrize(("kind", "log"), [slow("tmpfs", "-"), slow("ext4", "log")])
def test_full_disk(start: Start, tmp_path: Path, kind: str, log: str) -> None:
    """A full disk logs one line, free space one more; the file has whole lines, no hole."""
    with mounted(kind, tmp_path) as disk:
        path = "-" if log == "-" else disk.log
        server = start(
            "/bin/sh", "-c", f'exec "$@" > "{disk.log}"', "sh", *TWISTD, "--logfile=twistd.log",
            "hello-listen", "-l", path, "-e", f"unix:{tmp_path}/s",
        )  # fmt: skip
        untilListening(tmp_path / "s")
        disk.fill(spare=20_000)
        checkFullAndEmpty(server, tmp_path, disk.log, disk.empty)


@pytest.mark.slow
@pytest.mark.parametrize("log", ["-", "log"])
def test_file_that_may_not_grow(start: Start, tmp_path: Path, log: str) -> None:
    """A file at its size limit logs one line as well, until the limit is raised."""
    server = start(
        "/bin/sh", "-c", 'exec "$@" > log', "sh", *TWISTD, "--logfile=twistd.log",
        "hello-listen", "-l", log, "-e", f"unix:{tmp_path}/s",
    )  # fmt: skip
    untilListening(tmp_path / "s")
    limit(server, 50_000)
    checkFullAndEmpty(
        server, tmp_path, tmp_path / "log", lambda: limit(server, resource.RLIM_INFINITY)
    )


def checkFullAndEmpty(
    server: Process, folder: Path, log: Path, makeRoom: Callable[[], object]
) -> None:
    """Fill the disk of a log, make room, and check both logs."""
    assert load(f"{folder}/s", 600, 32) == {"ended": 600}
    until(lambda: "Connection log failed" in (folder / "twistd.log").read_text())
    untilTried(server.pid, 5)
    makeRoom()
    until(lambda: "Connection log works again" in (folder / "twistd.log").read_text())
    untilEnd(f"{folder}/s")
    server.stop()
    output = (folder / "twistd.log").read_text()
    said = re.findall("Connection log (failed|works again)", output)
    assert said == ["failed", "works again"]
    assert counted(output) == (601, 601, 0)
    assert account(log) == (601, 0)


@pytest.mark.slow
def test_two_processes_on_a_file_that_may_not_grow(start: Start, tmp_path: Path) -> None:
    """A process that truncates its own partial record removes no record of another process."""
    late = "-D", "-f", "-qq", "-o", "/dev/null", "-e", "inject=ftruncate:delay_enter=500000"
    full = start(tool("strace"), *late, *TWISTD, "hello-listen", "-l", "log", "-e", LOOPBACK)
    other = start(*TWISTD, "hello-listen", "-l", "log", "-e", LOOPBACK)
    address, otherAddress = ("127.0.0.1", full.port()), ("127.0.0.1", other.port())
    limit(full, 50_000)
    failed, total = threading.Event(), 0
    assert load(address, 300, 32) == {"ended": 300}

    def awaitFailure() -> None:
        full.expect("Connection log failed")
        failed.set()

    said = threading.Thread(target=awaitFailure, daemon=True)
    said.start()
    while not failed.is_set():
        total += load(otherAddress, 5, 1)["ended"]
    said.join()
    limit(full, resource.RLIM_INFINITY)
    full.expect("Connection log works again")
    assert counted(full.stop()) == (300, 300, 0)
    assert counted(other.stop()) == (total, total, 0)
    assert account(tmp_path / "log") == (300 + total, 0)


@needsRoot
@pytest.mark.slow
def test_loss_with_both_logs_on_a_full_disk(start: Start, tmp_path: Path) -> None:
    """If Twisted's log has no room either, the connection log itself counts the losses."""
    with mounted("tmpfs", tmp_path) as disk:
        (tmp_path / "hello.tac").write_text(
            "from twisted.application.service import Application\n"
            "from hello_listen import ConnectionLog, HelloFactory, HelloService\n"
            "application = Application('hello')\n"
            f"factory = HelloFactory(ConnectionLog({str(disk.log)!r}, kept=50_000))\n"
            f"HelloService(factory, ['unix:{tmp_path}/s']).setServiceParent(application)\n"
        )
        server = start(*TWISTD, f"--logfile={disk.log}.twistd", "-y", "hello.tac")
        untilListening(tmp_path / "s")
        disk.fill()
        assert load(f"{tmp_path}/s", 1000, 32) == {"ended": 1000}
        untilTried(server.pid, 3)
        disk.empty()
        untilEnd(f"{tmp_path}/s")
        until(lambda: b"not recorded" in disk.log.read_bytes())
        server.stop()
        records, missing = account(disk.log)
        assert records + missing == 1001
        assert missing > 0


@needsRoot
def test_room_while_it_ends(start: Start, tmp_path: Path) -> None:
    """A process that stops with a full disk retries until the close timeout."""
    with mounted("tmpfs", tmp_path) as disk:
        server = start(*TWISTD, "hello-listen", "-l", disk.log, "-e", f"unix:{tmp_path}/s")
        server.expect("Listening on")
        disk.fill()
        assert load(f"{tmp_path}/s", 300, 32) == {"ended": 300}
        server.expect("Connection log failed")
        server.kill(signal.SIGTERM)
        until(lambda: not (tmp_path / "s").exists())
        untilTried(server.pid, 2)
        disk.empty()
        assert counted(server.stop()) == (300, 300, 0)
        assert account(disk.log) == (300, 0)


@pytest.mark.slow
def test_lock_of_a_reader(hello: Start, tmp_path: Path) -> None:
    """A reader that locks the log does not stop writes."""
    server = hello("-l", "log", "-e", LOOPBACK)
    address = ("127.0.0.1", server.port())
    untilEnd(address)
    untilWritten(tmp_path / "log", 2)
    with open(tmp_path / "log") as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        untilEnd(address)
        until(lambda: len(recorded(tmp_path / "log")) == 2)
    assert counted(server.stop()) == (2, 2, 0)


def test_closed_logs_keep_no_descriptor(start: Start, tmp_path: Path) -> None:
    """A process may open and close as many logs as it likes."""
    (tmp_path / "program.py").write_text(
        "import os\n"
        "from twisted.internet import defer, task\n"
        "from hello_listen import ConnectionLog\n"
        "async def main(reactor):\n"
        "    before = os.listdir('/proc/self/fd')\n"
        "    for number in range(50):\n"
        "        await defer.maybeDeferred(ConnectionLog(f'log{number}').close)\n"
        "    print(len(os.listdir('/proc/self/fd')) - len(before), 'descriptors more')\n"
        "task.react(lambda reactor: defer.ensureDeferred(main(reactor)))\n"
    )
    ended = start("python", "program.py")
    assert ended.wait() == 0
    assert ended.lines == ["0 descriptors more"]


@pytest.mark.slow
def test_permissions_after_a_rotation(tmp_path: Path) -> None:
    """After a rotation, a daemon's log has the permissions that it had at first."""
    started = run(
        "/bin/sh", "-c", 'umask 022; exec "$@"', "sh", SCRIPTS / "twistd", "--logfile=twistd.log",
        "--pidfile=pid", "hello-listen", "-l", "log", "-e", f"unix:{tmp_path}/s", cwd=tmp_path,
    )  # fmt: skip
    assert started.returncode == 0
    pid = int((tmp_path / "pid").read_text())
    log = tmp_path / "log"
    try:
        assert stat.S_IMODE(log.stat().st_mode) == 0o644
        log.rename(tmp_path / "log.1")
        untilEnd(f"{tmp_path}/s")
        untilWritten(log, 1)
        assert stat.S_IMODE(log.stat().st_mode) == 0o644
    finally:
        os.kill(pid, signal.SIGTERM)
        until(lambda: not Path(f"/proc/{pid}").exists())


def test_nonblocking_standard_output(start: Start, tmp_path: Path) -> None:
    """A pipe that another process made non-blocking is waited for, at the end too."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    command = *TWISTD, "--logfile=twistd.log", "hello-listen", "-l", "-", "-e", f"unix:{tmp_path}/s"
    server = start(*command, stdout=writer)
    os.close(writer)
    untilListening(tmp_path / "s")
    assert load(f"{tmp_path}/s", 3000, 32) == {"ended": 3000}
    server.kill(signal.SIGTERM)
    until(lambda: not (tmp_path / "s").exists())
    with open(reader, "rb") as pipe:
        (tmp_path / "log").write_bytes(pipe.read())
    server.wait()
    assert account(tmp_path / "log") == (3000, 0)
    output = (tmp_path / "twistd.log").read_text()
    assert counted(output) == (3000, 3000, 0)
    assert "Connection log failed" not in output


@pytest.mark.parametrize(("log", "redirection"), [("-", ">&-"), ("", "")])
def test_no_log_to_write_to(tmp_path: Path, log: str, redirection: str) -> None:
    """Without standard output or without a path, start-up fails before anything is bound."""
    ended = run(
        "/bin/sh", "-c", f'exec "$@" {redirection}', "sh", *TWISTD, "hello-listen", "-l", log,
        "-e", "unix:s", cwd=tmp_path,
    )  # fmt: skip
    assert ended.returncode == 1
    [line] = ended.stderr.splitlines()
    assert repr(log) in line
    assert "Is a directory" not in line
    assert list(tmp_path.iterdir()) == []


ROTATION = """
{folder}/log {{
    rotate 20
    missingok
    notifempty
    compress
    delaycompress
{signal}}}
"""


@pytest.mark.parametrize("told", [True, slow(False)])
def test_logrotate_under_load(start: Start, tmp_path: Path, told: bool) -> None:
    """logrotate renames and compresses; nothing is lost, whether a signal tells of it or not."""
    logrotate = tool("logrotate")
    server = start(*TWISTD, "hello-listen", "-l", "log", "-e", LOOPBACK, start_new_session=True)
    address = ("127.0.0.1", server.port())
    command = f"    postrotate\n        kill -HUP {server.pid}\n    endscript\n"
    configuration, log = tmp_path / "logrotate.conf", tmp_path / "log"
    configuration.write_text(ROTATION.format(folder=tmp_path, signal=command if told else ""))
    configuration.chmod(0o600)
    with clientsWithoutEnd(address) as ended:
        for _ in range(4):
            untilWritten(log, 500)
            rotated = run(logrotate, "-f", "-s", tmp_path / "state", configuration)
            assert (rotated.returncode, rotated.stderr) == (0, "")
    total = len(ended)
    assert counted(server.stop()) == (total, total, 0)
    compressed = list(tmp_path.glob("log.*.gz"))
    assert len(compressed) == 3
    for path in compressed:
        with gzip.open(path) as whole:
            path.with_suffix("").write_bytes(whole.read())
    logs = [log, *tmp_path.glob("log.[0-9]")]
    assert len(logs) == 5
    assert account(*logs) == (total, 0)
