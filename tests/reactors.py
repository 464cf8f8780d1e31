"""Reactors for tests: one in memory that runs when a test says so, one whose time can be set."""

from __future__ import annotations

from collections.abc import Callable
from queue import Queue
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.selectreactor import SelectReactor
from twisted.internet.testing import MemoryReactorClock

HOUR = 3600.0


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


class Stepping(SelectReactor):
    """A reactor whose time, as that of Twisted's own, is the system's: somebody may set it."""

    step = 0.0

    def seconds(self) -> float:  # type: ignore[override]
        """Return the time."""
        return super().seconds() + self.step

    def until(self, condition: Callable[[], object]) -> None:
        """Turn until a condition is true."""
        for _ in range(2000):
            if condition():
                return
            self.iterate(0.01)
        raise AssertionError("it did not come to pass")
