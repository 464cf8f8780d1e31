"""Endpoint descriptions: readable errors for wrong ones, and listening ports for the others."""

from __future__ import annotations

import re
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from twisted.application.internet import StreamServerEndpointService
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.endpoints import StandardIOEndpoint, TCP4ServerEndpoint
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.stdio import PipeAddress
from twisted.internet.testing import MemoryReactorClock, StringTransport
from zope.interface.verify import verifyObject

from certificates import passesX509, pem
from hello_listen import HelloEndpoint, HelloFactory
from hello_listen._port import HelloPort
from hello_listen._proxy import ProxiedFactory, ProxiedProtocol
from hello_listen.endpoint import BACKLOG
from turns import reactor, until


@pytest.mark.parametrize(
    ("description", "reason"),
    [
        ("", "Unknown endpoint type: ''"),
        ("foo:1", "Unknown endpoint type: 'foo'; there are haproxy, "),
        ("udp:7878", "Unknown endpoint type: 'udp'; UDP has no connections; there are haproxy, "),
        ("tcp", "missing: 'port'"),
        ("tcp6", "missing: 'port'"),
        ("tcp:", "missing: 'port'"),
        ("tcp6::interface=x", "missing: 'port'"),
        ("haproxy:tcp:", "missing: 'port'"),
        ("ssl:", "missing: 'port'"),
        ("tcp:notaport", "not a number: 'notaport'"),
        ("tcp:1:interfce=x", "no such argument: 'interfce'"),
        ("tcp:1:backlog=abc", "not a number: 'abc'"),
        ("tcp:1:x:2:y", "too many arguments"),
        ("tcp:1:port=2", "given twice: 'port'"),
        ("tcp:1\\", "ends in a backslash that escapes nothing"),
        ("unix:", "missing: 'address'"),
        ("unix:/run/hello:mode=999", "not a number: '999'"),
        ("ssl:1:privateKey=/no/key.pem", "No such file or directory: '/no/key.pem'"),
        ("systemd:INET:index=0", "no such socket was inherited (systemd passes them, see "),
        ("systemd:INET:name=web", "no such socket was inherited (systemd passes them, see "),
        ("haproxy", "Unknown endpoint type: ''"),
        ("haproxy:foo:1", "Unknown endpoint type: 'foo'"),
        ("haproxy:HAProxy:tcp:1", "one PROXY header is expected, not two"),
        ("systemd", "missing: 'domain'"),
        ("systemd:INET", "either index= or name= is needed"),
        ("systemd:INET:index=0:name=a", "either index= or name= is needed"),
        ("systemd:INET:index=x", "not a number: 'x'"),
        ("systemd:INET:inde=0", "no such argument: 'inde'"),
        ("systemd:INET:0:a:b", "too many arguments"),
        ("systemd:NET:index=0", "no such domain: 'NET'"),
    ],
)
def test_descriptions_that_cannot_be_understood(description: str, reason: str) -> None:
    """The message quotes the endpoint, and says what is wrong with it."""
    with pytest.raises(ValueError, match=re.escape(f"{description!r}: {reason}")):
        HelloEndpoint(MemoryReactorClock(), description)


@pytest.mark.parametrize(
    ("description", "hint"),
    [
        ("7878", "tcp:7878"),
        ("haproxy:7878", "haproxy:tcp:7878"),
        ("127.0.0.1:7878", "tcp:7878:interface=127.0.0.1"),
        ("localhost:7878", "tcp:7878:interface=localhost"),
        ("[::1]:7878", r"tcp6:7878:interface=\:\:1"),
        ("TCP:7878", "tcp:7878"),
        (":7878", "tcp:7878"),
        ("*:7878", "tcp:7878"),
        ("tcp:*:7878", "tcp:7878"),
        ("tcp://:7878", "tcp:7878"),
        ("tcp:0.0.0.0:7878", "tcp:7878:interface=0.0.0.0"),
        ("haproxy:tcp:localhost:7878", "haproxy:tcp:7878:interface=localhost"),
        ("tcp://127.0.0.1:7878", "tcp:7878:interface=127.0.0.1"),
        ("http://127.0.0.1:7878/", "tcp:7878:interface=127.0.0.1"),
        ("http:7878", "tcp:7878"),
        ("[::]:7878", r"tcp6:7878:interface=\:\:"),
        ("tcp6:[::1]:7878", r"tcp6:7878:interface=\:\:1"),
        ("udp:7878", None),
        ("tcp6:7878:interface=::1", r"tcp6:7878:interface=\:\:1"),
        ("tcp:1:interface=fe80::1:backlog=5", r"tcp:1:interface=fe80\:\:1:backlog=5"),
        ("Foo:1", None),
        ("foo:1", None),
        ("tcp:x\n", None),
    ],
)
def test_hints(description: str, hint: str | None) -> None:
    """The message suggests a correction of a likely typing error, if that can be parsed."""
    with pytest.raises(ValueError, match=r"[^:]+: \w") as raised:
        HelloEndpoint(MemoryReactorClock(), description)
    found = re.findall("; did you mean '(.*)'[?]$", str(raised.value))
    assert found == ([hint] if hint else [])


@pytest.mark.parametrize("description", ["ssl:443", "tls:/etc/certificates", "haproxy:ssl:443"])
def test_without_tls(monkeypatch: pytest.MonkeyPatch, description: str) -> None:
    """Without the packages that TLS needs, the message says what to install."""
    monkeypatch.setitem(sys.modules, "OpenSSL", None)
    with pytest.raises(ValueError, match=re.escape(": pip install 'twisted[tls]'")):
        HelloEndpoint(MemoryReactorClock(), description)


DH_PARAMETERS = """\
-----BEGIN DH PARAMETERS-----
MIIBCAKCAQEA//////////+t+FRYortKmq/cViAnPTzx2LnFg84tNpWp4TZBFGQz
+8yTnc4kmz75fS/jY2MMddj2gbICrsRhetPfHtXV/WVhJDP1H18GbtCFY2VVPe0a
87VXE15/V8k1mE8McODmi3fipona8+/och3xWKE2rec1MKzKT0g6eXq8CrGCsyT7
YdEIqUuyyOP7uWrat2DX9GgdT0Kj3jlN9K5W7edjcrsZCwenyO4KbXCeAvzhzffi
7MA0BM0oNC9hkXL+nOmFg/+OTxIy7vKBg8P+OxtMb61zO7X8vC7CIAXFjvGDfRaD
ssbzSibBsu/6iGtCOGEoXJf//////////wIBAg==
-----END DH PARAMETERS-----
"""
"""The group ffdhe2048 (RFC 7919, A.1)."""


@pytest.fixture
def keyFile(tmp_path: Path) -> str:
    """Return the path of a file with a key and its certificate."""
    (tmp_path / "server.pem").write_text("".join(pem("localhost")))
    return f"{tmp_path}/server.pem"


@passesX509
def test_certificate_that_is_refused(tmp_path: Path) -> None:
    """A certificate that OpenSSL would refuse at each handshake is refused at the start."""
    (tmp_path / "weak.pem").write_text("".join(pem("localhost", bits=1024)))
    endpoint = f"ssl:0:privateKey={tmp_path}/weak.pem"
    with pytest.raises(ValueError, match=re.escape(f"{endpoint!r}: TLS: ee key too small")):
        HelloEndpoint(MemoryReactorClock(), endpoint)


@passesX509
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file or directory: "),
        ("hello", "no DH PARAMETERS in PEM format: "),
        (DH_PARAMETERS.replace("MII", "MIJ"), "TLS: "),
    ],
    ids=["missing", "no PEM", "broken"],
)
def test_parameters(tmp_path: Path, keyFile: str, content: str | None, reason: str) -> None:
    """A file of Diffie-Hellman parameters is read at the start, too."""
    if content:
        (tmp_path / "dh.pem").write_text(content)
    path = f"{tmp_path}/dh.pem"
    with pytest.raises(ValueError, match=re.escape(f"dhParameters={path}': {reason}")):
        HelloEndpoint(MemoryReactorClock(), f"ssl:0:privateKey={keyFile}:dhParameters={path}")


@passesX509
def test_file_that_becomes_unreadable(tmp_path: Path, keyFile: str) -> None:
    """Files are read at the start only: after --uid or --chroot, they may be out of reach."""
    path = tmp_path / "dh.pem"
    path.write_text(DH_PARAMETERS)
    reactor = MemoryReactorClock()
    endpoint = HelloEndpoint(reactor, f"ssl:0:privateKey={keyFile}:dhParameters={path}")
    path.unlink()
    endpoint.listen(HelloFactory())
    [(_, _, context, backlog, _)] = reactor.sslServers
    assert context.getContext()
    assert backlog == BACKLOG


def test_taking_over() -> None:
    """A L{HelloPort} serves a TCP endpoint, at the address that Twisted has bound."""
    ports: list[object] = []
    endpoint = HelloEndpoint(reactor, "tcp:0:interface=127.0.0.1")
    endpoint.listen(HelloFactory()).addCallback(ports.append)
    [port] = ports
    assert isinstance(port, HelloPort)
    assert port.getHost().host == "127.0.0.1"  # type: ignore[attr-defined]
    stopped = port.stopListening()
    until(lambda: stopped.called)


def test_another_parsers_lookup_error(later: None) -> None:
    """Only C{systemd:} endpoints are refused because no socket was inherited."""
    with pytest.raises(ValueError, match=re.escape("'later:lookup': 'no such onion'")):
        HelloEndpoint(MemoryReactorClock(), "later:lookup")


@pytest.mark.parametrize(
    ("description", "backlog"),
    [
        ("tcp:1", BACKLOG),
        ("tcp6:1", BACKLOG),
        ("TCP6:1", BACKLOG),
        ("haproxy:tcp:1", BACKLOG),
        ("tcp:1:backlog=50", 50),
        ("tcp6:1:backlog=50", 50),
        ("tcp:1::50", 50),
    ],
)
def test_accept_queue(description: str, backlog: int) -> None:
    """The accept queue has the largest length, unless the description gives another."""
    reactor = MemoryReactorClock()
    HelloEndpoint(reactor, description).listen(HelloFactory())
    assert [server[2] for server in reactor.tcpServers] == [backlog]


@pytest.mark.parametrize("description", ["haproxy:tcp:1", "HAProxy:tcp:1"])
def test_behind_a_proxy(description: str) -> None:
    """A C{haproxy:} endpoint puts a L{ProxiedFactory} before the factory."""
    reactor = MemoryReactorClock()
    factory = HelloFactory()
    HelloEndpoint(reactor, description).listen(factory)
    [(_, serving, _, _)] = reactor.tcpServers
    assert isinstance(serving, ProxiedFactory)
    assert serving.hello is factory


def test_trusted_proxies() -> None:
    """Trusted proxies are networks, for C{haproxy:} endpoints only; an empty list trusts nobody."""
    reactor = MemoryReactorClock()
    for networks, trusted in (
        (None, True),
        (["10.0.0.0/8"], True),
        (["10.0.0.3"], False),
        ([], False),
    ):
        HelloEndpoint(reactor, "haproxy:tcp:1", networks).listen(HelloFactory())
        _, serving, _, _ = reactor.tcpServers[-1]
        protocol = serving.buildProtocol(IPv4Address("TCP", "10.0.0.2", 1))
        assert isinstance(protocol, ProxiedProtocol) == trusted
    for description, networks, reason in (
        ("tcp:1", ["10.0.0.2"], "only an endpoint with haproxy: has trusted proxies"),
        ("tcp:1", [], "only an endpoint with haproxy: has trusted proxies"),
        ("haproxy:tcp:1", ["10.0.0.2/8"], "not a network: '10.0.0.2/8'; did you mean"),
    ):
        with pytest.raises(ValueError, match=re.escape(f"{description!r}: {reason}")):
            HelloEndpoint(reactor, description, networks)


def test_other_factories() -> None:
    """Any factory can be served; C{haproxy:} needs a L{HelloFactory}."""
    reactor = MemoryReactorClock()
    factory = Factory.forProtocol(Protocol)
    endpoint = HelloEndpoint(reactor, "tcp:1")
    assert verifyObject(IStreamServerEndpoint, endpoint)
    StreamServerEndpointService(endpoint, factory).startService()
    assert reactor.tcpServers[0][1] is factory
    errors: list[Any] = []
    HelloEndpoint(reactor, "haproxy:tcp:1").listen(factory).addErrback(errors.append)
    assert errors[0].check(TypeError)
    assert "'haproxy:tcp:1' needs a HelloFactory" in errors[0].getErrorMessage()


def listen(description: str) -> tuple[Any, str]:
    """Listen on an endpoint with the real reactor, and return the port, if any, and any error."""
    results: list[Any] = []
    HelloEndpoint(reactor, description).listen(HelloFactory()).addBoth(results.append)
    isPort = IListeningPort.providedBy(results[0])
    return (results[0], "") if isPort else (None, results[0].getErrorMessage())


def release(*ports: Any) -> None:
    """Stop ports of the real reactor."""
    stopping = [port.stopListening() for port in ports]
    until(lambda: all(each.called for each in stopping))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("tcp:{}", "tcp6:{}"),
        ("tcp6:{}", "tcp:{}"),
        ("tcp6:{}", "haproxy:tcp:{}:interface=127.0.0.1"),
        ("tcp:{}", "tcp:{}:interface=127.0.0.1"),
        ("haproxy:tcp:{}:interface=127.0.0.1", "tcp:{}:interface=localhost"),
        (r"tcp6:{}:interface=\:\:1", r"tcp6:{}:interface=0\:0\:0\:0\:0\:0\:0\:1"),
        (r"tcp6:{}:interface=\:\:1", "tcp6:{}"),
        (r"tcp6:{}:interface=\:\:ffff\:127.0.0.1", "tcp:{}"),
        ("unix:s", "unix:./s"),
    ],
)
def test_address_in_use_by_another_endpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, second: str
) -> None:
    """The message names the endpoint that has the address already."""
    monkeypatch.chdir(tmp_path)
    other, _ = listen("tcp:0:interface=127.0.0.3")
    port, _ = listen(first.format(0))
    second = second.format(getattr(port.getHost(), "port", ""))
    message = listen(second)[1]
    release(port, other)
    assert message == f"Address already in use by {first.format(0)!r}: {second!r}"


def test_address_in_use_by_another_process(tmp_path: Path) -> None:
    """The message names no endpoint with the same port of another address, or with a path."""
    with socket.create_server(("127.0.0.1", 0)) as used:
        number = used.getsockname()[1]
        endpoints = [f"tcp:{number}:interface=127.0.0.2", rf"tcp6:{number}:interface=\:\:1"]
        ports = [listen(each)[0] for each in (f"unix:{tmp_path}/s", *endpoints)]
        messages = [listen(f"tcp:{number}{more}")[1] for more in ("", ":interface=127.0.0.1")]
        release(*ports)
    assert messages == [
        f"Address already in use by {endpoints[0]!r}: 'tcp:{number}'",
        f"Address already in use: 'tcp:{number}:interface=127.0.0.1'",
    ]


def test_file_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names a missing file that the description does not name."""
    error = FileNotFoundError(2, "No such file or directory", "/dev/null")
    monkeypatch.setattr(TCP4ServerEndpoint, "listen", lambda *_: fail(error))
    failures: list[Any] = []
    HelloEndpoint(MemoryReactorClock(), "tcp:1").listen(HelloFactory()).addErrback(failures.append)
    assert failures[0].getErrorMessage() == "No such file or directory: '/dev/null': 'tcp:1'"


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """C{stdio:} gives a port, whose stop records a connection without a PROXY header."""
    made: list[Any] = []

    def listen(self: object, factory: Any) -> Deferred[Any]:
        made.append(factory.buildProtocol(None))
        transport = StringTransport(hostAddress=PipeAddress())
        made[0].makeConnection(transport)
        return succeed(transport)

    monkeypatch.setattr(StandardIOEndpoint, "listen", listen)
    ports: list[Any] = []
    factory = HelloFactory()
    HelloEndpoint(MemoryReactorClock(), "haproxy:stdio:").listen(factory).addCallback(ports.append)
    [port] = ports
    assert verifyObject(IListeningPort, port)
    port.startListening()
    assert isinstance(port.getHost(), PipeAddress)
    assert factory.connections == 0
    assert port.stopListening().called
    assert factory.connections == 1
    assert made[0].transport.disconnecting


def test_type_in_upper_case() -> None:
    """A type that Twisted takes in any case is served as usual."""
    reasons = []
    for kind in ("systemd", "SYSTEMD"):
        with pytest.raises(ValueError, match=kind) as caught:
            HelloEndpoint(MemoryReactorClock(), f"{kind}:domain=INET:name=missing")
        reasons.append(str(caught.value).partition("': ")[2])
    assert reasons[0] == reasons[1]
