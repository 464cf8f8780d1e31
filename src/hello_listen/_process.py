"""A HelloService that owns its process: exit status and signals."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.logger import Logger

from hello_listen._place import GeoError
from hello_listen.connection_log import ConnectionLog
from hello_listen.endpoint import ListenError
from hello_listen.protocol import HelloFactory
from hello_listen.service import HelloService, StatusServer

if TYPE_CHECKING:
    from hello_listen.geo import GeoDatabases

_log = Logger(namespace="hello_listen")

_REACTOR_SIGNALS = {signal.SIGINT, signal.SIGTERM}
"""The signals that a reactor handles."""

_OTHER_SIGNALS = {signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}

SIGNALS = _REACTOR_SIGNALS | _OTHER_SIGNALS
"""Signals that are blocked until the reactor runs."""


class PluginService(HelloService):
    """The only service of a process, which it ends if an endpoint cannot be bound."""

    def __init__(
        self,
        factory: HelloFactory,
        endpoints: Sequence[IStreamServerEndpoint],
        reactor: Any,
        log: ConnectionLog | None,
        status: StatusServer | None,
        places: GeoDatabases | None = None,
    ) -> None:
        """
        Own the process. The other parameters are those of L{HelloService}.

        @param log: the connection log that SIGHUP reopens, if any.
        @param places: the databases that SIGHUP reloads, if any.
        """
        super().__init__(factory, endpoints, reactor, status)
        self._log = log
        self._places = places
        self._stops = iter([True])  # Its only element is for the first signal.

    def privilegedStartService(self) -> None:
        """
        Bind every endpoint, or have the process end with one line that gives the reason.

        @raise ListenError: an endpoint cannot be bound. It is no SystemExit, because only after an
            L{Exception} does twistd remove its pidfile and notify its parent process.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # A daemon has not blocked them yet.
        try:
            super().privilegedStartService()
        except ListenError as error:
            reason = f"hello-listen: {error}"
            sys.excepthook = lambda *_: print(reason, file=sys.stderr)
            # The reactor will not run, but clients may wait at the ports that were bound already.
            stopped = self.stopService()
            while not stopped.called:
                self.reactor.iterate(0.01)
            raise

    def startService(self) -> None:
        """Start, and handle signals from the moment when the reactor runs."""
        super().startService()
        self.reactor.callWhenRunning(self._handleSignals)

    def stopService(self) -> Deferred[None]:
        """Stop, and ignore further SIGINT and SIGTERM."""
        next(self._stops, None)
        return super().stopService()

    def listenFailed(self, error: Exception) -> None:
        """
        Log the reason, and stop the process.

        @param error: the reason.
        """
        super().listenFailed(error)
        _stop()

    def _handleSignals(self) -> None:
        """Handle and unblock signals, pass the reactor's on once, and notify systemd."""
        for number in _REACTOR_SIGNALS:
            handler = signal.getsignal(number)
            if callable(handler):
                signal.signal(number, partial(self._stopOnce, handler))
        for number in _OTHER_SIGNALS:
            if signal.getsignal(number) is signal.SIG_DFL:
                # As logrotate and systemctl reload expect; a terminal sends it when it closes.
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
        """Reopen the connection log, and reload the databases of countries and networks."""
        if self._log is not None:
            # A signal handler may interrupt code that holds the log's locks.
            self.reactor.callFromThread(self._log.reopen)
        if self._places is not None:
            self.reactor.callFromThread(_reload, self._places)


def _reload(places: GeoDatabases) -> None:
    """Reload databases, or log why the old ones remain in use."""
    try:
        places.reload()
    except OSError as error:
        _log.error("Not reloaded: {reason}: {path!r}", reason=error.strerror, path=error.filename)
    except GeoError as error:
        _log.error("Not reloaded: {reason}", reason=str(error))


def _stop(*_: object) -> None:
    """Do what SIGTERM does."""
    signal.raise_signal(signal.SIGTERM)


def _notify() -> None:
    """Notify systemd that the process is ready, if the unit has C{Type=notify}."""
    path = os.environ.get("NOTIFY_SOCKET")
    if path is None:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifying:
            notifying.sendto(b"READY=1", re.sub("^@", "\0", path))  # sd_notify(3)
    except OSError as error:
        _log.error("Not notified: {reason}: {path!r}", reason=error.strerror, path=path)


def _hasTerminal() -> bool:
    """Say whether this process has a controlling terminal, which sends SIGHUP when it closes."""
    with suppress(OSError):
        os.close(os.open("/dev/tty", os.O_RDWR))
        return True
    return False
