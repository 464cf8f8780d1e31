"""Behind real proxies and inherited sockets, the record names the client that really connected."""

from __future__ import annotations

import os
import re
import signal
import socket
import ssl
import struct
from contextlib import suppress
from pathlib import Path

import pytest

from logs import lines, recorded
from processes import (
    LOOPBACK,
    PATIENCE,
    SCRIPTS,
    Process,
    Start,
    clientsWithoutEnd,
    freePort,
    listens,
    makeCertificate,
    run,
    slow,
    tool,
    until,
    untilEnd,
)

CLIENTS = [f"127.0.0.{number}" for number in range(2, 7)]

HAPROXY = """
global
    maxconn 100
defaults
    mode tcp
    timeout connect 5s
    timeout client 5s
    timeout server 5s
listen v4
    bind 127.0.0.1:{v4}
    server hello {target} {option}
listen v6
    bind [::1]:{v6}
    server hello {target} {option}
listen unix
    bind unix@{folder}/front
    server hello {target} {option}
listen checks
    bind unix@{folder}/checks
    server hello {target} {option} check inter 100ms
"""

NGINX = """
stream {{
    server {{ listen 127.0.0.1:{v4}; listen [::1]:{v6}; proxy_pass {target}; proxy_protocol on; }}
}}
"""

# What comes from the first nginx names the client to the second one.
CHAINED = """
stream {{
    server {{
        listen 127.0.0.1:{port} proxy_protocol;
        set_real_ip_from 127.0.0.1;
        proxy_pass {target};
        proxy_protocol on;
    }}
}}
"""

HAPROXY_TLS = """
defaults
    mode tcp
    timeout connect 5s
    timeout client 5s
    timeout server 5s
listen tls
    bind 127.0.0.1:{port} ssl crt {folder}/server.pem
    unique-id-format %ci:%cp\\"
    server hello {target} send-proxy-v2 proxy-v2-options ssl,cert-cn,authority,crc32c,unique-id
"""

HAPROXY_FROM = """
listen front
    mode tcp
    timeout connect 5s
    timeout client 5s
    timeout server 5s
    bind 127.0.0.1:{front}
    server hello 127.0.0.1:{port} source 127.0.0.9 send-proxy-v2
"""


def waitFor(process: Process, pattern: str, count: int) -> list[str]:
    """Read connections until so many match, and return the matching ones."""
    found: list[str] = []
    while len(found) < count:
        [line] = process.connections(1)
        if re.search(pattern, line):
            found.append(line)
    return found


@pytest.mark.parametrize(
    ("option", "inner"),
    [
        slow("send-proxy", "tcp"),
        ("send-proxy-v2", "tcp"),
        slow("send-proxy", "tcp6"),
        ("send-proxy-v2", "unix"),
    ],
)
def test_haproxy(start: Start, hello: Start, tmp_path: Path, option: str, inner: str) -> None:
    """HAProxy's clients are recorded one by one over IPv4, IPv6 and UNIX; its checks as itself."""
    if inner == "unix":
        server = hello("-e", f"haproxy:unix:{tmp_path}/s")
        server.expect("Listening on unix:")
        target = f"unix@{tmp_path}/s"
    elif inner == "tcp":
        target = f"127.0.0.1:{(server := hello('-e', f'haproxy:{LOOPBACK}')).port()}"
    else:
        server = hello("-e", r"haproxy:tcp6:0:interface=\:\:1")
        target = f"[::1]:{server.port()}"
    v4, v6 = freePort(), freePort("::1")
    configuration = tmp_path / "haproxy.cfg"
    configuration.write_text(
        HAPROXY.format(v4=v4, v6=v6, folder=tmp_path, target=target, option=option)
    )
    start("haproxy", "-db", "-f", configuration)
    # A check names HAProxy as its own client in version 1, and is LOCAL in version 2.
    own = waitFor(server, r"^(\S+) -> \S+ via \1$", 2)
    names = [untilEnd(("127.0.0.1", v4), source=client)[0] for client in CLIENTS]
    lines = waitFor(server, rf"^127\.0\.0\.[2-6]:.* -> 127.0.0.1:{v4} via ", len(CLIENTS))
    assert [line.partition(" ")[0] for line in lines] == names
    untilEnd(("::1", v6))
    waitFor(server, rf"^\[::1\]:\d+ -> \[::1\]:{v6} via ", 1)
    untilEnd(f"{tmp_path}/front")
    # HAProxy sends UNKNOWN, or a version 2 header for UNIX, for a client of its UNIX socket.
    waitFor(server, "^(unix:|127.0.0.1:|\\[::1\\]:)", 1)
    assert not any("proxy_header" in line for line in own + server.lines)
    assert "Traceback" not in server.stop()


def test_nginx(nginx: Start, hello: Start) -> None:
    """nginx's stream module, with proxy_protocol on, names each client of IPv4 and IPv6."""
    server = hello("-e", f"haproxy:{LOOPBACK}")
    target = f"127.0.0.1:{server.port()}"
    v4, v6 = freePort(), freePort("::1")
    nginx(v4, stream=NGINX.format(v4=v4, v6=v6, target=target))
    names = [untilEnd(("127.0.0.1", v4), source=client)[0] for client in CLIENTS]
    lines = waitFor(server, rf"^127\.0\.0\.[2-6]:.* -> 127.0.0.1:{v4} via ", len(CLIENTS))
    assert [line.partition(" ")[0] for line in lines] == names
    untilEnd(("::1", v6))
    waitFor(server, rf"^\[::1\]:\d+ -> \[::1\]:{v6} via ", 1)
    assert not any("proxy_header" in line for line in server.lines)


def test_nginx_behind_nginx(nginx: Start, hello: Start) -> None:
    """A client of IPv6 is named, though the second nginx was reached over IPv4 (families mixed)."""
    server = hello("-e", f"haproxy:{LOOPBACK}")
    v4, v6, second = freePort(), freePort("::1"), freePort()
    nginx(second, stream=CHAINED.format(port=second, target=f"127.0.0.1:{server.port()}"))
    nginx(v4, stream=NGINX.format(v4=v4, v6=v6, target=f"127.0.0.1:{second}"))
    names = [untilEnd(("127.0.0.1", v4), source=client)[0] for client in CLIENTS]
    lines = waitFor(server, rf"^127\.0\.0\.[2-6]:.* -> 127.0.0.1:{second} via ", len(CLIENTS))
    assert [line.partition(" ")[0] for line in lines] == names
    untilEnd(("::1", v6))
    waitFor(server, rf"^\[::1\]:\d+ -> 127.0.0.1:{second} via 127.0.0.1:\d+$", 1)
    assert not any("proxy_header" in line for line in server.lines)


def test_what_only_haproxy_knows(start: Start, hello: Start, tmp_path: Path) -> None:
    """The SNI and the unique ID of HAProxy are in the record, and its checksum is taken."""
    server = hello("-l", "log", "-e", f"haproxy:{LOOPBACK}")
    (tmp_path / "server.pem").write_text(makeCertificate(tmp_path))
    front, target = freePort(), f"127.0.0.1:{server.port()}"
    configuration = tmp_path / "haproxy.cfg"
    configuration.write_text(HAPROXY_TLS.format(port=front, folder=tmp_path, target=target))
    start("haproxy", "-db", "-f", configuration)
    until(lambda: listens(front))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", front), PATIENCE) as plain,
        context.wrap_socket(plain, server_hostname="canary.example.org") as client,
    ):
        port = client.getsockname()[1]
        assert client.recv(1) == b""
    server.stop()
    [record] = [each for each in recorded(tmp_path / "log") if each["client.port"] == port]
    assert record["tls.client.server_name"] == "canary.example.org"
    assert record["proxy_protocol.unique_id"] == f'127.0.0.1:{port}"'
    assert "error.type" not in record


def test_health_checks_without_a_header(hello: Start, tmp_path: Path) -> None:
    """Health checks from a summarized network are counted, not recorded, unless they send data."""
    server = hello("-l", "log", "-e", f"haproxy:{LOOPBACK}", "--summarize", "127.0.0.1")
    port = server.port()
    for ending in (struct.pack("ii", 0, 0), struct.pack("ii", 1, 0)):
        for _ in range(10):  # As kubelet and as HAProxy do, which resets the connection.
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ending)
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"PROXY")
    with socket.create_connection(("127.0.0.1", port), source_address=("127.0.0.2", 0)):
        pass
    assert "recorded: 2, summarized: 20, lost: 0" in server.stop()
    _, *records, summary, _ = lines(tmp_path / "log")
    assert {each["client.address"] for each in records} == {"127.0.0.1", "127.0.0.2"}
    assert {each["error.type"] for each in (*records, summary)} == {"proxy_header_incomplete"}
    assert (summary["count"], summary["client.address"]) == (20, "127.0.0.1")


def test_trusted_proxy(start: Start, hello: Start, tmp_path: Path) -> None:
    """HAProxy at a trusted address names its client; other peers are recorded at once."""
    endpoint = f"haproxy:{LOOPBACK}"
    server = hello(
        "-l", "log", "--trusted-proxy", "127.0.0.9", "-e", endpoint, "-e", "haproxy:unix:s"
    )
    port, front = server.port(), freePort()
    server.expect("Listening on unix:")
    configuration = tmp_path / "haproxy.cfg"
    configuration.write_text(HAPROXY_FROM.format(front=front, port=port))
    start("haproxy", "-db", "-f", configuration)
    until(lambda: listens(front))
    name, _ = untilEnd(("127.0.0.1", front), source="127.0.0.2")
    # It sends nothing, and is not kept waiting.
    forger, _ = untilEnd(("127.0.0.1", port), source="127.0.0.3")
    with socket.create_connection(("127.0.0.1", port)) as client:
        other = "{}:{}".format(*client.getsockname())
        client.sendall(b"PROXY TCP4 192.0.2.7 192.0.2.1 1 2\r\n")
        with suppress(ConnectionResetError):
            assert client.recv(1) == b""
    with socket.socket(socket.AF_UNIX) as proxy:
        proxy.connect(f"{tmp_path}/s")
        proxy.sendall(b"PROXY TCP4 192.0.2.8 192.0.2.1 1 2\r\n")
        assert proxy.recv(1) == b""
    server.stop()
    found = {
        f"{each['client.address']}:{each['client.port']}": each.get("error.type")
        for each in recorded(tmp_path / "log")
    }
    expected: dict[str, str | None] = {name: None, "192.0.2.8:1": None}
    expected |= dict.fromkeys((forger, other), "proxy_not_trusted")
    assert expected.items() <= found.items()
    assert len(found) == len(expected) + 1  # HAProxy's client that looked whether it listens.


def test_inside_an_inherited_socket(start: Start, tmp_path: Path) -> None:
    """haproxy:systemd: reads the header as well."""
    server = start(
        "systemd-socket-activate", f"--listen={tmp_path}/s", "--fdname=hello", SCRIPTS / "twistd",
        "-n", "--pidfile=", "hello-listen", "-e", "haproxy:systemd:domain=UNIX:index=0",
    )  # fmt: skip
    server.expect("Listening on")
    with socket.socket(socket.AF_UNIX) as proxy:
        proxy.settimeout(PATIENCE)
        proxy.connect(f"{tmp_path}/s")
        proxy.sendall(b"PROXY TCP4 192.0.2.7 192.0.2.1 1 2\r\n")
        assert proxy.recv(1) == b""
    assert server.connections(1) == ["192.0.2.7:1 -> 192.0.2.1:2 via unix:"]


def test_inside_tls(hello: Start, tmp_path: Path) -> None:
    """A header inside TLS is read there, and the peer cannot keep the socket."""
    (tmp_path / "server.pem").write_text(makeCertificate(tmp_path))
    server = hello("-e", "haproxy:ssl:0:interface=127.0.0.1")
    port = server.port()
    header = "printf 'PROXY TCP4 192.0.2.7 192.0.2.1 1 2\\r\\n'"
    run("/bin/sh", "-c", f"{header} | {tool('openssl')} s_client -quiet -connect 127.0.0.1:{port}")
    [line] = server.connections(1)
    assert line.startswith("192.0.2.7:1 -> 192.0.2.1:2 via 127.0.0.1:")


def test_hostile_peers(hello: Start) -> None:
    """Anything sent instead of a header logs one line, without control characters or traceback."""
    server = hello("-e", f"haproxy:{LOOPBACK}")
    port = server.port()
    hostile = [
        b"PROXY TCP4 1.2.3.4\x1b[31mEVIL 5.6.7.8 1 2\r\n",
        b"PROXY TCP4 a\nfake:line 5.6.7.8 1 2\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x31\x00\xd8" + b"/\n\x1b[31m".ljust(108, b"\0") + bytes(108),
        os.urandom(600),
    ]
    for data in hostile:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(data)
            with suppress(ConnectionResetError):
                assert client.recv(1) == b""
    lines = server.connections(len(hostile))
    assert [line.endswith("(proxy_header_invalid)") for line in lines] == [
        True, True, True, False, True,
    ]  # fmt: skip
    assert lines[3].startswith(r"unix:/\n\x1b[31m -> unix: via ")
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"PROXY TCP4")
    assert server.connections(1)[0].endswith("(proxy_header_incomplete)")
    output = server.stop()
    assert "Traceback" not in output
    assert output.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    "header",
    [
        slow(b"PROXY UNKNOWN\r\n"),
        b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
        slow(b"\r\n\r\n\0\r\nQUIT\n\x21\0\0\0"),
    ],
    ids=["UNKNOWN", "LOCAL", "UNSPEC"],
)
def test_header_that_names_nobody(hello: Start, tmp_path: Path, header: bytes) -> None:
    """A proxy that connects for itself is recorded as client and as peer."""
    server = hello("-l", "log", "-e", f"haproxy:{LOOPBACK}")
    with socket.create_connection(("127.0.0.1", server.port())) as proxy:
        host, port = proxy.getsockname()
        proxy.sendall(header)
        assert proxy.recv(1) == b""
    server.stop()
    [record] = recorded(tmp_path / "log")
    assert (record["client.address"], record["client.port"]) == (host, port)
    assert (record["network.peer.address"], record["network.peer.port"]) == (host, port)
    assert "error.type" not in record


@pytest.mark.parametrize("program", ["connect", "half-open"])
def test_port_scan(hello: Start, program: str) -> None:
    """nmap's connect scan is recorded; its half-open scan, without a connection, is not."""
    server = hello("-e", LOOPBACK)
    port = server.port()
    if program == "half-open" and os.geteuid() != 0:
        pytest.skip("only root may send raw packets")
    scan = "-sT" if program == "connect" else "-sS"
    scanned = run(tool("nmap"), scan, "-Pn", "-n", "-p", port, "127.0.0.1")
    assert f"{port}/tcp open" in scanned.stdout
    if program == "connect":
        server.connections(1)
    else:
        assert "Stopped. Connections: 0" in server.stop()


def test_twist_json_of_a_proxied_connection(start: Start) -> None:
    """All fields of an event are plain values, whole in a JSON log."""
    server = start("twist", "--log-format=json", "hello-listen", "-e", f"haproxy:{LOOPBACK}")
    port = int(server.expect(r'"address": "127.0.0.1:(\d+)"')[1])
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"PROXY TCP6 2001:db8::7 2001:db8::1 1 2\r\n")
        assert client.recv(1) == b""
        source = client.getsockname()
    line = server.expect('"text"').string
    for field in (
        '"client.address": "2001:db8::7"', '"client.port": 1', '"server.address": "2001:db8::1"',
        '"network.peer.address": "127.0.0.1"', f'"network.peer.port": {source[1]}',
        '"network.type": "ipv6"',
    ):  # fmt: skip
        assert field in line


@pytest.mark.parametrize("family", ["INET", slow("INET6"), slow("UNIX")])
@pytest.mark.slow
def test_restart_loses_nobody(inherit: Start, tmp_path: Path, family: str) -> None:
    """Clients that connect to an inherited socket during a restart are served after it."""
    if family == "UNIX":
        listener, address = socket.socket(socket.AF_UNIX), str(tmp_path / "s")
        listener.bind(address)
        os.chmod(address, 0o600)
    else:
        listener = socket.socket(getattr(socket, f"AF_{family}"))
        listener.bind(("127.0.0.1" if family == "INET" else "::1", 0))
        address = listener.getsockname()[:2]
    listener.listen(1000)

    def serve() -> Process:
        return inherit(listener, "-e", f"systemd:domain={family}:name=hello")

    counts = []
    with listener, clientsWithoutEnd(address) as ended:
        for _ in range(2):
            server = serve()
            server.connections(200)
            output = server.stop(signal.SIGTERM)
            assert "Traceback" not in output
            counts.append(int(re.findall(r"Connections: (\d+)", output)[-1]))
        last = serve()
        last.connections(50)
    counts.append(int(re.findall(r"Connections: (\d+)", last.stop())[-1]))
    assert ended == [b""] * sum(counts)
    if family == "UNIX":
        assert os.stat(address).st_mode & 0o777 == 0o600
