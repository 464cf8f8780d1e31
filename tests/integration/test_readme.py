"""The README's own commands and endpoints, as they stand there."""

from __future__ import annotations

import re
import socket
from contextlib import suppress
from pathlib import Path

import pytest

from processes import (
    DEPLOY,
    PATIENCE,
    SCRIPTS,
    Start,
    addressOf,
    familyOf,
    isKnown,
    makeCertificate,
    untilEnd,
)

pytestmark = pytest.mark.unix
README = (Path(__file__).parents[2] / "README.md").read_text()


def test_the_two_commands() -> None:
    """One runs the main job, one passes the tests; this test is part of what the latter runs."""
    [job, test] = re.findall(r"^```sh\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)[:2]
    setUp = "python3 -m venv .venv && .venv/bin/pip install -q "
    assert job == f"{setUp}. && .venv/bin/twistd -n hello-listen\n"
    assert test == f"{setUp}'.[test]' && cd tests && ../.venv/bin/pytest -q\n"


def test_embedding_program() -> None:
    """The program is shown as it is in its file."""
    program = (DEPLOY / "examples" / "embedding.py").read_text()
    assert f"```python\n{program}```\n" in README


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
