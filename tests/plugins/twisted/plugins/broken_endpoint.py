"""An endpoint type as another package may add one, with a fault of its own."""

from typing import Any

from twisted.internet.interfaces import IStreamServerEndpointStringParser
from twisted.plugin import IPlugin
from zope.interface import implementer


@implementer(IPlugin, IStreamServerEndpointStringParser)
class BrokenParser:
    """Cannot parse C{broken:}, for a reason that is Python's."""

    prefix = "broken"

    def parseStreamServer(self, reactor: Any, circuit: str = "") -> Any:
        """Look up what is not there."""
        return {}[circuit]


brokenParser = BrokenParser()
