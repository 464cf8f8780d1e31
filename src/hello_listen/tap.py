"""The command line: what comes after C{hello-listen}, for twistd and twist."""

from __future__ import annotations

import errno
import signal
import sys
from collections.abc import Sequence
from typing import Any

from twisted.application.service import IService
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.python.usage import Options as UsageOptions
from twisted.python.usage import UsageError

from hello_listen.connection_log import ConnectionLog
from hello_listen.endpoint import Endpoint, ListenError
from hello_listen.listening import HelloService
from hello_listen.protocol import HelloFactory, logConnection

DEFAULT_ENDPOINT = "tcp:7878:interface=127.0.0.1"


class Options(UsageOptions):
    """What the command line takes."""

    synopsis = "[options]"
    longdesc = "Log each connection to the endpoints, and drop it."

    def __init__(self, reactor: Any = None) -> None:
        """
        Start without endpoints.

        @param reactor: what the endpoints are parsed for; by default the global reactor.
        """
        super().__init__()
        self._reactor = reactor
        self["endpoints"] = []
        self["connection-log"] = None

    def opt_endpoint(self, description: str) -> None:
        """Listen here, as often as wanted [default: tcp:7878:interface=127.0.0.1]."""
        if self._reactor is None:
            from twisted.internet import reactor

            self._reactor = reactor
        try:
            Endpoint(description, self._reactor)
        except ValueError as error:
            raise UsageError(str(error)) from error
        self["endpoints"].append(description)

    opt_e = opt_endpoint

    def opt_connection_log(self, path: str) -> None:
        """Append connections to this file as JSON Lines, not to Twisted's log; - is stdout."""
        if self["connection-log"] is not None:
            raise UsageError(f"there is one connection log: {path!r}")
        self["connection-log"] = path

    opt_l = opt_connection_log

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """
        Parse; under twistd and twist, end the process with one line that says what is wrong.

        Their own reply is forty lines of help, and from twistd before Twisted 26.10 a status of 0.

        @raise UsageError: nobody's subcommand is parsed.
        """
        try:
            super().parseOptions(options)
        except UsageError as error:
            if self.parent is None:
                raise
            sys.exit(f"hello-listen: {error}")

    def parseArgs(self, *arguments: str) -> None:
        """Refuse what no option takes."""
        if arguments:
            raise UsageError(f"unexpected argument: {arguments[0]!r}")

    def postOptions(self) -> None:
        """Open the log, and listen on the default endpoint where none was named."""
        if not self["endpoints"]:
            self["endpoints"].append(DEFAULT_ENDPOINT)
        path = self["connection-log"]
        if path is None:
            return
        if path == "-" and self.parent is not None and not self.parent.get("nodaemon", True):
            raise UsageError("a process in the background has no standard output: twistd -n: '-'")
        try:
            self["connection-log"] = ConnectionLog(path)
        except OSError as error:
            unread = error.errno == errno.ENXIO
            reason = "nobody reads this pipe" if unread else error.strerror
            raise UsageError(f"{reason}: {path!r}") from error


class PluginService(HelloService):
    """The service of a process that has no other: where it cannot listen, the process ends."""

    def privilegedStartService(self) -> None:
        """
        Bind every endpoint, or see to it that the process ends with one line that says why not.

        @raise ListenError: as L{HelloService.privilegedStartService} does. twistd removes its
            pidfile and tells its parent process of an L{Exception} only.
        """
        try:
            super().privilegedStartService()
        except ListenError as error:
            reason = f"hello-listen: {error}"
            sys.excepthook = lambda *_: print(reason, file=sys.stderr)
            # The reactor will not run, and so would not release what is bound already.
            self.reactor.iterate()
            raise

    def stopService(self) -> Deferred[Any]:
        """Release every endpoint, then write what is left of the connection log."""
        stopped = super().stopService()
        if isinstance(self.factory.observer, ConnectionLog):
            close, pool = self.factory.observer.close, self.reactor.getThreadPool()
            stopped.addCallback(lambda _: deferToThreadPool(self.reactor, pool, close))
        return stopped

    def listenFailed(self, error: ListenError) -> None:
        """
        End the process, with a status that is not 0, after telling the log why.

        @param error: the reason.
        """
        super().listenFailed(error)
        signal.raise_signal(signal.SIGTERM)


def makeService(options: Options, reactor: Any = None) -> IService:
    """
    Return the service that the options describe.

    @param options: what was parsed.
    @param reactor: what to listen with; by default the global reactor.
    """
    factory = HelloFactory(options["connection-log"] or logConnection)
    return PluginService(factory, *options["endpoints"], reactor=reactor)
