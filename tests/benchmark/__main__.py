"""
Measure hello-listen beside other servers that log each connection and hang up.

Run it with the Python that has hello-listen installed. It needs Linux and a C compiler; servers
whose compiler or program is missing are left out. Without options it takes some four minutes;
--rounds, --servers and --measure make it shorter.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from measuring import FLOOD_RATE, MEASURED_SERVERS, measure
from reporting import report
from servers import DEFAULT_SERVERS, HERE, SERVERS, others

MEASURES = f"""
what is measured beside the rounds [bursts,starts]:
  bursts     many clients at once, and more than the usual accept queue holds
  starts     the time until a server answers
  flood      what --per-client writes for one client, {FLOOD_RATE:,} a second, and costs
  clients    the memory that many different clients take
  status     the status page while others connect, and what --status costs
  processes  one, two and four processes on one socket, pinned to cores where there are enough
"""


def words(text: str) -> list[str]:
    """Split a list at its commas."""
    return [word for word in text.split(",") if word]


def parseOptions() -> argparse.Namespace:
    """Parse the command line, and check that it can be done here."""
    parser = argparse.ArgumentParser(
        "tests/benchmark",
        description=__doc__,
        epilog=MEASURES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--rounds", type=int, default=7, help="how often each is measured [%(default)s]")
    add("--connections", type=int, default=30_000, help="in each round [%(default)s]")
    add("--clients", type=int, default=32, help="how many connect at a time [%(default)s]")
    every = ",".join(DEFAULT_SERVERS)
    add("--servers", type=words, default=every, metavar="A,B", help="which [%(default)s]")
    add("--measure", type=words, default="bursts,starts", metavar="A,B", help="see below")
    add("--many", type=int, default=1_000_000, help="flood's, clients' connections [%(default)s]")
    add("--other", metavar="PYTHON", help="hello-listen of this environment as well, to compare")
    options = parser.parse_args()
    if min(options.connections, options.clients, options.many) < 1 or options.rounds < 0:
        parser.error("--connections, --clients and --many are 1 or more, --rounds 0 or more")
    if unknown := set(options.measure) - {"bursts", "starts", *MEASURED_SERVERS}:
        parser.error(f"no such measure: {', '.join(unknown)}")
    for name in options.measure:
        options.servers += MEASURED_SERVERS.get(name, [])
    if {"per-client", "status"} & set(options.servers):
        options.servers.append("log")
    if options.other:
        SERVERS.update(others(options.other))
        options.servers += [f"other-{key}" for key in options.servers if f"other-{key}" in SERVERS]
    if unknown := set(options.servers) - set(SERVERS):
        parser.error(f"no such server: {', '.join(unknown)}; there are {', '.join(SERVERS)}")
    if not shutil.which("cc"):
        parser.error("the load generator needs a C compiler, cc")
    return options


def leave(number: int, _: object) -> None:
    """Exit on a signal, so that all servers are stopped; ignore further signals."""
    for other in (signal.SIGINT, signal.SIGTERM):
        signal.signal(other, signal.SIG_IGN)
    sys.exit(128 + number)


def main() -> int:
    """Measure, and print the figures; return 1 if a measurement failed."""
    options = parseOptions()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)
    servers = [SERVERS[name] for name in dict.fromkeys(options.servers)]
    for server in servers:
        server.connections = min(500 if server.forks else options.connections, options.connections)
        server.clients = min(4 if server.forks else options.clients, options.clients)
    back = Path.cwd()
    with TemporaryDirectory() as directory:
        os.chdir(directory)
        subprocess.run(["cc", "-O2", "-pthread", "-o", "load", HERE / "load.c"], check=True)
        try:
            measure(servers, options)
        finally:
            os.chdir(back)
            rounds = f"{options.rounds} interleaved rounds with {options.connections:,} connections"
            report(servers, f"{rounds} by {options.clients} clients")
    return any("failed" in server.failure for server in servers)


if __name__ == "__main__":
    sys.exit(main())
