"""The README's own commands, programs and units, as they stand there."""

from __future__ import annotations

import json
import re
import socket
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from processes import (
    PATIENCE,
    README,
    SCRIPTS,
    Start,
    addressOf,
    blocks,
    curl,
    familyOf,
    isKnown,
    makeCertificate,
    run,
    tool,
    untilEnd,
)

pytestmark = pytest.mark.unix


def onFreePorts(text: str) -> str:
    """Return a text with the default port replaced, so that tests can run side by side."""
    assert "tcp:7878" in text
    return text.replace(":7878", ":0")


def test_the_two_commands() -> None:
    """One runs the main job, one passes the tests; this test is part of what the latter runs."""
    [job, test] = blocks("sh")[:2]
    setUp = "python3 -m venv .venv && .venv/bin/pip install -q "
    assert job == f"{setUp}. && .venv/bin/twistd -n hello-listen\n"
    assert test == f"{setUp}'.[test]' && cd tests && ../.venv/bin/pytest -q\n"


ENDPOINTS = re.findall(r"^\| .+ \| `([a-z0-9]+:[^`]*)` \|$", README, re.MULTILINE)


def test_endpoints(start: Start, hello: Start, tmp_path: Path) -> None:
    """Each endpoint of the table is understood and served."""
    assert len(ENDPOINTS) >= 10
    pem = makeCertificate(tmp_path)
    (tmp_path / "certificates").mkdir()
    (tmp_path / "server.pem").write_text(pem)
    (tmp_path / "certificates" / "localhost.pem").write_text(pem)
    others = [
        endpoint
        for endpoint in ENDPOINTS
        if not endpoint.startswith(("systemd:", "stdio:")) and isKnown(endpoint)
    ]
    arguments = [part for each in others for part in ("-e", re.sub("787[89]", "0", each))]
    server = hello(*arguments, "-e", "stdio:")
    addresses = [addressOf(server) for _ in others]
    server.connections(1)
    for endpoint, address in zip(others, addresses, strict=True):
        with socket.socket(familyOf(address)) as client:
            client.settimeout(PATIENCE)
            client.connect(address)
            if "haproxy:" in endpoint:
                client.sendall(b"PROXY UNKNOWN\r\n")
            with suppress(ConnectionResetError):  # As TLS connections end.
                assert client.recv(1) == b""
    assert len(server.connections(len(others))) == len(others)
    assert "Traceback" not in server.stop()


def test_systemd_endpoint(start: Start, tmp_path: Path) -> None:
    """A socket that systemd passes is served as well."""
    [endpoint] = [each for each in ENDPOINTS if each.startswith("systemd:")]
    server = start(
        "systemd-socket-activate", f"--listen={tmp_path}/s", "--fdname=hello",
        SCRIPTS / "twistd", "-n", "--pidfile=", "hello-listen",
        "-e", endpoint.replace("INET", "UNIX"),
    )  # fmt: skip
    server.expect("Listening on")
    untilEnd(f"{tmp_path}/s")
    server.connections(1)
    assert "Traceback" not in server.stop()


def program(part: str) -> str:
    """Return the README's Python program that has a part in it, on free ports."""
    [found] = [block for block in blocks("python") if part in block]
    return onFreePorts(found)


def test_embedding_program(start: Start, tmp_path: Path) -> None:
    """The program runs as it is, and prints who connected."""
    log = "import sys; from twisted.python import log; log.startLogging(sys.stdout, setStdout=0)"
    future, _, rest = program("task.react").replace(", 60)", ", 0.5)").partition("\n")
    (tmp_path / "program.py").write_text(f"{future}\n{log}\n{rest}")
    server = start(sys.executable, "-u", "program.py")
    name, _ = untilEnd(("127.0.0.1", int(server.expect(r"starting on (\d+)")[1])))
    server.expect(f"^{name.replace(':', ' ')}$")
    server.expect("^1 connections in a minute$")
    assert server.wait() == 0


def test_tac(start: Start, tmp_path: Path) -> None:
    """The .tac file is served by twistd, and its log is whole."""
    (tmp_path / "hello.tac").write_text(program("logConnection"))
    server = start("twistd", "--pidfile=", "-ny", "hello.tac")
    port = server.port()
    server.expect("Listening on unix:hello.sock")
    name, _ = untilEnd(("127.0.0.1", port))
    untilEnd(f"{tmp_path}/hello.sock")
    assert server.connections(2) == [f"{name} -> 127.0.0.1:{port}", "unix: -> unix:hello.sock"]
    assert "Connections: 2, recorded: 2, summarized: 0, lost: 0" in server.stop()
    assert len((tmp_path / "connections.jsonl").read_text().splitlines()) == 4


def test_status_in_a_site(start: Start, tmp_path: Path) -> None:
    """The .tac file with a status site shows what came."""
    text = program("StatusResource").replace(":7880", ":0")
    (tmp_path / "status.tac").write_text(text)
    server = start("twistd", "--pidfile=", "-ny", "status.tac")
    port = server.port()
    untilEnd(("127.0.0.1", port))
    status = server.expect(r"starting on (\d+)$")[1]
    shown = curl(f"http://127.0.0.1:{status}/status.json").stdout
    assert json.loads(shown)["connections"] == 1


def test_systemd_units(tmp_path: Path) -> None:
    """Systemd finds nothing wrong with the units, and the service well contained."""
    analyze = tool("systemd-analyze")
    socket, service, forService, forSocket = blocks("ini")[:4]
    service = service.replace("/opt/hello-listen/bin", str(SCRIPTS))
    alone = {"hello-listen.socket": socket, "hello-listen.service": service}
    several = {
        "hello-listen.socket": f"{socket}\n{forSocket}",
        "hello-listen@1.service": f"{service}\n{forService}",
    }
    for units in (several, alone):
        for name, text in units.items():
            (tmp_path / name).write_text(text)
        # Whoever runs the tests may have no manual pages.
        checked = run(analyze, "verify", "--man=no", *(tmp_path / name for name in units))
        ours = [line for line in checked.stderr.splitlines() if "hello-listen" in line]
        assert (checked.returncode, ours) == (0, [])
    rated = run(
        analyze, "security", "--offline=yes", "--threshold=20", tmp_path / "hello-listen.service"
    )
    assert rated.returncode == 0, rated.stdout
