"""Events of Twisted's log, as L{twisted.logger.capturedLogs} gives them."""

from collections.abc import Iterable

from twisted.logger import LogEvent, formatEvent


def texts(events: Iterable[LogEvent]) -> list[str]:
    """Return the text of each event."""
    return [formatEvent(event) for event in events]
