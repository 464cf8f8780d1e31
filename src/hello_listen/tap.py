"""The command line of C{twistd hello-listen} and C{twist hello-listen}."""

from __future__ import annotations

import errno
import os
import re
import signal
import stat
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any, NoReturn

import twisted
from twisted.application.service import IService
from twisted.python.usage import (
    CompleteFiles,
    CompleteHostnames,
    Completer,
    Completions,
    UsageError,
)
from twisted.python.usage import Options as UsageOptions

from hello_listen._gateway import defaultGateways, warnIfHidden
from hello_listen._inherited import warnOfUnserved
from hello_listen._log_file import standardStream
from hello_listen._networks import Networks
from hello_listen._process import SIGNALS, PluginService
from hello_listen._version import __version__
from hello_listen.connection_log import ConnectionLog
from hello_listen.endpoint import HAPROXY, REDIRECTED, HelloEndpoint
from hello_listen.notifications import Notifications
from hello_listen.protocol import HelloFactory, logConnection
from hello_listen.service import HelloService
from hello_listen.summaries import Summaries, networksByPort

DEFAULT_ENDPOINT = "tcp:7878:interface=127.0.0.1"


class Options(UsageOptions):
    """
    The options. Once they are parsed, each value is what L{makeService} needs.

    >>> from hello_listen.tap import Options, makeService
    >>> options = Options()
    >>> options.parseOptions(["-e", "tcp:0:interface=127.0.0.1", "--per-client", "10"])
    >>> service = makeService(options)
    """

    synopsis = "[options]"
    longdesc = "Log each connection to the endpoints, and drop it."
    compData = Completions(
        multiUse=["endpoint", "mmdb", "notify", "status-host", "summarize", "trusted-proxy"],
        optActions={
            **dict.fromkeys(["endpoint", "per-client", "status", "summarize"], Completer()),
            "connection-log": CompleteFiles(),
            "mmdb": CompleteFiles("*.mmdb"),
            "notify": CompleteFiles(),
            "status-host": CompleteHostnames(),
            "trusted-proxy": CompleteHostnames(),
        },
    )

    def __init__(self, reactor: Any = None) -> None:
        """
        Set the defaults, and open standard descriptors that are closed.

        @param reactor: the reactor for the endpoints; by default the global reactor, which twistd
            and twist have installed by now.
        """
        super().__init__()
        # The reactor would get the numbers of closed standard descriptors, which a daemonizing
        # twistd then replaces by /dev/null.
        while (null := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(null)
        if reactor is None:
            from twisted.internet import reactor
        self._reactor: Any = reactor
        self._descriptions: list[str] = []
        self._trustedProxies: list[str] = []
        self._hostNames: list[str] = []
        self._databases: list[str] = []
        self._logPath: str | None = None
        self["per-client"] = None
        self["summarize"] = []
        self["notify"] = []
        self["status"] = None
        self["status-hosts"] = []
        self["places"] = None

    def opt_endpoint(self, endpoint: str) -> None:
        """Listen here; repeatable [default: tcp:7878:interface=127.0.0.1]."""
        self._descriptions.append(endpoint)

    opt_e = opt_endpoint

    def opt_trusted_proxy(self, network: str) -> None:
        """Accept PROXY headers from this address or network; repeatable [default: from any]."""
        Networks([network])
        self._trustedProxies.append(network)

    def opt_connection_log(self, file: str) -> None:
        """Append connections to this file as JSON Lines, not to Twisted's log; - is stdout."""
        if self._logPath is not None:
            raise UsageError(f"--connection-log given twice: {file!r}")
        self._logPath = file

    opt_l = opt_connection_log

    def opt_per_client(self, n: str) -> None:
        """Record at most N connections per client and minute; summarize the rest."""
        if not n.isdecimal():
            raise UsageError(f"not a number of connections: {n!r}")
        self["per-client"] = int(n)

    def opt_summarize(self, network: str) -> None:
        """Count connections from NETWORK or NETWORK,PORT, but do not record each; repeatable."""
        networksByPort([network])
        self["summarize"].append(network)

    def opt_notify(self, place: str) -> None:
        """Notify of new clients by this Apprise FILE or URL (needs apprise); repeatable."""
        try:
            services = import_module("hello_listen._apprise").services
        except ImportError as error:
            raise UsageError(f"{error}: pip install apprise") from error
        try:
            self["notify"] += services(place)
        except OSError as error:
            raise UsageError(f"--notify: {error.strerror}: {place!r}") from error

    def opt_status(self, endpoint: str) -> None:
        """Serve a status page, JSON and metrics on this endpoint (needs prometheus-client)."""
        if self["status"] is not None:
            raise UsageError(f"--status given twice: {endpoint!r}")
        for prefix in (HAPROXY, REDIRECTED):
            if found := prefix.match(endpoint):
                raise UsageError(f"{endpoint!r}: {found[0]} is not supported for --status")
        try:
            import_module("hello_listen.status")
        except ImportError as error:
            raise UsageError(f"{error}: pip install prometheus-client") from error
        try:
            self["status"] = HelloEndpoint(self._reactor, endpoint)
        except ValueError as error:
            # The suggested endpoint is for this machine only.
            local = r"\1:interface=127.0.0.1'"
            raise UsageError(re.sub(r"(did you mean 'tcp:\d+)'", local, str(error))) from error

    def opt_mmdb(self, file: str) -> None:
        """Show countries or networks in --status by this MaxMind FILE; repeatable."""
        try:
            import_module("hello_listen.geo")
        except ImportError as error:
            raise UsageError(f"{error}: pip install maxminddb") from error
        self._databases.append(file)

    def opt_status_host(self, name: str) -> None:
        """Serve --status under this host name, besides localhost and IP addresses; repeatable."""
        self._hostNames.append(name)

    def opt_version(self) -> NoReturn:
        """Display the versions of hello-listen and Twisted, and exit."""
        print(f"hello-listen {__version__}, Twisted {twisted.__version__}")
        sys.exit(0)

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """
        Parse the options; under twistd and twist, an error ends the process with one line.

        They would print forty lines of help, and twistd before Twisted 26.10 would exit with 0.

        @raise UsageError: an argument is wrong, and there is no parent command.
        """
        try:
            super().parseOptions(options)
        except (UsageError, ValueError) as error:
            if self.parent is None:
                raise UsageError(str(error)) from error
            sys.exit(f"hello-listen: {error}")

    def parseArgs(self, *arguments: str) -> None:
        """Refuse positional arguments."""
        if arguments:
            raise UsageError(f"unexpected argument: {arguments[0]!r}")

    def postOptions(self) -> None:
        """Check the options against each other, parse the endpoints, and open the log."""
        parent = self.parent or {"nodaemon": True}
        isDaemon = not (parent.get("nodaemon", True) or parent.get("debug"))
        if isDaemon:
            # Signals must be able to end the parent process, which waits for the daemon to start.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            null = os.path.join(str(parent.get("chroot") or "/"), "dev/null")
            if not os.path.exists(null):
                # Without it, the daemon would die and its parent wait for ever.
                raise UsageError(f"--chroot: a process in the background needs {null!r}")
        trusted = self._trustedProxies or None
        descriptions = self._descriptions or [DEFAULT_ENDPOINT]
        if trusted and not any(map(HAPROXY.match, descriptions)):
            raise UsageError("--trusted-proxy needs an endpoint with haproxy:")
        self["endpoints"] = [
            HelloEndpoint(self._reactor, each, trusted if HAPROXY.match(each) else None)
            for each in descriptions
        ]
        if self._hostNames:
            if self["status"] is None:
                raise UsageError("--status-host needs --status")
            hostName = import_module("hello_listen.status.resource").hostName
            self["status-hosts"] = [hostName(name) for name in self._hostNames]
        if self._databases:
            if self["status"] is None:
                raise UsageError("--mmdb needs --status")
            try:
                self["places"] = import_module("hello_listen.geo").GeoDatabases(self._databases)
            except OSError as error:
                raise UsageError(f"--mmdb: {error.strerror}: {error.filename!r}") from error
        self["connection-log"] = self._openLog(parent, isDaemon)

    def _openLog(self, parent: Mapping[str, Any], isDaemon: bool) -> ConnectionLog | None:
        """Open the connection log, if there is to be one."""
        path = self._logPath
        if path is None:
            own = "" if self.parent is None else str(self.parent.get("logfile"))
            if own.endswith(".jsonl"):
                raise UsageError(f"-l before hello-listen is twistd's log; put it after: {own!r}")
            return None
        stream = standardStream(path)
        if isDaemon and stream is not None:
            name = ("input", "output", "error")[stream]
            raise UsageError(
                f"a process in the background has no standard {name}: twistd -n: {path!r}"
            )
        try:
            return ConnectionLog(path, reactor=self._reactor, umask=parent.get("umask"))
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

    @param options: the options, parsed.
    @param reactor: the reactor that listens; by default the global reactor.
    """
    log, perClient, networks = (options[n] for n in ("connection-log", "per-client", "summarize"))
    observer = log or logConnection
    if perClient is not None or networks:
        observer = Summaries(observer, perClient, networks, reactor)
    notifications = [
        Notifications(service, networks, reactor, service.name) for service in options["notify"]
    ]
    endpoints, status = options["endpoints"], None
    observers: list[Any] = [observer, *notifications]
    if options["status"] is not None:
        from hello_listen.status import StatusResource, StatusSite, Tally

        tally = Tally()
        observers.append(tally)

        def makeSite(service: HelloService) -> StatusSite:
            hosts, reactor = options["status-hosts"], service.reactor
            resource = StatusResource(
                tally,
                service,
                log,
                hosts,
                reactor=reactor,
                notifications=notifications,
                places=options["places"],
            )
            return StatusSite(resource, reactor)

        status = options["status"], makeSite
    every = filter(None, [*endpoints, options["status"]])
    warnOfUnserved([number for endpoint in every for number in endpoint.descriptors])
    factory = HelloFactory(*observers)
    warnIfHidden(factory, defaultGateways())
    return PluginService(factory, endpoints, reactor, log, status, options["places"])
