"""An endpoint: parses its description, binds it, and explains errors."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from importlib import import_module
from typing import Any

from twisted.internet import tcp
from twisted.internet.defer import CancelledError, Deferred, fail, gatherResults, succeed
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IAddress, IListeningPort, IStreamServerEndpoint
from twisted.internet.protocol import Factory
from zope.interface import implementer

from hello_listen._addresses import printable
from hello_listen._inherited import InheritedSocket, InheritedSockets
from hello_listen._networks import Networks
from hello_listen._port import HelloPort
from hello_listen._proxy import ProxiedFactory, pendingHeaders
from hello_listen._redirect import checkRedirected
from hello_listen._tls import TLSReactor, checkFiles
from hello_listen._unix import UNIXReactor, UNIXSocket
from hello_listen._words import availableTypes, corrected, listenReason, occupies, parseReason
from hello_listen.protocol import HelloFactory

BACKLOG = 2**31 - 1
"""Length of the accept queue, in connections: larger than any limit; listen(2) caps it."""

HAPROXY = re.compile("haproxy(:|$)", re.I)
"""Matches the beginning of C{haproxy:} descriptions."""

REDIRECTED = re.compile("redirected(:|$)", re.I)
"""Matches the beginning of C{redirected:} descriptions."""


class ListenError(CannotListenError):
    """
    Raised if an endpoint cannot be listened on. The text is the reason, then the endpoint.

    >>> from twisted.internet import reactor
    >>> from hello_listen import HelloEndpoint, HelloFactory
    >>> listening = HelloEndpoint(reactor, "unix:missing/hello.sock").listen(HelloFactory())
    >>> handled = listening.addErrback(lambda failure: print(failure.value))
    No such file or directory: 'unix:missing/hello.sock'

    @ivar port: the endpoint's description.
    @ivar socketError: the reason.
    """

    # A daemonizing twistd truncates the class's full name and its text to 98 bytes.
    __module__ = "hello_listen"

    def __str__(self) -> str:
        """Return the reason and the endpoint."""
        return f"{self.socketError}: {self.port!r}"


@implementer(IStreamServerEndpoint)
class HelloEndpoint:
    """
    An endpoint that records each connection with the right client.

    It adds to Twisted's own endpoints: C{haproxy:} reads the PROXY header before the factory builds
    a protocol, the accept queue is as long as the system allows, clients wait in it when
    descriptors run out, they are served when the port stops, and Twisted's log says if it was full.
    C{systemd:} serves all sockets of a name, C{unix:} takes over a dead process's path, and
    C{redirected:} names the address that a client called before a firewall redirected it.

    >>> from twisted.internet import reactor
    >>> from hello_listen import HelloEndpoint, HelloFactory
    >>> endpoint = HelloEndpoint(reactor, "haproxy:tcp:0:interface=127.0.0.1")
    >>> listening = endpoint.listen(HelloFactory(print))
    >>> stopped = listening.addCallback(lambda port: port.stopListening())

    @ivar description: the endpoint's description.
    @ivar descriptors: the descriptors of the inherited sockets that it serves.
    """

    def __init__(
        self, reactor: Any, description: str, trustedProxies: Iterable[str] | None = None
    ) -> None:
        """
        Parse a description. This reads key and certificate files, and binds nothing.

        @param reactor: the reactor to listen with.
        @param description: a server endpoint description, as
            L{twisted.internet.endpoints.serverFromString} takes it.
        @param trustedProxies: with C{haproxy:}, the IP addresses or networks whose PROXY header is
            believed; another peer is recorded as itself, with an error. By default every peer is
            believed. Peers of UNIX sockets always are: the socket's mode says who may connect.

        @raise ValueError: the description is wrong; the message quotes it and names the reason.
        """
        self.description = description
        self._reactor = reactor
        # Twisted's haproxy: calls connectionMade before it has read the header, so _proxy reads it.
        found = HAPROXY.match(description) or REDIRECTED.match(description)
        prefix = found[0] if found else ""
        inner = description.removeprefix(prefix)
        self._proxied = bool(HAPROXY.match(prefix))
        self._isRedirected = bool(REDIRECTED.match(prefix))
        try:
            self._trusted = None if trustedProxies is None else Networks(trustedProxies)
            if self._trusted and not self._proxied:
                raise ValueError("only an endpoint with haproxy: has trusted proxies")
            if self._proxied and HAPROXY.match(inner):
                raise ValueError("one PROXY header is expected, not two")
            if self._isRedirected:
                checkRedirected(inner)
            elif REDIRECTED.match(inner):
                raise ValueError("redirected: is not needed, the PROXY header names the address")
            if empty := re.match("(tcp6?|ssl|unix):(:|$)", inner):
                raise ValueError(f"missing: '{'address' if empty[1] == 'unix' else 'port'}'")
            if re.match("(ssl|tls):", inner, re.I):
                import_module("OpenSSL")
            self._endpoint = _parse(inner, reactor)
            self.descriptors: list[int] = getattr(self._endpoint, "descriptors", [])
        except Exception as error:
            reason = printable(parseReason(error))
            hint = _hint(prefix, inner, reactor) or availableTypes(reason)
            raise ValueError(f"{description!r}: {reason}{hint}") from error

    def listen(self, factory: Any) -> Deferred[Any]:
        """
        Bind the endpoint.

        @param factory: a L{HelloFactory}; without C{haproxy:}, any
            L{twisted.internet.interfaces.IProtocolFactory} will do, but a stop does not
            wait for its connections, and one is accepted per reactor turn.

        @return: a L{twisted.internet.defer.Deferred} that fires with an
            L{twisted.internet.interfaces.IListeningPort}, or fails with a L{ListenError},
            or with a L{TypeError} where C{haproxy:} needs a L{HelloFactory}.
        """
        hello = factory if isinstance(factory, HelloFactory) else None
        if self._proxied and hello is None:
            return fail(TypeError(f"{self.description!r} needs a HelloFactory, not {factory!r}"))
        if self._proxied and hello:
            factory = ProxiedFactory(hello, pendingHeaders(self._reactor), self._trusted)
        return Deferred.fromCoroutine(self._listen(factory, hello))

    async def _listen(self, factory: Any, hello: HelloFactory | None) -> Any:
        """Bind the endpoint, and have HelloPorts serve its sockets."""
        endpoint, reactor = self._endpoint, self._reactor
        proxied = factory if isinstance(factory, ProxiedFactory) else None
        ports: list[Any] = []
        try:
            for descriptor in self.descriptors:
                if descriptor in [reader.fileno() for reader in reactor.getReaders()]:
                    raise ValueError("another endpoint serves this socket")
                inherited = InheritedSocket(descriptor, factory)
                port = HelloPort(inherited, hello, reactor, proxied, True, self._isRedirected)
                ports.append(port)
            if not ports:
                port = await endpoint.listen(factory)
                if not isinstance(port, (tcp.Port, UNIXSocket)):
                    isPort = IListeningPort.providedBy(port)
                    return port if isPort else _StandardIOPort(port, factory)
                ports = [HelloPort(port, hello, reactor, proxied, False, self._isRedirected)]
            for port in ports:
                port.description = self.description
                port.startListening()
        except CancelledError:
            raise
        except Exception as error:
            for port in ports:
                port.stopListening()
            reason = listenReason(error, self.description)
            for reader in reactor.getReaders():
                if isinstance(reader, HelloPort) and occupies(reader.getHost(), error):
                    reason += f" by {reader.description!r}"
                    break
            raise ListenError(None, self.description, reason) from None
        return ports[0] if len(ports) == 1 else SeveralPorts(ports)


@implementer(IListeningPort)
class SeveralPorts:
    """
    The ports of one endpoint that has several sockets.

    @ivar ports: the ports.
    """

    def __init__(self, ports: list[Any]) -> None:
        """
        Hold ports that listen.

        @param ports: the ports.
        """
        self.ports = ports

    def startListening(self) -> None:
        """Do nothing: each port listens."""

    def getHost(self) -> IAddress:
        """Return the address of the first socket."""
        host: IAddress = self.ports[0].getHost()
        return host

    def stopListening(self) -> Deferred[Any]:
        """Stop each port."""
        return gatherResults(port.stopListening() for port in self.ports)


@implementer(IListeningPort)
class _StandardIOPort:
    """The port of C{stdio:}, whose one connection is made before the port exists."""

    def __init__(self, transport: Any, factory: Factory) -> None:
        """Start the factory, as a port does."""
        self._transport = transport
        self._factory = factory
        factory.doStart()

    def startListening(self) -> None:
        """Do nothing: the connection was made already."""

    def getHost(self) -> IAddress:
        """Return the address of a pipe."""
        host: IAddress = self._transport.getHost()
        return host

    def stopListening(self) -> Deferred[None]:
        """Stop the factory, which records a connection whose PROXY header is not whole."""
        self._factory.doStop()
        return succeed(None)


def _parse(description: str, reactor: Any) -> Any:
    """Return Twisted's endpoint, or for C{systemd:} the L{InheritedSockets}."""
    kind = description.partition(":")[0].lower()
    if kind == "systemd":
        positional, named = _arguments(description)
        return InheritedSockets(*positional[1:], **named)
    if kind == "unix":
        reactor = UNIXReactor()
    if kind in ("ssl", "tls"):
        return _parseTLS(kind, description, reactor)
    return _withBacklog(description, reactor)


def _parseTLS(kind: str, description: str, reactor: Any) -> Any:
    """Return an endpoint with TLS, after OpenSSL has accepted its files."""
    positional, named = _arguments(description)
    if kind == "tls":
        from hello_listen._certificates import checkCertificates, withKnownNames

        paths = [named["path"]] if "path" in named else positional[1:2]
        names = [name for path in paths for name in checkCertificates(path)]
        return withKnownNames(_withBacklog(description, reactor), names)
    checkFiles(named)
    standIn = TLSReactor(reactor)
    endpoint = _withBacklog(description, standIn)
    standIn.makeContext(endpoint)
    return endpoint


def _withBacklog(description: str, reactor: Any) -> Any:
    """Return Twisted's endpoint of a description; C{backlog=} is by default the largest."""
    kind, colon, arguments = description.partition(":")
    if kind.lower() in ("tcp", "tcp6", "unix", "ssl", "tls"):
        # Twisted keeps the last of repeated keywords, so the user's backlog= wins.
        with suppress(Exception):
            return serverFromString(reactor, f"{kind}:backlog={BACKLOG}{colon}{arguments}")
    return serverFromString(reactor, description)


def _arguments(text: str) -> tuple[list[str], dict[str, str]]:
    """Return the positional and the named arguments of a description, without their escapes."""
    positional, named = list[str](), dict[str, str]()
    for argument in re.split(r"(?<!\\):", text):
        name, equals, value = argument.partition("=")
        if equals and name.isidentifier():
            named[name] = re.sub(r"\\(.)", r"\1", value)
        else:
            positional.append(re.sub(r"\\(.)", r"\1", argument))
    return positional, named


def _hint(prefix: str, description: str, reactor: Any) -> str:
    """Return a question that suggests a corrected description, or an empty text."""
    guess = corrected(description)
    if guess != description and guess.isprintable():
        with suppress(Exception):
            _parse(guess, reactor)
            return f"; did you mean '{prefix}{guess}'?"
    return ""
