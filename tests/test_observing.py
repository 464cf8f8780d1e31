"""What observers return: coroutines and Deferreds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent, LogLevel, capturedLogs, formatEvent

from hello_listen import Connection, ConnectionLog, HelloFactory, HelloService, Summaries, Summary
from hello_listen._observing import FINISH_TIMEOUT, MAX_UNFINISHED, ObserverCalls
from reactors import FakeReactor

CLIENT = IPv4Address("TCP", "192.0.2.7", 51974)
SERVER = IPv4Address("TCP", "192.0.2.1", 7878)
TEXT = "Connection established! 192.0.2.7:51974 -> 192.0.2.1:7878"


def problems(events: Iterable[LogEvent]) -> list[str]:
    """Return the first line of each error that was logged."""
    errors = [event for event in events if event["log_level"] >= LogLevel.error]
    return [formatEvent(event).split("\n")[0] for event in errors]


class Slow:
    """An observer whose calls end when a test says so."""

    def __init__(self) -> None:
        self.ends: list[Deferred[None]] = []
        self.done: list[Connection] = []

    async def __call__(self, connection: Connection) -> None:
        """Wait for the test, then keep the connection."""
        end: Deferred[None] = Deferred()
        self.ends.append(end)
        await end
        self.done.append(connection)


def test_coroutine_is_run() -> None:
    """An C{async def} observer is run."""
    seen: list[Connection] = []

    async def observe(connection: Connection) -> None:
        seen.append(connection)

    HelloFactory(observe).established(CLIENT, SERVER)
    assert [each.client for each in seen] == [CLIENT]


@pytest.mark.parametrize("late", [False, True])
def test_failure_names_the_connection(late: bool) -> None:
    """The failure of a coroutine or Deferred is logged with the connection."""
    gates: list[Deferred[None]] = []

    def fail(_: None) -> None:
        raise ZeroDivisionError

    def observeLater(connection: Connection) -> Deferred[None]:
        gates.append(Deferred())
        return gates[-1].addCallback(fail)

    async def observe(connection: Connection) -> None:
        await observeLater(connection)

    with capturedLogs() as events:
        HelloFactory(observe, observeLater).established(CLIENT, SERVER)
        assert not problems(events)
        for gate in gates:
            gate.callback(None)
    assert problems(events) == [f"Observer failed for: {TEXT}"] * 2
    assert {event["log_failure"].type for event in events} == {ZeroDivisionError}


def test_a_deferred_is_left_to_its_owner() -> None:
    """A callback that an observer adds to its Deferred later gets the result."""
    returned: Deferred[int] = Deferred()
    factory = HelloFactory(lambda connection: returned)
    for _ in range(2):
        factory.established(CLIENT, SERVER)
    returned.callback(7)
    results: list[int] = []
    returned.addCallback(results.append)
    assert results == [7]


def test_bound() -> None:
    """While 1,000 calls are unfinished, no coroutine is run; their number is logged."""
    slow = Slow()
    factory = HelloFactory(slow)
    with capturedLogs() as events:
        for _ in range(MAX_UNFINISHED + 3):
            factory.established(CLIENT, SERVER)
        assert len(slow.ends) == MAX_UNFINISHED
        assert problems(events) == [
            f"Observer not run, {MAX_UNFINISHED} calls are unfinished, first for: {TEXT}"
        ]
        slow.ends.pop().callback(None)
        factory.established(CLIENT, SERVER)
        for end in slow.ends:
            end.callback(None)
    assert len(slow.done) == MAX_UNFINISHED + 1
    assert problems(events)[1:] == ["Observer not run for connections: 3"]


def test_stop_waits_for_coroutines() -> None:
    """A service waits for unfinished calls before it closes the observers."""
    order: list[str] = []

    class Observer(Slow):
        def close(self) -> None:
            order.append(f"closed after {len(self.done)}")

    observer, reactor = Observer(), FakeReactor()
    service = HelloService(HelloFactory(observer), ["tcp:0"], reactor)
    service.startService()
    service.factory.established(CLIENT, SERVER)
    stopped = service.stopService()
    assert not stopped.called
    observer.ends[0].callback(None)
    assert stopped.called
    assert order == ["closed after 1"]


def test_stop_does_not_wait_for_ever() -> None:
    """After 5 seconds, the stop logs how many calls are unfinished, and how many were not run."""
    clock, slow, calls = Clock(), Slow(), ObserverCalls()
    with capturedLogs() as events:
        for _ in range(MAX_UNFINISHED + 1):
            calls.call(slow, "a connection")
        finished = calls.finish(clock)
        clock.advance(FINISH_TIMEOUT - 0.1)
        assert not finished.called
        clock.advance(0.1)
        assert finished.called
    assert problems(events)[1:] == [
        "Observer not run for connections: 1",
        f"Observer calls unfinished at the stop: {MAX_UNFINISHED}",
    ]


def test_behind_summaries() -> None:
    """An C{async def} observer behind Summaries is run for summaries, too; its close comes last."""
    slow, clock = Slow(), Clock()
    summaries = Summaries(slow, 1, reactor=clock)
    factory = HelloFactory(summaries)
    for _ in range(3):
        factory.established(CLIENT, SERVER)
    closed = summaries.close()
    assert not closed.called
    for end in slow.ends:
        end.callback(None)
    assert closed.called
    assert [(type(each), each.count) for each in slow.done] == [(Connection, 1), (Summary, 2)]


@pytest.mark.parametrize("observer", [None, [print], "print", ConnectionLog])
def test_no_observer(observer: Any) -> None:
    """An object that cannot be called, or a class, is refused at once."""
    with pytest.raises(TypeError, match="not an observer: "):
        HelloFactory(observer)
    with pytest.raises(TypeError, match="not an observer: "):
        Summaries(observer)


def test_other_results_are_ignored() -> None:
    """Other results of a function are ignored."""
    seen: list[Connection] = []
    with capturedLogs() as events:
        HelloFactory(lambda connection: 7, seen.append).established(CLIENT, SERVER)
    assert (len(seen), events) == (1, [])
