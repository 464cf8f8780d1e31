"""A reactor in memory, for tests that decide when it runs."""

from __future__ import annotations

from collections.abc import Callable
from queue import Queue
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock


class FakeReactor(MemoryReactorClock):
    """Calls what threads want called when a test waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: Queue[tuple[Callable[..., object], tuple[object, ...]]] = Queue()

    def callFromThread(self, function: Callable[..., object], *args: object) -> None:
        """Keep it until a test waits."""
        self._calls.put((function, args))

    def callOne(self) -> None:
        """Wait for the next call from a thread, and make it."""
        function, args = self._calls.get(timeout=20)
        function(*args)

    def wait(self, deferred: Deferred[Any]) -> None:
        """Make the calls from threads, until a Deferred has fired."""
        results: list[object] = []
        deferred.addBoth(results.append)
        while not results:
            self.callOne()
