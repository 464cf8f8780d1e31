"""The monotonic clock, on a reactor whose time steps."""

from __future__ import annotations

import socket
import threading
from time import monotonic

import pytest
from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import Deferred
from twisted.internet.error import AlreadyCalled, AlreadyCancelled
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.internet.testing import MemoryReactorClock
from zope.interface.verify import verifyObject

from hello_listen._clock import MonotonicClock, monotonicClock, waitFor
from reactors import HOUR, Stepping
from turns import until


@pytest.mark.parametrize("step", [-HOUR, 0.0, HOUR])
def test_steps(stepping: Stepping, step: float) -> None:
    """A call is made when it is due, whatever step the system's time makes."""
    clock = MonotonicClock(stepping)
    assert verifyObject(IReactorTime, clock)
    made: list[str] = []
    start = clock.seconds()
    clock.callLater(0.05, made.append, "ours")
    stepping.callLater(0.05, made.append, "the reactor's")
    clock.callLater(HOUR / 2, made.append, "later")
    stepping.step = step
    until(lambda: "ours" in made and (step < 0 or len(made) == 2), stepping)
    assert clock.seconds() >= start + 0.05
    assert ("the reactor's" in made) == (step >= 0)
    assert "later" not in made


def test_order(stepping: Stepping) -> None:
    """Calls are made in the order in which they are due; cancelled ones are not."""
    clock = MonotonicClock(stepping)
    made: list[int] = []
    calls = [clock.callLater(delay, made.append, n) for n, delay in enumerate((0.8, 0, 0.4, 0))]
    calls[3].cancel()
    later = clock.callLater(HOUR, made.append, 4)
    later.reset(1.2)
    assert len(clock.getDelayedCalls()) == 4
    until(lambda: len(made) == 4, stepping)
    assert made == [1, 2, 0, 4]
    assert not clock.getDelayedCalls()


def test_pending_call(stepping: Stepping) -> None:
    """A pending call can be delayed and cancelled; one that was made or cancelled cannot."""
    clock = MonotonicClock(stepping)
    made: list[int] = []
    call = clock.callLater(0, made.append, 1)
    assert verifyObject(IDelayedCall, call)
    due = call.getTime()
    call.delay(0.02)
    assert call.getTime() == pytest.approx(due + 0.02)
    until(lambda: made, stepping)
    assert not call.active()
    with pytest.raises(AlreadyCalled):
        call.cancel()
    call = clock.callLater(HOUR, made.append, 2)
    call.cancel()
    with pytest.raises(AlreadyCancelled):
        call.reset(1)


def test_one_thread_for_many(stepping: Stepping) -> None:
    """Many pending calls take few threads."""
    clock = MonotonicClock(stepping)
    made: list[int] = []
    before = threading.active_count()
    for number in range(500):
        clock.callLater(0.05, made.append, number)
    assert threading.active_count() - before < 50
    until(lambda: len(made) == 500, stepping)
    assert made == list(range(500))


def test_call_that_fails(stepping: Stepping) -> None:
    """After a call that fails, the others are made."""
    clock = MonotonicClock(stepping)
    failing = deferLater(clock, 0.01, lambda: 1 / 0)
    made: list[int] = []
    clock.callLater(0.01, made.append, 1)
    clock.callLater(0.02, made.append, 2)
    until(lambda: len(made) == 2, stepping)
    failing.addErrback(lambda failure: failure.trap(ZeroDivisionError))


def test_after_the_reads(stepping: Stepping) -> None:
    """A call is made after the reactor has read what arrived by then."""
    events: list[str] = []

    class Reader(FileDescriptor):
        def fileno(self) -> int:
            return ours.fileno()

        def doRead(self) -> None:
            events.append(ours.recv(10).decode())

    ours, theirs = socket.socketpair()
    with ours, theirs:
        clock, reader = MonotonicClock(stepping), Reader(stepping)
        reader.startReading()
        for delay in (0.0, 0.02):
            called: Deferred[None] = Deferred()
            called.addCallback(lambda _: events.append("call"))
            clock.callLater(delay, called.callback, None)
            if delay:  # The process stands still, and then timers and threads come first.
                while not clock.seconds() > clock.getDelayedCalls()[0].getTime() + 0.02:
                    pass
            theirs.sendall(b"data")
            until(lambda called=called: called.called, stepping)
        reader.stopReading()
    assert events == ["data", "call"] * 2


def test_no_thread_to_have(stepping: Stepping, monkeypatch: pytest.MonkeyPatch) -> None:
    """If no thread can be started, the reactor's own timer is used."""

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    made: list[int] = []
    MonotonicClock(stepping).callLater(0.02, made.append, 1)
    until(lambda: made, stepping)


def test_shared(stepping: Stepping) -> None:
    """A reactor has one clock; a test's reactor is its own."""
    assert monotonicClock(stepping) is monotonicClock(stepping)
    memory = MemoryReactorClock()
    assert monotonicClock(memory) is memory


class Untimed(threading.Event):
    """An event whose own timeout, by the system's time on Python 3.10, may not be used."""

    def wait(self, timeout: float | None = None) -> bool:
        """Fail."""
        raise AssertionError("the thread waits by the system's clock")


def test_wait_for_an_event() -> None:
    """A wait ends with the event or at its timeout."""
    event = Untimed()
    start = monotonic()
    assert not waitFor(event, 0.03)
    assert monotonic() >= start + 0.03
    threading.Timer(0.03, event.set).start()
    assert waitFor(event, HOUR)
    assert waitFor(event, 0)
