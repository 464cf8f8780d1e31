"""The command line, up to the service that it makes."""

import json
import signal
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from types import TracebackType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.application.service import IService, IServiceMaker
from twisted.internet.address import IPv4Address
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import capturedLogs, formatEvent
from twisted.plugin import getPlugins
from twisted.python.usage import Options as UsageOptions
from twisted.python.usage import UsageError

from hello_listen import ConnectionLog, HelloFactory, ListenError, tap
from hello_listen.tap import Options, makeService


class FakeReactor(MemoryReactorClock):
    """A reactor in memory that can iterate, and refuses what a test names."""

    refused: tuple[int, ...] = ()
    iterations = 0

    def listenTCP(self, port: int, *args: object, **kwargs: object) -> object:  # type: ignore[override]
        """Listen, unless the port is refused."""
        if port in self.refused:
            raise OverflowError("bind(): port must be 0-65535.")
        return super().listenTCP(port, *args, **kwargs)  # type: ignore[arg-type]

    def getThreadPool(self) -> "FakeReactor":
        """Return what has no threads."""
        return self

    def callInThreadWithCallback(
        self, result: Callable[[bool, object], None], function: Callable[[], object]
    ) -> None:
        """Call it here."""
        result(True, function())

    def callFromThread(self, function: Callable[..., object], *args: object) -> None:  # type: ignore[override]
        """Call it here."""
        function(*args)

    def iterate(self, delay: float = 0) -> None:
        """Count."""
        self.iterations += 1


def parse(*arguments: str, reactor: FakeReactor | None = None) -> Options:
    """Return the options that a command line gives."""
    options = Options(reactor or FakeReactor())
    options.parseOptions(list(arguments))
    return options


def test_plugin_is_found() -> None:
    """Twisted finds the installed plugin, whose parts are the tap's."""
    [plugin] = [p for p in getPlugins(IServiceMaker) if p.tapname == "hello-listen"]
    assert plugin.options is Options
    assert plugin.makeService == makeService


def test_default_endpoint() -> None:
    """Without options it listens on 127.0.0.1, port 7878, and nowhere else."""
    reactor = FakeReactor()
    service = makeService(parse(), reactor)
    assert not reactor.tcpServers
    service.privilegedStartService()
    service.startService()
    [(port, factory, _, interface)] = reactor.tcpServers
    assert (port, interface) == (7878, "127.0.0.1")
    assert isinstance(factory, HelloFactory)


def test_several_endpoints_share_a_factory() -> None:
    """-e is taken as often as it is given, instead of the default; one factory counts for all."""
    reactor = FakeReactor()
    service = makeService(parse("-e", "tcp:1", "--endpoint", r"tcp6:2:interface=\:\:1"), reactor)
    service.startService()
    assert [(s[0], s[3]) for s in reactor.tcpServers] == [(1, ""), (2, "::1")]
    assert reactor.tcpServers[0][1] is reactor.tcpServers[1][1]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["-e", "foo:1"], "'foo:1': Unknown endpoint type: 'foo'"),
        (["-e", "tcp:1:interfce=x"], "'tcp:1:interfce=x': no such argument: 'interfce'"),
        (["surplus"], "unexpected argument: 'surplus'"),
        (["--bogus"], "option --bogus not recognized"),
        (["-e"], "option -e requires argument"),
    ],
)
def test_usage_errors(arguments: list[str], named: str) -> None:
    """What is wrong with a command line is an error, which ends twistd and twist with one line."""
    options = Options(FakeReactor())
    with pytest.raises(UsageError) as raised:
        options.parseOptions(arguments)
    assert str(raised.value) == named
    options.parent = UsageOptions()
    with pytest.raises(SystemExit) as ended:
        options.parseOptions(arguments)
    assert ended.value.code == f"hello-listen: {named}"


def test_help() -> None:
    """The help tells of the options and of the default."""
    text = str(Options())
    assert "-e, --endpoint=" in text
    assert tap.DEFAULT_ENDPOINT in " ".join(text.split())


def test_global_reactor() -> None:
    """A command line is parsed for the reactor that twistd has installed."""
    options = Options()
    options.parseOptions(["-e", "tcp:0"])
    assert options["endpoints"] == ["tcp:0"]
    assert IService.providedBy(makeService(options))


@settings(deadline=None)
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
    """Whatever an endpoint is given as, no other error comes of it, and its message is one line."""
    try:
        options = parse("-e", description)
    except UsageError as error:
        message = str(error)
    else:
        assert options["endpoints"] == [description]
        return
    assert message.isprintable()
    assert repr(description) in message


@pytest.mark.parametrize("option", ["-l", "--connection-log"])
def test_connection_log(tmp_path: Path, option: str) -> None:
    """Connections go to the log instead, which is closed when the service has stopped."""
    reactor = FakeReactor()
    path = tmp_path / "connections.jsonl"
    service = makeService(parse(option, str(path), reactor=reactor), reactor)
    service.startService()
    [(_, factory, _, _)] = reactor.tcpServers
    address = IPv4Address("TCP", "192.0.2.7", 1)
    with capturedLogs() as events:
        factory.established(address, address)
        service.stopService()
    assert json.loads(path.read_text())["client.address"] == "192.0.2.7"
    assert [formatEvent(event) for event in events] == [
        "Stopped. Connections: 1",
        "Connections: 1, recorded: 1, lost: 0",
    ]


def test_stop_without_a_connection_log() -> None:
    """There is nothing to close."""
    service = makeService(parse(), FakeReactor())
    service.startService()
    with capturedLogs() as events:
        service.stopService()
    assert [formatEvent(event) for event in events] == ["Stopped. Connections: 0"]


def test_connection_log_that_cannot_be_opened(tmp_path: Path) -> None:
    """That is an error of the command line, before anything is bound."""
    for path, reason in ((tmp_path, "Is a directory"), (tmp_path / "no" / "file", "No such file")):
        with pytest.raises(UsageError, match=f"^{reason}.*: '{path}'$"):
            parse("-l", str(path))


def test_connection_log_of_a_process_in_the_background(tmp_path: Path) -> None:
    """It cannot be standard output, which is closed; a file is opened, once all else is right."""
    options = Options(FakeReactor())
    options.parent = UsageOptions()
    options.parent["nodaemon"] = 0
    with pytest.raises(SystemExit, match=r"no standard output: twistd -n: '-'$"):
        options.parseOptions(["-l", "-"])
    options = Options(FakeReactor())
    options.parent = UsageOptions()
    options.parseOptions(["-l", "-"])
    assert isinstance(options["connection-log"], ConnectionLog)
    with pytest.raises(UsageError, match=r"one connection log: '.*second'$"):
        parse("-l", str(tmp_path / "first"), "-l", str(tmp_path / "second"))
    with pytest.raises(UsageError, match="not a number"):
        parse("-l", str(tmp_path / "first"), "-e", "tcp:x")
    assert not list(tmp_path.iterdir())


def test_a_start_that_fails_ends_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was bound is let go, and Python's last word on standard error is the reason."""
    reactor = FakeReactor()
    reactor.refused = (99999,)
    service = makeService(parse("-e", "tcp:1", "-e", "tcp:99999", reactor=reactor), reactor)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(ListenError) as raised:
        service.privilegedStartService()
    assert reactor.iterations == 1
    monkeypatch.setattr(sys, "stderr", StringIO())
    traceback: TracebackType | None = raised.value.__traceback__
    sys.excepthook(ListenError, raised.value, traceback)
    assert isinstance(sys.stderr, StringIO)
    assert sys.stderr.getvalue() == ("hello-listen: bind(): port must be 0-65535: 'tcp:99999'\n")


@pytest.mark.unix
def test_a_late_failure_ends_the_process() -> None:
    """Where an endpoint fails after the start, the process ends as if it had been told to."""
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        with capturedLogs() as events:
            service = makeService(parse(), FakeReactor())
            assert isinstance(service, tap.PluginService)
            service.listenFailed(ListenError("no onion: 'onion:80'"))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM]
    assert [event["error"] for event in events] == ["no onion: 'onion:80'"]
