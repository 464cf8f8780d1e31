"""A service that listens on all of its endpoints or on none, and closes its observers last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ipaddress import ip_address
from itertools import chain
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, gatherResults, maybeDeferred, succeed
from twisted.internet.interfaces import IAddress, IStreamServerEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from hello_listen._addresses import addressText, unmapped
from hello_listen._clock import monotonicClock
from hello_listen._listeners import Address, Listeners, release
from hello_listen._proxy import pendingHeaders
from hello_listen.endpoint import HelloEndpoint, ListenError
from hello_listen.protocol import HelloFactory

StatusServer = tuple[IStreamServerEndpoint, Callable[["HelloService"], Any]]
"""The status page's endpoint, and a function that returns its factory for a service."""

_log = Logger(namespace="hello_listen")


class HelloService(Service):
    """
    Listens on all of its endpoints or on none, and tells a factory's observers of connections.

    A stop serves the accept queues, then closes the observers that have C{close}, so a factory
    belongs to one service. A start calls C{open} of the observers that have it, which opens them
    again after a stop.

    C{close} may return a L{twisted.internet.defer.Deferred}, which a stop waits for without a
    timeout. A result that is true, as that of L{ConnectionLog.close}, says that the observer has
    logged the number of connections; unless there is one, the stop logs it.

    >>> from hello_listen import HelloFactory, HelloService
    >>> service = HelloService(HelloFactory(print), ["tcp:0:interface=127.0.0.1"])
    >>> service.startService()
    >>> [(description, address)] = service.listening
    >>> address.host
    '127.0.0.1'
    >>> stopped = service.stopService()

    @ivar factory: the factory that serves the endpoints.
    @ivar reactor: the reactor that listens.
    @ivar released: after an endpoint failed, fires when the others are released.
    """

    def __init__(
        self,
        factory: HelloFactory,
        endpoints: Sequence[str | IStreamServerEndpoint],
        reactor: Any = None,
        status: StatusServer | None = None,
    ) -> None:
        """
        Parse the descriptions; they are bound when the service starts.

        @param factory: the factory that serves every endpoint.
        @param endpoints: descriptions, for L{HelloEndpoint}, or endpoint objects.
        @param reactor: the reactor that listens; by default the global reactor.
        @param status: serves the status page, if any; bound first and released last.

        @raise ValueError: a description cannot be parsed.
        @raise TypeError: the factory or the list of endpoints has another type.
        """
        if not isinstance(factory, HelloFactory):
            raise TypeError(f"not a HelloFactory: {factory!r}")
        if isinstance(endpoints, str):
            raise TypeError(f"endpoints are a list: [{endpoints!r}]")
        if reactor is None:
            from twisted.internet import reactor
        self.factory = factory
        self.reactor = reactor
        self.released: Deferred[Any] = succeed(None)
        self._attempts: list[Deferred[None]] | None = None
        parsed = [
            HelloEndpoint(reactor, each) if isinstance(each, str) else each for each in endpoints
        ]
        self._observed = Listeners(factory, parsed, _announce)
        self._status = Listeners(None, [], _announceStatus)
        if status is not None:
            endpoint, makeFactory = status
            self._status = Listeners(makeFactory(self), [endpoint], _announceStatus)

    @property
    def listening(self) -> list[tuple[str, Address | None]]:
        """
        Each endpoint's description, and the address that it is bound to, or L{None}.

        An endpoint with several sockets occurs once for each of them.
        """
        return self._observed.listening

    @property
    def headersWaiting(self) -> int:
        """The number of connections whose PROXY header is incomplete."""
        return pendingHeaders(self.reactor).countOfFactory(self.factory)

    def privilegedStartService(self) -> None:
        """
        Bind every endpoint. A failure that comes later is passed to L{listenFailed}.

        @raise ListenError: an endpoint cannot be bound; those before it are being released.
        @raise OSError: the connection log cannot be opened again after a stop.
        """
        super().privilegedStartService()
        for observer in self.factory.observers:
            getattr(observer, "open", lambda: None)()
        self._attempts = []
        for binding in chain(self._status.listen(), self._observed.listen()):
            attempt = Deferred.fromCoroutine(binding)
            failure = _failureOf(attempt)
            if failure is not None:
                self._release()
                self._attempts = None
                if isinstance(failure.value, ListenError):
                    raise failure.value.with_traceback(None)  # Its text says it all.
                failure.raiseException()
            self._attempts.append(attempt.addErrback(self._failLater))

    def startService(self) -> None:
        """
        Bind every endpoint, unless L{privilegedStartService} did.

        @raise ListenError: as L{privilegedStartService} does.
        """
        if self._attempts is None:
            self.privilegedStartService()
        super().startService()

    def stopService(self) -> Deferred[None]:
        """
        Release every endpoint, close the observers, and log the number of connections.

        @return: a L{twisted.internet.defer.Deferred} that fires when all of that is done: at once
            if no client is there.
            The upper bounds are 3 seconds for in-flight handshakes; 5 seconds each for connections
            that another protocol keeps open, coroutines of observers, and a log whose disk is
            stuck; and 30 seconds for clients that cannot be accepted for want of descriptors.
        """
        hasServed = bool(self.running)
        super().stopService()
        return Deferred.fromCoroutine(self._stop(hasServed))

    def listenFailed(self, error: Exception) -> None:
        """
        Log that an endpoint could not be bound after the start, and release the others.

        @param error: the reason.
        """
        _log.critical("{error}", error=str(error))
        self._release()

    def _failLater(self, failure: Failure) -> None:
        """Report a failure after the start, unless the service cancelled the attempt."""
        if failure.check(CancelledError) is None:
            error: Any = failure.value
            self.listenFailed(error)

    def _release(self) -> None:
        """Cancel the attempts that are unfinished, and release every port."""
        self._cancel()
        self.released = release([*self._status.detach(), *self._observed.detach()])

    def _cancel(self) -> None:
        """Cancel the attempts that are unfinished."""
        for attempt in self._attempts or []:
            attempt.cancel()

    async def _stop(self, hasServed: bool) -> None:
        """Stop the ports, close the observers, then stop the status page."""
        self._cancel()
        self._attempts = None
        observed, status = self._observed.detach(), self._status.detach()
        await self.released
        await release(observed)
        await self.factory.calls.finish(monotonicClock(self.reactor))
        closes = [o.close for o in self.factory.observers if hasattr(o, "close")]
        closing = [maybeDeferred(close).addErrback(_logNotClosed) for close in closes]
        told = any(await gatherResults(closing))  # A connection log logs its own counts.
        if not told and (hasServed or self.factory.connections):
            _log.info("Stopped. Connections: {count}", count=self.factory.connections)
        await release(status)


def _failureOf(attempt: Deferred[None]) -> Failure | None:
    """Return the failure of an attempt that has failed already, and handle it."""
    failures: list[Failure] = []
    if attempt.called:
        attempt.addErrback(failures.append)
    return failures[0] if failures else None


def _announce(addresses: Sequence[Address], what: str = "Listening") -> None:
    """Log where an endpoint listens."""
    for address in addresses:
        _log.info("{what} on {address}", what=what, address=addressText(address))


def _announceStatus(addresses: Sequence[Address]) -> None:
    """Log where the status page is, and warn if other machines reach it."""
    _announce(addresses, "Status")
    if not all(map(_isLocal, addresses)):
        _log.warn("The status page is open to other machines: every address is shown there")


def _isLocal(address: IAddress) -> bool:
    """Say whether an address is reached from this machine only."""
    host = getattr(unmapped(address), "host", None)
    return host is None or ip_address(host).is_loopback


def _logNotClosed(failure: Failure) -> None:
    """Log that an observer could not be closed."""
    _log.failure("Observer could not be closed", failure)
