"""Finds out whether a TCP socket dropped clients because its accept queue was full."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from struct import unpack_from
from typing import Any, NamedTuple

from hello_listen._failures import WARNING_INTERVAL

# Linux's asm-generic/socket.h; SK_MEMINFO_DROPS of linux/sock_diag.h is the last of nine values.
_SO_MEMINFO, _MEMINFO_SIZE, _DROPS_OFFSET = 55, 36, 32

# Of a listening socket, tcpi_unacked and tcpi_sacked of linux/tcp.h are the accept queue's length
# and its limit (tcp_get_info in net/ipv4/tcp.c).
_TCP_INFO, _INFO_SIZE, _QUEUE_OFFSET = 11, 32, 24


class QueueState(NamedTuple):
    """
    The accept queue of a listening TCP socket.

    @ivar length: the number of clients in it.
    @ivar limit: the queue is full when C{length} exceeds this.
    @ivar dropped: the number of packets that the socket has dropped, modulo 2**32.
    """

    length: int
    limit: int
    dropped: int


def queueState(listener: socket.socket) -> QueueState | None:
    """
    Return the state of a socket's accept queue; L{None} if the system does not tell.

    No privilege is needed. UNIX sockets drop nobody: connect(2) waits or fails.

    @param listener: a listening socket.
    """
    if sys.platform == "linux":
        with suppress(OSError):
            info = listener.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _INFO_SIZE)
            memory = listener.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO_SIZE)
            return QueueState(
                *unpack_from("2I", info, _QUEUE_OFFSET), *unpack_from("I", memory, _DROPS_OFFSET)
            )
    return None


class DropWatch:
    """
    Counts the packets that a socket has dropped while its accept queue was full.

    Linux drops a client's first or last packet of the handshake then. After the last one, the
    client takes itself for connected; if it resets now, nobody else ever learns of it.

    The socket also counts packets whose loss does not matter: resets of a half-open scan, and new
    clients that a stop refuses. So its count matters only if the queue may have been full before
    the last batch of connections was accepted: if its length and that batch exceed the limit.
    L{look} is called after each batch that is large enough to empty a full queue.

    @ivar limit: the queue is full when it is longer; L{None} if the system does not tell.
    @ivar droppedBefore: the packets dropped before this was made, if the queue was full then.
    """

    def __init__(
        self, listener: socket.socket, clock: Any, report: Callable[[int], object]
    ) -> None:
        """
        Count from now on.

        @param listener: a listening socket.
        @param clock: an L{twisted.internet.interfaces.IReactorTime}.
        @param report: called with the upper bound of the dropped packets, as Linux counts some
            twice: at once, then once a minute at most, and at the end.
        """
        self._listener = listener
        self._clock = clock
        self._report = report
        self._unreported = 0
        self._timer: Any = None
        state = queueState(listener)
        self._dropped = state.dropped if state else 0
        self.limit = state.limit if state else None
        self.droppedBefore = state.dropped if state and state.length > state.limit else 0

    def look(self, accepted: int) -> None:
        """
        Count new drops, and report them if none were reported in the last minute.

        @param accepted: the number of connections in the last batch, at most.
        """
        self._count(accepted)
        if self._timer is None:
            self._endInterval()

    def end(self) -> None:
        """Count new drops for the last time, and report all that are unreported."""
        self._count(0)
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._reportNew()

    def _count(self, accepted: int) -> None:
        """Count the drops since the previous look."""
        state = queueState(self._listener)
        if state is not None:
            if state.length + accepted > state.limit:
                self._unreported += (state.dropped - self._dropped) % 2**32
            self._dropped = state.dropped

    def _endInterval(self) -> None:
        """Report what is unreported, if anything, and begin another interval then."""
        self._timer = None
        if self._unreported:
            self._timer = self._clock.callLater(WARNING_INTERVAL, self._endInterval)
            self._reportNew()

    def _reportNew(self) -> None:
        """Report the drops that are unreported, if any."""
        packets, self._unreported = self._unreported, 0
        if packets:
            self._report(packets)
