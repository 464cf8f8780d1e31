"""Listen on endpoints, all of them or none, and tell observers who connects."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

from twisted.application.service import Service
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import CancelledError, Deferred, gatherResults, maybeDeferred, succeed
from twisted.internet.interfaces import IAddress, IStreamServerEndpoint
from twisted.internet.stdio import PipeAddress
from twisted.logger import Logger
from twisted.python.failure import Failure

from hello_listen._addresses import addressText, unmapped
from hello_listen._clock import monotonicClock
from hello_listen._proxy import pendingHeaders
from hello_listen.endpoint import HelloEndpoint, ListenError, SeveralPorts
from hello_listen.protocol import HelloFactory

Address = IPv4Address | IPv6Address | UNIXAddress | PipeAddress
"""An address that an endpoint listens on; the first two have C{host} and C{port}."""

_log = Logger(namespace="hello_listen")


class HelloService(Service):
    """
    Listens on endpoints, on all of them or on none, and tells a factory's observers who connects.

    When it stops, the accept queues are served, then the observers that have C{close} are closed:
    such a factory serves one service. When it starts again, those that have C{open} are opened.

    @ivar factory: what serves the endpoints.
    @ivar reactor: what it listens with.
    @ivar released: after an endpoint failed, fires when the others are released.
    """

    def __init__(
        self,
        factory: HelloFactory,
        endpoints: Sequence[str | IStreamServerEndpoint],
        reactor: Any = None,
    ) -> None:
        """
        Parse the descriptions; they are bound when the service starts.

        @param factory: what serves every endpoint.
        @param endpoints: descriptions, for L{HelloEndpoint}, or endpoint objects.
        @param reactor: what to listen with; by default the global reactor.

        @raise ValueError: a description cannot be understood.
        @raise TypeError: the factory or the list of endpoints is something else.
        """
        if not isinstance(factory, HelloFactory):
            raise TypeError(f"not a HelloFactory: {factory!r}")
        if isinstance(endpoints, str):
            raise TypeError(f"endpoints are a list: [{endpoints!r}]")
        if reactor is None:
            from twisted.internet import reactor
        self.factory = factory
        self.reactor = reactor
        self._endpoints: list[tuple[IStreamServerEndpoint, Any]] = [
            (HelloEndpoint(reactor, each) if isinstance(each, str) else each, factory)
            for each in endpoints
        ]
        self.released: Deferred[Any] = succeed(None)
        self._attempts: list[Deferred[Any]] | None = None
        self._ports: dict[int, list[Any]] = {}

    @property
    def listening(self) -> list[tuple[str, Address | None]]:
        """
        Each endpoint's description, and the address that it is bound to, or L{None}.

        An endpoint that has several sockets is there once for each.
        """
        return [
            (_describe(each), _addressOf(port))
            for number, (each, factory) in enumerate(self._endpoints)
            if factory is self.factory
            for port in self._ports.get(number, [None])
        ]

    @property
    def headersWaiting(self) -> int:
        """How many connections wait for their PROXY header."""
        return pendingHeaders(self.reactor).countOfFactory(self.factory)

    def serveStatus(self, endpoint: IStreamServerEndpoint, factory: Any) -> None:
        """
        Listen on an endpoint for the status as well, before all others.

        @param endpoint: where to listen.
        @param factory: what serves the status.
        """
        self._endpoints.insert(0, (endpoint, factory))

    def privilegedStartService(self) -> None:
        """
        Bind every endpoint.

        @raise ListenError: one cannot be bound, and those before it are being released.
        @raise OSError: the connection log cannot be opened again after a stop.
        """
        super().privilegedStartService()
        for observer in self.factory.observers:
            getattr(observer, "open", lambda: None)()
        self._attempts = []
        for number in range(len(self._endpoints)):
            attempt = Deferred.fromCoroutine(self._listen(number))
            # What is in there now is raised, and what comes later is told by _failsLater.
            failures: list[Failure] = []
            attempt.addErrback(failures.append)
            if failures:
                self.released = self._release(self._giveUp())
                self._attempts = None
                error = failures[0].value
                if isinstance(error, ListenError):
                    raise error.with_traceback(None)  # Its text says it all.
                failures[0].raiseException()
            attempt.addCallback(self._failsLater, failures)
            self._attempts.append(attempt)

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
        Release every endpoint, close the observers, and log how many connections there were.

        @return: a L{Deferred} that fires when all of that is done. Where nobody comes, that is at
            once. In-flight handshakes have 3 seconds; connections that another protocol keeps open,
            coroutines of observers and a log whose disk is stuck have 5 each; and clients that
            cannot be served because descriptors have run out have 30.
        """
        hasServed = bool(self.running)
        super().stopService()
        return Deferred.fromCoroutine(self._stop(hasServed))

    def listenFailed(self, error: Exception) -> None:
        """
        Log that an endpoint which takes its time to listen could not, and release the others.

        @param error: the reason.
        """
        _log.critical("{error}", error=str(error))
        self.released = self._release(self._giveUp())

    async def _listen(self, number: int) -> None:
        """Listen on one endpoint, and tell where that is."""
        endpoint, factory = self._endpoints[number]
        port: Any = await endpoint.listen(factory)
        self._ports[number] = port.ports if isinstance(port, SeveralPorts) else [port]
        addresses = [each.getHost() for each in self._ports[number]]
        what = "Listening" if factory is self.factory else "Status"
        for address in addresses:
            _log.info("{what} on {address}", what=what, address=addressText(address))
        if what == "Status" and not all(map(_isLocal, addresses)):
            _log.warn("The status page is open to other machines: every address is shown there")

    def _failsLater(self, _: object, failures: list[Failure]) -> None:
        """Tell why an attempt failed after the start, unless the service stopped meanwhile."""
        for failure in failures:
            error: Any = failure.value
            if not isinstance(error, CancelledError):
                self.listenFailed(error)

    def _giveUp(self) -> dict[int, list[Any]]:
        """Cancel what is still on its way, and return the ports there are."""
        for attempt in self._attempts or []:
            attempt.cancel()
        ports, self._ports = self._ports, {}
        return ports

    def _release(self, ports: dict[int, list[Any]]) -> Deferred[Any]:
        """Stop listening on ports."""
        stopping = [
            maybeDeferred(port.stopListening).addErrback(
                _logNotReleased, self._endpoints[number][0]
            )
            for number, several in ports.items()
            for port in several
        ]
        return gatherResults(stopping)

    async def _stop(self, hasServed: bool) -> None:
        """Stop what is recorded, then what records it, and at last what serves the status."""
        ports = self._giveUp()
        self._attempts = None
        await self.released
        status = {n: p for n, p in ports.items() if self._endpoints[n][1] is not self.factory}
        await self._release({n: p for n, p in ports.items() if n not in status})
        await self.factory.calls.finish(monotonicClock(self.reactor))
        closes = [o.close for o in self.factory.observers if hasattr(o, "close")]
        closing = [maybeDeferred(close).addErrback(_logNotClosed) for close in closes]
        told = any(await gatherResults(closing))  # A connection log has told its own counts.
        if not told and (hasServed or self.factory.connections):
            _log.info("Stopped. Connections: {count}", count=self.factory.connections)
        await self._release(status)


def _isLocal(address: IAddress) -> bool:
    """Say whether only this machine reaches an address."""
    host = getattr(unmapped(address), "host", None)
    return host is None or ip_address(host).is_loopback


def _describe(endpoint: IStreamServerEndpoint) -> str:
    """Return the description that an endpoint was made from, or what it says of itself."""
    return str(getattr(endpoint, "description", endpoint))


def _addressOf(port: Any) -> Address | None:
    """Return the address of a port that listens, which one that the reactor closed does not."""
    if port is None or getattr(port, "disconnected", False):
        return None
    address: Address = port.getHost()
    return address


def _logNotReleased(failure: Failure, endpoint: IStreamServerEndpoint) -> None:
    """Say what could not be removed, such as a UNIX socket in a folder that --uid may not write."""
    reason = getattr(failure.value, "strerror", None) or failure.value
    _log.error("Not released: {reason}: {endpoint!r}", reason=reason, endpoint=_describe(endpoint))


def _logNotClosed(failure: Failure) -> None:
    """Say that an observer could not be closed."""
    _log.failure("Observer could not be closed", failure)
