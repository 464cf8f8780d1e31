"""Packets that a full accept queue drops, on real sockets, with a time that the test sets."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from twisted.internet.task import Clock

from hello_listen._drain import refuseNew
from hello_listen._drops import DropWatch, queueState
from hello_listen._failures import WARNING_INTERVAL
from processes import silent

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux tells what it drops")

BACKLOG = 3
"""One client more than this is in a full accept queue, in Linux."""


class Listener:
    """A listening socket, and what a watch of its accept queue reports."""

    def __init__(self, stack: ExitStack) -> None:
        """Listen; the stack closes the socket and its clients."""
        self._stack = stack
        self.socket = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=BACKLOG))
        self.socket.setblocking(False)
        self.clock = Clock()
        self.reported: list[int] = []

    def watch(self) -> DropWatch:
        """Return a watch from now on."""
        return DropWatch(self.socket, self.clock, self.reported.append)

    def connect(self, count: int) -> None:
        """Have clients try to connect."""
        silent(self._stack, self.socket.getsockname(), count)

    def accept(self, count: int) -> None:
        """Accept clients."""
        for _ in range(count):
            self.socket.accept()[0].close()


@pytest.fixture
def listener() -> Iterator[Listener]:
    """Return a listening socket with a short accept queue."""
    with ExitStack() as stack:
        yield Listener(stack)


def test_state(listener: Listener) -> None:
    """The state has the clients in the queue, its limit, and the packets of all others."""
    assert queueState(listener.socket) == (0, BACKLOG, 0)
    listener.connect(10)
    assert queueState(listener.socket) == (4, BACKLOG, 6)


def test_nothing_known(listener: Listener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a UNIX socket, and on other systems, nothing is known and nothing is reported."""
    with socket.socket(socket.AF_UNIX) as local:
        local.bind(str(tmp_path / "s"))
        local.listen()
        assert queueState(local) is None
    monkeypatch.setattr(sys, "platform", "plan9")
    assert queueState(listener.socket) is None
    watch = listener.watch()
    assert (watch.limit, watch.droppedBefore) == (None, 0)
    listener.connect(10)
    watch.look(4)
    watch.end()
    assert listener.reported == []


def test_once_a_minute(listener: Listener) -> None:
    """Drops are reported at once, then the next ones together after a minute, and at the end."""
    watch = listener.watch()
    listener.connect(4)
    watch.look(4)
    assert listener.reported == []
    listener.connect(2)
    watch.look(0)
    assert listener.reported == [2]
    for _ in range(3):
        listener.connect(1)
        watch.look(0)
    listener.clock.advance(WARNING_INTERVAL - 1)
    assert listener.reported == [2]
    listener.clock.advance(1)
    assert listener.reported == [2, 3]
    listener.clock.advance(WARNING_INTERVAL)
    assert not listener.clock.getDelayedCalls()
    listener.connect(1)
    watch.look(0)
    assert listener.reported == [2, 3, 1]
    listener.connect(1)
    watch.end()
    assert listener.reported == [2, 3, 1, 1]
    assert not listener.clock.getDelayedCalls()


def test_end_without_drops(listener: Listener) -> None:
    """At the end, nothing is reported if the queue was never full."""
    watch = listener.watch()
    listener.connect(4)
    listener.accept(4)
    watch.look(4)
    watch.end()
    assert listener.reported == []


def test_queue_that_was_emptied(listener: Listener) -> None:
    """Drops are found although the batch that was accepted since has emptied the queue."""
    watch = listener.watch()
    listener.connect(5)
    listener.accept(4)
    watch.look(4)
    assert listener.reported == [1]


def test_refused_is_not_dropped(listener: Listener) -> None:
    """Packets that the socket drops while its queue has room, as after a stop, do not count."""
    watch = listener.watch()
    refuseNew(listener.socket)
    listener.connect(5)
    state = queueState(listener.socket)
    assert state is not None
    assert state.dropped == 5
    watch.look(1)
    watch.look(4)
    watch.end()
    assert listener.reported == []


def test_drops_before(listener: Listener) -> None:
    """What a queue that is full already has dropped before is known, and not counted again."""
    assert listener.watch().droppedBefore == 0
    listener.connect(9)
    watch = listener.watch()
    assert watch.droppedBefore == 5
    watch.end()
    assert listener.reported == []
    listener.accept(4)
    assert listener.watch().droppedBefore == 0
