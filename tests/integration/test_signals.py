"""Signals: those that stop the process lose no client, and the others do not stop it."""

from __future__ import annotations

import os
import pty
import re
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from logs import account, counted, recorded, untilWritten
from processes import (
    LOOPBACK,
    PATIENCE,
    SCRIPTS,
    Process,
    Start,
    freePort,
    load,
    run,
    slow,
    tool,
    until,
    untilEnd,
    untilListening,
)

ATTACH = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)
"""Makes standard input the controlling terminal of a new session, and runs another program."""


class Terminal:
    """A terminal, which closes as a window does."""

    def __init__(self, start: Start) -> None:
        """Open it."""
        self._start = start
        self._open = list(pty.openpty())

    def start(self, *command: object) -> Process:
        """Start a program in it, as the first process of its session."""
        return self._start(
            "python", "-c", ATTACH, *command, stdin=self._open[1], start_new_session=True
        )

    def close(self) -> None:
        """Close it."""
        while self._open:
            os.close(self._open.pop(0))


@pytest.fixture
def terminal(start: Start) -> Iterator[Terminal]:
    """Return a terminal, which is closed after the test."""
    terminal = Terminal(start)
    yield terminal
    terminal.close()


TWISTD = SCRIPTS / "twistd", "-n", "--pidfile=pid"
SIGNALS = ["SIGQUIT", "SIGUSR1", "SIGUSR2"]
LOGGED = "hello-listen", "-l", "log", "-e", LOOPBACK


def endsWell(server: Process, folder: Path) -> None:
    """Check that a stopped server has recorded and counted all clients, and left no pidfile."""
    server.wait()
    output = "\n".join(server.lines)
    total = len(recorded(folder / "log"))
    assert counted(output) == (total, total, 0)
    assert account(folder / "log") == (total, 0)
    assert "Traceback" not in output
    assert not (folder / "pid").exists()


ALL = ["SIGTERM", "SIGHUP", slow("SIGINT"), *map(slow, SIGNALS)]

HOOK = """
import os, re, signal, sys

name, *moment = os.environ["MOMENT"].split()

def look(event, arguments):
    if moment and event == moment[0] and re.fullmatch(moment[1], str(arguments[0])):
        moment.clear()
        os.kill(os.getpid(), getattr(signal, name))

sys.addaudithook(look)
"""
"""A sitecustomize module, which sends its process a signal when an audited event occurs."""


def early(start: Start, folder: Path, name: str, moment: str, *command: object) -> Process:
    """Start a process that gets a signal at a moment of its start."""
    (folder / "sitecustomize.py").write_text(HOOK)
    added = {"PYTHONPATH": str(folder), "MOMENT": f"{name} {moment}"}
    return start(*command, *LOGGED, start_new_session=True, env={**os.environ, **added})


@pytest.mark.parametrize(
    "moment",
    [
        "import hello_listen",
        slow(r"import hello_listen\.tap"),
        slow("open .*/log"),
        slow("socket.bind <.*>"),
    ],
)
@pytest.mark.parametrize("name", ALL)
def test_before_the_reactor_runs(start: Start, tmp_path: Path, name: str, moment: str) -> None:
    """From the first import on, a signal has the same effect as while the reactor runs."""
    server = early(start, tmp_path, name, moment, *TWISTD)
    if name == "SIGHUP":
        untilEnd(("127.0.0.1", server.port()))
        server.kill(signal.SIGTERM)
    endsWell(server, tmp_path)
    assert len(recorded(tmp_path / "log")) == (name == "SIGHUP")


def test_rotation_before_the_reactor_runs(start: Start, tmp_path: Path) -> None:
    """With --logfile, an early SIGUSR1 is left to Twisted as well."""
    early(start, tmp_path, "SIGUSR1", "import hello_listen", *TWISTD, "--logfile=twistd.log")
    until((tmp_path / "twistd.log.1").exists)


@pytest.mark.parametrize("name", ["SIGTERM", slow("SIGINT")])
def test_waiting_for_a_daemon(start: Start, tmp_path: Path, name: str) -> None:
    """A signal ends twistd while it waits for a daemon that hangs."""
    command = SCRIPTS / "twistd", "--pidfile=pid"
    waiting = early(start, tmp_path, "SIGSTOP", "socket.bind <.*>", *command)
    until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    daemon = int((tmp_path / "pid").read_text())
    try:
        until(lambda: "\nState:\tT" in Path(f"/proc/{daemon}/status").read_text())
        waiting.kill(getattr(signal, name))
        assert waiting.wait() == -getattr(signal, name)
    finally:
        os.kill(daemon, signal.SIGKILL)


@pytest.mark.parametrize("name", ALL)
def test_as_soon_as_clients_come(start: Start, tmp_path: Path, name: str) -> None:
    """A client that connects as soon as the port is bound is recorded, even if a signal follows."""
    port = freePort()
    endpoint = f"tcp:{port}:interface=127.0.0.1"
    server = start(*TWISTD, *LOGGED[:3], "-e", endpoint, start_new_session=True)
    end = time.monotonic() + PATIENCE
    with socket.socket() as client:
        # Without a pause: the reactor runs some milliseconds later.
        while client.connect_ex(("127.0.0.1", port)):
            assert time.monotonic() < end
        server.kill(getattr(signal, name))
        assert client.recv(1) == b""
    if name == "SIGHUP":
        untilEnd(("127.0.0.1", port))
        server.kill(signal.SIGTERM)
    endsWell(server, tmp_path)
    assert len(recorded(tmp_path / "log")) == 1 + (name == "SIGHUP")


@pytest.mark.parametrize("how", [*map(slow, SIGNALS), "SIGHUP", slow("closed terminal")])
def test_end_under_load(terminal: Terminal, tmp_path: Path, how: str) -> None:
    """In a terminal, each signal, and closing the terminal, stops the process as SIGTERM does."""
    server = terminal.start(*TWISTD, *LOGGED)
    address = ("127.0.0.1", server.port())
    ends: list[Counter[str]] = []
    clients = threading.Thread(target=lambda: ends.append(load(address, 10_000, 64)))
    clients.start()
    untilWritten(tmp_path / "log", 200)
    if how == "closed terminal":
        terminal.close()
    else:
        server.kill(getattr(signal, how))
    clients.join()
    endsWell(server, tmp_path)
    assert ends[0]["hangs"] == 0
    assert ends[0]["ECONNREFUSED"] > 0
    assert len(recorded(tmp_path / "log")) >= ends[0]["ended"] + ends[0]["ECONNRESET"]


def test_terminal_that_shows_the_log(terminal: Terminal, tmp_path: Path) -> None:
    """The stop is clean even if the log goes to the terminal that was closed."""
    server = terminal.start("/bin/sh", "-c", 'exec "$@" >&0 2>&0', "sh", *TWISTD, *LOGGED[:3],
                            "-e", f"unix:{tmp_path}/s")  # fmt: skip
    untilListening(tmp_path / "s")
    untilEnd(f"{tmp_path}/s")
    terminal.close()
    server.wait()
    assert account(tmp_path / "log") == (1, 0)
    assert not (tmp_path / "pid").exists()
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("name", ["SIGQUIT", slow("SIGUSR1"), slow("SIGUSR2")])
def test_end_without_a_terminal(start: Start, tmp_path: Path, name: str) -> None:
    """These signals end it without a terminal too."""
    server = start(*TWISTD, *LOGGED, start_new_session=True)
    untilEnd(("127.0.0.1", server.port()))
    server.kill(getattr(signal, name))
    endsWell(server, tmp_path)


def test_hang_up_without_a_terminal(start: Start, tmp_path: Path) -> None:
    """SIGHUP without a terminal reopens the log at once, and the process serves on."""
    server = start(*TWISTD, *LOGGED, start_new_session=True)
    address = ("127.0.0.1", server.port())
    untilEnd(address)
    untilWritten(tmp_path / "log", 2)
    (tmp_path / "log").rename(tmp_path / "log.1")
    server.kill(signal.SIGHUP)
    until((tmp_path / "log").exists)
    untilEnd(address)
    assert counted(server.stop()) == (2, 2, 0)
    assert account(tmp_path / "log.1", tmp_path / "log") == (2, 0)
    assert len(recorded(tmp_path / "log")) == 1


def test_hang_up_without_a_connection_log(start: Start) -> None:
    """Where there is no log to open anew, SIGHUP without a terminal changes nothing."""
    server = start(*TWISTD, "hello-listen", "-e", LOOPBACK, start_new_session=True)
    address = ("127.0.0.1", server.port())
    untilEnd(address)
    server.kill(signal.SIGHUP)
    untilEnd(address)
    server.connections(2)
    assert "Traceback" not in server.stop()


def test_hang_up_of_a_daemon(tmp_path: Path) -> None:
    """A daemon's SIGHUP opens its log anew; SIGUSR1 is Twisted's, and opens Twisted's log anew."""
    command = SCRIPTS / "twistd", "--logfile=twistd.log", "--pidfile=pid"
    assert (
        run(
            *command, "hello-listen", "-l", "log", "-e", f"unix:{tmp_path}/s", cwd=tmp_path
        ).returncode
        == 0
    )
    pid = int((tmp_path / "pid").read_text())
    try:
        untilEnd(f"{tmp_path}/s")
        untilWritten(tmp_path / "log", 2)
        (tmp_path / "log").rename(tmp_path / "log.1")
        os.kill(pid, signal.SIGHUP)
        until((tmp_path / "log").exists)
        os.kill(pid, signal.SIGUSR1)
        until((tmp_path / "twistd.log.1").exists)
        untilEnd(f"{tmp_path}/s")
    finally:
        os.kill(pid, signal.SIGTERM)
        until(lambda: not Path(f"/proc/{pid}").exists())
    assert account(tmp_path / "log.1", tmp_path / "log") == (2, 0)
    assert counted((tmp_path / "twistd.log").read_text()) == (2, 2, 0)


def test_nohup(terminal: Terminal, tmp_path: Path) -> None:
    """An inherited ignored SIGHUP stays ignored, so that closing the terminal has no effect."""
    server = terminal.start(tool("nohup"), *TWISTD, *LOGGED)
    port = server.port()
    server.kill(signal.SIGHUP)
    terminal.close()
    untilEnd(("127.0.0.1", port))
    server.kill(signal.SIGTERM)
    endsWell(server, tmp_path)
    assert len(recorded(tmp_path / "log")) == 1


@pytest.mark.parametrize("name", ["SIGTERM", slow("SIGINT"), slow("SIGQUIT")])
def test_second_signal(start: Start, fifo: Path, reader: int, name: str) -> None:
    """A second signal, while the last records wait to be written, does not change the stop."""
    server = start(*TWISTD, "hello-listen", "-l", fifo, "-e", LOOPBACK)
    load(("127.0.0.1", server.port()), 1000, 32)
    server.kill(signal.SIGTERM)
    server.expect("Received SIGTERM")
    server.kill(getattr(signal, name))
    os.set_blocking(reader, True)
    with open(reader, "rb") as pipe:
        assert pipe.read().count(b'"Connection established!"') == 1000
    server.wait()
    output = "\n".join(server.lines)
    assert counted(output) == (1000, 1000, 0)
    assert "Traceback" not in output
    assert not (fifo.parent / "pid").exists()


def test_signals_at_once(start: Start, tmp_path: Path) -> None:
    """Several signals that arrive together cause one stop."""
    server = start(*TWISTD, *LOGGED)
    untilEnd(("127.0.0.1", server.port()))
    for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGCONT):
        server.kill(number)
    endsWell(server, tmp_path)


TAC = """
import signal
from twisted.application.service import Application
from twisted.internet import reactor
from twisted.logger import Logger
from hello_listen import ConnectionLog, HelloFactory, HelloService

application = Application("hello")
HelloService(HelloFactory(ConnectionLog("log")), ["{endpoint}"]).setServiceParent(application)
"""


@pytest.mark.parametrize("how", ["-ny", slow("-y")])
def test_tac(tmp_path: Path, start: Start, how: str) -> None:
    """A service in a .tac file writes and counts its last records at a stop."""
    (tmp_path / "hello.tac").write_text(TAC.format(endpoint=f"unix:{tmp_path}/s"))
    start("twistd", "--pidfile=pid", "--logfile=twistd.log", how, "hello.tac")
    untilListening(tmp_path / "s")
    for _ in range(50):
        untilEnd(f"{tmp_path}/s")
    pid = int((tmp_path / "pid").read_text())
    os.kill(pid, signal.SIGTERM)
    until(lambda: not (tmp_path / "pid").exists())
    assert account(tmp_path / "log") == (50, 0)
    assert counted((tmp_path / "twistd.log").read_text()) == (50, 50, 0)


def test_handlers_of_an_embedder(start: Start, tmp_path: Path) -> None:
    """A service in another application changes none of its signal handlers."""
    (tmp_path / "hello.tac").write_text(
        TAC.format(endpoint=LOOPBACK)
        + "signal.signal(signal.SIGHUP, lambda *_: Logger().info('their own'))\n"
        "others = signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2\n"
        "reactor.callWhenRunning(lambda: Logger().info('{handlers}', "
        "handlers=[signal.getsignal(number).name for number in others]))\n"
    )
    server = start("twistd", "-n", "--pidfile=pid", "-y", "hello.tac", start_new_session=True)
    address = ("127.0.0.1", server.port())
    server.expect(re.escape("['SIG_DFL', 'SIG_DFL', 'SIG_DFL']"))
    server.kill(signal.SIGHUP)
    server.expect("their own")
    untilEnd(address)
    server.kill(signal.SIGTERM)
    endsWell(server, tmp_path)
    assert len(recorded(tmp_path / "log")) == 1
