"""An endpoint type as another package may add one: it listens, or fails, when a test says so."""

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IStreamServerEndpoint, IStreamServerEndpointStringParser
from twisted.plugin import IPlugin
from zope.interface import implementer

pending: list[Deferred[Any]] = []


@implementer(IStreamServerEndpoint)
class LaterEndpoint:
    """Listens after a while: after a number of seconds it fails, without one a test decides."""

    def __init__(self, reactor: Any, seconds: str) -> None:
        """Take the seconds, if any."""
        self.reactor = reactor
        self.seconds = seconds

    def listen(self, factory: object) -> Deferred[Any]:
        """Return what is not decided yet."""
        port: Deferred[Any] = Deferred()
        if self.seconds:
            self.reactor.callLater(float(self.seconds), port.errback, OSError("no circuit"))
        pending.append(port)
        return port


@implementer(IPlugin, IStreamServerEndpointStringParser)
class LaterParser:
    """Parses C{later:}, C{later:SECONDS} and C{later:lookup}."""

    prefix = "later"

    def parseStreamServer(  # type: ignore[override]
        self, reactor: Any, seconds: str = ""
    ) -> LaterEndpoint:
        """Return an endpoint, or fail as a look-up does."""
        if seconds == "lookup":
            raise LookupError("'no such onion'")
        return LaterEndpoint(reactor, seconds)


laterParser = LaterParser()
