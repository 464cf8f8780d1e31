"""The command line, up to the service that it makes."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from io import StringIO
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
import twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.application.service import IService, IServiceMaker
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort
from twisted.logger import capturedLogs, formatEvent
from twisted.plugin import getPlugins
from twisted.python.usage import CompleteFiles, UsageError
from twisted.python.usage import Options as UsageOptions
from zope.interface import implementer

import hello_listen
from disks import Disk
from events import texts
from hello_listen import ConnectionLog, HelloFactory, ListenError, logConnection, tap
from hello_listen._process import PluginService
from hello_listen._proxy import ProxiedProtocol
from hello_listen.tap import Options, makeService
from output import Output
from reactors import FakeReactor

ADDRESS = IPv4Address("TCP", "192.0.2.7", 1)
SIGNALS = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2")


@pytest.fixture(autouse=True)
def received() -> Iterator[list[int]]:
    """Give signals their defaults, but SIGTERM and SIGINT a reactor's handler; undo all of it."""
    numbers = [getattr(signal, name) for name in SIGNALS]
    before = [signal.signal(number, signal.SIG_DFL) for number in numbers]
    terminated: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: terminated.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield terminated
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)  # Drops what is still pending.
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Return a stand-in for the terminal of this process."""
    return Terminal(monkeypatch)


class Terminal:
    """Stands in for opening /dev/tty, which succeeds if C{there} is set."""

    there = False

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._open = os.open
        monkeypatch.setattr(os, "open", self.open)

    def open(self, path: Any, *args: Any, **kwargs: Any) -> int:
        """Open a file, or the terminal."""
        if path != "/dev/tty":
            return self._open(path, *args, **kwargs)
        if not self.there:
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        return self._open(os.devnull, os.O_RDWR)


def parse(*arguments: str, reactor: FakeReactor | None = None) -> Options:
    """Return the options that a command line gives."""
    options = Options(reactor or FakeReactor())
    options.parseOptions(list(arguments))
    return options


def run() -> None:
    """Start the service of a command line without options, and its reactor."""
    reactor = FakeReactor()
    makeService(parse(reactor=reactor), reactor).startService()
    reactor.run()


def descriptions(options: Options) -> list[str]:
    """Return the descriptions of the endpoints."""
    return [endpoint.description for endpoint in options["endpoints"]]


def test_plugin_is_found() -> None:
    """Twisted finds the installed plugin, which has the tap's options and makeService."""
    [plugin] = [p for p in getPlugins(IServiceMaker) if p.tapname == "hello-listen"]
    assert plugin.options is Options
    assert plugin.makeService == makeService


def test_default_endpoint() -> None:
    """Without options it listens on 127.0.0.1, port 7878, and nowhere else."""
    reactor = FakeReactor()
    service = makeService(parse(reactor=reactor), reactor)
    assert not reactor.tcpServers
    service.privilegedStartService()
    service.startService()
    [(port, factory, _, interface)] = reactor.tcpServers
    assert (port, interface) == (7878, "127.0.0.1")
    assert isinstance(factory, HelloFactory)


def test_several_endpoints_share_a_factory() -> None:
    """-e is repeatable and replaces the default; all endpoints share one factory."""
    reactor = FakeReactor()
    options = parse("-e", "tcp:1", "--endpoint", r"tcp6:2:interface=\:\:1", reactor=reactor)
    service = makeService(options, reactor)
    service.startService()
    assert [(s[0], s[3]) for s in reactor.tcpServers] == [(1, ""), (2, "::1")]
    assert reactor.tcpServers[0][1] is reactor.tcpServers[1][1]


def test_trusted_proxies() -> None:
    """--trusted-proxy applies to every haproxy: endpoint, wherever it is on the command line."""
    reactor = FakeReactor()
    options = parse(
        *("--trusted-proxy", "10.0.0.2", "-e", "haproxy:tcp:1", "-e", "tcp:2"),
        *("-e", "HAProxy:tcp:3", "--trusted-proxy", "10.0.0.3"),
        reactor=reactor,
    )
    makeService(options, reactor).startService()
    factories = [server[1] for server in reactor.tcpServers]
    assert isinstance(factories.pop(1), HelloFactory)
    for factory in factories:
        believed = [
            isinstance(factory.buildProtocol(IPv4Address("TCP", host, 1)), ProxiedProtocol)
            for host in ("10.0.0.2", "10.0.0.3", "10.0.0.4")
        ]
        assert believed == [True, True, False]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["-e", "tcp:"], "'tcp:': missing: 'port'"),
        (["-e", "tcp:1:interfce=x"], "'tcp:1:interfce=x': no such argument: 'interfce'"),
        (["-e", "7878"], "'7878': Unknown endpoint type: '7878'; did you mean 'tcp:7878'?"),
        (
            ["-e", "127.0.0.1:7878"],
            "'127.0.0.1:7878': Unknown endpoint type: '127.0.0.1'; "
            "did you mean 'tcp:7878:interface=127.0.0.1'?",
        ),
        (["-l", ""], "a path is missing: ''"),
        (["--per-client", "-1"], "not a number of connections: '-1'"),
        (["--summarize", "192.0.2.7/33"], "not a network: '192.0.2.7/33'"),
        (
            ["--summarize", "192.0.2.7/24"],
            "not a network: '192.0.2.7/24'; did you mean '192.0.2.0/24'?",
        ),
        (
            ["--summarize", "192.0.2.7,70000"],
            "not a port from 1 to 65535: '70000' in '192.0.2.7,70000'",
        ),
        (["--trusted-proxy", "10.0.0.256"], "not a network: '10.0.0.256'"),
        (["--trusted-proxy", "10.0.0.2"], "--trusted-proxy needs an endpoint with haproxy:"),
        (
            ["--trusted-proxy", "10.0.0.2", "-e", "tcp:1"],
            "--trusted-proxy needs an endpoint with haproxy:",
        ),
        (["surplus"], "unexpected argument: 'surplus'"),
        (["--bogus"], "option --bogus not recognized"),
        (["-e"], "option -e requires argument"),
    ],
)
def test_usage_errors(arguments: list[str], named: str) -> None:
    """A wrong command line is a usage error, and ends twistd and twist with one line."""
    options = Options(FakeReactor())
    with pytest.raises(UsageError) as raised:
        options.parseOptions(arguments)
    assert str(raised.value) == named
    options = Options(FakeReactor())
    options.parent = UsageOptions()
    with pytest.raises(SystemExit) as ended:
        options.parseOptions(arguments)
    assert ended.value.code == f"hello-listen: {named}"


def test_help() -> None:
    """The help shows the options and the default endpoint."""
    text = str(Options())
    assert "-e, --endpoint=" in text
    assert tap.DEFAULT_ENDPOINT in " ".join(text.split())


def test_global_reactor() -> None:
    """A command line is parsed for the reactor that twistd has installed."""
    options = Options()
    options.parseOptions(["-e", "tcp:0"])
    assert descriptions(options) == ["tcp:0"]
    assert IService.providedBy(makeService(options))


@given(
    st.one_of(
        st.text(),
        st.builds(
            "{}:{}".format,
            st.sampled_from(["tcp", "tcp6", "unix", "ssl", "tls", "systemd", "stdio", "haproxy"]),
            st.text(alphabet="019:=\\\0 \nabceiknrtéx\udcff/."),
        ),
    )
)
def test_any_endpoint_is_a_service_or_a_usage_error(description: str) -> None:
    """Any endpoint is parsed, or refused with a usage error of one line."""
    try:
        options = parse("-e", description)
    except UsageError as error:
        message = str(error)
    else:
        assert descriptions(options) == [description]
        return
    assert message.isprintable()
    assert repr(description) in message


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """--version prints the project's own version and Twisted's."""
    with pytest.raises(SystemExit) as ended:
        parse("--version")
    assert not ended.value.code
    versions = f"hello-listen {hello_listen.__version__}, Twisted {twisted.__version__}\n"
    assert capsys.readouterr().out == versions


@pytest.mark.parametrize("option", ["-l", "--connection-log"])
def test_connection_log(tmp_path: Path, option: str) -> None:
    """Connections go to the log instead, which is closed when the service has stopped."""
    reactor = FakeReactor()
    path = tmp_path / "connections.jsonl"
    service = makeService(parse(option, str(path), reactor=reactor), reactor)
    service.startService()
    [(_, factory, _, _)] = reactor.tcpServers
    with capturedLogs() as events:
        assert isinstance(factory, HelloFactory)
        factory.established(ADDRESS, ADDRESS)
        reactor.wait(service.stopService())
    _, connection, _ = map(json.loads, path.read_text().splitlines())
    assert connection["client.address"] == "192.0.2.7"
    assert texts(events) == ["Connections: 1, recorded: 1, summarized: 0, lost: 0"]


def test_summaries(tmp_path: Path) -> None:
    """The summaries of --per-client and --summarize are in the log when it is closed."""
    reactor = FakeReactor()
    path = tmp_path / "connections.jsonl"
    arguments = ["-l", str(path), "--per-client", "1", "--summarize", "10.0.0.0/8,1"]
    service = makeService(parse(*arguments, reactor=reactor), reactor)
    service.startService()
    [(_, factory, _, _)] = reactor.tcpServers
    for host in ("192.0.2.7", "192.0.2.7", "192.0.2.7", "10.0.0.1"):
        address = IPv4Address("TCP", host, 1)
        assert isinstance(factory, HelloFactory)
        factory.established(address, address)
    with capturedLogs() as events:
        reactor.wait(service.stopService())
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line.get("client.address"), line.get("count")) for line in lines[1:-1]] == [
        ("192.0.2.7", None),
        ("192.0.2.7", 2),
        ("10.0.0.1", 1),
    ]
    assert formatEvent(events[-1]) == "Connections: 4, recorded: 1, summarized: 3, lost: 0"


def test_stop_without_a_connection_log() -> None:
    """Without a connection log, a stop logs the number of connections."""
    service = makeService(parse(), FakeReactor())
    service.startService()
    with capturedLogs() as events:
        service.stopService()
    assert texts(events) == ["Stopped. Connections: 0"]


def test_connection_log_that_cannot_be_opened(tmp_path: Path) -> None:
    """A log that cannot be opened is a usage error, before anything is bound."""
    for path, reason in ((tmp_path, "Is a directory"), (tmp_path / "no" / "file", "No such file")):
        with pytest.raises(UsageError, match=f"^{reason}.*: '{path}'$"):
            parse("-l", str(path))


def test_connection_log_that_is_no_file(fifo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe without a reader and a closed standard output are refused."""
    with pytest.raises(UsageError, match=f"^nobody reads this pipe: '{fifo}'$"):
        parse("-l", str(fifo))
    monkeypatch.setattr(sys, "__stdout__", None)
    with pytest.raises(UsageError, match=r"^standard output is closed: '-'$"):
        parse("-l", "-")


def test_connection_log_that_is_a_socket(tmp_path: Path) -> None:
    """A socket is refused, and standard output suggested."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        with pytest.raises(UsageError) as raised:
            parse("-l", str(tmp_path / "s"))
    assert str(raised.value) == (
        f"neither a file nor a pipe; -l - writes to standard output: '{tmp_path}/s'"
    )


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("-", "output"),
        ("/dev/stdin", "input"),
        ("/dev/stdout", "output"),
        ("/proc/self/fd/1", "output"),
        ("/dev/fd/2", "error"),
    ],
)
def test_connection_log_of_a_process_in_the_background(
    output: Output, path: str, name: str
) -> None:
    """A daemon's log cannot be a standard stream, however it is named: that is /dev/null."""
    reader, writer = os.pipe()
    output.become(writer)
    options = Options(FakeReactor())
    options.parent = UsageOptions()
    options.parent["nodaemon"] = 0
    with pytest.raises(SystemExit) as ended:
        options.parseOptions(["-l", path])
    assert ended.value.code == (
        f"hello-listen: a process in the background has no standard {name}: twistd -n: {path!r}"
    )
    os.close(reader)


@pytest.mark.parametrize("option", [None, "nodaemon", "debug"])
def test_connection_log_of_a_process_in_the_foreground(output: Output, option: str | None) -> None:
    """The log can be standard output under twist, and with twistd's options -n and -b."""
    reader, writer = os.pipe()
    output.become(writer)
    for path in ("-", "/dev/stdout"):
        options = Options(FakeReactor())
        options.parent = UsageOptions()
        if option is not None:
            options.parent |= {"nodaemon": 0, option: 1}
        options.parseOptions(["-l", path])
        assert isinstance(options["connection-log"], ConnectionLog)
        options["connection-log"].close()
    os.close(reader)


def test_chroot_of_a_process_in_the_background(tmp_path: Path) -> None:
    """A daemon in a chroot needs /dev/null there."""
    options = Options(FakeReactor())
    options.parent = UsageOptions()
    options.parent |= {"nodaemon": 0, "chroot": str(tmp_path)}
    with pytest.raises(SystemExit) as ended:
        options.parseOptions([])
    null = tmp_path / "dev" / "null"
    assert ended.value.code == (
        f"hello-listen: --chroot: a process in the background needs '{null}'"
    )
    null.parent.mkdir()
    null.write_bytes(b"")
    options.parseOptions([])


def test_umask(tmp_path: Path) -> None:
    """twistd's --umask applies to the log, which is created before twistd sets the umask."""
    path = tmp_path / "log"
    options = Options(FakeReactor())
    options.parent = UsageOptions()
    options.parent["umask"] = 0o037
    options.parseOptions(["-l", str(path)])
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_standard_descriptors_that_are_closed() -> None:
    """Closed standard descriptors are opened on /dev/null before a reactor gets their numbers."""
    before = os.dup(0)
    os.close(0)
    try:
        Options(FakeReactor())
        taken = os.path.samestat(os.fstat(0), os.stat(os.devnull))
    finally:
        os.dup2(before, 0)
        os.close(before)
    assert taken


def test_connection_log_is_opened_last(tmp_path: Path) -> None:
    """The log file is created only if all other options are right."""
    with pytest.raises(UsageError, match=r"--connection-log given twice: '.*second'$"):
        parse("-l", str(tmp_path / "first"), "-l", str(tmp_path / "second"))
    with pytest.raises(UsageError, match="not a number"):
        parse("-l", str(tmp_path / "first"), "-e", "tcp:x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("logfile", ["twistd.log", "who.jsonl"])
def test_log_before_the_command(logfile: str) -> None:
    """A .jsonl file as twistd's own log is refused: it is meant for the connection log."""
    options = Options(FakeReactor())
    options.parent = UsageOptions()
    options.parent["logfile"] = logfile
    reason = re.escape("is twistd's log; put it after: 'who.jsonl'")
    expected = pytest.raises(SystemExit, match=reason) if "who" in logfile else nullcontext()
    with expected:
        options.parseOptions([])


@implementer(IListeningPort)
class SlowPort:
    """A port that takes one turn of its reactor to stop listening."""

    def __init__(self) -> None:
        self.stopped: Deferred[None] = Deferred()

    def startListening(self) -> None:
        """Do nothing."""

    def getHost(self) -> IPv4Address:
        """Return an address."""
        return ADDRESS

    def stopListening(self) -> Deferred[None]:
        """Stop when the reactor iterates."""
        return self.stopped


class RefusingReactor(FakeReactor):
    """Listens on one port, and refuses the next."""

    def __init__(self) -> None:
        super().__init__()
        self.ports: list[SlowPort] = []

    def listenTCP(self, *args: Any, **kwargs: Any) -> Any:
        """Listen once, then fail."""
        if self.ports:
            raise OverflowError("bind(): port must be 0-65535.")
        self.ports.append(SlowPort())
        return self.ports[0]

    def iterate(self, delay: float = 0) -> None:
        """Stop what is stopping; then make a call from a thread."""
        if self.ports[0].stopped.called:
            self.callOne()
        else:
            self.ports[0].stopped.callback(None)


def test_a_start_that_fails_ends_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound port is released, and the last line on standard error is the reason."""
    reactor = RefusingReactor()
    service = makeService(parse("-e", "tcp:1", "-e", "tcp:99999", reactor=reactor), reactor)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(ListenError) as raised:
        service.privilegedStartService()
    assert reactor.ports[0].stopped.called
    monkeypatch.setattr(sys, "stderr", StringIO())
    traceback: TracebackType | None = raised.value.__traceback__
    sys.excepthook(ListenError, raised.value, traceback)
    assert isinstance(sys.stderr, StringIO)
    assert sys.stderr.getvalue() == "hello-listen: bind(): port must be 0-65535: 'tcp:99999'\n"


def test_a_start_that_fails_closes_the_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Connections to a bound port are recorded before the process ends."""
    reactor = RefusingReactor()
    arguments = ["-e", "tcp:1", "-e", "tcp:99999", "-l", str(tmp_path / "log")]
    service: Any = makeService(parse(*arguments, reactor=reactor), reactor)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    service.factory.established(ADDRESS, ADDRESS)
    with pytest.raises(ListenError):
        service.privilegedStartService()
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert lines[-1]["message"] == "Connection log closed"
    assert lines[-1]["recorded"] == 1


def test_a_late_failure_ends_the_process(received: list[int]) -> None:
    """If an endpoint fails after the start, the process ends as on SIGTERM."""
    service = makeService(parse(), FakeReactor())
    assert isinstance(service, PluginService)
    with capturedLogs() as events:
        service.listenFailed(ListenError(None, "onion:80", "no onion"))
    assert received == [signal.SIGTERM]
    assert texts(events) == ["no onion: 'onion:80'"]


@pytest.mark.parametrize("name", ["SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2"])
def test_signals(terminal: Terminal, received: list[int], name: str) -> None:
    """Signals whose default ends the process stop it cleanly; so does SIGHUP from a terminal."""
    terminal.there = True
    run()
    signal.raise_signal(getattr(signal, name))
    assert received == [signal.SIGTERM]


@pytest.mark.parametrize("name", SIGNALS)
def test_signals_before_the_reactor_runs(
    terminal: Terminal, received: list[int], name: str
) -> None:
    """A signal that comes before the reactor runs stays pending, and is handled when it runs."""
    terminal.there = True
    number = getattr(signal, name)
    handler = signal.signal(number, signal.SIG_DFL)
    plugin: Any
    [plugin] = [p for p in getPlugins(IServiceMaker) if p.tapname == "hello-listen"]
    reactor = FakeReactor()
    options = plugin.options(reactor)
    signal.raise_signal(number)
    options.parseOptions([])
    service = plugin.makeService(options, reactor)
    service.privilegedStartService()
    service.startService()
    assert number in signal.sigpending()
    signal.signal(number, handler)
    reactor.run()
    assert len(received) == 1
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())


@pytest.mark.parametrize("isAbstract", [False, *[True] * (sys.platform == "linux")])
def test_systemd_is_notified(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, isAbstract: bool
) -> None:
    """systemd is notified once signals are handled, and not before."""
    name = f"\0{tmp_path}" if isAbstract else f"{tmp_path}/s"
    monkeypatch.setenv("NOTIFY_SOCKET", name.replace("\0", "@"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(name)
        systemd.setblocking(False)
        reactor = FakeReactor()
        makeService(parse(reactor=reactor), reactor).startService()
        with pytest.raises(BlockingIOError):
            systemd.recv(100)
        reactor.run()
        assert systemd.recv(100) == b"READY=1"


def test_systemd_that_cannot_be_notified(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A failed notification is logged, and the service runs on."""
    monkeypatch.setenv("NOTIFY_SOCKET", f"{tmp_path}/s")
    with capturedLogs() as events:
        run()
    assert formatEvent(events[-1]) == f"Not notified: No such file or directory: '{tmp_path}/s'"


def test_hangup_without_a_terminal(
    terminal: Terminal, received: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a controlling terminal, SIGHUP reopens the connection log."""
    path = tmp_path / "log"
    disk = Disk(monkeypatch)
    reactor = FakeReactor()
    service = makeService(parse("-l", str(path), reactor=reactor), reactor)
    service.startService()
    reactor.run()
    disk.until(path.read_bytes)
    path.rename(tmp_path / "old")
    signal.raise_signal(signal.SIGHUP)
    assert not path.exists()
    reactor.callOne()
    disk.until(path.exists)
    reactor.wait(service.stopService())
    assert not received


def test_hangup_with_databases(terminal: Terminal, received: list[int], tmp_path: Path) -> None:
    """SIGHUP takes a new database of countries, or says why the old one is still used."""
    geodata = pytest.importorskip("geodata")
    path = geodata.write(tmp_path / "x.mmdb", {"192.0.2.0/24": geodata.country("DE")})
    reactor = FakeReactor()
    options = parse("--status", "tcp:1", "--mmdb", str(path), reactor=reactor)
    makeService(options, reactor).startService()
    reactor.run()
    geodata.write(path, {"192.0.2.0/24": geodata.country("FR")})
    signal.raise_signal(signal.SIGHUP)
    assert options["places"].find("192.0.2.7").country == "DE"
    reactor.callOne()
    assert options["places"].find("192.0.2.7").country == "FR"
    for change, reason in (
        (lambda: path.write_bytes(b"x"), f"Not reloaded: not a MaxMind database: '{path}'"),
        (path.unlink, f"Not reloaded: No such file or directory: '{path}'"),
    ):
        change()
        with capturedLogs() as events:
            signal.raise_signal(signal.SIGHUP)
            reactor.callOne()
        assert texts(events) == [reason]
        assert options["places"].find("192.0.2.7").country == "FR"
    assert not received


def test_hangup_without_a_connection_log(terminal: Terminal, received: list[int]) -> None:
    """Without a connection log, SIGHUP has no effect."""
    reactor = FakeReactor()
    service = makeService(parse(), reactor)
    assert isinstance(service, PluginService)
    assert service.factory.observers[0] is logConnection
    service.startService()
    reactor.run()
    signal.raise_signal(signal.SIGHUP)
    assert not received


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda number, frame: None])
def test_signals_that_somebody_handles(terminal: Terminal, handler: Any) -> None:
    """Handlers that others have set, and signals that nohup ignores, are left alone."""
    numbers = [signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2]
    for number in numbers:
        signal.signal(number, handler)
    run()
    assert [signal.getsignal(number) for number in numbers] == [handler] * 4


def test_completion_of_repeatable_options() -> None:
    """An option that is repeatable, as C{--help} says, is completed each time."""
    options = parse()
    told = {options.synonyms[n] for n, text in options.docs.items() if "repeatable" in text}
    assert told == set(Options.compData.multiUse)


def test_completion_of_values() -> None:
    """An option with a value has a completion: of files, if C{--help} says that it takes one."""
    options, actions = parse(), Options.compData.optActions
    assert {name[:-1] for name in options.longOpt if name.endswith("=")} == set(actions)
    told = {options.synonyms[n] for n, t in options.docs.items() if re.search("file|FILE", t)}
    assert told == {name for name, each in actions.items() if isinstance(each, CompleteFiles)}


def test_signals_while_it_stops(terminal: Terminal, received: list[int]) -> None:
    """Signals during a stop have no effect."""
    terminal.there = True
    reactor = FakeReactor()
    service = makeService(parse(reactor=reactor), reactor)
    service.startService()
    reactor.run()
    service.stopService()
    for name in SIGNALS:
        signal.raise_signal(getattr(signal, name))
    assert not received


def test_signals_at_once(terminal: Terminal, received: list[int]) -> None:
    """Only the first signal is handled, and a signal that is ignored stays ignored."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    run()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        signal.raise_signal(number)
    assert received == [signal.SIGTERM]
