"""One endpoint: from its description to a port, with words for what is wrong with either."""

from __future__ import annotations

import os
import re
import socket
from contextlib import suppress
from importlib import import_module
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.endpoints import AdoptedStreamServerEndpoint, serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort

from hello_listen.connection import printable
from hello_listen.port import drain, hangUpInPlace
from hello_listen.protocol import HelloFactory

BACKLOG = 2**31 - 1
"""More than any system's longest accept queue, which a longer one is cut to."""


class ListenError(Exception):
    """An endpoint cannot be listened on; the message gives the reason, then the endpoint."""

    # A daemonizing twistd shows 98 bytes of this class's full name and its message.
    __module__ = "hello_listen"


class Endpoint:
    """
    Where to listen, and how.

    @ivar description: what was asked for.
    """

    def __init__(self, description: str, reactor: Any) -> None:
        """
        Parse a description as L{serverFromString} does, but say in words what is wrong.

        C{haproxy:} is read here: Twisted's own tells of a connection before it has read the header.

        @param description: a server endpoint description.
        @param reactor: what to listen with.

        @raise ValueError: it cannot be understood; the message quotes it and names the reason.
        """
        self.description = description
        self._reactor = reactor
        inner = re.sub("^haproxy(:|$)", "", description, flags=re.I)
        self._proxied = inner != description
        try:
            if self._proxied:
                _require("proxyprotocol", "proxy")
            if re.match("(ssl|tls):", inner, re.I):
                _require("OpenSSL", "tls")
            if re.match("haproxy(:|$)", inner, re.I):
                raise ValueError("one PROXY header is expected, not two")
            if re.match("unix:(:|$)", inner):
                raise ValueError("missing: 'address'")
            self._endpoint = _parse(inner, reactor)
        except Exception as error:
            raise ValueError(f"{description!r}: {printable(_parseReason(error))}") from error

    def listen(self, factory: HelloFactory) -> Deferred[Any]:
        """
        Bind the endpoint.

        @param factory: what serves it.

        @return: a L{Deferred} that fires with a port, or fails with a L{ListenError}.
        """
        return maybeDeferred(self._listen, factory).addCallbacks(hangUpInPlace, self._fail)

    def release(self, port: Any, drained: bool) -> Any:
        """
        Stop listening.

        @param port: what L{listen} gave.
        @param drained: whether those in the accept queue are served before; an inherited queue
            keeps them.

        @return: a L{Deferred} that fires when the port is closed, or L{None}.
        """
        if not IListeningPort.providedBy(port):  # Standard I/O, or an attempt that failed.
            self._serving.stopFactory()
            return None
        if not drained or isinstance(self._endpoint, AdoptedStreamServerEndpoint):
            return port.stopListening()
        return Deferred.fromCoroutine(drain(port)).addCallback(lambda _: port.stopListening())

    def _listen(self, factory: HelloFactory) -> Any:
        """Listen, with what the endpoint and its factory need between them."""
        self._serving: Any = factory
        if self._proxied:
            from hello_listen.proxied import ProxiedFactory

            self._serving = ProxiedFactory(factory, self._reactor)
        endpoint: Any = self._endpoint
        if isinstance(endpoint, AdoptedStreamServerEndpoint):
            # A description may be mistaken about what is inherited; it stays open for a restart.
            listener = socket.socket(fileno=os.dup(endpoint.fileno))
            endpoint.addressFamily = listener.family
            if listener.family == getattr(socket, "AF_UNIX", None):
                from hello_listen.inherited import InheritedUNIXPort

                return InheritedUNIXPort(listener, self._serving, self._reactor)
            listener.close()
        return endpoint.listen(self._serving)

    def _fail(self, failure: Any) -> Any:
        """Raise why the endpoint cannot be bound, leaving nothing of the attempt behind."""
        error = failure.value
        if isinstance(error, CancelledError):
            return failure
        if isinstance(error, CannotListenError):
            if isinstance(error.port, bytes) and isinstance(error.socketError, OSError):
                _removeLock(error.port + b".lock")
            error = error.socketError
        reason = getattr(error, "strerror", None) or str(error).rstrip(".") or type(error).__name__
        raise ListenError(f"{printable(reason)}: {self.description!r}") from failure.value


def _parse(description: str, reactor: Any) -> Any:
    """Return an endpoint, with the longest accept queue unless the description gives a length."""
    kind, colon, arguments = description.partition(":")
    if kind.lower() in ("tcp", "tcp6", "unix", "ssl", "tls"):
        # Of two keywords that are the same, the last counts. Twisted's own default is 50.
        with suppress(Exception):
            return serverFromString(reactor, f"{kind}:backlog={BACKLOG}{colon}{arguments}")
    return serverFromString(reactor, description)


def _require(module: str, extra: str) -> None:
    """Import an optional dependency, or raise a L{ValueError} that says what to install."""
    try:
        import_module(module)
    except ImportError as error:
        raise ValueError(f"{error}: pip install 'hello-listen[{extra}]'") from error


# What the parsers let through from Python, and what a person would call it.
_WORDS = (
    (r"invalid literal for int\(\) with base \d+: (.*)", r"not a number: \1"),
    (r".*got an unexpected keyword argument ('.*?').*", r"no such argument: \1"),
    (r".*got multiple values for argument ('.*?').*", r"given twice: \1"),
    (r".*missing \d+ required positional arguments?: (.*)", r"missing: \1"),
    (r".*takes .* positional arguments? but \d+ .*given", r"too many arguments"),
    (r"module 'socket' has no attribute 'AF_(.*)'", r"no such domain: '\1'"),
    (r"generator raised StopIteration", r"ends in a backslash that escapes nothing"),
)


def _parseReason(error: Exception) -> str:
    """Return in words why a description cannot be parsed."""
    if isinstance(error, LookupError):
        return "no such socket was inherited (systemd passes them, see sd_listen_fds(3))"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename!r}"
    for pattern, words in _WORDS:
        if re.fullmatch(pattern, str(error), re.DOTALL):
            return re.sub(pattern, words, str(error), flags=re.DOTALL)
    return str(error) or type(error).__name__


def _removeLock(path: bytes) -> None:
    """Remove the lock that Twisted took before it found that it cannot bind a UNIX socket."""
    with suppress(OSError):
        if os.readlink(path) == b"%d" % os.getpid():
            os.unlink(path)
