"""Runs the installed twistd and twist as processes, with real clients."""

from __future__ import annotations

import errno
import os
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import ClassVar, NoReturn

import pytest
from twisted.internet.interfaces import IStreamServerEndpointStringParser
from twisted.plugin import getPlugins

SCRIPTS = Path(sys.executable).parent
DEPLOY = Path(__file__).parents[1] / "src" / "deploy"
"""The files that people copy."""

PATIENCE = 120.0
"""Timeout of every wait for a program, in seconds; no test asserts a time."""

SHOWN = 100
"""Upper bound of a program's output in a failure, in lines."""

LOOPBACK = "tcp:0:interface=127.0.0.1"
"""An endpoint for each test: a port of its own."""

REFUSALS = errno.ECONNREFUSED, errno.ENOENT
"""Errors that a client may get after the server has ended."""

INHERIT = """
import fcntl, os, sys
passed = [fcntl.fcntl(int(each), fcntl.F_DUPFD_CLOEXEC, 100) for each in sys.argv[1].split(":")]
for number, descriptor in enumerate(passed, 3):
    os.dup2(descriptor, number)
names = sys.argv[2]
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(passed)), LISTEN_FDNAMES=names)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Becomes another program, which inherits sockets as systemd passes them (sd_listen_fds(3))."""


STREAMS = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}


class Process:
    """
    A process whose output a test reads line by line; it is ended with the test.

    @cvar watched: the processes whose end no test has waited for.
    """

    watched: ClassVar[set[Process]] = set()

    def __init__(
        self,
        arguments: list[str],
        folder: Path,
        patience: float = PATIENCE,
        files: Sequence[str] = (),
        **options: object,
    ) -> None:
        """
        Start it in a folder, with its output and its errors in one pipe.

        @param patience: the seconds after which it is killed.
        @param files: the names of files in the folder that it writes its output or errors to.
        """
        self.folder = folder
        self.lines: list[str] = []
        self._files = [folder / name for name in files]
        self._process = subprocess.Popen(
            arguments,
            cwd=folder,
            **(STREAMS | options),  # type: ignore[call-overload]
        )
        self.pid: int = self._process.pid
        self._watchdog = threading.Timer(patience, self._process.kill)
        self._watchdog.start()
        self.watched.add(self)

    def expect(self, pattern: str) -> re.Match[str]:
        """Read until a line matches, and return the match."""
        for line in self._read():
            match = re.search(pattern, line)
            if match:
                return match
        self._process.wait()
        raise AssertionError(f"no line matches {pattern!r} in the output of\n{self.said()}")

    def port(self) -> int:
        """Read until the next endpoint listens, and return its port."""
        return int(self.expect(r"Listening on .*:(\d+)$")[1])

    def connections(self, count: int) -> list[str]:
        """Read until so many connections more are logged, and return what follows the message."""
        return [self.expect("Connection established! (.*)")[1] for _ in range(count)]

    def kill(self, number: int) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def wait(self) -> int:
        """Read what is left, and return the status."""
        for _ in self._read():
            pass
        status: int = self._process.wait()
        self._watchdog.cancel()
        self.watched.discard(self)
        return status

    def hasFailed(self) -> bool:
        """Say whether it ended without success, other than by SIGTERM, by which tests end it."""
        return self._process.poll() not in (None, 0, -signal.SIGTERM)

    def said(self) -> str:
        """Return its command, its status and the end of its output so far."""
        pipe = self._process.stdout
        if pipe and not pipe.closed:
            # What it started may hold the other end.
            os.set_blocking(pipe.fileno(), False)
            self.lines += (pipe.read() or b"").decode(errors="surrogateescape").splitlines()
            os.set_blocking(pipe.fileno(), True)
        written = [
            line
            for file in self._files
            if file.exists()
            for line in file.read_text(errors="surrogateescape").splitlines()
        ]
        status = self._process.poll()
        state = "runs" if status is None else f"ended with status {status}"
        command = shlex.join(self._process.args)
        return "\n".join([f"{command}: {state}", *[*self.lines, *written][-SHOWN:]])

    def stop(self, number: int = signal.SIGTERM) -> str:
        """Terminate it, and return all of its output."""
        self.kill(number)
        self.wait()
        return "\n".join(self.lines)

    def end(self) -> None:
        """Kill it."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._watchdog.cancel()
        self.watched.discard(self)
        for stream in (self._process.stdout, self._process.stdin):
            if stream:
                stream.close()

    def _read(self) -> Iterator[str]:
        """Yield the lines that it prints, until its output is closed."""
        for line in self._process.stdout or ():
            self.lines.append(line.decode(errors="surrogateescape").rstrip("\n"))
            yield self.lines[-1]


Start = Callable[..., Process]


def lacking(reason: str) -> NoReturn:
    """Skip the test, or fail it where CI has installed everything."""
    if os.environ.get("HELLO_LISTEN_ALL_TOOLS"):
        pytest.fail(reason)
    pytest.skip(reason)


def tool(name: str, mode: int = os.F_OK | os.X_OK) -> str:
    """Return the path of a program. Without it, skip the test, or fail it in CI."""
    path = shutil.which(name, mode, f"{os.environ['PATH']}:/usr/sbin:/sbin")
    return path or lacking(f"{name} is not installed")


def deployed(name: str, *replacements: tuple[str, str]) -> str:
    """Return the text of a file of src/deploy, with the test's own ports and folders."""
    text = (DEPLOY / name).read_text()
    for old, new in replacements:
        assert old in text, f"{old!r} is not in {name}"
        text = text.replace(old, new)
    return text


def slow(*values: object) -> object:
    """Return a case that is tested only with C{-m slow}, as CI does: others say most of it."""
    return pytest.param(*values, marks=pytest.mark.slow)


def until(condition: Callable[..., object]) -> None:
    """Poll until the condition is true; fail at once if a program of the test has failed."""
    for _ in range(int(PATIENCE * 100)):
        failed = [process for process in Process.watched if process.hasFailed()]
        if condition():
            return
        assert not failed, "\n".join(process.said() for process in failed)
        threading.Event().wait(0.01)
    said = "\n".join(process.said() for process in Process.watched)
    raise AssertionError(f"timeout: the condition is still false\n{said}")


def untilListening(path: Path) -> None:
    """Wait until a UNIX socket exists and then listens."""
    listening = re.compile(rf": \w+ \w+ 00010000 .* {re.escape(str(path))}$", re.MULTILINE)
    until(lambda: listening.search(Path("/proc/net/unix").read_text(errors="replace")))


def makeCertificate(folder: Path) -> str:
    """Return a key and its certificate for the name localhost, as PEM; folder is for its files."""
    made = run(
        tool("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
        "-noenc", "-keyout", "key", "-out", "crt", "-subj", "/CN=localhost", "-days", "2",
        "-addext", "subjectAltName=DNS:localhost", cwd=folder,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    return (folder / "key").read_text() + (folder / "crt").read_text()


def isKnown(endpoint: str) -> bool:
    """Return whether Twisted has a type of endpoint: older releases have no C{tls:}."""
    parsers = getPlugins(IStreamServerEndpointStringParser)
    return not endpoint.startswith("tls:") or "tls" in [parser.prefix for parser in parsers]


def needTLS(endpoint: str) -> None:
    """Skip the test where a C{tls:} endpoint is needed, and Twisted has none."""
    if not isKnown(endpoint):
        pytest.skip("tls: endpoints came with Twisted 26.4")


def run(
    *arguments: object,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    patience: float = PATIENCE,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, with its output and errors kept."""
    try:
        return subprocess.run(
            [str(argument) for argument in arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=patience,
            env=None if env is None else {**os.environ, **env},
            cwd=cwd,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        raise AssertionError(f"{late}: {late.stdout!r} {late.stderr!r}") from None


def children(pid: int) -> list[int]:
    """Return the children of a process; none if it has ended."""
    try:
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except FileNotFoundError:
        return []


def isStopped(pid: int) -> bool:
    """Return whether all threads of a process are stopped."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return all((task / "stat").read_text().rpartition(") ")[2][0] == "T" for task in tasks)


def unprivileged() -> list[str]:
    """Return what a command starts with, so that it runs without the rights of root."""
    if os.geteuid() != 0:
        return []
    return [tool("setpriv"), "--bounding-set=-all", "--inh-caps=-all"]


def curl(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run curl without its progress, its user's settings and the environment's proxy."""
    return run(tool("curl"), "-q", "--no-progress-meter", "--noproxy", "*", *arguments)


def freePort(host: str = "127.0.0.1") -> int:
    """Return a port that nobody listens on, for programs that cannot be told to choose one."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def listens(port: int) -> bool:
    """Return whether a server listens at an address."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def addressOf(server: Process) -> tuple[str, int] | str:
    """Read until the next endpoint listens, and return its address."""
    unix, host, port = server.expect(r"Listening on (?:unix:(.*)|\[?(.*?)\]?:(\d+))$").groups()
    return str(server.folder / unix) if unix else (host, int(port))


def familyOf(address: tuple[str, int] | str) -> socket.AddressFamily:
    """Return the address family of a socket's name."""
    if isinstance(address, str):
        return socket.AF_UNIX
    return socket.AF_INET6 if ":" in address[0] else socket.AF_INET


def connecting(address: tuple[str, int] | str) -> tuple[socket.socket, int]:
    """Return a non-blocking client socket, and the errno of its connect(2)."""
    client = socket.socket(familyOf(address))
    client.setblocking(False)
    return client, client.connect_ex(address)


@contextmanager
def clientsWithoutEnd(address: tuple[str, int] | str) -> Iterator[list[bytes]]:
    """Have eight clients connect again and again, and yield the bytes that each read until EOF."""
    ended: list[bytes] = []
    going = threading.Event()

    def connect() -> None:
        while not going.is_set():
            ended.append(untilEnd(address)[1])

    clients = [threading.Thread(target=connect) for _ in range(8)]
    for client in clients:
        client.start()
    try:
        yield ended
    finally:
        going.set()
        for client in clients:
            client.join()


def header(number: int, first: int = 1) -> bytes:
    """Return the PROXY header of a client, whose port is its number, counted from the first's."""
    return b"PROXY TCP4 192.0.2.7 198.51.100.1 %d 443\r\n" % (first + number - 1)


def silent(stack: ExitStack, address: tuple[str, int] | str, count: int) -> None:
    """Connect so many clients that send nothing, until the exit stack closes them."""
    for _ in range(count):
        client, _ = connecting(address)
        stack.enter_context(client)


def load(
    address: tuple[str, int] | str,
    total: int,
    width: int,
    *,
    data: Callable[[int], bytes] | None = None,
    paused: int = 0,
    after: int = 0,
    pid: int = 0,
) -> Counter[str]:
    """
    Connect so many clients, so many of them at once, and count how they ended.

    The first that is refused is the last.

    @param data: returns the bytes that a client sends, given its number from 1 on.
    @param paused: a process that sees none of the first clients before all of them have sent that.
    @param after: the number of ended clients after which a process is told to end.
    @param pid: that process.
    @return: C{ended} cleanly, C{hangs} without another event, or an error's name.
    """
    poll, clients, started = select.epoll(), dict[int, tuple[int, socket.socket]](), 0
    ends: Counter[str] = Counter()
    if paused:
        os.kill(paused, signal.SIGSTOP)
    while started < total or clients:
        while len(clients) < width and started < total:
            started += 1
            client, error = connecting(address)
            if error not in (0, errno.EINPROGRESS):
                ends[errno.errorcode[error]] += 1
                client.close()
                total = started if error in REFUSALS else total
                continue
            clients[client.fileno()] = started, client
            poll.register(client, select.EPOLLOUT if data else select.EPOLLIN | select.EPOLLRDHUP)
        ready = poll.poll(0 if paused else PATIENCE)
        if paused and not ready:
            os.kill(paused, signal.SIGCONT)
            paused = 0
        elif clients and not ready:
            ends["hangs"] += len(clients)
            break
        for descriptor, event in ready:
            number, client = clients[descriptor]
            try:
                if data and event == select.EPOLLOUT:
                    client.sendall(data(number))
                    poll.modify(client, select.EPOLLIN | select.EPOLLRDHUP)
                    continue
                client.recv(100)
                ends["ended"] += 1
            except OSError as error:
                ends[errno.errorcode[error.errno or 0]] += 1
                total = started if error.errno in REFUSALS else total
            # A program that is just being started holds a copy, which would be heard of for ever.
            poll.unregister(client)
            client.close()
            del clients[descriptor]
        if pid and ends["ended"] >= after:
            os.kill(pid, signal.SIGTERM)
            pid = 0
    poll.close()
    for _, client in clients.values():
        client.close()
    return ends


def untilEnd(address: tuple[str, int] | str, source: str | None = None) -> tuple[str, bytes]:
    """Connect, and return the client's own address and the bytes that it read until EOF."""
    family = familyOf(address)
    with socket.socket(family) as client:
        client.settimeout(PATIENCE)
        if source is not None:
            client.bind((source, 0))
        client.connect(address)
        name = client.getsockname()
        data = client.recv(1)
    return (f"{name[0]}:{name[1]}" if family == socket.AF_INET else str(name)), data
