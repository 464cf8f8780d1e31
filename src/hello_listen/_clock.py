"""Timers and waits that no change of the system's time delays."""

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
"""Seconds by which a call may come later, so that one thread wakes the reactor for several."""

POLL_INTERVAL = 0.02
"""Seconds by which a wait for an event may end later."""


@implementer(IReactorTime)
class MonotonicClock:
    """
    Calls functions later in the reactor's thread, by the monotonic clock.

    Twisted's reactors go by C{time.time()}: once that is set back by an hour, a call that is due
    in 50 ms comes an hour late. Here, threads sleep, and wake the reactor.

    Nor do these calls, as the reactor's do, come before it has read what arrived until then.
    """

    def __init__(self, reactor: Any) -> None:
        """
        Make a clock. It starts threads, one or two at a time, only while calls are pending.

        @param reactor: an L{IReactorFromThreads} and L{IReactorTime}.
        """
        self._reactor = reactor
        self._calls: list[_Call] = []
        # When the reactor is going to be woken.
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

        @param delay: after how many seconds; 0 for after the next reads.
        @param callable: what to call, with the other arguments.
        """
        call = _Call(self, partial(callable, *args, **kwargs))
        self._calls.append(call)
        call.reset(delay)
        return call

    def wakeFor(self, call: _Call) -> None:
        """
        Have the reactor woken when a call is due, unless it is woken earlier.

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
        except RuntimeError:  # The system has no thread to give.
            self._reactor.callLater(due - self.seconds(), self._run, due)

    def _sleep(self, due: float) -> None:
        """Wake the reactor at a time."""
        _sleep(max(0.0, due - monotonic()))
        self._reactor.callFromThread(self._run, due)

    def _run(self, due: float) -> None:
        """Have the calls that are due made after the next reads."""
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
    """A function that is to be called at a time."""

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
    Return the clock that all users of a reactor share.

    @param reactor: an L{IReactorTime}; one that threads cannot call, as in tests, is its own clock.
    """
    return MonotonicClock(reactor) if IReactorFromThreads.providedBy(reactor) else reactor


def waitFor(event: Event, seconds: float) -> bool:
    """
    Wait for an event by the monotonic clock, and return whether it is set.

    C{Event.wait} goes by the system's time before Python 3.11 (bpo-41710).

    @param event: what another thread sets.
    @param seconds: the timeout.
    """
    end = monotonic() + seconds
    while not event.is_set() and (left := end - monotonic()) > 0:
        _sleep(min(left, POLL_INTERVAL))
    return event.is_set()


def _sleep(seconds: float) -> None:
    """Sleep."""
    # select(2) does not count the time of a stopped process, and libfaketime breaks time.sleep.
    poll().poll(seconds * 1000)
