"""The README's own commands, programs and units, as they stand there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from processes import SCRIPTS, Start, makeCertificate, needTLS, run, tool, untilEnd

pytestmark = pytest.mark.unix
README = (Path(__file__).parents[2] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """Return the README's code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


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


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_endpoint(start: Start, hello: Start, tmp_path: Path, endpoint: str) -> None:
    """Each endpoint of the table is understood and served."""
    assert len(ENDPOINTS) >= 10
    needTLS(endpoint)
    if "server.pem" in endpoint or "certificates" in endpoint:
        (tmp_path / "certificates").mkdir()
        pem = makeCertificate(tmp_path)
        (tmp_path / "server.pem").write_text(pem)
        (tmp_path / "certificates" / "localhost.pem").write_text(pem)
    if endpoint.startswith("systemd:"):
        server = start(
            "systemd-socket-activate", f"--listen={tmp_path}/s", "--fdname=hello",
            SCRIPTS / "twistd", "-n", "--pidfile=", "hello-listen",
            "-e", endpoint.replace("INET", "UNIX"),
        )  # fmt: skip
        server.expect("Listening on")
        untilEnd(f"{tmp_path}/s")
    else:
        server = hello("-e", re.sub("787[89]", "0", endpoint))
        if endpoint.startswith("unix:"):
            server.expect("Listening on unix:hello.sock")
            untilEnd(str(tmp_path / "hello.sock"))
        elif not endpoint.startswith("stdio:"):
            port = server.port()
            host = "[::1]" if r"\:\:1" in endpoint else "127.0.0.1"
            header = r"printf 'PROXY UNKNOWN\r\n'" if "haproxy:" in endpoint else "true"
            run("sh", "-c", f"{header} | {tool('socat')} - TCP:{host}:{port}")
    server.connections(1)
    assert "Traceback" not in server.stop()


def test_embedding_program(start: Start, tmp_path: Path) -> None:
    """The program runs as it is, and prints who connected."""
    program = onFreePorts(blocks("python")[0]).replace(", 60)", ", 0.5)")
    log = "import sys; from twisted.python import log; log.startLogging(sys.stdout, setStdout=0)"
    (tmp_path / "program.py").write_text(f"{log}\n{program}")
    server = start(sys.executable, "-u", "program.py")
    untilEnd(("127.0.0.1", int(server.expect(r"starting on (\d+)")[1])))
    server.expect("^127.0.0.1$")
    server.expect("^1 connections in a minute$")
    assert server.wait() == 0


def test_tac(start: Start, tmp_path: Path) -> None:
    """The .tac file is served by twistd."""
    (tmp_path / "hello.tac").write_text(onFreePorts(blocks("python")[1]))
    server = start("twistd", "--pidfile=", "-ny", "hello.tac")
    port = server.port()
    server.expect("Listening on unix:hello.sock")
    name, _ = untilEnd(("127.0.0.1", port))
    untilEnd(f"{tmp_path}/hello.sock")
    assert server.connections(2) == [f"{name} -> 127.0.0.1:{port}", "unix: -> unix:hello.sock"]
    assert "Stopped. Connections: 2" in server.stop()


def test_systemd_units(tmp_path: Path) -> None:
    """Systemd finds nothing wrong with the units, and the service well contained."""
    analyze = tool("systemd-analyze")
    socket, service, forService, forSocket = blocks("ini")
    service = service.replace("/opt/hello-listen/bin", str(SCRIPTS))
    alone = {"hello-listen.socket": socket, "hello-listen.service": service}
    several = {
        "hello-listen.socket": f"{socket}\n{forSocket}",
        "hello-listen@1.service": f"{service}\n{forService}",
    }
    for units in (several, alone):
        for name, text in units.items():
            (tmp_path / name).write_text(text)
        checked = run(analyze, "verify", *(tmp_path / name for name in units))
        ours = [line for line in checked.stderr.splitlines() if "hello-listen" in line]
        assert (checked.returncode, ours) == (0, [])
    rated = run(
        analyze, "security", "--offline=yes", "--threshold=20", tmp_path / "hello-listen.service"
    )
    assert rated.returncode == 0, rated.stdout
