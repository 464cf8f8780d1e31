"""The endpoints of one factory, and the ports that listen on them."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.internet.stdio import PipeAddress
from twisted.logger import Logger
from twisted.python.failure import Failure

from hello_listen.endpoint import SeveralPorts

Address = IPv4Address | IPv6Address | UNIXAddress | PipeAddress
"""The address of a listening port; the first two have C{host} and C{port}."""

_log = Logger(namespace="hello_listen")


class Listeners:
    """Binds endpoints for one factory, says where they listen, and hands over their ports."""

    def __init__(
        self,
        factory: Any,
        endpoints: Sequence[IStreamServerEndpoint],
        announce: Callable[[Sequence[Address]], object],
    ) -> None:
        """
        Take endpoints, which are bound later.

        @param factory: the factory that serves them.
        @param endpoints: the endpoints; one may occur several times.
        @param announce: called with the addresses of each endpoint that is bound.
        """
        self._factory = factory
        self._endpoints = endpoints
        self._announce = announce
        self._ports: dict[int, list[Any]] = {}

    @property
    def listening(self) -> list[tuple[str, Address | None]]:
        """
        Each endpoint's description, and the address that it is bound to, or L{None}.

        An endpoint with several sockets occurs once for each of them.
        """
        return [
            (_description(endpoint), _addressOf(port))
            for number, endpoint in enumerate(self._endpoints)
            for port in self._ports.get(number, [None])
        ]

    def listen(self) -> Iterator[Coroutine[Any, Any, None]]:
        """For each endpoint, yield a coroutine that binds it, and that raises its errors."""
        for number in range(len(self._endpoints)):
            yield self._listen(number)

    async def _listen(self, number: int) -> None:
        """Bind one endpoint, and announce its addresses."""
        port: Any = await self._endpoints[number].listen(self._factory)
        self._ports[number] = port.ports if isinstance(port, SeveralPorts) else [port]
        self._announce([each.getHost() for each in self._ports[number]])

    def detach(self) -> list[tuple[str, Any]]:
        """Return all ports with the descriptions of their endpoints, and forget them."""
        ports, self._ports = self._ports, {}
        return [
            (_description(self._endpoints[number]), port)
            for number, several in ports.items()
            for port in several
        ]


def release(ports: Sequence[tuple[str, Any]]) -> Deferred[Any]:
    """
    Stop ports. An error is logged.

    @param ports: the ports with their descriptions, as L{Listeners.detach} returns them.

    @return: a L{Deferred} that fires when all have stopped.
    """
    return gatherResults(
        maybeDeferred(port.stopListening).addErrback(_logNotReleased, description)
        for description, port in ports
    )


def _description(endpoint: IStreamServerEndpoint) -> str:
    """Return the description that an endpoint was made from, or else its text."""
    return str(getattr(endpoint, "description", endpoint))


def _addressOf(port: Any) -> Address | None:
    """Return the address of a port; L{None} if it is not bound, or was closed by the reactor."""
    if port is None or getattr(port, "disconnected", False):
        return None
    address: Address = port.getHost()
    return address


def _logNotReleased(failure: Failure, description: str) -> None:
    """Log that a port did not stop, such as a UNIX socket in a folder that --uid may not write."""
    reason = getattr(failure.value, "strerror", None) or failure.value
    _log.error("Not released: {reason}: {endpoint!r}", reason=reason, endpoint=description)
