"""The command line: what comes after C{hello-listen}, for twistd and twist."""

from __future__ import annotations

import errno
import os
import re
import signal
import stat
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any, NoReturn

import twisted
from twisted.application.service import IService
from twisted.python.usage import Options as UsageOptions
from twisted.python.usage import UsageError

import hello_listen
from hello_listen._inherited import warnOfUnserved
from hello_listen._log_file import standardStream
from hello_listen._networks import Networks
from hello_listen._process import SIGNALS, PluginService
from hello_listen.connection_log import ConnectionLog
from hello_listen.endpoint import HAPROXY, HelloEndpoint
from hello_listen.protocol import HelloFactory, logConnection
from hello_listen.summaries import Summaries, networksByPort

DEFAULT_ENDPOINT = "tcp:7878:interface=127.0.0.1"


class Options(UsageOptions):
    """What the command line takes."""

    synopsis = "[options]"
    longdesc = "Log each connection to the endpoints, and drop it."

    def __init__(self, reactor: Any = None) -> None:
        """
        Take a reactor.

        @param reactor: what the endpoints are parsed for; by default the global reactor, which
            twistd and twist have installed by now.
        """
        super().__init__()
        # Standard descriptors that are closed would become the reactor's, which a daemonizing
        # twistd replaces by /dev/null.
        while (null := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(null)
        if reactor is None:
            from twisted.internet import reactor
        self._reactor: Any = reactor
        self["endpoints"] = []
        self["trusted-proxies"] = []
        self["connection-log"] = None
        self["per-client"] = None
        self["summarize"] = []
        self["status"] = None
        self["status-hosts"] = []

    def opt_endpoint(self, description: str) -> None:
        """Listen here, as often as wanted [default: tcp:7878:interface=127.0.0.1]."""
        self["endpoints"].append(description)

    opt_e = opt_endpoint

    def opt_trusted_proxy(self, network: str) -> None:
        """Believe PROXY headers from this address or network; repeatable [default: from any]."""
        Networks([network])
        self["trusted-proxies"].append(network)

    def opt_connection_log(self, path: str) -> None:
        """Append connections to this file as JSON Lines, not to Twisted's log; - is stdout."""
        if self["connection-log"] is not None:
            raise UsageError(f"there is one connection log: {path!r}")
        self["connection-log"] = path

    opt_l = opt_connection_log

    def opt_per_client(self, count: str) -> None:
        """Record at most so many connections of each client in a minute, and sum up its others."""
        if not count.isdecimal():
            raise UsageError(f"not a number of connections: {count!r}")
        self["per-client"] = int(count)

    def opt_summarize(self, network: str) -> None:
        """Count connections from NETWORK or NETWORK,PORT, but do not record each; repeatable."""
        networksByPort([network])
        self["summarize"].append(network)

    def opt_status(self, description: str) -> None:
        """Serve a page, JSON and metrics of who connected here (needs prometheus-client)."""
        if self["status"] is not None:
            raise UsageError(f"there is one status endpoint: {description!r}")
        if HAPROXY.match(description):
            raise UsageError(f"{description!r}: a PROXY header is of no use here")
        try:
            import_module("hello_listen.status")
        except ImportError as error:
            raise UsageError(f"{error}: pip install prometheus-client") from error
        try:
            self["status"] = HelloEndpoint(self._reactor, description)
        except ValueError as error:
            # The page is for this machine, unless somebody says otherwise.
            local = r"\1:interface=127.0.0.1'"
            raise UsageError(re.sub(r"(did you mean 'tcp:\d+)'", local, str(error))) from error

    def opt_status_host(self, name: str) -> None:
        """A name by which browsers may reach --status; IP addresses and localhost always may."""
        self["status-hosts"].append(name)

    def opt_version(self) -> NoReturn:
        """Display the versions of hello-listen and Twisted, and exit."""
        print(f"hello-listen {hello_listen.__version__}, Twisted {twisted.__version__}")
        sys.exit(0)

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """
        Parse; under twistd and twist, end the process with one line that says what is wrong.

        Their own reply is forty lines of help, and from twistd before Twisted 26.10 a status of 0.

        @raise UsageError: bad arguments, when parsed without a parent command.
        """
        try:
            super().parseOptions(options)
        except (UsageError, ValueError) as error:
            if self.parent is None:
                raise UsageError(str(error)) from error
            sys.exit(f"hello-listen: {error}")

    def parseArgs(self, *arguments: str) -> None:
        """Refuse what no option takes."""
        if arguments:
            raise UsageError(f"unexpected argument: {arguments[0]!r}")

    def postOptions(self) -> None:
        """Parse the endpoints, or the default one where none was named, and open the log."""
        parent = self.parent or {"nodaemon": True}
        isDaemon = not (parent.get("nodaemon", True) or parent.get("debug"))
        if isDaemon:
            # The process that waits for the daemon to start handles no signals.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            null = os.path.join(str(parent.get("chroot") or "/"), "dev/null")
            if not os.path.exists(null):
                # Without it, the daemon would die and that process wait for ever.
                raise UsageError(f"--chroot: a process in the background needs {null!r}")
        trusted = self["trusted-proxies"] or None
        descriptions = self["endpoints"] or [DEFAULT_ENDPOINT]
        if trusted and not any(map(HAPROXY.match, descriptions)):
            raise UsageError("--trusted-proxy needs an endpoint with haproxy:")
        self["endpoints"] = [
            HelloEndpoint(self._reactor, each, trusted if HAPROXY.match(each) else None)
            for each in descriptions
        ]
        if self["status-hosts"]:
            if self["status"] is None:
                raise UsageError("--status-host needs --status")
            hostName = import_module("hello_listen.status.resource").hostName
            self["status-hosts"] = [hostName(name) for name in self["status-hosts"]]
        path = self["connection-log"]
        if path is None:
            own = "" if self.parent is None else str(self.parent.get("logfile"))
            if own.endswith(".jsonl"):
                raise UsageError(f"-l before hello-listen is twistd's log; put it after: {own!r}")
            return
        stream = standardStream(path)
        if isDaemon and stream is not None:
            name = ("input", "output", "error")[stream]
            raise UsageError(
                f"a process in the background has no standard {name}: twistd -n: {path!r}"
            )
        try:
            self["connection-log"] = ConnectionLog(
                path, reactor=self._reactor, umask=parent.get("umask")
            )
        except OSError as error:
            raise UsageError(f"{_openingFailed(path, error)}: {path!r}") from error


def _openingFailed(path: str, error: OSError) -> str | None:
    """Return why a connection log cannot be opened: open(2) has one error for several reasons."""
    if error.errno == errno.ENXIO:
        with suppress(OSError):
            if stat.S_ISFIFO(os.stat(path).st_mode):
                return "nobody reads this pipe"
        return "neither a file nor a pipe; -l - writes to standard output"
    return error.strerror


def makeService(options: Options, reactor: Any = None) -> IService:
    """
    Return the service that the options describe.

    @param options: what was parsed.
    @param reactor: what to listen with; by default the global reactor.
    """
    log, perClient, networks = (options[n] for n in ("connection-log", "per-client", "summarize"))
    observer = log or logConnection
    if perClient is not None or networks:
        observer = Summaries(observer, perClient, networks, reactor)
    service = PluginService(HelloFactory(observer), options["endpoints"], reactor)
    service.log = log
    if options["status"] is not None:
        from hello_listen.status import StatusResource, StatusSite, Tally

        tally = Tally()
        service.factory.observers += (tally,)
        resource = StatusResource(tally, service, log, options["status-hosts"])
        service.reactor.callWhenRunning(resource.snapshots.expectServers)
        service.serveStatus(options["status"], StatusSite(resource, service.reactor))
    endpoints = [*options["endpoints"], *filter(None, [options["status"]])]
    warnOfUnserved([number for endpoint in endpoints for number in endpoint.descriptors])
    return service
