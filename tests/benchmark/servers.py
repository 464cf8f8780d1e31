"""The servers: how each is built, started, loaded and watched."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
CORES = sorted(os.sched_getaffinity(0))
TIMEOUT = 10
"""Seconds that a server may take to answer, and to end."""


class LeftOut(Exception):
    """A server cannot be measured here; the message says why."""


@dataclass(eq=False)
class Server:
    """
    A server, and its figures. What it says goes to a file that {log} names.

    @ivar command: how to run it; {port}, {path} (of a UNIX socket) and {status} are free ones.
    @ivar build: how to build it, if it has to be.
    @ivar record: what its log has for each connection; nothing if that cannot be told.
    @ivar forks: it is slow, and its accept queue is short.
    @ivar pinned: the cores that are its own.
    @ivar connections: how many it gets in a round.
    @ivar clients: how many connect at a time then.
    @ivar python: the Python of the environment whose {twistd} runs.
    """

    label: str
    command: str
    build: str = ""
    record: bytes = b"Connection established!"
    forks: bool = False
    pinned: list[int] = field(default_factory=list)
    python: str = sys.executable
    figures: dict[str, list[float]] = field(init=False, default_factory=lambda: defaultdict(list))
    failure: str = field(init=False, default="")
    connections: int = field(init=False)
    clients: int = field(init=False)

    def add(self, **figures: float) -> None:
        """Add a figure of one measurement."""
        for key, figure in figures.items():
            self.figures[key].append(figure)

    def tool(self) -> str:
        """Return the path of a compiler or program."""
        return self._words(self.build or self.command)[0]

    def prepare(self) -> None:
        """Build the server, or check that it is installed."""
        if not shutil.which(self.tool()):
            raise LeftOut(f"{self.tool()} is not installed")
        if self.build and subprocess.run(self._words(self.build)).returncode:
            raise LeftOut(f"{self.tool()} failed")

    @contextmanager
    def running(self) -> Iterator[float]:
        """Start the server, and yield the seconds until it answered; stop it at the end."""
        self.port, self.status = freePort(), freePort()
        self.log = Path(f"{self.port}.log").absolute()
        self.path = f"./{self.port}.sock" if "{path}" in self.command else ""
        with self.log.open("ab") as log:
            began = time.perf_counter()
            self.process = subprocess.Popen(
                self._words(self.command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PORT": str(self.port)},
                start_new_session=True,  # So that what it forks can be stopped with it.
            )
        try:
            while not self._answers():
                if self.process.poll() is not None or time.perf_counter() > began + TIMEOUT:
                    said = self.log.read_text(errors="replace").strip().split("\n")[-1]
                    raise LeftOut(said or "it does not answer")
                time.sleep(0.001)
            self.made = 1
            yield time.perf_counter() - began
        finally:
            self.stop()
            for path in self._logs():
                path.unlink()

    def stop(self) -> None:
        """Stop the server and the processes that it forked."""
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(TIMEOUT)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def load(
        self, count: int, clients: int, limit: int = TIMEOUT, rate: int = 0, sources: bool = False
    ) -> dict[str, float]:
        """
        Let clients connect, and return what the load generator saw.

        @param limit: seconds until a client gives up.
        @param rate: connections a second; as many as can be by default.
        @param sources: whether each connection comes from an address of its own.
        """
        cores = [core for core in CORES if core not in self.pinned]
        pin = ["taskset", "-c", ",".join(map(str, cores))] if self.pinned else []
        threads = min(len(cores), clients)
        numbers = count, clients, threads, limit, rate, int(sources)
        load = subprocess.run(
            [*pin, "./load", self.path or str(self.port), *map(str, numbers)],
            capture_output=True,
            text=True,
        )
        if load.returncode:
            raise RuntimeError(load.stderr.strip() or f"load: status {load.returncode}")
        self.made += count
        seen: dict[str, float] = json.loads(load.stdout)
        return {**seen, "busy": seen["load"] / seen["wall"] / len(cores)}

    def drive(self, count: int, clients: int, limit: int = TIMEOUT) -> dict[str, float]:
        """Run the load, wait until the server is idle, and add the CPU time that it used."""
        before = now = self.cpu()
        seen = self.load(count, clients, limit)
        for _ in range(TIMEOUT * 5):
            earlier, now = now, self.cpu()
            if now == earlier:
                break
            time.sleep(0.2)
        return {**seen, "used": now - before}

    def cpu(self) -> float:
        """Return the CPU seconds of its processes so far, including ended ones."""
        ticks = sum(int(figure) for stat in self._stats() for figure in stat[11:15])
        return ticks / os.sysconf("SC_CLK_TCK")

    def peakMemory(self) -> float:
        """Return the peak resident memory of its processes, in MiB."""
        peaks = (Path("/proc", stat[-1], "status").read_text() for stat in self._stats())
        # A process that has ended, and whose parent has not asked for its status, has no VmHWM.
        found = [match for peak in peaks if (match := re.search(r"VmHWM:\s*(\d+)", peak))]
        if not found:
            raise RuntimeError("it has ended")
        return sum(int(match[1]) for match in found) / 1024

    def recorded(self) -> float:
        """Return the fraction of connections that its log has."""
        records = (len(re.findall(self.record, log.read_bytes())) for log in self._logs())
        return sum(records) / self.made

    def written(self) -> int:
        """Return the size of its log, in bytes."""
        return sum(log.stat().st_size for log in self._logs())

    def _logs(self) -> Iterator[Path]:
        """Yield the files of its log; twistd rotates large ones."""
        return self.log.parent.glob(f"{self.log.name}*")

    def _stats(self) -> Iterator[list[str]]:
        """Yield proc(5)'s facts of each of its processes, from the state on, and its id."""
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(FileNotFoundError, ProcessLookupError):
                stat = path.read_text().rpartition(")")[2].split()
                if stat[3] == str(self.process.pid):
                    yield [*stat, path.parent.name]

    def _answers(self) -> bool:
        """Return whether it answers, asked from another address: no connection to itself."""
        family = socket.AF_UNIX if self.path else socket.AF_INET
        with suppress(ConnectionRefusedError, FileNotFoundError), socket.socket(family) as client:
            client.settimeout(TIMEOUT)
            if not self.path:
                client.bind(("127.0.0.2", 0))
            client.connect(self.path or ("127.0.0.1", self.port))
            client.recv(1)
            return True
        return False

    def _words(self, command: str) -> list[str]:
        """Split a command, and fill in the names that are known."""
        names = {"peers": HERE / "peers", "twistd": Path(self.python).with_name("twistd")}
        known = defaultdict(str, {**vars(self), **names})
        return [word.format_map(known) for word in command.split()]


def freePort() -> int:
    """Return a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


TWISTD = "{twistd} -n --pidfile= --logfile="
TCP = " -e tcp:{port}:interface=127.0.0.1"
NCAT = "ncat -lkv 127.0.0.1 {port} -c true"
SOCAT = "socat -d -d -U TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork OPEN:/dev/null"
LIMIT = " --per-client 10"
STATUS = " --status tcp:{status}:interface=127.0.0.1"
HELLO = f"{TWISTD}twistd-{{port}}.log hello-listen -l {{log}}"


def several(processes: int) -> Server:
    """Return a server with several processes on one socket, each pinned to a core if possible."""
    pinned = CORES[:processes] if processes < len(CORES) else []
    cores = ",".join(map(str, pinned)) or "-"
    return Server(
        f"hello-listen -l, processes: {processes}{', pinned' if pinned else ''}",
        f"{{python}} {{peers}}/shared.py {{port}} {processes} {cores} {HELLO}"
        " -e systemd:domain=INET:name=hello",
        pinned=pinned,
    )


def others(python: str) -> dict[str, Server]:
    """Return the servers of hello-listen in another environment."""
    return {
        f"other-{key}": replace(SERVERS[key], label=f"{SERVERS[key].label}, other", python=python)
        for key in ("hello", "log", "unix")
    }


SERVERS = {
    "go": Server("Go", "./go 127.0.0.1:{port}", "go build -o go {peers}/go.go"),
    "c": Server("C", "./c {port}", "cc -O2 -o c {peers}/c.c"),
    "twisted": Server("plain Twisted", TWISTD + "{log} -y {peers}/plain.tac"),
    "hello": Server("hello-listen", TWISTD + "{log} hello-listen" + TCP),
    "log": Server("hello-listen -l", HELLO + TCP),
    "unix": Server("hello-listen -l, unix", HELLO + " -e unix:{path}"),
    "processes-2": several(2),
    "rust": Server("Rust's book", "./rust 127.0.0.1:{port}", "rustc -O -o rust {peers}/rust.rs"),
    "asyncio": Server("asyncio", "{python} {peers}/asyncio_server.py {port}"),
    "ncat": Server("ncat -lk", NCAT, record=rb"Connection from [\d.]+:", forks=True),
    "socat": Server("socat fork", SOCAT, record=b"accepting connection", forks=True),
}
DEFAULT_SERVERS = list(SERVERS)
MAIN = DEFAULT_SERVERS[:5]
SERVERS |= {
    "per-client": Server("hello-listen -l --per-client 10", HELLO + LIMIT + TCP, record=b""),
    "status": Server("hello-listen -l --status", HELLO + STATUS + TCP),
    "processes-1": several(1),
    "processes-4": several(4),
}
