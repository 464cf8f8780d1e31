"""An endpoint type as another package may add one, with a fault of its own."""

from typing import Any

from twisted.internet.interfaces import IStreamServerEndpoint, IStreamServerEndpointStringParser
from twisted.plugin import IPlugin
from zope.interface import implementer


@implementer(IPlugin, IStreamServerEndpointStringParser)
class BrokenParser:
    """Cannot parse C{broken:}, for a reason that is Python's."""

    prefix = "broken"

    def parseStreamServer(  # type: ignore[override]
        self, reactor: Any, circuit: str = ""
    ) -> IStreamServerEndpoint:
        """Look up what is not there."""
        circuits: dict[str, IStreamServerEndpoint] = {}
        return circuits[circuit]


brokenParser = BrokenParser()
