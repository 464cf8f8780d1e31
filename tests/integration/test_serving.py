"""The installed plugin under the real twistd and twist, with real clients."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from pathlib import Path

import pytest

from processes import (
    LOOPBACK,
    PATIENCE,
    SCRIPTS,
    Start,
    curl,
    freePort,
    makeCertificate,
    needTLS,
    run,
    slow,
    tool,
    untilEnd,
)


@pytest.mark.parametrize("reactor", ["default", "asyncio", slow("poll"), slow("select")])
def test_logs_and_drops(start: Start, reactor: str) -> None:
    """With each reactor, the client is logged and reads EOF without data."""
    choice = [] if reactor == "default" else [f"--reactor={reactor}"]
    server = start("twistd", "-n", "--pidfile=", *choice, "hello-listen", "-e", LOOPBACK)
    port = server.port()
    clients = [untilEnd(("127.0.0.1", port)) for _ in range(3)]
    assert [data for _, data in clients] == [b""] * 3
    assert server.connections(3) == [f"{name} -> 127.0.0.1:{port}" for name, _ in clients]
    assert "Traceback" not in server.stop()


def test_twist(start: Start) -> None:
    """twist runs it too, and its JSON log holds every field as it is."""
    server = start("twist", "--log-format=json", "hello-listen", "-e", LOOPBACK)
    port = int(server.expect(r'"address": "127.0.0.1:(\d+)"')[1])
    name, _ = untilEnd(("127.0.0.1", port))
    server.expect('"text"')
    event = json.loads(server.lines[-1].lstrip("\x1e"))
    assert event["text"] == f"Connection established! {name} -> 127.0.0.1:{port}"
    assert f"{event['client.address']}:{event['client.port']}" == name
    assert event["server.port"] == port
    assert event["network.transport"] == "tcp"


def test_daemon(tmp_path: Path) -> None:
    """twistd returns when its daemon listens; the daemon removes its pidfile at the end."""
    log, pidfile = tmp_path / "log", tmp_path / "pid"
    command = SCRIPTS / "twistd", "--logfile", log, "--pidfile", pidfile
    started = run(*command, "hello-listen", "-e", f"unix:{tmp_path}/s", cwd=tmp_path)
    pid = int(pidfile.read_text())
    try:
        assert (started.returncode, started.stdout, started.stderr) == (0, "", "")
        assert untilEnd(f"{tmp_path}/s")[1] == b""
    finally:
        ended = os.pidfd_open(pid)
        os.kill(pid, signal.SIGTERM)
        os.set_blocking(ended, True)
        waitForEnd(ended)
    assert f"Connection established! unix: -> unix:{tmp_path}/s" in log.read_text()
    assert "Stopped. Connections: 1\n" in log.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log"]


def waitForEnd(descriptor: int) -> None:
    """Wait until the process of a pidfd(2) has ended."""
    import select

    try:
        assert select.select([descriptor], [], [], PATIENCE)[0]
    finally:
        os.close(descriptor)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may change the user")
def test_uid(start: Start, tmp_path: Path) -> None:
    """A port below 1024 is bound as root, and served as another user."""
    port = next(port for port in range(1023, 500, -1) if isFree(port))
    server = start(
        "twistd", "-n", "--pidfile=", "--uid=65534", "hello-listen",
        "-e", f"tcp:{port}:interface=127.0.0.1", "-e", f"unix:{tmp_path}/s",
    )  # fmt: skip
    server.expect("set uid/gid 65534")
    untilEnd(("127.0.0.1", port))
    server.connections(1)
    assert Path(f"/proc/{server.pid}").stat().st_uid == 65534
    output = server.stop()
    assert f"Not released: Permission denied: 'unix:{tmp_path}/s'" in output
    assert "Stopped. Connections: 1" in output
    assert "Traceback" not in output


def isFree(port: int) -> bool:
    """Say whether a port can be bound on loopback."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping(start: Start, hello: Start, number: int) -> None:
    """A signal ends the process at once; the log ends with the counts, and the port is free."""
    server = hello("-e", LOOPBACK)
    port = server.port()
    untilEnd(("127.0.0.1", port))
    assert "Stopped. Connections: 1" in server.stop(number)
    again = hello("-e", f"tcp:{port}:interface=127.0.0.1")
    assert again.port() == port
    untilEnd(("127.0.0.1", port))
    again.connections(1)


def test_one_factory_for_every_endpoint(hello: Start, tmp_path: Path) -> None:
    """TCP over IPv4 and IPv6, both on one port, and UNIX sockets are served side by side."""
    server = hello(
        "-e", LOOPBACK, "-e", r"tcp6:0:interface=\:\:1", "-e", r"tcp6:0",
        "-e", f"unix:{tmp_path}/s",
    )  # fmt: skip
    v4, v6, both = server.port(), server.port(), server.port()
    server.expect("Listening on unix:")
    name4, _ = untilEnd(("127.0.0.1", v4))
    untilEnd(("::1", v6))
    mapped, _ = untilEnd(("127.0.0.1", both))
    untilEnd(f"{tmp_path}/s")
    with socket.socket(socket.AF_UNIX) as client:
        client.bind(f"{tmp_path}/c")
        client.connect(f"{tmp_path}/s")
        assert client.recv(1) == b""
    with socket.socket(socket.AF_UNIX) as client:
        client.bind(b"\0" + str(tmp_path).encode())
        client.connect(f"{tmp_path}/s")
        assert client.recv(1) == b""
    lines = server.connections(6)
    assert lines[0] == f"{name4} -> 127.0.0.1:{v4}"
    assert lines[1].startswith("[::1]:")
    assert lines[1].endswith(f" -> [::1]:{v6}")
    assert lines[2] == f"{mapped} -> 127.0.0.1:{both}"
    assert lines[3:] == [
        f"unix: -> unix:{tmp_path}/s",
        f"unix:{tmp_path}/c -> unix:{tmp_path}/s",
        f"unix:@{tmp_path} -> unix:{tmp_path}/s",
    ]
    assert "Stopped. Connections: 6" in server.stop()
    assert not (tmp_path / "s").exists()


def test_stdio(hello: Start) -> None:
    """Standard input and output are one connection, and leave room for others."""
    server = hello("-e", "stdio:", "-e", LOOPBACK, stdin=-1)
    assert server.connections(1) == ["pipe: -> pipe:"]
    untilEnd(("127.0.0.1", server.port()))
    server.connections(1)
    assert "Traceback" not in server.stop()


def test_another_packages_endpoint(hello: Start) -> None:
    """An endpoint type of another plugin works; if it fails later, the process ends with that."""
    plugins = Path(__file__).parents[1] / "plugins"
    env = {**os.environ, "PYTHONPATH": str(plugins), "PYTHONDONTWRITEBYTECODE": "1"}
    server = hello("-e", LOOPBACK, "-e", "later:0.01", env=env)
    assert server.wait() == -signal.SIGTERM
    assert any("no circuit: 'later:0.01'" in line for line in server.lines)
    assert "Traceback" not in "\n".join(server.lines)


def test_curl(hello: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """curl is told that the reply was empty (52), or that the connection was reset (56)."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # As where the way out is by a proxy.
    server = hello("-e", LOOPBACK)
    port = server.port()
    assert curl(f"http://127.0.0.1:{port}/").returncode in (52, 56)
    server.connections(1)


@pytest.mark.parametrize(
    "client",
    [
        ["nc", "127.0.0.1", "{}"],
        slow(["socat", "-u", "TCP:127.0.0.1:{}", "STDOUT"]),
        ["ncat", "--recv-only", "127.0.0.1", "{}"],
    ],
    ids=lambda client: str(client[0]),
)
def test_netcats(hello: Start, client: list[str]) -> None:
    """A client that sends nothing sees a clean end: it succeeds, and prints nothing."""
    server = hello("-e", LOOPBACK)
    port = server.port()
    ended = run(tool(client[0]), *(argument.format(port) for argument in client[1:]))
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    server.connections(1)


def test_browser(hello: Start, tmp_path: Path) -> None:
    """A browser shows its error page for an empty reply, and each of its attempts is logged."""
    server = hello("-e", LOOPBACK)
    port = server.port()
    shown = run(
        tool("chromium"), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path}/profile", "--dump-dom", f"http://127.0.0.1:{port}/",
    )  # fmt: skip
    assert re.search("ERR_(EMPTY_RESPONSE|CONNECTION_RESET|SOCKET_NOT_CONNECTED)", shown.stderr)
    assert all(line.endswith(f" -> 127.0.0.1:{port}") for line in server.connections(1))


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Return a folder that holds a key and its certificate, in one file."""
    folder = tmp_path / "certificates"
    folder.mkdir()
    (folder / "server.pem").write_text(makeCertificate(tmp_path))
    return folder


@pytest.mark.parametrize(
    "endpoint", ["ssl:0:privateKey={}/server.pem:interface=127.0.0.1", r"tls:{}:0:interface=\:\:1"]
)
def test_tls(hello: Start, certificate: Path, endpoint: str) -> None:
    """A TLS endpoint records and drops its client before the handshake."""
    needTLS(endpoint)
    server = hello("-e", endpoint.format(certificate))
    port = server.port()
    host = "127.0.0.1" if endpoint.startswith("ssl") else "[::1]"
    client = run(tool("openssl"), "s_client", "-connect", f"{host}:{port}")
    assert "no peer certificate available" in client.stdout
    assert client.returncode != 0
    [line] = server.connections(1)
    assert line.endswith(f" -> {host}:{port}")
    assert "Traceback" not in server.stop()


def test_parameters_that_cannot_be_used(hello: Start, certificate: Path, tmp_path: Path) -> None:
    """If TLS parameters cannot work for any client, start-up fails with the reason."""
    (tmp_path / "dh.pem").write_text("hello")
    key = f"privateKey={certificate}/server.pem"
    server = hello("-e", f"ssl:0:interface=127.0.0.1:{key}:dhParameters=dh.pem")
    server.expect("dhParameters=dh.pem': no DH PARAMETERS in PEM format: 'dh.pem'$")
    assert server.wait() == 1
    assert len(server.lines) == 1


def test_systemd_socket_activation(start: Start, tmp_path: Path) -> None:
    """Sockets that are inherited are found by their index and by their name."""
    port = freePort()
    server = start(
        "systemd-socket-activate", f"--listen=127.0.0.1:{port}", f"--listen={tmp_path}/s",
        "--fdname=web:local", SCRIPTS / "twistd", "-n", "--pidfile=", "hello-listen",
        "-e", "systemd:domain=INET:index=0", "-e", "systemd:domain=UNIX:name=local",
    )  # fmt: skip
    server.expect("Listening on .*/s")
    name, data = untilEnd(("127.0.0.1", port))
    assert data == b""
    assert server.connections(1) == [f"{name} -> 127.0.0.1:{port}"]
    untilEnd(f"{tmp_path}/s")
    assert server.connections(1) == [f"unix: -> unix:{tmp_path}/s"]
    assert "Traceback" not in server.stop()


def test_listing_the_plugins_imports_nothing_of_ours(tmp_path: Path) -> None:
    """twistd --help imports the plugin file, and no more."""
    run(SCRIPTS / "twistd", "--help", cwd=tmp_path)
    listed = run(SCRIPTS / "python", "-X", "importtime", SCRIPTS / "twistd", "--help", cwd=tmp_path)
    assert "hello-listen" in listed.stdout
    assert "twisted.scripts.twistd" in listed.stderr
    assert "hello_listen." not in listed.stderr


def test_restart_under_a_client_that_stays(hello: Start) -> None:
    """A client that keeps its side open does not keep the port."""
    server = hello("-e", LOOPBACK)
    port = server.port()
    with socket.create_connection(("127.0.0.1", port)) as client:
        assert client.recv(1) == b""
        server.connections(1)
        server.stop()
        assert hello("-e", f"tcp:{port}:interface=127.0.0.1").port() == port
