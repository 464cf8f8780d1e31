"""A newcomer's first edit of the protocol shows at the first connection."""

from __future__ import annotations

import shutil
import socket
import ssl
from pathlib import Path

import pytest

import hello_listen
from processes import LOOPBACK, PATIENCE, SCRIPTS, Start, addressOf, familyOf, makeCertificate, slow


@pytest.mark.parametrize(
    "endpoint",
    [
        LOOPBACK,
        slow(f"haproxy:{LOOPBACK}"),
        slow("unix:s"),
        slow("ssl:0:interface=127.0.0.1"),
        "haproxy:ssl:0",
    ],
)
def test_edit(start: Start, tmp_path: Path, endpoint: str) -> None:
    """Text that C{connectionMade} sends reaches the client; the connection is logged as before."""
    shutil.copytree(Path(hello_listen.__file__).parent, tmp_path / "src" / "hello_listen")
    source = tmp_path / "src" / "hello_listen" / "protocol.py"
    line = "        transport = self.transport\n"
    assert source.read_text().count(line) == 1
    source.write_text(source.read_text().replace(line, f'{line}        transport.write(b"Hi")\n'))
    if "ssl" in endpoint:
        (tmp_path / "server.pem").write_text(makeCertificate(tmp_path))
    server = start(
        "env", f"PYTHONPATH={tmp_path}/src", SCRIPTS / "twistd", "-n", "--pidfile=",
        "hello-listen", "-e", endpoint,
    )  # fmt: skip
    address = addressOf(server)
    plain = socket.socket(familyOf(address))
    plain.settimeout(PATIENCE)
    plain.connect(address if isinstance(address, str) else ("127.0.0.1", address[1]))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with context.wrap_socket(plain) if "ssl" in endpoint else plain as client:
        if "haproxy" in endpoint:
            client.sendall(b"PROXY TCP4 192.0.2.7 198.51.100.1 51512 443\r\n")
        assert client.recv(10) == b"Hi"
    [logged] = server.connections(1)
    assert logged.startswith("192.0.2.7:51512 -> 198.51.100.1:443" if "haproxy" in endpoint else "")
