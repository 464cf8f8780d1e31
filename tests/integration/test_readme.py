"""The commands and endpoints of the README files."""

from __future__ import annotations

import re
import socket
import ssl
from contextlib import closing, suppress
from http.client import HTTPSConnection
from pathlib import Path

import pytest

from processes import (
    DEPLOY,
    LOOPBACK,
    PATIENCE,
    SCRIPTS,
    Start,
    addressOf,
    familyOf,
    isKnown,
    makeCertificate,
    run,
    tool,
    untilEnd,
)

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
CERTIFICATE = r"""
openssl req -x509 -newkey rsa:2048 -noenc -keyout server.pem -out crt -subj /CN=localhost \
    -addext subjectAltName=DNS:localhost && cat crt >> server.pem
""".strip()
GUIDES = [
    ".github/CONTRIBUTING.md",
    "README.md",
    "src/deploy/README.md",
    "src/hello_listen/report/README.md",
    "src/hello_listen/status/README.md",
    "tests/README.md",
]


def test_the_two_commands() -> None:
    """The first command starts hello-listen, the second runs the tests, of which this is one."""
    [job, test] = re.findall(r"^```sh\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)[:2]
    setUp = "python3 -m venv .venv && .venv/bin/pip install -q "
    assert job == f"{setUp}. && .venv/bin/twistd -n hello-listen\n"
    assert test == f"{setUp}'.[test]' && cd tests && ../.venv/bin/pytest -q\n"


def test_length() -> None:
    """The README has at most 200 lines."""
    lines = len(README.splitlines())
    assert lines <= 200


def test_embedding_program() -> None:
    """The program is shown as it is in its file."""
    program = (DEPLOY / "examples" / "embedding.py").read_text()
    assert f"```python\n{program}```\n" in README


@pytest.mark.parametrize("guide", GUIDES)
def test_links(guide: str) -> None:
    """Each link within the repository leads to a file, and to one of its headings."""
    links = re.findall(r"\]\((?!https:)(.*?)(?:#(.*?))?\)", (ROOT / guide).read_text())
    assert links
    for path, heading in links:
        target = (ROOT / guide).parent / path if path else ROOT / guide
        assert target.exists(), path
        if heading:
            titles = re.sub(r"[^\w \n#-]", "", target.read_text()).lower().replace(" ", "-")
            assert re.search(f"^#+-{heading}$", titles, re.MULTILINE), heading


def test_certificate(hello: Start, tmp_path: Path) -> None:
    """The handbook's command makes a certificate whose name is where browsers look for it."""
    assert f"\n{CERTIFICATE}\n" in (DEPLOY / "README.md").read_text()
    tool("openssl")
    made = run("sh", "-c", CERTIFICATE, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    server = hello("-e", LOOPBACK, "--status", "ssl:0:interface=127.0.0.1:privateKey=server.pem")
    port = server.expect(r"Status on .*:(\d+)$")[1]
    context = ssl.create_default_context(cafile=tmp_path / "crt")
    context.hostname_checks_common_name = False
    client = HTTPSConnection("localhost", int(port), timeout=PATIENCE, context=context)
    with closing(client):
        client.request("GET", "/healthz")
        assert client.getresponse().read() == b"OK\n"


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
        # A TLS connection ends in a reset, which even connect(2) may report.
        with socket.socket(familyOf(address)) as client, suppress(ConnectionResetError):
            client.settimeout(PATIENCE)
            client.connect(address)
            if "haproxy:" in endpoint:
                client.sendall(b"PROXY UNKNOWN\r\n")
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
