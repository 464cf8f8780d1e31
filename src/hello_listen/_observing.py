"""Calls observers, runs the coroutines that they return, and logs failures."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as TimedOut
from twisted.logger import Logger
from twisted.python.failure import Failure

MAX_UNFINISHED = 1000
"""Upper bound of unfinished calls of observers; beyond it, coroutines are not run."""

FINISH_TIMEOUT = 5.0
"""Seconds that a stop waits for the coroutines and Deferreds of observers."""

Observer = Callable[[Any], "Awaitable[object] | object"]
"""Called with each L{Connection}; behind L{Summaries}, with each L{Summary} too."""

_log = Logger(namespace="hello_listen")


class ObserverCalls:
    """Calls observers, and tracks the coroutines and Deferreds that they return."""

    def __init__(self) -> None:
        """Start without unfinished calls."""
        self._unfinished: set[Deferred[Any]] = set()
        self._notRun = 0
        self._waiting: list[Deferred[None]] = []

    def call(self, observer: Observer, record: Any) -> None:
        """
        Call an observer, and log whatever it raises, now or later.

        @param observer: the observer; a coroutine that it returns is run.
        @param record: the connection or summary to call it with.
        """
        try:
            result = observer(record)
            if result is not None:
                self.follow(result, record)
        except BaseException:
            self.fail(record)

    def fail(self, record: Any) -> None:
        """
        Log the exception that an observer has just raised, also C{SystemExit}.

        @param record: the connection or summary that it was called with, for the message.
        """
        # On SystemExit, the reactor would close the port.
        _logFailure(Failure(), record)

    def finish(self, reactor: Any) -> Deferred[None]:
        """
        Wait for unfinished calls.

        @param reactor: an L{twisted.internet.interfaces.IReactorTime}.

        @return: a L{Deferred} that fires when all calls have finished, within 5 seconds.
        """
        ended: Deferred[None] = Deferred()
        self._waiting.append(ended)
        self._endIfDone()
        if ended.called:
            return ended
        return ended.addTimeout(FINISH_TIMEOUT, reactor).addErrback(self._logUnfinished)

    def follow(self, result: object, record: Any) -> None:
        """
        Run a coroutine or track a L{Deferred}; ignore any other result.

        @param result: what an observer returned.
        @param record: the connection or summary that it was called with, for messages.
        """
        if isinstance(result, Coroutine):
            if len(self._unfinished) >= MAX_UNFINISHED:
                result.close()
                self._countNotRun(record)
                return
            result = Deferred.fromCoroutine(result)
        if isinstance(result, Deferred):
            self._unfinished.add(result)
            result.addErrback(_logFailure, record)
            result.addBoth(self._end, result)

    def _countNotRun(self, record: Any) -> None:
        """Count a coroutine that is not run, and log the first."""
        self._notRun += 1
        if self._notRun == 1:
            text = "Observer not run, {count} calls are unfinished, first for: {connection}"
            _log.error(text, count=len(self._unfinished), connection=str(record))

    def _end(self, result: object, deferred: Deferred[Any]) -> object:
        """Remove a call that has finished."""
        self._unfinished.discard(deferred)
        self._endIfDone()
        return result

    def _endIfDone(self) -> None:
        """If all calls have finished, log how many were not run, and fire the waiting Deferreds."""
        if self._unfinished:
            return
        self._logNotRun()
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.callback(None)

    def _logNotRun(self) -> None:
        """Log how many coroutines were not run."""
        if self._notRun:
            _log.error("Observer not run for connections: {count}", count=self._notRun)
            self._notRun = 0

    def _logUnfinished(self, failure: Failure) -> None:
        """Log how many calls a stop did not wait for."""
        failure.trap(TimedOut)
        self._logNotRun()
        count = len(self._unfinished)
        _log.error("Observer calls unfinished at the stop: {count}", count=count)


def checkObserver(observer: Observer) -> None:
    """
    Check that an object is callable, and not a class instead of its instance.

    @param observer: the object.

    @raise TypeError: it is not an observer.
    """
    if not callable(observer) or isinstance(observer, type):
        raise TypeError(f"not an observer: {observer!r}")


def _logFailure(failure: Failure, record: Any) -> None:
    """Log an exception that an observer raised."""
    _log.failure("Observer failed for: {connection}", failure, connection=str(record))
