"""A connection log to be trusted: with stalled pipes, full disks, rotation and sudden ends."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import select
import signal
import socket
import subprocess
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from processes import LOOPBACK, PATIENCE, SCRIPTS, Process, Start, run, tool, until, untilEnd

pytestmark = pytest.mark.unix


def records(path: Path) -> list[dict[str, Any]]:
    """Return the records of a log, each of which is a whole line."""
    text = path.read_text()
    assert text.endswith("\n") or not text
    return [json.loads(line) for line in text.splitlines()]


def load(
    address: tuple[str, int] | str, total: int, width: int, after: int = 0, pid: int = 0
) -> Counter[str]:
    """
    Connect so many clients, so many of them at once, and count how they ended.

    After some, a process is told to end; C{hangs} are those who then heard nothing more.
    """
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    poll, clients, started = select.epoll(), dict[int, socket.socket](), 0
    ends: Counter[str] = Counter()
    while started < total or clients:
        while len(clients) < width and started < total:
            started += 1
            client = socket.socket(family)
            client.setblocking(False)
            error = client.connect_ex(address)
            if error not in (0, errno.EINPROGRESS):
                ends[errno.errorcode[error]] += 1
                client.close()
                continue
            clients[client.fileno()] = client
            poll.register(client, select.EPOLLIN | select.EPOLLRDHUP)
        ready = poll.poll(PATIENCE)
        if clients and not ready:
            ends["hangs"] += len(clients)
            break
        for descriptor, _ in ready:
            with clients.pop(descriptor) as client:
                try:
                    assert client.recv(1) == b""
                    ends["ended"] += 1
                except OSError as error:
                    ends[errno.errorcode[error.errno or 0]] += 1
        if pid and ends["ended"] >= after:
            os.kill(pid, signal.SIGTERM)
            pid = 0
    poll.close()
    return ends


def untilWritten(path: Path, count: int) -> None:
    """Wait until a log has so many lines."""
    until(lambda: path.exists() and path.read_bytes().count(b"\n") >= count)


def counts(output: str) -> tuple[int, int, int]:
    """Return the connections, records and losses of the last line that counts them."""
    found = re.findall(r"Connections: (\d+), recorded: (\d+), lost: (\d+)$", output, re.MULTILINE)
    connections, recorded, lost = map(int, found[-1])
    return connections, recorded, lost


def test_stalled_reader(hello: Start, fifo: Path, reader: int) -> None:
    """3,000 clients are answered while nobody reads; all their records come when somebody does."""
    server = hello("-l", fifo, "-e", LOOPBACK)
    assert load(("127.0.0.1", server.port()), 3000, 32) == {"ended": 3000}
    os.set_blocking(reader, True)
    with open(reader) as lines:
        read = [json.loads(lines.readline())["sequence"] for _ in range(3000)]
    assert read == list(range(1, 3001))
    assert counts(server.stop()) == (3000, 3000, 0)


def test_stop_while_the_reader_is_stalled(hello: Start, fifo: Path, reader: int) -> None:
    """The process ends, and says how many records nobody took."""
    server = hello("-l", fifo, "-e", LOOPBACK)
    assert load(("127.0.0.1", server.port()), 3000, 32) == {"ended": 3000}
    connections, recorded, lost = counts(server.stop())
    with open(reader) as lines:
        assert [json.loads(line)["sequence"] for line in lines] == list(range(1, recorded + 1))
    assert connections == recorded + lost == 3000
    assert lost > 0


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
    assert counts(output) == (101, 0, 101)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_full_disk(hello: Start, tmp_path: Path) -> None:
    """Service goes on, and when there is room again the log is whole, but for what it counts."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", disk], check=True)
    try:
        filler = disk / "filler"
        filler.write_bytes(bytes(160 * 1024))
        server = hello("-l", disk / "log", "-e", LOOPBACK)
        port = server.port()
        assert load(("127.0.0.1", port), 600, 32) == {"ended": 600}
        server.expect("critical.*Connection log failed.*No space left on device")
        filler.unlink()
        server.expect("Connection log works again")
        untilWritten(disk / "log", 600)
        output = server.stop()
        assert [record["sequence"] for record in records(disk / "log")] == list(range(1, 601))
        assert output.count("#critical]") == 1
        assert counts(output) == (600, 600, 0)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_more_than_is_kept(start: Start, tmp_path: Path) -> None:
    """What exceeds the memory bound stands as a count in the log, where it is missing."""
    (tmp_path / "hello.tac").write_text(
        "import os, resource\n"
        "from twisted.application.service import Application\n"
        "from hello_listen import ConnectionLog, HelloFactory, HelloService\n"
        "application = Application('hello')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))\n"
        "log = ConnectionLog('log', kept=50_000)\n"
        f"HelloService(HelloFactory(log), '{LOOPBACK}').setServiceParent(application)\n"
    )
    server = start("twistd", "-n", "--pidfile=", "-y", "hello.tac")
    port = server.port()
    assert load(("127.0.0.1", port), 1000, 32) == {"ended": 1000}
    server.expect("critical.*Connection log failed.*File too large")
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    server.expect("Connection log works again")
    untilEnd(("127.0.0.1", port))
    last = 1001
    until(lambda: f'"sequence": {last}' in (tmp_path / "log").read_text())
    server.stop()
    expected = 1
    for record in records(tmp_path / "log"):
        if record["message"] == "Connections not recorded":
            assert record["sequence.first"] == expected
            expected = record["sequence.last"] + 1
            assert record["count"] == expected - record["sequence.first"]
        else:
            assert record["sequence"] == expected
            expected += 1
    assert expected == last + 1


def test_file_size_limit(start: Start, tmp_path: Path) -> None:
    """A file that may not grow is said to be so, and what is lost is counted at the end."""
    server = start(
        "sh", "-c", 'ulimit -f 20; exec "$@"', "sh", SCRIPTS / "twistd", "-n", "--pidfile=",
        "hello-listen", "-l", "log", "-e", LOOPBACK,
    )  # fmt: skip
    assert load(("127.0.0.1", server.port()), 500, 32) == {"ended": 500}
    server.expect("critical.*Connection log failed.*File too large")
    connections, recorded, lost = counts(server.stop())
    assert connections == recorded + lost == 500
    assert (tmp_path / "log").read_text().count("\n") == recorded


def test_rotation_under_load(hello: Start, tmp_path: Path) -> None:
    """Rename, removal of a linked file and copytruncate lose no record, and tear none."""
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
    numbers = sorted(record["sequence"] for path in logs for record in records(path))
    assert numbers == list(range(1, 12_001))


def test_copytruncate(hello: Start, tmp_path: Path) -> None:
    """A log that is cut to nothing goes on from there."""
    log = tmp_path / "log"
    server = hello("-l", log, "-e", LOOPBACK)
    address = ("127.0.0.1", server.port())
    load(address, 100, 8)
    untilWritten(log, 100)
    first = records(log)
    os.truncate(log, 0)
    load(address, 100, 8)
    server.stop()
    numbers = [record["sequence"] for record in first + records(log)]
    assert numbers == list(range(1, 201))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may change the user")
def test_uid(start: Start, tmp_path: Path) -> None:
    """A log that was opened as root is written to as another user, who may not even see it."""
    tmp_path.chmod(0o700)
    server = start(
        "twistd", "-n", "--pidfile=", "--uid=65534", "hello-listen",
        "-l", tmp_path / "log", "-e", LOOPBACK,
    )  # fmt: skip
    assert load(("127.0.0.1", server.port()), 5, 1) == {"ended": 5}
    server.expect("cannot be opened anew, and goes on where it is: Permission denied")
    assert counts(server.stop()) == (5, 5, 0)
    assert len(records(tmp_path / "log")) == 5


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
        assert counts(server.stop()) == (3000, 3000, 0)
    numbers = Counter(record["server.port"] for record in records(tmp_path / "log"))
    assert numbers == {port: 3000 for _, port in addresses}


def test_standard_output(start: Start, tmp_path: Path) -> None:
    """A dash is standard output, which has nothing but records if Twisted's log is elsewhere."""
    server = start(
        "twistd", "-n", "--pidfile=", "--logfile=twistd.log", "hello-listen",
        "-l", "-", "-e", f"unix:{tmp_path}/s",
    )  # fmt: skip
    untilWritten(tmp_path / "twistd.log", 4)
    untilEnd(f"{tmp_path}/s")
    assert json.loads(server.stop())["network.transport"] == "unix"


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_sigterm_under_load(start: Start, tmp_path: Path, kind: str) -> None:
    """Each client that was let in is recorded, and none is left hanging."""
    server = start(
        "twistd", "-n", "--pidfile=", "hello-listen", "-l", "log",
        "-e", LOOPBACK if kind == "tcp" else f"unix:{tmp_path}/s",
    )  # fmt: skip
    address: Any = ("127.0.0.1", server.port()) if kind == "tcp" else f"{tmp_path}/s"
    if kind == "unix":
        server.expect("Listening on unix:")
    ends = load(address, 60_000, 512, after=4000, pid=server.pid)
    server.wait()
    recorded = len(records(tmp_path / "log"))
    assert ends["hangs"] == 0
    assert ends["ECONNREFUSED"] > 0
    assert recorded >= ends["ended"] + ends["ECONNRESET"]
    assert counts("\n".join(server.lines)) == (recorded, recorded, 0)


@pytest.mark.usefixtures("fifo")
@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("no/folder", "No such file or directory"),
        (".", "Is a directory"),
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


def backlog(port: int) -> int:
    """Return the accept queue's length that ss(8) shows for a port."""
    [line] = run(tool("ss"), "-Hltn", f"sport = :{port}").stdout.splitlines()
    return int(line.split()[2])


def test_accept_queue(hello: Start) -> None:
    """It is the system's longest, or what the endpoint says."""
    server = hello("-e", LOOPBACK, "-e", f"haproxy:{LOOPBACK}", "-e", f"{LOOPBACK}:backlog=7")
    longest = int(Path("/proc/sys/net/core/somaxconn").read_text())
    assert [backlog(server.port()) for _ in range(3)] == [longest, longest, 7]


def withDescriptors(count: int, hello: Start, *arguments: object) -> Process:
    """Start a server that may have so many descriptors."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
    server = hello(*arguments)
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (count, count))
    return server


@pytest.mark.parametrize(("clients", "descriptors"), [(8000, 1024), (1000, 30)])
def test_all_at_once(hello: Start, tmp_path: Path, clients: int, descriptors: int) -> None:
    """However many come at once, and however few descriptors there are, each is recorded."""
    server = withDescriptors(descriptors, hello, "-l", tmp_path / "log", "-e", LOOPBACK)
    assert load(("127.0.0.1", server.port()), clients, clients) == {"ended": clients}
    assert counts(server.stop()) == (clients, clients, 0)
    assert len(records(tmp_path / "log")) == clients


@pytest.mark.parametrize("endpoint", [LOOPBACK, "unix:s", f"haproxy:{LOOPBACK}"])
def test_all_who_wait_at_the_end(hello: Start, tmp_path: Path, endpoint: str) -> None:
    """A queue that is longer than there are descriptors is served, headers and all."""
    server = withDescriptors(250, hello, "-l", tmp_path / "log", "-e", endpoint)
    listening = server.expect(r"Listening on (unix:s|.*:(\d+))$")
    address: Any = ("127.0.0.1", int(listening[2])) if listening[2] else f"{tmp_path}/s"

    def connect() -> socket.socket:
        client = socket.socket(socket.AF_INET if listening[2] else socket.AF_UNIX)
        client.settimeout(PATIENCE)
        client.connect(address)
        if "haproxy" in endpoint:
            client.sendall(b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n")
        return client

    with connect() as first:
        assert first.recv(1) == b""
    os.kill(server.pid, signal.SIGSTOP)
    clients = [connect() for _ in range(500)]
    os.kill(server.pid, signal.SIGTERM)
    os.kill(server.pid, signal.SIGCONT)
    for client in clients:
        with client:
            assert client.recv(1) == b""
    server.wait()
    assert counts("\n".join(server.lines)) == (501, 501, 0)
    who = Counter(record.get("client.address") for record in records(tmp_path / "log"))
    named = {"haproxy": "192.0.2.7", "tcp": "127.0.0.1"}.get(endpoint.partition(":")[0])
    assert who == {named: 501}


def test_memory_is_flat(hello: Start, tmp_path: Path) -> None:
    """Connections leave nothing behind."""
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
    recorded = [counts(server.stop())[1] for server in servers]
    assert sum(recorded) == len(records(tmp_path / "log")) == 5000
    assert min(recorded) > 0
