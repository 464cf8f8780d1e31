"""A process that does nothing else: it ends if it cannot listen, and handles signals."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from hello_listen.connection_log import ConnectionLog
from hello_listen.endpoint import ListenError
from hello_listen.service import HelloService

_log = Logger(namespace="hello_listen")

# The reactor handles the first two.
_REACTORS = {signal.SIGINT, signal.SIGTERM}
_OTHERS = {signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}

SIGNALS = _REACTORS | _OTHERS
"""Signals that are blocked until the reactor runs."""


class PluginService(HelloService):
    """
    The only service of a process, which ends if it cannot listen.

    @ivar log: what SIGHUP opens anew, or L{None}.
    """

    log: ConnectionLog | None = None

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._stops = iter([True])

    def privilegedStartService(self) -> None:
        """
        Bind every endpoint, or see to it that the process ends with one line that says why not.

        @raise ListenError: as L{HelloService.privilegedStartService} does, and not SystemExit:
            twistd removes its pidfile and tells its parent process of an L{Exception} only.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # Not yet in a daemon.
        try:
            super().privilegedStartService()
        except ListenError as error:
            reason = f"hello-listen: {error}"
            sys.excepthook = lambda *_: print(reason, file=sys.stderr)
            # The reactor will not run, and so would not serve who waits at what was bound already.
            stopped = self.stopService()
            while not stopped.called:
                self.reactor.iterate(0.01)
            raise

    def startService(self) -> None:
        """Start, and handle signals when the reactor runs."""
        super().startService()
        self.reactor.callWhenRunning(self._handleSignals)

    def stopService(self) -> Deferred[None]:
        """Stop, and let no further signal disturb that."""
        next(self._stops, None)
        return super().stopService()

    def listenFailed(self, error: Exception) -> None:
        """
        End the process, with a status that is not 0, after telling the log why.

        @param error: the reason.
        """
        super().listenFailed(error)
        _stop()

    def _handleSignals(self) -> None:
        """Handle each signal that nobody else handles or ignores, also those that came already."""
        for number in _REACTORS:
            handler = signal.getsignal(number)
            if callable(handler):
                signal.signal(number, partial(self._stopOnce, handler))
        for number in _OTHERS:
            if signal.getsignal(number) is signal.SIG_DFL:
                # logrotate and systemctl reload expect that of SIGHUP, unless a terminal sends it.
                reopens = number == signal.SIGHUP and not _hasTerminal()
                signal.signal(number, self._reopen if reopens else _stop)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        _notify()

    def _stopOnce(self, handler: Callable[..., object], number: int, frame: object) -> None:
        """Pass on the first signal only: a second reactor.stop would log a traceback."""
        # next() is atomic, even to another signal.
        if next(self._stops, False):
            handler(number, frame)

    def _reopen(self, *_: object) -> None:
        """Open the connection log anew."""
        if self.log is not None:
            # A signal handler may interrupt what holds the log's locks.
            self.reactor.callFromThread(self.log.reopen)


def _stop(*_: object) -> None:
    """Do what SIGTERM does."""
    signal.raise_signal(signal.SIGTERM)


def _notify() -> None:
    """Tell systemd that the process handles signals, where C{Type=notify} waits for that."""
    path = os.environ.get("NOTIFY_SOCKET")
    if path is None:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifying:
            notifying.sendto(b"READY=1", re.sub("^@", "\0", path))  # sd_notify(3)
    except OSError as error:
        _log.error("Not notified: {reason}: {path!r}", reason=error.strerror, path=path)


def _hasTerminal() -> bool:
    """Say whether this process is controlled by a terminal, whose end is a SIGHUP."""
    with suppress(OSError):
        os.close(os.open("/dev/tty", os.O_RDWR))
        return True
    return False
