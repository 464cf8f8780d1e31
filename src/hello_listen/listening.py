"""Listen on endpoint descriptions, all of them or none."""

from __future__ import annotations

from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger
from twisted.python.failure import Failure

from hello_listen.connection import addressText
from hello_listen.endpoint import Endpoint, ListenError
from hello_listen.protocol import HelloFactory

_log = Logger(namespace="hello_listen")


class HelloService(Service):
    """
    Listens on endpoints: on all of them, or on none.

    Beyond what L{StreamServerEndpointService} does: C{haproxy:} endpoints report the client that
    the proxy names, the accept queue is as long as the system allows, plain TCP connections are
    closed in place, and at the end those who are in the queue are served.

    @ivar factory: what serves every endpoint.
    @ivar reactor: what it listens with.
    """

    def __init__(self, factory: HelloFactory, *descriptions: str, reactor: Any = None) -> None:
        """
        Parse the descriptions; they are bound when the service starts.

        @param factory: what serves every endpoint.
        @param descriptions: server endpoint descriptions, as
            L{twisted.internet.endpoints.serverFromString} takes them.
        @param reactor: what to listen with; by default the global reactor.

        @raise ValueError: a description cannot be understood.
        """
        if reactor is None:
            from twisted.internet import reactor
        self.factory = factory
        self.reactor = reactor
        self._endpoints = [Endpoint(description, reactor) for description in descriptions]
        self._listening: list[tuple[Endpoint, Deferred[Any]]] = []

    def privilegedStartService(self) -> None:
        """
        Bind every endpoint.

        @raise ListenError: one cannot be bound; those before it were released again.
        """
        super().privilegedStartService()
        try:
            for endpoint in self._endpoints:
                self._listen(endpoint)
        except ListenError:
            self._release(drained=False)
            raise

    def startService(self) -> None:
        """
        Bind every endpoint, unless L{privilegedStartService} did.

        @raise ListenError: as L{privilegedStartService} does.
        """
        if not self._listening:
            self.privilegedStartService()
        super().startService()

    def stopService(self) -> Deferred[None]:
        """
        Release every endpoint, and log how many connections there were.

        @return: a L{Deferred} that fires when they can be bound anew.
        """
        super().stopService()
        return self._release().addCallback(
            lambda _: _log.info("Stopped. Connections: {count}", count=self.factory.connections)
        )

    def listenFailed(self, error: ListenError) -> None:
        """
        Log that an endpoint which takes its time to listen could not, and release the others.

        @param error: the reason.
        """
        _log.critical("{error}", error=str(error))
        self._release()

    def _listen(self, endpoint: Endpoint) -> None:
        """Listen on one endpoint, and raise what comes of that at once."""
        failures: list[Failure] = []
        port = endpoint.listen(self.factory).addErrback(failures.append)
        if failures:
            failures[0].raiseException()
        port.addCallback(self._told, failures)
        self._listening.append((endpoint, port))

    def _told(self, port: Any, failures: list[Failure]) -> Any:
        """Tell where it listens, or why it failed, unless that was because the service stopped."""
        if IListeningPort.providedBy(port):
            _log.info("Listening on {address}", address=addressText(port.getHost()))
        for failure in failures:
            if isinstance(failure.value, ListenError):
                self.listenFailed(failure.value)
        return port

    def _release(self, drained: bool = True) -> Deferred[Any]:
        """Stop listening on what was bound so far."""
        listening, self._listening = self._listening, []
        for endpoint, port in listening:
            port.cancel()
            port.addCallback(endpoint.release, drained)
            port.addErrback(_logNotReleased, endpoint.description)
        return gatherResults([port for _, port in listening])


def _logNotReleased(failure: Failure, description: str) -> None:
    """Say that something of an endpoint is left, as a UNIX socket is that --uid may not remove."""
    reason = getattr(failure.value, "strerror", None) or failure.value
    _log.error("Not released: {reason}: {endpoint!r}", reason=reason, endpoint=description)
