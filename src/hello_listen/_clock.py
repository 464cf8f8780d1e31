"""Timers and waits by the monotonic clock: setting the system's time does not delay them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from math import ceil
from select import poll
from threading import Event, Thread
from time import monotonic
from typing import Any

from twisted.internet.error import AlreadyCalled, AlreadyCancelled
from twisted.internet.interfaces import IDelayedCall, IReactorFromThreads, IReactorTime
from zope.interface import implementer

WAKE_INTERVAL = 0.005
"""Times of calls are rounded up to a multiple of this, in seconds, so that calls share a thread."""

POLL_INTERVAL = 0.02
"""Seconds between two looks at an event that is waited for."""


@implementer(IReactorTime)
class MonotonicClock:
    """
    Calls functions later in the reactor's thread, by the monotonic clock.

    Twisted's reactors use C{time.time()}: if that is set back by an hour, a call that is due in
    50 ms comes an hour late. Here, threads sleep until a call is due, and wake the reactor.

    The reactor makes its own calls before it reads from sockets; it makes these calls after that.
    """

    def __init__(self, reactor: Any) -> None:
        """
        Make a clock. It runs threads, usually one or two, only while calls are pending.

        @param reactor: an L{IReactorFromThreads} and L{IReactorTime}.
        """
        self._reactor = reactor
        self._calls: list[_Call] = []
        # The times at which threads will wake the reactor.
        self._wakes: set[float] = set()

    def seconds(self) -> float:
        """Return seconds since an unspecified point in time."""
        return monotonic()

    def getDelayedCalls(self) -> list[_Call]:
        """Return the pending calls."""
        return self._calls

    def callLater(
        self,
        delay: float,
        callable: Callable[..., object],  # noqa: A002
        *args: object,
        **kwargs: object,
    ) -> _Call:
        """
        Call a function later.

        @param delay: the delay in seconds; 0 is after the next reads.
        @param callable: the function, which gets the other arguments.
        """
        call = _Call(self, partial(callable, *args, **kwargs))
        self._calls.append(call)
        call.reset(delay)
        return call

    def wakeFor(self, call: _Call) -> None:
        """
        Wake the reactor when a call is due, unless it will be woken earlier.

        @param call: the pending call.
        """
        due = call.getTime()
        if due > self.seconds():
            due = ceil(due / WAKE_INTERVAL) * WAKE_INTERVAL
        if self._wakes and due >= min(self._wakes):
            return
        self._wakes.add(due)
        if due <= self.seconds():
            self._reactor.callFromThread(self._run, due)
            return
        try:
            Thread(target=self._sleep, args=(due,), name="clock", daemon=True).start()
        except RuntimeError:  # No more threads: the system's limit.
            self._reactor.callLater(due - self.seconds(), self._run, due)

    def _sleep(self, due: float) -> None:
        """Sleep, then wake the reactor."""
        _sleep(max(0.0, due - monotonic()))
        self._reactor.callFromThread(self._run, due)

    def _run(self, due: float) -> None:
        """Schedule the calls that are due, to run after the next reads."""
        self._wakes.discard(due)
        now = self.seconds()
        for call in sorted(self._calls, key=_Call.getTime):
            if call.getTime() > now:
                self.wakeFor(call)
                return
            self._calls.remove(call)
            self._reactor.callFromThread(call.function)


@implementer(IDelayedCall)
class _Call:
    """A pending call."""

    def __init__(self, clock: MonotonicClock, function: Callable[[], object]) -> None:
        self._clock = clock
        self._time = 0.0
        self._isCancelled = False
        self.function = function

    def getTime(self) -> float:
        return self._time

    def active(self) -> bool:
        return self in self._clock.getDelayedCalls()

    def cancel(self) -> None:
        self._check()
        self._isCancelled = True
        self._clock.getDelayedCalls().remove(self)

    def delay(self, secondsLater: float) -> None:
        self.reset(self._time + secondsLater - self._clock.seconds())

    def reset(self, secondsFromNow: float) -> None:
        self._check()
        self._time = self._clock.seconds() + secondsFromNow
        self._clock.wakeFor(self)

    def _check(self) -> None:
        """Raise an error unless the call is pending."""
        if not self.active():
            raise AlreadyCancelled if self._isCancelled else AlreadyCalled


@cache
def monotonicClock(reactor: Any) -> Any:
    """
    Return the clock of a reactor, which all callers share.

    @param reactor: an L{IReactorTime}; without L{IReactorFromThreads}, as in tests, it is returned.
    """
    return MonotonicClock(reactor) if IReactorFromThreads.providedBy(reactor) else reactor


def waitFor(event: Event, seconds: float) -> bool:
    """
    Wait for an event by the monotonic clock, and return whether it is set.

    Before Python 3.11, C{Event.wait} uses the system's time (bpo-41710).

    @param event: an event that another thread sets.
    @param seconds: the timeout.
    """
    end = monotonic() + seconds
    while not event.is_set() and (left := end - monotonic()) > 0:
        _sleep(min(left, POLL_INTERVAL))
    return event.is_set()


def _sleep(seconds: float) -> None:
    """Sleep."""
    # Unlike select(2), poll(2) counts the time for which the process is stopped; unlike
    # time.sleep, libfaketime leaves it alone.
    poll().poll(seconds * 1000)
