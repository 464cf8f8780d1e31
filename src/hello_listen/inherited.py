"""A UNIX socket that was inherited, and is left as it is."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet import unix
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure


class InheritedUNIXPort(unix.Port):
    """
    Listens on a UNIX socket that somebody else owns.

    The port with which Twisted adopts one changes its mode and its accept queue; at the end it
    shuts it down and removes its path, so that nobody can reach it any more.
    """

    def __init__(self, listener: socket.socket, factory: Factory, reactor: Any) -> None:
        """
        Listen.

        @param listener: a listening UNIX socket, which is closed when the port stops.
        @param factory: what serves its connections.
        @param reactor: what to listen with.
        """
        super().__init__(listener.getsockname(), factory, reactor=reactor)
        listener.setblocking(False)
        self.socket = listener
        self.fileno = listener.fileno  # type: ignore[method-assign]
        self.numberAccepts = 100
        self.connected = True
        self._served = factory
        factory.doStart()
        self.startReading()

    def connectionLost(self, reason: Failure) -> None:
        """Close this process's descriptor of the socket, and no more."""
        self.connected = False
        self.socket.close()
        self._served.doStop()
