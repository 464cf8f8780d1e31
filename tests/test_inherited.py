"""Inherited sockets: which ones a description names, and which cannot be served."""

from __future__ import annotations

import os
import re
import shlex
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from operator import methodcaller
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IListeningPort
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import capturedLogs
from twisted.python.failure import Failure
from zope.interface.verify import verifyObject

from events import texts
from hello_listen import HelloEndpoint, HelloFactory, HelloService, ListenError, _inherited
from hello_listen._inherited import warnOfUnserved
from hello_listen._port import HelloPort
from hello_listen.tap import Options, makeService

PassOn = Callable[..., None]


@pytest.fixture
def listeners(tmp_path: Path) -> Iterator[list[socket.socket]]:
    """Return an IPv4 socket, a UNIX socket and an IPv6 socket that listen."""
    with ExitStack() as stack:
        names: list[Any] = [("127.0.0.1", 0), f"{tmp_path}/s", ("::1", 0)]
        made = []
        for family, name in zip(
            (socket.AF_INET, socket.AF_UNIX, socket.AF_INET6), names, strict=True
        ):
            made.append(stack.enter_context(socket.socket(family)))
            made[-1].bind(name)
            made[-1].listen()
        yield made


def listen(description: str) -> tuple[Any, MemoryReactorClock]:
    """Listen on an endpoint, and return its port and the reactor."""
    reactor, ports = MemoryReactorClock(), list[Any]()
    HelloEndpoint(reactor, description).listen(HelloFactory()).addCallback(ports.append)
    return ports[0], reactor


def stop(port: Any, reactor: MemoryReactorClock) -> None:
    """Stop a port, and check that it has stopped."""
    stopped = port.stopListening()
    reactor.pump([0, 0, 0])
    assert stopped.called
    assert not reactor.getReaders()


@pytest.mark.parametrize("domain", ["INET", "INET6", "UNIX"])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_one_socket(
    passOn: PassOn, listeners: list[socket.socket], index: int, domain: str
) -> None:
    """A socket is served as its own family, whatever the description says, and again later."""
    passOn(*(each.fileno() for each in listeners), names="a:b:c")
    for argument in (f"index={index}", f"name={'abc'[index]}"):
        port, reactor = listen(f"systemd:{domain}:{argument}")
        assert isinstance(port, HelloPort)
        assert reactor.getReaders() == [port]
        address = listeners[index].getsockname()
        host: Any = port.getHost()
        assert (
            address == host.name.decode() if index == 1 else (host.host, host.port) == address[:2]
        )
        stop(port, reactor)


@pytest.mark.parametrize("prefix", ["", "haproxy:"])
def test_several_sockets_of_one_name(
    passOn: PassOn, listeners: list[socket.socket], prefix: str
) -> None:
    """All sockets of a name are served, and stopped with the port."""
    passOn(*(each.fileno() for each in listeners), names="web:other:web")
    port, reactor = listen(f"{prefix}systemd:INET:name=web")
    assert verifyObject(IListeningPort, port)
    port.startListening()
    hosts = [(each.getHost().host, each.getHost().port) for each in port.ports]
    assert hosts == [listeners[0].getsockname(), listeners[2].getsockname()[:2]]
    assert port.getHost() == port.ports[0].getHost()
    assert sorted(map(id, reactor.getReaders())) == sorted(map(id, port.ports))
    stop(port, reactor)


def test_a_service_with_several_sockets_of_one_name(
    passOn: PassOn, listeners: list[socket.socket]
) -> None:
    """The service lists each socket, also after the reactor has closed one, and stops the rest."""
    passOn(*(each.fileno() for each in listeners), names="web:other:web")
    reactor = MemoryReactorClock()
    service = HelloService(
        HelloFactory(), ["systemd:INET:name=web", "systemd:UNIX:name=other"], reactor
    )
    described = ["systemd:INET:name=web"] * 2 + ["systemd:UNIX:name=other"]
    with capturedLogs() as events:
        service.startService()
    port4, port6 = listeners[0].getsockname()[1], listeners[2].getsockname()[1]
    assert texts(events)[:2] == [
        f"Listening on 127.0.0.1:{port4}",
        f"Listening on [::1]:{port6}",
    ]
    assert [each for each, _ in service.listening] == described
    hosts = [address for _, address in service.listening]
    ports: list[Any] = sorted(reactor.getReaders(), key=methodcaller("fileno"))
    assert hosts == [ports[0].getHost(), ports[2].getHost(), ports[1].getHost()]
    # As the reactor does where reading fails.
    ports[0].connectionLost(Failure(ConnectionLost()))
    assert service.listening == list(zip(described, [None, *hosts[1:]], strict=True))
    with capturedLogs() as events:
        stopped = service.stopService()
        reactor.pump([0, 0, 0])
    assert stopped.called
    assert texts(events) == ["Stopped. Connections: 0"]
    assert service.listening == [(described[0], None), (described[2], None)]


def test_a_factory_that_does_not_start(passOn: PassOn, listeners: list[socket.socket]) -> None:
    """If the factory does not start, its error is raised, and the sockets stay as they were."""

    class Failing(HelloFactory):
        def startFactory(self) -> None:
            raise OSError(2, "No such file or directory")

    passOn(*(each.fileno() for each in listeners), names="a:a:a")
    reactor, failures = MemoryReactorClock(), list[Any]()
    HelloEndpoint(reactor, "systemd:INET:name=a").listen(Failing()).addErrback(failures.append)
    reactor.pump([0, 0, 0])
    assert failures[0].getErrorMessage() == "No such file or directory: 'systemd:INET:name=a'"
    assert not reactor.getReaders()
    for listener in listeners:
        with socket.socket(listener.family) as client:
            client.connect(listener.getsockname())
            listener.accept()[0].close()


def test_a_socket_of_two_endpoints(passOn: PassOn, listeners: list[socket.socket]) -> None:
    """A second endpoint with the same socket is refused."""
    passOn(*(each.fileno() for each in listeners), names="a:b:a")
    reactor = MemoryReactorClock()
    endpoints = ["haproxy:systemd:INET:index=2", "systemd:INET:name=a"]
    service = HelloService(HelloFactory(), endpoints, reactor)
    with pytest.raises(ListenError) as raised:
        service.startService()
    assert str(raised.value) == "another endpoint serves this socket: 'systemd:INET:name=a'"
    reactor.pump([0, 0, 0])
    assert not reactor.getReaders()
    assert service.factory.numPorts == 0


@pytest.mark.parametrize(
    ("names", "variables", "argument", "reason"),
    [
        ("a:b:c", {}, "index=3", "no such socket was inherited, only 'a', 'b', 'c'"),
        ("a:b:a", {}, "index=-1", "no such socket was inherited, only 'a', 'b'"),
        ("a:b:c", {}, "name=d", "no such socket was inherited, only 'a', 'b', 'c'"),
        ("a:b:c", {}, "name=", "no such socket was inherited, only 'a', 'b', 'c'"),
        ("a:b:c", {"LISTEN_PID": 1}, "index=0", "no such socket was inherited (systemd passes"),
        ("a:b:c", {"LISTEN_PID": ""}, "name=a", "no such socket was inherited (systemd passes"),
        ("a:b", {}, "index=0", "LISTEN_FDS and LISTEN_FDNAMES disagree: 3 and 2"),
        ("a:b:c:d", {}, "name=a", "LISTEN_FDS and LISTEN_FDNAMES disagree: 3 and 4"),
        ("", {}, "index=0", "LISTEN_FDS and LISTEN_FDNAMES disagree: 3 and 1"),
        (None, {"LISTEN_FDS": "many"}, "index=0", "not a number: 'many'"),
        (None, {"LISTEN_FDS": 0}, "index=0", "no such socket was inherited (systemd passes"),
        (None, {}, "name=a", "no such socket was inherited, only 'unknown'"),
    ],
)
def test_sockets_that_are_not_there(
    passOn: PassOn,
    listeners: list[socket.socket],
    names: str | None,
    variables: dict[str, object],
    argument: str,
    reason: str,
) -> None:
    """The error for a missing name lists the names that were passed."""
    passOn(*(each.fileno() for each in listeners), names=names, **variables)
    description = f"systemd:INET:{argument}"
    with pytest.raises(ValueError, match=re.escape(f"{description!r}: {reason}")):
        HelloEndpoint(MemoryReactorClock(), description)
    with capturedLogs() as events:
        warnOfUnserved([_inherited.FIRST_DESCRIPTOR + each for each in range(3)])
    assert not events


@pytest.mark.parametrize(
    ("names", "argument"),
    [
        (None, "index=2"),
        ("::x", "index=2"),
        ("a:b:c=d", "name=c=d"),
        ("a:b:c\\d", r"name=c\\d"),
        ("a:b:\u2603", "name=\u2603"),
        ("a:a:", "name="),
        ("a:b:c", "name=x:name=c"),
    ],
)
def test_odd_names(
    passOn: PassOn, listeners: list[socket.socket], names: str | None, argument: str
) -> None:
    """Sockets can be chosen by index, and by any name that systemd allows."""
    passOn(*(each.fileno() for each in listeners), names=names)
    assert HelloEndpoint(None, f"systemd:INET:{argument}").descriptors == [
        _inherited.FIRST_DESCRIPTOR + 2
    ]


def test_without_a_list_of_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """If /proc/self/environ cannot be read, no socket was inherited."""
    monkeypatch.setattr(_inherited, "ENVIRONMENT_FILE", tmp_path / "missing")
    with pytest.raises(ValueError, match="no such socket was inherited"):
        HelloEndpoint(None, "systemd:INET:index=0")


def sockets(stack: ExitStack, folder: Path) -> Iterator[tuple[int, str]]:
    """Yield descriptors that cannot be served, and the reasons."""

    def keep(made: socket.socket, name: Any = ("127.0.0.1", 0)) -> socket.socket:
        stack.enter_context(made)
        if name:
            made.bind(name)
        return made

    yield (
        keep(socket.socket(type=socket.SOCK_DGRAM)).fileno(),
        ("is a SOCK_DGRAM socket: use ListenStream= in the socket unit"),
    )
    packets = keep(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET), f"{folder}/packets")
    packets.listen()
    yield packets.fileno(), "is a SOCK_SEQPACKET socket: use ListenStream= in the socket unit"
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    stack.enter_context(socket.create_connection(listener.getsockname()))
    yield (
        keep(listener.accept()[0], None).fileno(),
        ("is a connection: use Accept=no in the socket unit"),
    )
    yield keep(socket.socket()).fileno(), "is a socket that does not listen"
    yield (
        keep(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW), None).fileno(),
        ("is an AF_NETLINK socket, not TCP or UNIX"),
    )
    pipe = os.open(folder / "fifo", os.O_RDWR)
    stack.callback(os.close, pipe)
    yield pipe, "is not a socket (Socket operation on non-socket)"


@pytest.mark.usefixtures("fifo")
def test_what_cannot_be_served(
    passOn: PassOn, listeners: list[socket.socket], tmp_path: Path
) -> None:
    """A passed socket that cannot be served is an error that says why."""
    with ExitStack() as stack:
        descriptors, reasons = zip(*sockets(stack, tmp_path), strict=True)
        passOn(listeners[0].fileno(), *descriptors, LISTEN_FDS=len(descriptors) + 2)
        for index, reason in enumerate([*reasons, "is not a socket (Bad file descriptor)"], 1):
            description = f"systemd:INET:index={index}"
            message = f"{description!r}: descriptor {_inherited.FIRST_DESCRIPTOR + index} {reason}"
            with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
                HelloEndpoint(None, description)
        with pytest.raises(ValueError, match="is a SOCK_DGRAM socket"):
            HelloEndpoint(None, "systemd:INET:name=unknown")
        with capturedLogs() as events:
            warnOfUnserved([_inherited.FIRST_DESCRIPTOR])
        assert not events  # None of them listens.


def test_sockets_that_no_endpoint_serves(passOn: PassOn, listeners: list[socket.socket]) -> None:
    """A passed socket that no endpoint serves is a warning that says how to serve it."""
    passOn(*(each.fileno() for each in listeners), names="a:b=\\:a")

    def make(*arguments: str) -> list[str]:
        options = Options(MemoryReactorClock())
        options.parseOptions(arguments)
        with capturedLogs() as events:
            makeService(options, MemoryReactorClock())
        return texts(events)

    first = ["-e", "haproxy:systemd:INET:index=0"]
    port = listeners[2].getsockname()[1]
    told = [
        re.fullmatch("Inherited but not served: (.*); serve it with -e (.*)", str(text))
        for text in make(*first)
    ]
    assert [each and each[1] for each in told] == [
        f"unix:{listeners[1].getsockname()}",
        f"[::1]:{port}",
    ]
    offered = [HelloEndpoint(None, shlex.split(each[2])[0]).descriptors for each in told if each]
    start = _inherited.FIRST_DESCRIPTOR
    assert offered == [[start + 1], [start, start + 2]]
    assert make(*first, "--status", "systemd:INET:index=2", "-e", r"systemd:UNIX:name=b=\\") == []
