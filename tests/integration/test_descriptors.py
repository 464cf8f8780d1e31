"""Without free descriptors, clients wait: each is recorded, and the log stays short."""

from __future__ import annotations

import os
import resource
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from logs import counted, recorded
from processes import LOOPBACK, Start, addressOf, header, load, makeCertificate, silent, slow

FEW = 40
"""Descriptors that a server may have, of which it needs some ten for itself."""

LINES = 40
"""Upper bound of the lines that a server logs, which is less than one for each client."""


@pytest.mark.parametrize(("wanted", "few"), [slow(8000, 1024), (1000, 30)])
def test_plain_tcp(limited: Start, tmp_path: Path, descriptors: int, wanted: int, few: int) -> None:
    """Many clients at once need one descriptor."""
    count = min(wanted, descriptors - 100)
    server = limited(few, "-l", "log", "-e", LOOPBACK)
    assert load(addressOf(server), count, count) == {"ended": count}
    assert counted(server.stop()) == (count, count, 0)
    assert len(recorded(tmp_path / "log")) == count


@pytest.mark.parametrize("prefix", [slow(""), "haproxy:"])
def test_more_endpoints_than_half_the_descriptors(limited: Start, prefix: str) -> None:
    """An endpoint needs one descriptor, so that 600 can be served with the usual limit of 1,024."""
    server = limited(1024, *["-e", prefix + LOOPBACK] * 600)
    addresses = [addressOf(server) for _ in range(600)]
    assert len(os.listdir(f"/proc/{server.pid}/fd")) < 600 + FEW
    for address in (addresses[0], addresses[-1]):
        assert load(address, 1, 1, data=header if prefix else None) == {"ended": 1}
    server.connections(2)
    assert "Traceback" not in server.stop()


@pytest.mark.parametrize("endpoint", ["unix:s", "ssl:0:interface=127.0.0.1"])
def test_more_clients_than_descriptors(limited: Start, tmp_path: Path, endpoint: str) -> None:
    """On any endpoint, all clients are recorded."""
    (tmp_path / "server.pem").write_text(makeCertificate(tmp_path) if "ssl" in endpoint else "")
    server = limited(FEW, "-l", "log", "-e", endpoint)
    ends = load(addressOf(server), 300, 300, paused=server.pid)
    assert counted(server.stop()) == (300, 300, 0)
    # Under TLS, a client that does not answer is reset.
    assert ends["ended"] + ends["ECONNRESET"] * ("ssl" in endpoint) == 300
    assert not any("error.type" in record for record in recorded(tmp_path / "log"))
    assert len(server.lines) < LINES


@pytest.mark.parametrize("endpoint", [f"haproxy:{LOOPBACK}", "haproxy:unix:s"])
def test_more_headers_than_descriptors(limited: Start, tmp_path: Path, endpoint: str) -> None:
    """Clients whose headers are there are recorded by their names."""
    server = limited(FEW, "-l", "log", "-e", endpoint)
    ends = load(addressOf(server), 300, 300, data=header, paused=server.pid)
    output = server.stop()
    assert ends == {"ended": 300}
    assert counted(output) == (300, 300, 0)
    ports = {record["client.port"] for record in recorded(tmp_path / "log")}
    assert ports == set(range(1, 301))
    assert len(server.lines) < LINES


@pytest.mark.parametrize(
    "holder", [slow(f"haproxy:{LOOPBACK}"), "haproxy:ssl:0:interface=127.0.0.1"]
)
def test_beside_clients_that_hold_descriptors(limited: Start, tmp_path: Path, holder: str) -> None:
    """Silent clients of another endpoint that hold descriptors cost no client its record."""
    (tmp_path / "server.pem").write_text(makeCertificate(tmp_path) if "ssl" in holder else "")
    server = limited(FEW, "-l", "log", "-e", LOOPBACK, "-e", holder)
    address, holding = addressOf(server), addressOf(server)
    with ExitStack() as stack:
        silent(stack, holding, 100)
        assert load(address, 500, 500) == {"ended": 500}
        output = server.stop()
    assert counted(output) == (600, 600, 0)
    errors = [record for record in recorded(tmp_path / "log") if "error.type" in record]
    assert [record["server.port"] for record in errors] == [holding[1]] * 100
    # On a busy machine some of them come to their time limit.
    why = {record["error.type"].removeprefix("proxy_header_") for record in errors}
    assert {"evicted"} <= why <= {"evicted", "stopped", "timeout"}
    assert len(server.lines) < LINES


@pytest.mark.parametrize("prefix", [slow(""), "haproxy:"])
def test_inherited_unix_socket(inherit: Start, tmp_path: Path, prefix: str) -> None:
    """An inherited socket is served as well, and its server does not spin."""
    with socket.socket(socket.AF_UNIX) as listener, ExitStack() as stack:
        listener.bind(f"{tmp_path}/s")
        listener.listen(1000)
        server = inherit(listener, "-l", "log", "-e", f"{prefix}systemd:domain=UNIX:name=hello")
        address = addressOf(server)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (FEW, FEW))
        silent(stack, address, 100 if prefix else 0)
        ends = load(address, 300, 300, data=header if prefix else None, paused=server.pid)
        output = server.stop()
    assert ends == {"ended": 300}
    total = 400 if prefix else 300
    assert counted(output) == (total, total, 0)
    named = [record for record in recorded(tmp_path / "log") if "error.type" not in record]
    assert len(named) == 300
    assert len(server.lines) < LINES
