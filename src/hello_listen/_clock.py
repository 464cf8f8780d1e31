"""Timers that no change of the system's time delays."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import ceil
from select import select
from threading import Thread
from time import monotonic
from typing import Any

from twisted.internet.base import DelayedCall
from twisted.internet.interfaces import IReactorFromThreads, IReactorTime
from zope.interface import implementer

GRAIN = 0.005
"""Seconds by which a call may come later, so that one thread wakes the reactor for several."""


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
        self._calls: list[DelayedCall] = []
        # When the reactor is going to be woken.
        self._wakes: set[float] = set()

    def seconds(self) -> float:
        """Return seconds since an unspecified point in time."""
        return monotonic()

    def getDelayedCalls(self) -> list[DelayedCall]:
        """Return the pending calls."""
        return self._calls

    def callLater(
        self,
        delay: float,
        callable: Callable[..., object],  # noqa: A002
        *args: object,
        **kwargs: object,
    ) -> DelayedCall:
        """
        Call a function later.

        @param delay: after how many seconds; 0 for after the next reads.
        @param callable: what to call, with the other arguments.
        """
        call = DelayedCall(
            self.seconds() + delay, callable, args, kwargs,
            self._calls.remove, self._wakeFor, self.seconds,
        )  # fmt: skip
        self._calls.append(call)
        self._wakeFor(call)
        return call

    def _wakeFor(self, call: DelayedCall) -> None:
        """Have the reactor woken when a call is due, unless it is woken earlier."""
        due = call.getTime()
        if due > self.seconds():
            due = ceil(due / GRAIN) * GRAIN
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
        # A lock's timeout may go by the system's time (Python 3.10); libfaketime breaks time.sleep.
        select([], [], [], max(0.0, due - monotonic()))
        self._reactor.callFromThread(self._run, due)

    def _run(self, due: float) -> None:
        """Have the calls that are due made after the next reads."""
        self._wakes.discard(due)
        now = self.seconds()
        for call in sorted(self._calls, key=DelayedCall.getTime):
            if call.getTime() > now:
                self._wakeFor(call)
                return
            self._calls.remove(call)
            call.called = 1
            self._reactor.callFromThread(call.func, *call.args, **call.kw)


@cache
def monotonicClock(reactor: Any) -> Any:
    """
    Return the clock that all users of a reactor share.

    @param reactor: an L{IReactorTime}; one that threads cannot call, as in tests, is its own clock.
    """
    return MonotonicClock(reactor) if IReactorFromThreads.providedBy(reactor) else reactor
