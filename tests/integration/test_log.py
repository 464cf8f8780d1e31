"""The connection log of a process, with stalled pipes, size limits, rotation and stops."""

from __future__ import annotations

import json
import os
import re
import resource
import socket
import threading
from collections import Counter
from pathlib import Path

import pytest

from logs import account, counted, recorded, untilWritten
from processes import LOOPBACK, SCRIPTS, Start, load, run, slow, until, untilEnd


def test_stalled_reader(hello: Start, fifo: Path, reader: int) -> None:
    """3,000 clients are answered while nobody reads the pipe; its reader then gets all records."""
    server = hello("-l", fifo, "-e", LOOPBACK)
    assert load(("127.0.0.1", server.port()), 3000, 32) == {"ended": 3000}
    os.set_blocking(reader, True)
    with open(reader) as pipe:
        lines = [json.loads(pipe.readline()) for _ in range(3001)]
        assert counted(server.stop()) == (3000, 3000, 0)
    assert [line["sequence"] for line in lines if "sequence" in line] == list(range(1, 3001))


@pytest.mark.slow
def test_stop_while_the_reader_is_stalled(hello: Start, fifo: Path, reader: int) -> None:
    """The process ends, and logs how many records are lost."""
    server = hello("-l", fifo, "-e", LOOPBACK)
    assert load(("127.0.0.1", server.port()), 3000, 32) == {"ended": 3000}
    connections, written, lost = counted(server.stop())
    with open(reader, "rb") as pipe:
        (fifo.parent / "log").write_bytes(pipe.read())
    assert account(fifo.parent / "log") == (written, 0)
    assert connections == written + lost == 3000
    assert lost > 0


@pytest.mark.slow
def test_reader_that_goes_away(hello: Start, fifo: Path, reader: int) -> None:
    """One critical line says so, and service goes on."""
    server = hello("-l", fifo, "-e", LOOPBACK)
    port = server.port()
    os.close(reader)
    untilEnd(("127.0.0.1", port))
    server.expect("critical.*Connection log failed.*Broken pipe")
    assert load(("127.0.0.1", port), 100, 8) == {"ended": 100}
    output = server.stop()
    assert output.count("#critical]") == 1
    assert counted(output) == (101, 0, 101)


@pytest.mark.slow
def test_more_than_is_kept(start: Start, tmp_path: Path) -> None:
    """Records beyond the memory bound are counted by a gap record in their place."""
    (tmp_path / "hello.tac").write_text(
        "import os, resource\n"
        "from twisted.application.service import Application\n"
        "from hello_listen import ConnectionLog, HelloFactory, HelloService\n"
        "application = Application('hello')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))\n"
        "log = ConnectionLog('log', kept=50_000)\n"
        f"HelloService(HelloFactory(log), ['{LOOPBACK}']).setServiceParent(application)\n"
    )
    server = start("twistd", "-n", "--pidfile=", "-y", "hello.tac")
    port = server.port()
    assert load(("127.0.0.1", port), 1000, 32) == {"ended": 1000}
    server.expect("critical.*Connection log failed.*File too large")
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    server.expect("Connection log works again")
    untilEnd(("127.0.0.1", port))
    until(lambda: '"sequence": 1001' in (tmp_path / "log").read_text())
    server.stop()
    written, missing = account(tmp_path / "log")
    assert written + missing == 1001
    assert missing > 0


@pytest.mark.slow
def test_file_size_limit(start: Start, tmp_path: Path) -> None:
    """A file at its size limit is logged, and the losses are counted at the end."""
    server = start(
        "/bin/sh", "-c", 'ulimit -f 20; exec "$@"', "sh", SCRIPTS / "twistd", "-n", "--pidfile=",
        "hello-listen", "-l", "log", "-e", LOOPBACK,
    )  # fmt: skip
    assert load(("127.0.0.1", server.port()), 500, 32) == {"ended": 500}
    server.expect("critical.*Connection log failed.*File too large")
    connections, written, lost = counted(server.stop())
    assert connections == written + lost == 500
    assert account(tmp_path / "log") == (written, 0)


def test_rotation_under_load(hello: Start, tmp_path: Path) -> None:
    """A file that is renamed or removed under load loses no record, and tears none."""
    log = tmp_path / "log"
    server = hello("-l", log, "-e", LOOPBACK)
    address = ("127.0.0.1", server.port())
    clients = threading.Thread(target=load, args=(address, 12_000, 32))
    clients.start()
    for number in range(3):
        untilWritten(log, 500)
        log.rename(tmp_path / f"renamed{number}")
    untilWritten(log, 500)
    os.link(log, tmp_path / "removed")
    log.unlink()
    clients.join()
    untilWritten(log, 1)
    server.stop()
    logs = [*tmp_path.glob("renamed*"), tmp_path / "removed", log]
    assert account(*logs) == (12_000, 0)


def test_copytruncate(hello: Start, tmp_path: Path) -> None:
    """A log that is truncated to nothing continues from its new end."""
    log = tmp_path / "log"
    server = hello("-l", log, "-e", LOOPBACK)
    address = ("127.0.0.1", server.port())
    load(address, 100, 8)
    untilWritten(log, 100)
    first = recorded(log)
    os.truncate(log, 0)
    load(address, 100, 8)
    server.stop()
    numbers = [record["sequence"] for record in first + recorded(log)]
    assert numbers == list(range(1, 201))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may change the user")
def test_uid(start: Start, tmp_path: Path) -> None:
    """A log that root opened is written as another user, who has no right to open it."""
    tmp_path.chmod(0o700)
    server = start(
        "twistd", "-n", "--pidfile=", "--uid=65534", "hello-listen",
        "-l", tmp_path / "log", "-e", LOOPBACK,
    )  # fmt: skip
    assert load(("127.0.0.1", server.port()), 5, 1) == {"ended": 5}
    server.expect("cannot be opened anew, and goes on: Permission denied")
    assert counted(server.stop()) == (5, 5, 0)
    assert len(recorded(tmp_path / "log")) == 5


@pytest.mark.slow
def test_two_processes_on_one_file(hello: Start, tmp_path: Path) -> None:
    """Their lines do not mix."""
    servers = [hello("-l", tmp_path / "log", "-e", LOOPBACK) for _ in range(2)]
    addresses = [("127.0.0.1", server.port()) for server in servers]
    clients = [threading.Thread(target=load, args=(a, 3000, 32)) for a in addresses]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    for server in servers:
        assert counted(server.stop()) == (3000, 3000, 0)
    numbers = Counter(record["server.port"] for record in recorded(tmp_path / "log"))
    assert numbers == {port: 3000 for _, port in addresses}


def test_standard_output(start: Start, tmp_path: Path) -> None:
    """A dash is standard output, which has nothing but records if Twisted's log is elsewhere."""
    server = start(
        "twistd", "-n", "--pidfile=", "--logfile=twistd.log", "hello-listen",
        "-l", "-", "-e", f"unix:{tmp_path}/s",
    )  # fmt: skip
    untilWritten(tmp_path / "twistd.log", 3)
    untilEnd(f"{tmp_path}/s")
    server.stop()
    messages = [json.loads(line)["message"] for line in server.lines]
    about = "Connection log opened", "Connection log closed"
    assert messages == [about[0], "Connection established!", about[1]]


@pytest.mark.usefixtures("fifo")
@pytest.mark.parametrize(
    ("path", "reason"),
    [
        slow("no/folder", "No such file or directory"),
        slow(".", "Is a directory"),
        ("fifo", "nobody reads this pipe"),
    ],
)
def test_log_that_cannot_be_opened(tmp_path: Path, path: str, reason: str) -> None:
    """It is an error before anything is bound."""
    ended = run(SCRIPTS / "twistd", "-n", "hello-listen", "-l", path, "-e", "unix:s", cwd=tmp_path)
    assert ended.returncode == 1
    [line] = ended.stderr.splitlines()
    assert reason in line
    assert f"'{path}'" in line
    assert "Traceback" not in ended.stdout + ended.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["fifo"]


@pytest.mark.slow
def test_memory_is_flat(hello: Start, tmp_path: Path) -> None:
    """Connections leak no memory."""
    server = hello("-l", tmp_path / "log", "-e", LOOPBACK)
    address = ("127.0.0.1", server.port())

    def resident() -> int:
        status = Path(f"/proc/{server.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0])

    load(address, 20_000, 32)
    before = resident()
    load(address, 40_000, 32)
    assert resident() - before < 1024


def test_processes_that_share_a_socket(inherit: Start, tmp_path: Path) -> None:
    """Several processes serve one inherited socket, and append to one log."""
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listener:
        servers = [
            inherit(listener, "-l", "log", "-e", "systemd:INET:name=hello") for _ in range(2)
        ]
        for server in servers:
            server.port()
        assert load(listener.getsockname(), 5000, 64) == {"ended": 5000}
    written = [counted(server.stop())[1] for server in servers]
    assert account(tmp_path / "log") == (sum(written), 0) == (5000, 0)
    assert min(written) > 0
