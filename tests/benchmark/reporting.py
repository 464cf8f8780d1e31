"""Prints the figures: tables, comparisons, and the circumstances."""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from measuring import BURST, CROWD, FLOOD_RATE, PAGE_RATE
from servers import CORES, MAIN, SERVERS, TIMEOUT, Server

SHORT = {
    "rate": ("connections/s", "{:,.0f}"),
    "cpu": ("CPU, µs each", "{:.1f}"),
    "p99": ("p99, ms", "{:.2f}"),
    "memory": ("peak, MiB", "{:.1f}"),
}
WHOLE = {
    **SHORT,
    "p50": ("p50, ms", "{:.2f}"),
    "crowd": (f"by {CROWD} clients, /s", "{:,.0f}"),
    "burst": (f"of {BURST:,} at once", "{:,.0f}"),
    "startUp": ("start-up, ms", "{:.0f}"),
    "disk": ("log, MB/s", "{:.1f}"),
    "busy": ("load generator", "{:.0%}"),
}
SINGLE_COLUMNS = {
    "floodBytes": ("log of one client, bytes", "{:,.0f}"),
    "floodSeconds": (f"at {FLOOD_RATE:,} a second, s", "{:.0f}"),
    "clientsMemory": ("peak with many clients, MiB", "{:.1f}"),
    "clientsSeconds": ("within, s", "{:.0f}"),
    "pageSize": ("page, kB", "{:.1f}"),
    "pageP50": ("its p50, ms", "{:.1f}"),
    "pageP99": ("its p99, ms", "{:.1f}"),
    "pageRate": (f"at up to {PAGE_RATE:,} connections/s", "{:,.0f}"),
}
RATIOS = [
    ("cpu", "log", "go"),
    ("cpu", "log", "twisted"),
    ("cpu", "log", "c"),
    ("cpu", "hello", "twisted"),
    ("cpu", "hello", "other-hello"),
    ("cpu", "log", "other-log"),
    ("cpu", "unix", "other-unix"),
    ("cpu", "per-client", "log"),
    ("cpu", "status", "log"),
    ("rate", "log", "rust"),
    ("rate", "processes-2", "processes-1"),
    ("rate", "processes-4", "processes-1"),
    ("crowd", "log", "rust"),
    ("startUp", "hello", "twisted"),
]
VERSIONS = """
import platform
from importlib.metadata import version
print("Python", platform.python_version() + ", Twisted", version("twisted") + ", hello-listen",
      version("hello-listen"), end="")
"""


def spread(figures: list[float], style: str) -> str:
    """Return the median, with the minimum and maximum if there are several figures."""
    if not figures:
        return "-"
    low, middle, high = (style.format(f(figures)) for f in (min, median, max))
    return middle if len(figures) == 1 else f"{middle} ({low}-{high})"


def table(servers: list[Server], columns: dict[str, tuple[str, str]]) -> None:
    """Print the servers that have figures, in columns."""
    columns = {key: columns[key] for key in columns if any(s.figures.get(key) for s in servers)}
    rows = [server for server in servers if any(server.figures.get(key) for key in columns)]
    if not rows:
        return
    print("| server |", " | ".join(title for title, _ in columns.values()), "|")
    print("| --- |", " | ".join("---:" for _ in columns), "|")
    for server in rows:
        cells = [spread(server.figures[key], style) for key, (_, style) in columns.items()]
        print(f"| {server.label} |", " | ".join(cells), "|")
    print()


def report(servers: list[Server], title: str) -> None:
    """Print the tables, the comparisons of servers, and the circumstances."""
    short = [SERVERS[key] for key in MAIN if SERVERS[key] in servers]
    for rows, columns in ((short, SHORT), (servers, WHOLE), (servers, SINGLE_COLUMNS)):
        table(rows, columns)
    print(
        f"Median (least-most) of {title};\nwhere the server forks, 500 by 4 at most."
        f" By {CROWD} clients: {10 * CROWD:,} connections, after a burst:\nof {BURST:,} clients at"
        " once, those answered within a second."
        " Load generator: its share of the cores it may use.\n"
    )
    for line in (*exceptions(servers), *comparisons(), *circumstances(servers)):
        print(f"- {line}")


def exceptions(servers: list[Server]) -> Iterator[str]:
    """Yield what is wrong with a figure."""
    for server in servers:
        if server.failure:
            yield f"{server.label}: {server.failure}"
        if unanswered := sum(server.figures["unanswered"]):
            yield f"{server.label}: {unanswered:,.0f} not answered within {TIMEOUT} s"
        if (recorded := min(server.figures["recorded"], default=1)) != 1:
            yield f"{server.label}: {recorded:.2%} of its connections are in its log"
        if "shared.py" in server.command and not server.pinned:
            yield f"{server.label}: {len(CORES)} cores are too few to pin it and the load apart"


def comparisons() -> Iterator[str]:
    """Yield the ratios of servers, and the memory that many clients cost."""
    for key, over, under in RATIOS:
        if under in SERVERS:
            pairs = zip(SERVERS[over].figures[key], SERVERS[under].figures[key], strict=False)
            if ratios := [a / b for a, b in pairs if b]:
                names = f"{SERVERS[over].label} / {SERVERS[under].label}"
                yield f"{WHOLE[key][0].split(',')[0]}, {names}: {spread(ratios, '{:.2f}')}"
    key, log = "clientsMemory", SERVERS["log"]
    for server in (SERVERS["per-client"], SERVERS["status"]):
        if server.figures[key] and log.figures[key]:
            more = server.figures[key][0] - log.figures[key][0]
            yield f"{SINGLE_COLUMNS[key][0]}, {server.label} - {log.label}: {more:+.1f}"


def circumstances(servers: list[Server]) -> Iterator[str]:
    """Yield the machine, the versions, and the cost of the load generator."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    model = cpu[1] if cpu else platform.machine()
    yield f"Machine: {model}, {len(CORES)} cores, Linux {platform.release()}"
    tools = dict.fromkeys(["cc", *(server.tool() for server in servers if server.figures)])
    yield ", ".join(versionOf(tool) for tool in tools if "/" not in tool)
    for python in dict.fromkeys(server.python for server in servers):
        yield f"{said(python, '-c', VERSIONS)} in {Path(python).parent.parent}"
    if own := [figure for server in servers for figure in server.figures["loadEach"]]:
        yield f"CPU of the load generator: {spread(own, '{:.1f}')} µs for each connection"
    if idle := [figure for server in servers for figure in server.figures["idle"]]:
        yield f"CPU of a server while others were measured: {max(idle) * 1000:.0f} ms at most"


def versionOf(tool: str) -> str:
    """Return the version that a program reports."""
    answer = said(tool, {"go": "version", "socat": "-V"}.get(tool, "--version"))
    version = re.search(r"[0-9]+[.][0-9.]+", answer)
    return f"{tool} {version[0] if version else answer}"


def said(*command: str) -> str:
    """Return the output of a command."""
    ended = subprocess.run(command, stdout=-1, stderr=subprocess.STDOUT, text=True)
    return ended.stdout.strip()
