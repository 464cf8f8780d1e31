"""Logs why connections could not be served, with a rate limit."""

from __future__ import annotations

from time import monotonic
from traceback import extract_tb, format_exception_only

from twisted.logger import Logger

from hello_listen._addresses import printable

WARNING_INTERVAL = 60.0
"""Seconds from one warning of a port to the next of the same kind, at least."""

_log = Logger(namespace="hello_listen")


class FailureLog:
    """Logs in one line why a connection could not be served; with a rate limit, for each port."""

    def __init__(self) -> None:
        """Log the first failure."""
        self._last = -WARNING_INTERVAL

    def log(self, error: BaseException) -> None:
        """
        Log an error, unless another was logged less than L{WARNING_INTERVAL} seconds ago.

        @param error: the exception that was raised.
        """
        now = monotonic()
        if now - self._last < WARNING_INTERVAL:
            return
        self._last = now
        place = extract_tb(error.__traceback__)[-1]
        _log.error(
            "Connection could not be served: {reason} ({file}:{line})",
            reason=printable("".join(format_exception_only(error)).strip()),
            file=place.filename,
            line=place.lineno,
        )
