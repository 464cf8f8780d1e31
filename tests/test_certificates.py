"""The certificates of C{tls:} endpoints: checked at the start, and chosen by the server name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from cryptography.x509 import DNSName, SubjectAlternativeName
from OpenSSL.SSL import TLS_CLIENT_METHOD, Connection, Context, WantReadError
from twisted.internet.address import IPv4Address
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock, StringTransportWithDisconnection
from twisted.logger import capturedLogs

from certificates import passesX509, pem
from events import texts
from hello_listen import HelloEndpoint

pytestmark = [passesX509, pytest.mark.usefixtures("tlsEndpoints")]


def test_certificates(tmp_path: Path) -> None:
    """A C{tls:} endpoint without any certificate is refused, for a folder and for a file."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.pem").write_text("hello")
    (tmp_path / "server.crt").write_text("".join(pem("localhost")))
    (tmp_path / "a:b").mkdir()
    lacks, missing = "no certificate in any .pem file", "No such file or directory"
    cases = ("no", missing), ("empty", lacks), ("file.pem", lacks), ("server.crt", lacks)
    for path, reason in cases:
        for endpoint in (f"tls:{tmp_path}/{path}:0", f"tls:port=0:path={tmp_path}/{path}"):
            with pytest.raises(ValueError, match=re.escape(f": {reason}: '{tmp_path}/{path}'")):
                HelloEndpoint(MemoryReactorClock(), endpoint)
    with pytest.raises(ValueError, match=re.escape(f": {lacks}: '{tmp_path}/a:b'")):
        HelloEndpoint(MemoryReactorClock(), f"tls:{tmp_path}/a\\:b:0")


def test_certificates_that_are_there(tmp_path: Path) -> None:
    """One certificate in any file is enough: keys may be in other files, an issuer's be missing."""
    key, certificate = pem("localhost")
    (tmp_path / "key.pem").write_text(key)
    (tmp_path / "certificate.pem").write_text(certificate)
    (tmp_path / "issuer.pem").write_text(pem("localhost", issuer="root")[1])
    HelloEndpoint(MemoryReactorClock(), f"tls:{tmp_path}:0")


def test_certificates_that_serve_nobody(tmp_path: Path) -> None:
    """A certificate is refused if it lacks its key or a DNS name, for no client could use it."""
    reason = "no certificate has a key and a DNS name (subjectAltName)"
    for content in ("".join(pem()), pem("localhost", issuer="root")[1]):
        (tmp_path / "server.pem").write_text(content)
        with pytest.raises(ValueError, match=re.escape(f": {reason}: '{tmp_path}'")):
            HelloEndpoint(MemoryReactorClock(), f"tls:{tmp_path}:0")


def test_root_certificate(tmp_path: Path) -> None:
    """A file on which Twisted would loop for ever is refused."""
    (tmp_path / "server.pem").write_text("".join(pem("localhost")))
    (tmp_path / "root.pem").write_text(pem("localhost")[1])
    reason = "a self-signed certificate without its key: leave it out"
    with pytest.raises(ValueError, match=re.escape(f"'tls:{tmp_path}:0': {reason}")):
        HelloEndpoint(MemoryReactorClock(), f"tls:{tmp_path}:0")


def test_certificate_that_is_refused(tmp_path: Path) -> None:
    """A certificate that OpenSSL would refuse at each handshake is refused at the start."""
    (tmp_path / "weak.pem").write_text("".join(pem("localhost", bits=1024)))
    endpoint = f"tls:{tmp_path}:0"
    with pytest.raises(ValueError, match=re.escape(f"{endpoint!r}: TLS: ee key too small")):
        HelloEndpoint(MemoryReactorClock(), endpoint)


class Named(Protocol):
    """Notes the server name that its client sent."""

    def dataReceived(self, data: bytes) -> None:
        """Ask for the name after the handshake."""
        self.factory.names.append(self.transport.getHandle().get_servername())  # type: ignore[union-attr]


class Clients:
    """TLS clients of an endpoint, in memory."""

    def __init__(self, description: str) -> None:
        """Listen."""
        reactor = MemoryReactorClock()
        self.seen: list[bytes | None] = []
        factory = Factory.forProtocol(Named)
        factory.names = self.seen  # type: ignore[attr-defined]
        HelloEndpoint(reactor, description).listen(factory)
        self._factory: Any = reactor.tcpServers[0][1]

    def certificate(self, name: bytes | None) -> list[str]:
        """Make a handshake, and return the DNS names of the certificate that was shown."""
        client = Connection(Context(TLS_CLIENT_METHOD))
        if name is not None:
            client.set_tlsext_host_name(name)
        client.set_connect_state()
        protocol = self._factory.buildProtocol(IPv4Address("TCP", "192.0.2.1", 1))
        transport = StringTransportWithDisconnection()
        transport.protocol = protocol
        protocol.makeConnection(transport)
        while client.get_peer_certificate() is None:
            try:
                client.do_handshake()
            except WantReadError:
                protocol.dataReceived(client.bio_read(65536))
                client.bio_write(transport.value())
                transport.clear()
        client.send(b"hello")
        protocol.dataReceived(client.bio_read(65536))
        shown = client.get_peer_certificate(as_cryptography=True)
        assert shown is not None
        names = shown.extensions.get_extension_for_class(SubjectAlternativeName).value
        return names.get_values_for_type(DNSName)


@pytest.fixture
def clients(tmp_path: Path) -> Clients:
    """Return the clients of an endpoint with two certificates."""
    for number, names in enumerate([("*.b.example",), ("z.example", "c.example")]):
        (tmp_path / f"{number}.pem").write_text("".join(pem(*names)))
    return Clients(f"tls:{tmp_path}:0")


def test_server_names(clients: Clients) -> None:
    """A client is shown the certificate for the name that it asks for."""
    names = [b"z.example", b"c.example", b"a.b.example", b"*.b.example"]
    with capturedLogs() as events:
        shown = [clients.certificate(name) for name in names]
    two = ["z.example", "c.example"]
    assert shown == [two, two, ["*.b.example"], ["*.b.example"]]
    assert clients.seen == names
    assert texts(events) == []


@pytest.mark.parametrize(
    "name", [None, b"\xff\xfe", "m\u00fcnchen.example".encode(), b"a\nb", b"x.example", b"." * 255]
)
def test_server_name_that_is_unknown(clients: Clients, name: bytes | None) -> None:
    """Any other client is shown the first certificate by name, and puts nothing into the log."""
    with capturedLogs() as events:
        assert clients.certificate(name) == ["*.b.example"]
    assert clients.seen == [name]
    assert texts(events) == []
