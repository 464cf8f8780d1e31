"""A connection log whose path is a blocked pipe, a mounted file, a removed file or a device."""

from __future__ import annotations

import gzip
import json
import os
import resource
import signal
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from logs import account, counted, recorded, untilWritten
from processes import (
    LOOPBACK,
    SCRIPTS,
    Start,
    curl,
    lacking,
    load,
    run,
    slow,
    tool,
    until,
    untilEnd,
    untilListening,
)

needsRoot = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount or change the user")


def health(folder: Path) -> str:
    """Return what /healthz says."""
    return curl("--unix-socket", folder / "status", "http://localhost/healthz").stdout


def untilHealth(folder: Path, text: str) -> None:
    """Wait until /healthz, which may be half a second old, says this."""
    until(lambda: text in health(folder))


@contextmanager
def inBackground(folder: Path, *command: object) -> Iterator[None]:
    """Run a daemon that listens on C{s} in a folder."""
    started = run(*command, "-e", f"unix:{folder}/s", cwd=folder)
    assert started.returncode == 0, started.stderr
    pid = int((folder / "pid").read_text())
    try:
        yield
    finally:
        os.kill(pid, signal.SIGTERM)
        until(lambda: not Path(f"/proc/{pid}").exists())


@pytest.mark.slow
def test_reader_that_stops(hello: Start, fifo: Path, reader: int) -> None:
    """Records that wait for 2 seconds are a failure, reported once, as is its end."""
    folder = fifo.parent
    server = hello("-l", fifo, "-e", LOOPBACK, "--status", f"unix:{folder}/status")
    address = ("127.0.0.1", server.port())
    untilHealth(folder, "OK")
    assert load(address, 500, 32) == {"ended": 500}
    server.expect("critical.*Connection log failed.*records have waited for 2 seconds")
    untilHealth(folder, "cannot be written: records have waited for 2 seconds.")
    metrics = curl("--unix-socket", folder / "status", "http://localhost/metrics").stdout
    assert "hello_listen_log_failing 1.0" in metrics
    os.set_blocking(reader, True)
    with open(reader) as pipe:
        numbers = [json.loads(pipe.readline()).get("sequence") for _ in range(501)]
        assert numbers == [None, *range(1, 501)]
        server.expect("Connection log works again")
        untilHealth(folder, "OK")
        output = server.stop()
    assert output.count("Connection log failed") == 1
    assert output.count("Connection log works again") == 1
    assert counted(output) == (500, 500, 0)


@pytest.mark.slow
def test_reader_that_stops_reading_both_logs(start: Start, tmp_path: Path) -> None:
    """If Twisted's log goes to the same blocked pipe, the status still answers."""
    server = start(
        "twistd", "-n", "--pidfile=", "hello-listen", "-l", "-", "-e", LOOPBACK,
        "--status", f"unix:{tmp_path}/status",
    )  # fmt: skip
    address = ("127.0.0.1", server.port())
    assert load(address, 2000, 32) == {"ended": 2000}
    untilHealth(tmp_path, "records have waited for 2 seconds")
    assert load(address, 100, 8) == {"ended": 100}


@needsRoot
@pytest.mark.slow
def test_frozen_file_system(start: Start, tmp_path: Path) -> None:
    """While writes are blocked, the log fails; after that, nothing is lost."""
    image, mount = tmp_path / "image", tmp_path / "mount"
    image.write_bytes(b"")
    os.truncate(image, 16 * 2**20)
    mount.mkdir()
    assert run(tool("mkfs.ext4"), "-q", image).returncode == 0
    attached = run(tool("mount"), "-o", "loop", image, mount)
    if attached.returncode:
        lacking(f"cannot mount ext4: {attached.stderr}")
    freeze = tool("fsfreeze")
    try:
        server = start(
            "twistd", "-n", "--pidfile=", "hello-listen", "-l", mount / "log", "-e", LOOPBACK,
            "--status", f"unix:{tmp_path}/status",
        )  # fmt: skip
        address = ("127.0.0.1", server.port())
        untilEnd(address)
        untilWritten(mount / "log", 2)
        assert run(freeze, "-f", mount).returncode == 0
        try:
            assert load(address, 500, 32) == {"ended": 500}
            # Read its output later: nothing can end the process until the file system is thawed.
            untilHealth(tmp_path, "records have waited for 2 seconds")
        finally:
            assert run(freeze, "-u", mount).returncode == 0
        server.expect("Connection log failed.*records have waited for 2 seconds")
        server.expect("Connection log works again")
        assert counted(server.stop()) == (501, 501, 0)
        assert account(mount / "log") == (501, 0)
    finally:
        assert run(tool("umount"), "-l", mount).returncode == 0


def lastLines(log: Path) -> list[dict[str, object]]:
    """Return what follows the last record of a log."""
    lines = [json.loads(line) for line in log.read_text("ascii").splitlines()]
    numbers = [n for n, line in enumerate(lines) if "sequence" in line]
    return lines[numbers[-1] + 1 :]


@pytest.mark.slow
def test_stop_without_room_for_a_record(hello: Start, tmp_path: Path) -> None:
    """The log itself counts losses, if at least one short line fits."""
    log = tmp_path / "log"
    server = hello("-l", log, "-e", LOOPBACK)
    address = ("127.0.0.1", server.port())
    assert load(address, 20, 1) == {"ended": 20}
    untilWritten(log, 21)
    size = log.stat().st_size + 250
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    assert load(address, 100, 8) == {"ended": 100}
    server.expect("Connection log failed")
    assert counted(server.stop()) == (120, 20, 100)
    [closed] = lastLines(log)
    assert (closed["message"], closed["lost"], closed["sequence.last"]) == (
        "Connection log closed",
        100,
        120,
    )


@needsRoot
@pytest.mark.slow
@pytest.mark.parametrize("count", [300, 321])
def test_stop_on_a_full_disk(start: Start, tmp_path: Path, count: int) -> None:
    """The last lines that fit are whole, and their counts are right."""
    mount = tmp_path / "mount"
    mount.mkdir()
    attached = run(tool("mount"), "-t", "tmpfs", "-o", "size=64k", "none", mount)
    if attached.returncode:
        lacking(f"cannot mount tmpfs: {attached.stderr}")
    try:
        log = mount / "log"
        server = start("twistd", "-n", "--pidfile=", "hello-listen", "-l", log, "-e", LOOPBACK)
        assert load(("127.0.0.1", server.port()), count, 8) == {"ended": count}
        server.expect("Connection log failed.*No space left on device")
        connections, written, lost = counted(server.stop())
        assert connections == written + lost == count
        assert len(recorded(log)) == written
        for line in lastLines(log):
            assert line["message"] == "Connection log closed"
            assert (line["recorded"], line["lost"]) == (written, lost)
    finally:
        assert run(tool("umount"), "-l", mount).returncode == 0


@needsRoot
@pytest.mark.slow
def test_file_that_is_mounted_by_itself(start: Start, tmp_path: Path) -> None:
    """
    As a container has it: what the host renames and removes is no log any more.

    It fails, and records are kept, until another file is mounted there.
    """
    host, mount = tmp_path / "host", tmp_path / "mount"
    for folder in (host, mount):
        folder.mkdir()
        (folder / "log").write_bytes(b"")
    again = tmp_path / "again"
    os.mkfifo(again)
    script = (
        'mount --bind "$1/log" "$2/log" && { { read _ <"$3" && umount -l "$2/log" && '
        'mount --bind "$1/log" "$2/log"; } & shift 3; exec "$@"; }'
    )
    server = start(
        tool("unshare"), "-m", tool("bash"), "-c", script, "bash", host, mount, again,
        SCRIPTS / "twistd", "-n", "--pidfile=", "hello-listen", "-l", mount / "log",
        "-e", LOOPBACK, "--status", f"unix:{tmp_path}/status",
    )  # fmt: skip
    address = ("127.0.0.1", server.port())
    assert load(address, 6, 1) == {"ended": 6}
    untilWritten(host / "log", 7)
    (host / "log").rename(host / "log.1")
    untilEnd(address)
    untilWritten(host / "log.1", 8)
    with gzip.open(host / "log.1.gz", "wb") as compressed:
        compressed.write((host / "log.1").read_bytes())
    (host / "log.1").unlink()
    assert load(address, 3, 1) == {"ended": 3}
    server.expect("critical.*Connection log failed.*the file was removed, and its path still leads")
    untilHealth(tmp_path, "cannot be written: the file was removed")
    (host / "log").write_bytes(b"")
    again.write_bytes(b"\n")
    server.expect("Connection log works again")
    assert counted(server.stop()) == (10, 10, 0)
    with gzip.open(host / "log.1.gz") as whole:
        (host / "log.1").write_bytes(whole.read())
    assert account(host / "log.1", host / "log") == (10, 0)


@needsRoot
def test_rename_that_cannot_be_followed(start: Start) -> None:
    """Without the right to create a new file, the renamed file is written, and /healthz says so."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        server = start(
            "twistd", "-n", "--pidfile=", "--uid=65534", "hello-listen", "-l", folder / "log",
            "-e", LOOPBACK, "--status", f"unix:{folder}/status",
        )  # fmt: skip
        address = ("127.0.0.1", server.port())
        untilEnd(address)
        untilWritten(folder / "log", 2)
        assert health(folder) == "OK\n"
        (folder / "log").rename(folder / "log.1")
        untilEnd(address)
        server.expect("cannot be opened anew, and goes on: Permission denied")
        untilHealth(folder, "its path cannot be opened anew (Permission denied)")
        assert counted(server.stop()) == (2, 2, 0)
        assert account(folder / "log.1") == (2, 0)


@needsRoot
def test_path_that_nobody_can_see(start: Start, tmp_path: Path) -> None:
    """A log whose path cannot be seen any more does not count as failing."""
    tmp_path.chmod(0o700)
    server = start(
        "twistd", "-n", "--pidfile=", "--uid=65534", "hello-listen", "-l", tmp_path / "log",
        "-e", LOOPBACK, "--status", f"unix:{tmp_path}/status",
    )  # fmt: skip
    address = ("127.0.0.1", server.port())
    untilEnd(address)
    server.expect("cannot be opened anew, and goes on: Permission denied")
    assert health(tmp_path) == "OK\n"
    (tmp_path / "log").unlink()
    untilEnd(address)
    server.expect("Connection log failed, records are kept in memory: Permission denied")
    untilHealth(tmp_path, "cannot be written: Permission denied")


@pytest.mark.parametrize("path", ["/dev/stdout", slow("/proc/self/fd/1"), slow("/dev/stderr")])
def test_standard_stream_in_the_background(tmp_path: Path, path: str) -> None:
    """In the background, it would lead to /dev/null, so start-up fails before any file exists."""
    ended = run(
        "/bin/sh", "-c", 'exec "$@" >output', "sh", SCRIPTS / "twistd", "--pidfile=pid",
        "hello-listen", "-l", path, "-e", "unix:s", cwd=tmp_path,
    )  # fmt: skip
    made = {entry.name for entry in tmp_path.iterdir()}
    if "pid" in made:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)
    assert ended.returncode == 1
    [line] = ended.stderr.splitlines()
    assert line.startswith("hello-listen: a process in the background has no standard ")
    assert repr(path) in line
    assert made == {"output"}
    assert (tmp_path / "output").read_bytes() == b""


@pytest.mark.parametrize("options", [(), slow(("--reactor=poll",))])
def test_standard_descriptors_that_are_closed(tmp_path: Path, options: tuple[str, ...]) -> None:
    """A daemon that is started without them writes its log all the same."""
    command = (
        "/bin/sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", SCRIPTS / "twistd", "--pidfile=pid",
        "--logfile=twistd.log", *options, "hello-listen", "-l", "log",
    )  # fmt: skip
    with inBackground(tmp_path, *command):
        for _ in range(3):
            untilEnd(f"{tmp_path}/s")
        untilWritten(tmp_path / "log", 4)
    assert account(tmp_path / "log") == (3, 0)


@pytest.mark.parametrize("mode", [0o600, slow(0o640)])
def test_umask_of_twistd(tmp_path: Path, mode: int) -> None:
    """twistd's umask, not the shell's, applies to the first file and to each later one."""
    log = tmp_path / "log"
    command = (
        "/bin/sh", "-c", 'umask 022; exec "$@"', "sh", SCRIPTS / "twistd", "--pidfile=pid",
        "--logfile=twistd.log", f"--umask={0o666 & ~mode:o}", "hello-listen", "-l", log,
    )  # fmt: skip
    with inBackground(tmp_path, *command):
        for number in range(2):
            assert stat.S_IMODE(log.stat().st_mode) == mode
            log.rename(tmp_path / f"log.{number}")
            untilEnd(f"{tmp_path}/s")
            untilWritten(log, 1)
        assert stat.S_IMODE(log.stat().st_mode) == mode


def test_standard_output_that_is_a_socket(start: Start, tmp_path: Path) -> None:
    """Under systemd, /dev/stdout is a socket and cannot be opened; a dash writes to it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = SCRIPTS / "twistd", "-n", "--pidfile=", "--logfile=twistd.log", "hello-listen"
        endpoint = "-e", f"unix:{tmp_path}/s"
        with open(tmp_path / "errors", "wb") as errors:
            refused = start(*command, "-l", "/dev/stdout", *endpoint, stdout=theirs, stderr=errors)
            assert refused.wait() == 1
        assert (tmp_path / "errors").read_text() == (
            "hello-listen: neither a file nor a pipe; -l - writes to standard output: "
            "'/dev/stdout'\n"
        )
        server = start(*command, "-l", "-", *endpoint, stdout=theirs)
        untilListening(tmp_path / "s")
        untilEnd(f"{tmp_path}/s")
        server.stop()
        theirs.close()
        with ours.makefile() as lines:
            messages = [json.loads(line)["message"] for line in lines]
    about = "Connection log opened", "Connection log closed"
    assert messages == [about[0], "Connection established!", about[1]]


@pytest.mark.slow
def test_terminal_that_there_is_not(tmp_path: Path) -> None:
    """Without a terminal, the error for /dev/tty does not call it a pipe."""
    ended = run(
        tool("setsid"), "-w", SCRIPTS / "twistd", "-n", "--pidfile=", "hello-listen",
        "-l", "/dev/tty", "-e", "unix:s", cwd=tmp_path,
    )  # fmt: skip
    assert ended.returncode == 1
    assert ended.stderr == (
        "hello-listen: neither a file nor a pipe; -l - writes to standard output: '/dev/tty'\n"
    )
