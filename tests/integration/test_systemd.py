"""Sockets from systemd: all of one name are served, and errors name mistakes in a unit."""

from __future__ import annotations

import json
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from processes import (
    SCRIPTS,
    Start,
    addressOf,
    curl,
    familyOf,
    freePort,
    slow,
    until,
    untilEnd,
)


def ask(folder: Path, path: str) -> str:
    """Return what the status on a UNIX socket says."""
    return curl("--unix-socket", folder / "st", f"http://localhost{path}").stdout


@pytest.mark.parametrize("prefix", ["", "haproxy:"])
def test_a_unit_with_several_sockets(start: Start, tmp_path: Path, prefix: str) -> None:
    """Every socket of a name is served, recorded with its own address, and shown."""
    ports = [freePort(), freePort()]
    endpoint = f"{prefix}systemd:domain=INET:name=hello"
    server = start(
        "systemd-socket-activate", *(f"--listen=127.0.0.1:{port}" for port in ports),
        f"--listen={tmp_path}/s", "--fdname=hello:hello:hello", SCRIPTS / "twistd", "-n",
        "--pidfile=", "hello-listen", "-e", endpoint, "--status", "unix:st",
    )  # fmt: skip
    server.expect("Listening on .*/s")
    clients = []
    addresses: list[tuple[str, int] | str] = [("127.0.0.1", port) for port in ports]
    for address in [*addresses, f"{tmp_path}/s"]:
        with socket.socket(familyOf(address)) as client:
            client.connect(address)
            clients.append(client.getsockname())
            if prefix:
                client.sendall(b"PROXY TCP4 192.0.2.7 192.0.2.1 1 2\r\n")
            assert client.recv(1) == b""
    names = [f"127.0.0.1:{port}" for _, port in clients[:2]] + ["unix:"]
    expected = [f"192.0.2.7:1 -> 192.0.2.1:2 via {name}" for name in names]
    listening = [f"127.0.0.1:{port}" for port in ports] + [f"unix:{tmp_path}/s"]
    if not prefix:
        expected = [f"{name} -> {server}" for name, server in zip(names, listening, strict=True)]
    assert server.connections(3) == expected
    told = [line.partition("] Listening on ")[2] for line in server.lines]
    assert list(filter(None, told)) == listening
    assert ask(tmp_path, "/healthz") == "OK\n"
    known = json.loads(ask(tmp_path, "/status.json"))["endpoints"]
    assert known == [{"endpoint": endpoint, "address": address} for address in listening]
    page, metrics = ask(tmp_path, "/"), ask(tmp_path, "/metrics")
    for address in listening:
        assert f"on {address}" in page
        assert f'server="{address}"' in metrics
    output = server.stop()
    assert "Stopped. Connections: 3" in output
    assert "Traceback" not in output


def test_sockets_without_names(start: Start, tmp_path: Path) -> None:
    """A socket that was passed without a name is found by its index."""
    server = start(
        "systemd-socket-activate", f"--listen={tmp_path}/s", SCRIPTS / "twistd", "-n",
        "--pidfile=", "hello-listen", "-e", "systemd:UNIX:index=0",
    )  # fmt: skip
    server.expect("Listening on .*/s")
    untilEnd(f"{tmp_path}/s")
    assert server.connections(1) == [f"unix: -> unix:{tmp_path}/s"]
    assert "Traceback" not in server.stop()


def test_a_status_with_several_sockets(inherit: Start) -> None:
    """The status is served on each socket of a name as well."""
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        ports = [listener.getsockname()[1] for listener in listeners]
        server = inherit(
            listeners, "-e", "systemd:INET:name=hello", "--status", "systemd:INET:name=status",
            names="status:hello:status",
        )  # fmt: skip
        assert addressOf(server)[1] == ports[1]
        assert [line.rpartition(":")[2] for line in server.lines if "Status on" in line] == [
            str(ports[0]), str(ports[2]),
        ]  # fmt: skip
        for port in (ports[0], ports[2]):
            assert curl(f"http://127.0.0.1:{port}/healthz").stdout == "OK\n"
        assert "Traceback" not in server.stop()


def test_a_socket_that_another_process_makes_blocking(inherit: Start) -> None:
    """A process ends, though another one has made its socket block, as systemd does."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = inherit(listener, "-e", "systemd:INET:name=hello")
        address = addressOf(server)
        for _ in range(3):
            listener.setblocking(True)
            untilEnd(address)
        assert "Stopped. Connections: 3" in server.stop()


@pytest.mark.parametrize("reactor", ["epoll", *map(slow, ("poll", "select", "asyncio"))])
def test_sockets_that_another_process_shuts_down(
    inherit: Start, tmp_path: Path, reactor: str
) -> None:
    """A socket that was shut down is reported, uses no CPU, and the other socket is served on."""
    endpoint = "systemd:INET:name=hello"
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        listeners.append(stack.enter_context(socket.socket(socket.AF_UNIX)))
        listeners[2].bind(f"{tmp_path}/s")
        listeners[2].listen()
        server = inherit(
            listeners, "-e", endpoint, "--status", "unix:st", names="hello:hello:hello",
            reactor=reactor,
        )  # fmt: skip
        names = [addressOf(server) for _ in listeners]
        assert names == [each.getsockname() for each in listeners]
        assert ask(tmp_path, "/healthz") == "OK\n"
        for listener in (listeners[0], listeners[2]):
            listener.shutdown(socket.SHUT_RDWR)
        problem = f"Not listening: {endpoint}\n"
        until(lambda: ask(tmp_path, "/healthz") == 2 * problem)
        address = f"127.0.0.1:{listeners[1].getsockname()[1]}"
        shown = json.loads(ask(tmp_path, "/status.json"))["endpoints"]
        assert [each["address"] for each in shown] == [None, address, None]
        untilEnd(listeners[1].getsockname())
        server.connections(1)
        output = server.stop()
    assert output.count("Not listening any more: ") == 2
    assert f"Not listening any more: unix:{tmp_path}/s" in output
    assert "Stopped. Connections: 1" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--datagram"], "is a SOCK_DGRAM socket: use ListenStream= in the socket unit"),
        slow(["--seqpacket"], "is a SOCK_SEQPACKET socket: use ListenStream= in the socket unit"),
        (["--accept"], "is a connection: use Accept=no in the socket unit"),
    ],
)
def test_mistakes_in_a_unit(start: Start, tmp_path: Path, options: list[str], reason: str) -> None:
    """An inherited socket that cannot be served is refused with one line."""
    server = start(
        "systemd-socket-activate", *options, f"--listen={tmp_path}/s", "--fdname=hello",
        SCRIPTS / "twistd", "-n", "--pidfile=", "hello-listen", "-e", "systemd:UNIX:index=0",
    )  # fmt: skip
    server.expect("Listening on .*/s")
    kind = {"--datagram": socket.SOCK_DGRAM, "--seqpacket": socket.SOCK_SEQPACKET}
    with socket.socket(socket.AF_UNIX, kind.get(options[0], socket.SOCK_STREAM)) as client:
        client.connect(f"{tmp_path}/s")
        client.send(b"x")
        server.expect(f"^hello-listen: 'systemd:UNIX:index=0': descriptor 3 {reason}$")
    server.end()
    assert "Traceback" not in "\n".join(server.lines)


def test_a_socket_that_no_endpoint_serves(inherit: Start) -> None:
    """The log warns of it, once, and says how to serve it."""
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        port = listeners[1].getsockname()[1]
        server = inherit(listeners, "-e", "systemd:INET:name=web", names="web:mail")
        assert addressOf(server) == listeners[0].getsockname()
        output = server.stop()
    assert output.count("Inherited but not served: ") == 1
    assert f"127.0.0.1:{port}; serve it with -e systemd:domain=INET:name=mail" in output
