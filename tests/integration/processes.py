"""The installed twistd and twist as processes, and the real clients that connect to them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from twisted.internet.interfaces import IStreamServerEndpointStringParser
from twisted.plugin import getPlugins

SCRIPTS = Path(sys.executable).parent
PATIENCE = 30.0
"""Seconds after which something that should have happened is given up; no test asserts a time."""

LOOPBACK = "tcp:0:interface=127.0.0.1"
"""An endpoint for each test: a port of its own."""

INHERIT = (
    "import os, sys; fd = int(sys.argv[1]); os.dup2(fd, 3); os.set_inheritable(3, True); "
    "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1', LISTEN_FDNAMES='hello'); "
    "os.execv(sys.argv[2], sys.argv[2:])"
)
"""Becomes another program, which inherits a socket as systemd passes it (sd_listen_fds(3))."""


class Process:
    """A process whose output a test reads line by line; it is ended with the test."""

    def __init__(self, arguments: list[str], folder: Path, **options: object) -> None:
        """Start it in a folder, with its output and its errors in one pipe."""
        self.folder = folder
        self.lines: list[str] = []
        self._process = subprocess.Popen(
            arguments,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="surrogateescape",
            **({"stdin": subprocess.DEVNULL} | options),  # type: ignore[call-overload]
        )
        self.pid: int = self._process.pid
        self.stdin = self._process.stdin
        self._watchdog = threading.Timer(PATIENCE, self._process.kill)
        self._watchdog.start()

    def expect(self, pattern: str) -> re.Match[str]:
        """Read until a line matches, and return the match."""
        for line in self._process.stdout or ():
            self.lines.append(line.rstrip("\n"))
            match = re.search(pattern, line)
            if match:
                return match
        raise AssertionError(f"no {pattern!r} in\n" + "\n".join(self.lines))

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
        self.lines += (line.rstrip("\n") for line in self._process.stdout or ())
        status: int = self._process.wait()
        self._watchdog.cancel()
        return status

    def stop(self, number: int = signal.SIGTERM) -> str:
        """Ask it to end, and return all of its output."""
        self.kill(number)
        self.wait()
        return "\n".join(self.lines)

    def end(self) -> None:
        """End it, whatever it does."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._watchdog.cancel()
        for stream in (self._process.stdout, self._process.stdin):
            if stream:
                stream.close()


Start = Callable[..., Process]


def tool(name: str) -> str:
    """Return the path of a program; without it the test is skipped, or fails where all must be."""
    path = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if path is None and os.environ.get("HELLO_LISTEN_ALL_TOOLS"):
        pytest.fail(f"{name} is not installed")
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def until(condition: Callable[[], object]) -> None:
    """Wait until something is so, that nobody tells of when it is."""
    for _ in range(int(PATIENCE * 100)):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it did not come to pass")


def makeCertificate(folder: Path) -> str:
    """Return a key and its certificate for the name localhost, as PEM; folder is for its files."""
    made = run(
        tool("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
        "-noenc", "-keyout", "key", "-out", "crt", "-subj", "/CN=localhost", "-days", "2",
        "-addext", "subjectAltName=DNS:localhost", cwd=folder,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    return (folder / "key").read_text() + (folder / "crt").read_text()


def needTLS(endpoint: str) -> None:
    """Skip the test where a C{tls:} endpoint is needed, and Twisted has none."""
    parsers = getPlugins(IStreamServerEndpointStringParser)
    if endpoint.startswith("tls:") and "tls" not in [parser.prefix for parser in parsers]:
        pytest.skip("tls: endpoints came with Twisted 26.4")


def run(
    *arguments: object,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    patience: float = PATIENCE,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, with its output and errors kept."""
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


def freePort(host: str = "127.0.0.1") -> int:
    """Return a port that nobody listens on, for programs that cannot be told to choose one."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def untilEnd(address: tuple[str, int] | str, source: str | None = None) -> tuple[str, bytes]:
    """Connect, and return the client's own name and what it read until the clean end."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    if isinstance(address, tuple) and ":" in address[0]:
        family = socket.AF_INET6
    with socket.socket(family) as client:
        client.settimeout(PATIENCE)
        if source is not None:
            client.bind((source, 0))
        client.connect(address)
        name = client.getsockname()
        data = client.recv(1)
    return (f"{name[0]}:{name[1]}" if family == socket.AF_INET else str(name)), data
