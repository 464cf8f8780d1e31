"""Fake reactors and ports: in memory, or with a time that a test sets."""

from __future__ import annotations

from collections.abc import Callable
from queue import Queue
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IListeningPort
from twisted.internet.selectreactor import SelectReactor
from twisted.internet.testing import MemoryReactorClock
from zope.interface import implementer

HOUR = 3600.0

TIMEOUT = 60.0
"""Timeout of every wait of a unit test, in seconds; processes.PATIENCE is that for programs."""


class FakeReactor(MemoryReactorClock):
    """Makes the calls that threads request when a test waits for them."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: Queue[tuple[Callable[..., object], tuple[object, ...]]] = Queue()

    def callFromThread(self, function: Callable[..., object], *args: object) -> None:
        """Keep a call until the test waits."""
        self._calls.put((function, args))

    def callOne(self) -> None:
        """Wait for the next call from a thread, and make it."""
        function, args = self._calls.get(timeout=TIMEOUT)
        function(*args)

    def wait(self, deferred: Deferred[Any]) -> None:
        """Make the calls from threads, until a Deferred has fired."""
        results: list[object] = []
        deferred.addBoth(results.append)
        while not results:
            self.callOne()


@implementer(IListeningPort)
class FakePort:
    """A port that records that it was stopped."""

    stopped = False

    def __init__(self, error: Exception | None = None) -> None:
        """Stop with an error, or without."""
        self.error = error

    def startListening(self) -> None:
        """Do nothing."""

    def getHost(self) -> IPv4Address:
        """Return some address."""
        return IPv4Address("TCP", "127.0.0.1", 7878)

    def stopListening(self) -> Deferred[None] | None:
        """Stop."""
        self.stopped = True
        return fail(self.error) if self.error else None


class ListeningReactor(MemoryReactorClock):
    """A reactor that returns, or raises, the given results for calls of C{listenTCP}."""

    def __init__(self, *results: FakePort | Exception) -> None:
        """Take the results."""
        super().__init__()
        self.results = list(results)

    def listenTCP(self, *args: object, **kwargs: object) -> Any:
        """Return or raise the next result."""
        result = self.results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result


class Stepping(SelectReactor):
    """A reactor whose time a test can step, as the system's time can be stepped."""

    step = 0.0

    def seconds(self) -> float:
        """Return the time."""
        return super().seconds() + self.step
