"""Measures the servers in turn. A server that fails is reported, and left out from then on."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from http.client import HTTPConnection

from servers import SERVERS, TIMEOUT, LeftOut, Server

CROWD = 1000
BURST = 4000
BURSTS = 2
STARTS = 5
FLOOD_RATE = 10_000
PAGE_RATE = 30_000
PACED_CLIENTS = 256
"""Concurrent clients if the rate is fixed: enough not to limit it."""


def counted(what: str, times: int) -> Iterator[int]:
    """Iterate, and show the progress."""
    for number in range(1, times + 1):
        print(f"{what} {number} of {times}", file=sys.stderr, flush=True)
        yield number


def each(servers: list[Server], what: str, do: Callable[[Server], object]) -> None:
    """Measure something of each server that has not failed; keep the reason of a failure."""
    for server in servers:
        try:
            if not server.failure:
                do(server)
        except LeftOut as reason:
            server.failure = f"left out: {reason}"
        except Exception as error:
            server.failure = f"{what} failed: {type(error).__name__}: {error}"


def measure(servers: list[Server], options: argparse.Namespace) -> None:
    """Measure the servers in interleaved rounds, then one by one what the options ask for."""
    with ExitStack() as stack:

        def start(server: Server) -> None:
            server.prepare()
            stack.enter_context(server.running())
            server.drive(server.connections // 10 + server.clients, server.clients)
            server.add(warm=server.cpu())

        each(servers, "start", start)
        for _ in counted("round", options.rounds):
            each(servers, "round", oneRound)
        each(servers, "a look at the log", look)
        for _ in counted("crowd and burst", BURSTS if "bursts" in options.measure else 0):
            each(servers, "burst", burst)
        each(servers, "a look at the memory", lambda server: server.add(memory=server.peakMemory()))
    for _ in counted("start-up", STARTS if "starts" in options.measure else 0):
        each(servers, "start-up", startUp)
    for name, special in SINGLE_MEASURES.items():
        chosen = [SERVERS[key] for key in MEASURED_SERVERS[name] if name in options.measure]
        for number in counted(name, len(chosen)):
            each(chosen[number - 1 : number], name, partial(special, many=options.many))


def oneRound(server: Server) -> None:
    """Measure rate, latency, CPU, and what is written to the log."""
    before = server.written()
    seen = server.drive(server.connections, server.clients)
    once = 1e6 / max(seen["answered"], 1)
    server.add(
        **seen,
        rate=seen["answered"] / seen["wall"],
        cpu=seen["used"] * once,
        loadEach=seen["load"] * once,
        disk=(server.written() - before) / seen["wall"] / 1e6,
        unanswered=server.connections - seen["answered"],
    )


def look(server: Server) -> None:
    """Check that a server logged every connection, and used CPU only under load."""
    server.add(idle=server.cpu() - server.figures["warm"][0] - sum(server.figures["used"]))
    if server.record:
        server.add(recorded=server.recorded())


def burst(server: Server) -> None:
    """Measure many clients at once, and more than the usual accept queue holds."""
    server.add(burst=server.drive(BURST, BURST, limit=1)["answered"])
    if not server.forks:
        seen = server.drive(10 * CROWD, CROWD)
        server.add(crowd=seen["answered"] / seen["wall"])


def startUp(server: Server) -> None:
    """Measure the time from the start to the first answer."""
    with server.running() as seconds:
        server.add(startUp=seconds * 1000)


def flood(server: Server, many: int) -> None:
    """Measure the bytes that one client makes a server log, with those at its end."""
    with server.running():
        seen = server.load(many, PACED_CLIENTS, rate=FLOOD_RATE)
        server.stop()
        server.add(floodBytes=server.written(), floodSeconds=seen["wall"])


def clients(server: Server, many: int) -> None:
    """Measure the memory that many different clients take."""
    with server.running():
        seen = server.load(many, PACED_CLIENTS, sources=True)
        server.add(clientsMemory=server.peakMemory(), clientsSeconds=seen["wall"])


def status(server: Server, many: int) -> None:
    """Measure the status page under load, after many different clients have filled it."""
    times: list[float] = []
    with server.running(), ThreadPoolExecutor(1) as pool:
        server.load(many // 20, PACED_CLIENTS, sources=True)
        server.add(pageSize=len(page(server)) / 1000)
        loading = pool.submit(server.load, many * 3 // 10, PACED_CLIENTS, rate=PAGE_RATE)
        while not (times and loading.done()):
            began = time.perf_counter()
            page(server)
            times.append((time.perf_counter() - began) * 1000)
            time.sleep(0.05)
        seen = loading.result()
    times.sort()
    server.add(
        pageP50=times[len(times) // 2],
        pageP99=times[int(len(times) * 0.99)],
        pageRate=seen["answered"] / seen["wall"],
    )


def page(server: Server) -> bytes:
    """Return a server's status page."""
    with closing(HTTPConnection("127.0.0.1", server.status, timeout=TIMEOUT)) as connection:
        connection.request("GET", "/")
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"status page: {response.status} {response.reason}")
        return response.read()


SINGLE_MEASURES = {"flood": flood, "clients": clients, "status": status}
MEASURED_SERVERS = {
    "flood": ["per-client"],
    "clients": ["log", "per-client", "status"],
    "status": ["status"],
    "processes": ["processes-1", "processes-2", "processes-4"],
}
"""The servers that are measured so."""
