"""
Measure hello-listen beside other servers that log each connection and hang up.

Run it with the Python that has hello-listen installed. It needs Linux, a C compiler, and some four
minutes, or less with fewer servers; those whose compiler or program is missing are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

CROWD = 1000
BURST = 4000
BURSTS = 3
STARTS = 7
PATIENCE = 10

RUST = """
use std::net::TcpListener;

fn main() {
    let listener = TcpListener::bind(std::env::args().nth(1).unwrap()).unwrap();
    for stream in listener.incoming() {
        let _stream = stream.unwrap();
        println!("Connection established!");
    }
}
"""

GO = """
package main

import ("log"; "net"; "os")

func handle(conn net.Conn) {
    defer conn.Close()
    log.Printf("Connection established! %s -> %s", conn.RemoteAddr(), conn.LocalAddr())
}

func main() {
    listener, err := net.Listen("tcp", os.Args[1])
    if err != nil { log.Fatal(err) }
    for {
        conn, err := listener.Accept()
        if err != nil { log.Fatal(err) }
        go handle(conn)
    }
}
"""

C = r"""
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv) {
    struct sockaddr_in host = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1])),
                               .sin_addr.s_addr = htonl(INADDR_LOOPBACK)}, peer;
    int client, on = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    socklen_t size = sizeof host;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (void *)&host, size) || listen(listener, SOMAXCONN))
        return perror("listen"), 1;
    setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
    while ((client = accept4(listener, (void *)&peer, &size, SOCK_CLOEXEC)) >= 0) {
        char stamp[32], from[INET_ADDRSTRLEN], to[INET_ADDRSTRLEN];
        time_t now = time(NULL);
        getsockname(client, (void *)&host, &size);
        strftime(stamp, sizeof stamp, "%FT%TZ", gmtime(&now));
        inet_ntop(AF_INET, &peer.sin_addr, from, sizeof from);
        inet_ntop(AF_INET, &host.sin_addr, to, sizeof to);
        printf("%s Connection established! %s:%d -> %s:%d\n", stamp,
               from, ntohs(peer.sin_port), to, ntohs(host.sin_port));
        close(client);
    }
    return perror("accept4"), 1;
}
"""

ASYNCIO = """
import asyncio, logging, sys

async def handle(reader, writer):
    peer, host = map(writer.get_extra_info, ("peername", "sockname"))
    logging.info("Connection established! %s:%d -> %s:%d", *peer, *host)
    writer.close()

async def main():
    server = await asyncio.start_server(handle, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()

logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
asyncio.run(main())
"""

TWISTED = """
import os
from twisted.application import service, strports
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger

LINE = "Connection established! {peer.host}:{peer.port} -> {host.host}:{host.port}"

class Hello(Protocol):
    log = Logger("plain")

    def connectionMade(self):
        self.log.info(LINE, peer=self.transport.getPeer(), host=self.transport.getHost())
        self.transport.loseConnection()

application = service.Application("plain")
endpoint = "tcp:" + os.environ["PORT"] + ":interface=127.0.0.1"
strports.service(endpoint, Factory.forProtocol(Hello)).setServiceParent(application)
"""

# Two processes on one socket, which they inherit as systemd passes it (sd_listen_fds(3)).
SHARED = """
import os, socket, sys

listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=4096)
os.fork()
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="hello")
os.execv(sys.argv[2], sys.argv[2:])
"""

# A connect() to nowhere resets the connection that the server has closed: nothing is left in
# TIME_WAIT, so ports do not run out, and every round finds the same machine. It also spares the
# load generator a new socket for each connection.
LOAD = r"""
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

static struct sockaddr_in server = {.sin_family = AF_INET}, nowhere = {.sin_family = AF_UNSPEC};
static int connections;
static int64_t limit, *took, *since;
static _Atomic int started, ended, answered;

static void fail(const char *what) { perror(what); exit(1); }

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int64_t begin(int client) {
    since[client] = now();
    if (connect(client, (void *)&server, sizeof server)
        && errno != EINPROGRESS && errno != ECONNRESET)
        fail("load: connect");
    return since[client];
}

static void *work(void *clients) {
    struct epoll_event events[256];
    int64_t last = 0, left;
    int open = 0, queue = epoll_create1(0);
    for (; open < (intptr_t)clients && started++ < connections; open++) {
        int client = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        if (client < 0)
            fail("load: socket");
        last = begin(client);
        struct epoll_event end = {.events = EPOLLRDHUP, .data.fd = client};
        epoll_ctl(queue, EPOLL_CTL_ADD, client, &end);
    }
    while (open && (left = last + limit - now()) > 0) {
        int ready = epoll_wait(queue, events, 256, left / 1000000 + 1);
        int64_t end = now();
        for (int i = 0; i < ready; i++) {
            int client = events[i].data.fd, error = 0;
            if (events[i].events & EPOLLERR)
                getsockopt(client, SOL_SOCKET, SO_ERROR, &error, &(socklen_t){sizeof error});
            if (error == ECONNREFUSED)
                errno = error, fail("load: connect");
            took[ended++] = end - since[client];
            answered += end - since[client] <= limit;
            connect(client, (void *)&nowhere, sizeof nowhere);
            if (started++ < connections)
                last = begin(client);
            else
                close(client), open--;
        }
    }
    return NULL;
}

static int order(const void *a, const void *b) {
    int64_t x = *(int64_t *)a, y = *(int64_t *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    server.sin_port = htons(atoi(argv[1]));
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connections = atoi(argv[2]);
    intptr_t clients = atoi(argv[3]), workers = atoi(argv[4]);
    limit = atoi(argv[5]) * 1000000000LL;
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    took = calloc(connections, sizeof *took);
    since = calloc(clients + workers + 16, sizeof *since);
    pthread_t threads[workers];
    int64_t start = now();
    for (int i = 0; i < workers; i++)
        pthread_create(&threads[i], NULL, work, (void *)((clients + i) / workers));
    for (int i = 0; i < workers; i++)
        pthread_join(threads[i], NULL);
    double wall = (now() - start) / 1e9;
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    qsort(took, ended, sizeof *took, order);
    printf("{\"answered\": %d, \"wall\": %f, \"load\": %f, \"p50\": %f, \"p99\": %f}\n", answered,
           wall, used.ru_utime.tv_sec + used.ru_stime.tv_sec
           + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6,
           took[ended / 2] / 1e6, took[(int)(ended * 0.99)] / 1e6);
}
"""

SOURCES = {
    "rust.rs": RUST,
    "go.go": GO,
    "c.c": C,
    "server.py": ASYNCIO,
    "plain.tac": TWISTED,
    "shared.py": SHARED,
    "load.c": LOAD,
}

COLUMNS = {
    "rate": ("connections/s", "{:,.0f}"),
    "cpu": ("CPU, µs each", "{:.1f}"),
    "p50": ("p50, ms", "{:.2f}"),
    "p99": ("p99, ms", "{:.2f}"),
    "crowd": (f"by {CROWD} clients, /s", "{:,.0f}"),
    "memory": ("peak, MiB", "{:.1f}"),
    "burst": (f"of {BURST:,} at once", "{:,.0f}"),
    "startUp": ("start-up, ms", "{:.0f}"),
    "recorded": ("recorded", "{:.2%}"),
    "busy": ("load generator", "{:.0%}"),
}

RATIOS = [
    ("rate", "hello-listen-log", "rust"),
    ("rate", "hello-listen-log-2", "rust"),
    ("rate", "hello-listen-log-2", "hello-listen-log"),
    ("crowd", "hello-listen-log", "rust"),
    ("cpu", "hello-listen-log", "go"),
    ("cpu", "hello-listen-log", "twisted"),
    ("cpu", "hello-listen", "twisted"),
    ("startUp", "hello-listen", "twisted"),
]


class LeftOut(Exception):
    """A server cannot be measured here; the message says why."""


@dataclass
class Server:
    """A server: how to run it, after building it, how its log shows a connection; its figures."""

    label: str
    command: str
    build: str = ""
    record: bytes = b"Connection established!"
    forks: bool = False
    figures: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, **figures: float) -> None:
        """Keep what was measured once."""
        for key, figure in figures.items():
            self.figures[key].append(figure)

    def tool(self) -> str:
        """Return the compiler or program that has to be installed."""
        return words(self.build or self.command)[0]

    def prepare(self) -> None:
        """Build it, or see that it is there."""
        if not shutil.which(self.tool()):
            raise LeftOut(f"{self.tool()} is not installed")
        if self.build and subprocess.run(words(self.build)).returncode:
            raise LeftOut(f"{self.tool()} failed")

    @contextmanager
    def running(self) -> Iterator[float]:
        """Run it, and give the seconds that passed until it answered."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = Path(f"{self.port}.log").absolute()
        with self.log.open("ab") as log:
            began = time.perf_counter()
            self.process = subprocess.Popen(
                words(self.command, port=self.port, log=self.log),
                stdout=log,
                stderr=log,
                env={**os.environ, "PORT": str(self.port)},
                start_new_session=True,  # So that what it forks can be stopped with it.
            )
        try:
            while not self._answers():
                if self.process.poll() is not None or time.perf_counter() > began + PATIENCE:
                    said = self.log.read_text(errors="replace").strip().split("\n")[-1]
                    raise LeftOut(said or "it does not answer")
                time.sleep(0.001)
            self.made = 1
            yield time.perf_counter() - began
        finally:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(PATIENCE)
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def _answers(self) -> bool:
        """Try to connect, from another address: a socket could connect to itself otherwise."""
        with suppress(ConnectionRefusedError), socket.socket() as client:
            client.settimeout(PATIENCE)
            client.bind(("127.0.0.2", 0))
            client.connect(("127.0.0.1", self.port))
            client.recv(1)
            return True
        return False

    def drive(self, connections: int, clients: int, limit: int = PATIENCE) -> dict[str, float]:
        """Let clients connect, wait until the server rests, and return what was seen."""
        workers = min(os.cpu_count() or 1, clients)
        arguments = map(str, (self.port, connections, clients, workers, limit))
        before = now = self.cpu()
        load = subprocess.run(["./load", *arguments], stdout=subprocess.PIPE, check=True)
        self.made += connections
        for _ in range(PATIENCE * 5):
            earlier, now = now, self.cpu()
            if now == earlier:
                break
            time.sleep(0.2)
        return {**json.loads(load.stdout), "used": now - before}

    def cpu(self) -> float:
        """Return the seconds of CPU that its processes, and those that ended, used so far."""
        ticks = sum(int(figure) for stat in self._stats() for figure in stat[11:15])
        return ticks / os.sysconf("SC_CLK_TCK")

    def peakMemory(self) -> float:
        """Return the most memory that its processes had resident so far, in MiB."""
        peaks = (Path("/proc", stat[-1], "status").read_text() for stat in self._stats())
        return sum(int(peak.partition("VmHWM:")[2].split()[0]) for peak in peaks) / 1024

    def _stats(self) -> Iterator[list[str]]:
        """Give what proc(5) says of each of its processes from the state on, and the number."""
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(FileNotFoundError, ProcessLookupError):
                stat = path.read_text().rpartition(")")[2].split()
                if stat[3] == str(self.process.pid):
                    yield [*stat, path.parent.name]

    def recorded(self) -> float:
        """Return the part of the connections that its log shows; twistd splits long logs."""
        logs = self.log.parent.glob(f"{self.log.name}*")
        return sum(len(re.findall(self.record, log.read_bytes())) for log in logs) / self.made


TWISTD = "{twistd} -n --pidfile= --logfile={log}"
HELLO = "hello-listen -e tcp:{port}:interface=127.0.0.1"
NCAT = "ncat -lkv 127.0.0.1 {port} -c true"
SOCAT = "socat -d -d -U TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork OPEN:/dev/null"
SERVERS = {
    "rust": Server("Rust's book", "./rust 127.0.0.1:{port}", "rustc -O -o rust rust.rs"),
    "go": Server("Go", "./go 127.0.0.1:{port}", "go build -o go go.go"),
    "c": Server("C", "./c {port}", "cc -O2 -o c c.c"),
    "asyncio": Server("asyncio", "{python} server.py {port}"),
    "twisted": Server("Twisted", f"{TWISTD} -y plain.tac"),
    "ncat": Server("ncat -lk", NCAT, record=rb"Connection from [\d.]+:", forks=True),
    "socat": Server("socat fork", SOCAT, record=b"accepting connection", forks=True),
    "hello-listen": Server("hello-listen", f"{TWISTD} {HELLO}"),
    "hello-listen-log": Server(
        "hello-listen --connection-log", f"{TWISTD}.twistd {HELLO} --connection-log {{log}}"
    ),
    "hello-listen-log-2": Server(
        "two hello-listen --connection-log",
        f"{{python}} shared.py {{port}} {TWISTD}.twistd"
        " hello-listen -e systemd:domain=INET:name=hello --connection-log {log}",
    ),
}


def words(command: str, **names: object) -> list[str]:
    """Split a command, and fill in the names."""
    names |= {"python": sys.executable, "twistd": Path(sys.executable).with_name("twistd")}
    return [word.format_map(defaultdict(str, names)) for word in command.split()]


def counted(what: str, times: int) -> Iterator[int]:
    """Count, and show it: in one line that changes on a terminal, in plain lines elsewhere."""
    start, end = ("\r\x1b[K", "") if sys.stderr.isatty() else ("", "\n")
    for number in range(1, times + 1):
        print(f"{start}{what} {number} of {times}", end=end, file=sys.stderr, flush=True)
        yield number
    print(start, end="", file=sys.stderr, flush=True)


def measure(chosen: list[Server], options: argparse.Namespace) -> dict[str, str]:
    """Measure the servers, and return why some, by their labels, were left out."""
    leftOut: dict[str, str] = {}
    runs: list[tuple[Server, int, int]] = []
    with ExitStack() as stack:
        for number in counted("server", len(chosen)):
            server = chosen[number - 1]
            # What forks is slow, and its accept queue holds about five; it forgets the others.
            most, atOnce = (500, 4) if server.forks else (options.connections, options.clients)
            connections = min(most, options.connections)
            clients = min(atOnce, options.clients, connections)
            try:
                server.prepare()
                stack.enter_context(server.running())
            except LeftOut as reason:
                leftOut[server.label] = str(reason)
                continue
            server.drive(connections // 10 + clients, clients)
            server.add(warm=server.cpu())
            runs.append((server, connections, clients))
        for _ in counted("round", options.rounds):
            for server, connections, clients in runs:
                seen = server.drive(connections, clients)
                each = 1e6 / max(seen["answered"], 1)
                server.add(
                    **seen,
                    rate=seen["answered"] / seen["wall"],
                    cpu=seen["used"] * each,
                    loadEach=seen["load"] * each,
                    busy=seen["load"] / seen["wall"] / (os.cpu_count() or 1),
                    unanswered=connections - seen["answered"],
                )
        for server, *_ in runs:
            idle = server.cpu() - server.figures["warm"][0] - sum(server.figures["used"])
            server.add(recorded=server.recorded(), idle=idle)
        for _ in counted("crowd and burst", BURSTS):
            for server, *_ in runs:
                server.add(burst=server.drive(BURST, BURST, 1)["answered"])
                if not server.forks:
                    seen = server.drive(10 * CROWD, CROWD)
                    server.add(crowd=seen["answered"] / seen["wall"])
        for server, *_ in runs:
            server.add(memory=server.peakMemory())
    for _ in counted("start-up", STARTS):
        for server, *_ in runs:
            with server.running() as seconds:
                server.add(startUp=seconds * 1000)
    return leftOut


def spread(figures: list[float], style: str) -> str:
    """Return the median, with the least and the most where there are several figures."""
    if not figures:
        return "-"
    low, middle, high = (style.format(f(figures)) for f in (min, median, max))
    return middle if len(figures) == 1 else f"{middle} ({low}-{high})"


def versionOf(tool: str) -> str:
    """Return the version that a program says it has."""
    option = {"go": "version", "socat": "-V"}.get(tool, "--version")
    said = subprocess.run([tool, option], capture_output=True, text=True)
    return f"{tool} {re.findall(r'[0-9]+[.][0-9.]+', said.stdout + said.stderr)[0]}"


def report(servers: list[Server], leftOut: dict[str, str], options: argparse.Namespace) -> None:
    """Print the table, what it was measured on, and how the servers compare."""
    print("| server |", " | ".join(title for title, _ in COLUMNS.values()), "|")
    print("| --- |", " | ".join("---:" for _ in COLUMNS), "|")
    for server in servers:
        cells = [spread(server.figures[key], style) for key, (_, style) in COLUMNS.items()]
        print(f"| {server.label} |", " | ".join(cells), "|")
    print(
        f"\nMedian (least-most) of {options.rounds} interleaved rounds with {options.connections:,}"
        f" connections by {options.clients} clients; where the server forks, 500 by 4 at most.\n"
        f"By {CROWD} clients: {10 * CROWD:,} connections, {BURSTS} times, after a burst: of"
        f" {BURST:,} clients at once, those answered within a second."
        f" Start-up: {STARTS} times, until it answered.\n"
        "Recorded: the part of the connections that the server's log shows."
        " Load generator: its share of all cores.\n"
    )
    for label, reason in leftOut.items():
        print(f"- Left out: {label}: {reason}")
    for server in servers:
        if unanswered := sum(server.figures["unanswered"]):
            print(f"- {server.label}: {unanswered:,.0f} not answered within {PATIENCE} s")
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    model = cpu[1] if cpu else platform.machine()
    print(f"- Machine: {model}, {os.cpu_count()} cores, Linux {platform.release()}")
    tools = dict.fromkeys(["cc", *(server.tool() for server in servers)])
    versions = [versionOf(tool) for tool in tools if "/" not in tool]
    packages = [name for name in ("twisted", "hello_listen") if find_spec(name)]
    versions += [f"{name} {version(name)}" for name in packages]
    print(f"- Versions: Python {platform.python_version()}, {', '.join(versions)}")
    own = [figure for server in servers for figure in server.figures["loadEach"]]
    print(f"- CPU of the load generator: {spread(own, '{:.1f}')} µs for each connection")
    idle = max(server.figures["idle"][0] for server in servers)
    print(f"- CPU of a server while others were measured: {idle * 1000:.0f} ms at most")
    for key, over, under in RATIOS:
        pairs = zip(SERVERS[over].figures[key], SERVERS[under].figures[key], strict=False)
        if ratios := [a / b for a, b in pairs if b]:
            names = f"{SERVERS[over].label} / {SERVERS[under].label}"
            print(f"- {COLUMNS[key][0].split(',')[0]}, {names}: {spread(ratios, '{:.2f}')}")


def drawSVG(path: Path, servers: list[Server], keys: list[str]) -> None:
    """Draw bars for the medians, one panel for each key, with lines from least to most."""
    shapes = []
    for panel, key in enumerate(keys):
        x = 220 + panel * 390
        scale = 300 / max(max(server.figures[key]) for server in servers)
        shapes.append(f'<text x="{x}" y="18" font-weight="bold">{COLUMNS[key][0]}</text>')
        for y, server in zip(range(42, 1000, 28), servers, strict=False):
            low, middle, high = (f(server.figures[key]) * scale for f in (min, median, max))
            color = "#f09a78" if "hello-listen" in server.label else "#a9b8c9"
            shapes += [
                f'<rect x="{x}" y="{y - 14}" width="{middle:.1f}" height="18" fill="{color}"/>',
                f'<path d="M{x + low:.1f} {y - 5}H{x + high:.1f}" stroke="#666" stroke-width="2"/>',
                f'<text x="{x + high + 6:.1f}" y="{y}">{middle / scale:,.0f}</text>',
                f'<text x="212" y="{y}" text-anchor="end">{"" if panel else server.label}</text>',
            ]
    size = f'width="{220 + 390 * len(keys)}" height="{28 * len(servers) + 28}"'
    style = 'font-family="sans-serif" font-size="13" fill="#888"'
    svg = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>', *shapes, "</svg>\n"]
    path.write_text("\n".join(svg), "utf-8")


def drawPNG(path: Path, servers: list[Server], keys: list[str]) -> None:
    """Draw the same with matplotlib."""
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(keys), sharey=True, figsize=(10, 4))
    for panel, key in zip(panels, keys, strict=True):
        for server in servers:
            low, middle, high = (f(server.figures[key]) for f in (min, median, max))
            panel.barh(server.label, middle, xerr=[[middle - low], [high - middle]])
        panel.set_title(COLUMNS[key][0])
    panels[0].invert_yaxis()
    figure.savefig(path, bbox_inches="tight")


def parseOptions() -> argparse.Namespace:
    """Parse the command line, and see that what it asks for can be done here."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--rounds", type=int, default=7, help="how often each is measured [%(default)s]")
    add("--connections", type=int, default=30_000, help="in each round [%(default)s]")
    add("--clients", type=int, default=32, help="how many connect at a time [%(default)s]")
    every = ",".join(SERVERS)
    add("--servers", default=every, metavar="A,B,C", help="which to measure [%(default)s]")
    add("--chart", type=Path, metavar="FILE", help="draw one: .svg, or with matplotlib .png")
    options = parser.parse_args()
    options.servers = options.servers.split(",")
    if min(options.rounds, options.connections, options.clients) < 1:
        parser.error("--rounds, --connections and --clients are 1 or more")
    if unknown := set(options.servers) - set(SERVERS):
        parser.error(f"no such server: {', '.join(unknown)}; there are {every}")
    if options.chart and options.chart.suffix not in (".svg", ".png"):
        parser.error("--chart: the name ends in .svg or .png")
    if options.chart and options.chart.suffix == ".png" and not find_spec("matplotlib"):
        parser.error("--chart: .png needs matplotlib; .svg does not")
    if not shutil.which("cc"):
        sys.exit("benchmark.py: the load generator needs a C compiler, cc")
    return options


def leave(number: int, _: object) -> None:
    """End on a signal by way of everything that has to be stopped, whatever comes meanwhile."""
    for other in (signal.SIGINT, signal.SIGTERM):
        signal.signal(other, signal.SIG_IGN)
    sys.exit(128 + number)


def main() -> None:
    """Measure, report and draw."""
    options = parseOptions()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)
    back = Path.cwd()
    with TemporaryDirectory() as directory:
        os.chdir(directory)
        for name, source in SOURCES.items():
            Path(name).write_text(source)
        subprocess.run(["cc", "-O2", "-pthread", "-o", "load", "load.c"], check=True)
        leftOut = measure([SERVERS[name] for name in options.servers], options)
        os.chdir(back)
    servers = [SERVERS[name] for name in options.servers if SERVERS[name].figures]
    if not servers:
        sys.exit(f"benchmark.py: nothing to measure: {leftOut}")
    report(servers, leftOut, options)
    if options.chart:
        # Beside what forks, the other bars could not be told apart.
        drawn = [server for server in servers if not server.forks] or servers
        draw = drawSVG if options.chart.suffix == ".svg" else drawPNG
        draw(options.chart, drawn, ["rate", "cpu"])


if __name__ == "__main__":
    main()
