"""Notifications: each new client is reported, or counted as unreported."""

from __future__ import annotations

import re
from collections.abc import Callable
from queue import Queue
from threading import Event
from threading import enumerate as threads

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress
from twisted.internet.stdio import PipeAddress
from twisted.logger import capturedLogs

from events import texts
from hello_listen import Connection, Notifications, SendError
from hello_listen import notifications as module
from reactors import TIMEOUT, FakeReactor
from turns import until

NOON = 1_767_268_800.0
HOST = "vm"


def v4(number: int) -> IPv4Address:
    """Return a client's address, which differs for each number."""
    return IPv4Address("TCP", f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 51974)


def server(port: int) -> IPv4Address:
    """Return a server's address."""
    return IPv4Address("TCP", "192.0.2.1", port)


PORT = server(7878)


class Receiver:
    """
    Notifications, and what their receiver got.

    @ivar results: what each call of C{send} returns or raises, or an event that it waits for; after
        the last, calls succeed.
    """

    def __init__(self, *results: object, networks: tuple[str, ...] = ()) -> None:
        self.reactor = FakeReactor()
        self.results = list(results)
        self.calls: Queue[tuple[str, str]] = Queue()
        self.delivered: list[str] = []
        self.notifications = Notifications(
            self.send, networks, self.reactor, name="pager", host=HOST
        )

    def send(self, title: str, text: str) -> object:
        """Take a message, or fail."""
        self.calls.put((title, text))
        result = self.results.pop(0) if self.results else None
        if isinstance(result, Event):
            result.wait(TIMEOUT)
            result = None
        if isinstance(result, BaseException):
            raise result
        if result is None or result:
            self.delivered.append(text)
        return result

    def connect(
        self,
        client: IAddress,
        count: int = 1,
        server: IAddress = PORT,
        error: str | None = None,
    ) -> None:
        """Have a client connect."""
        for _ in range(count):
            self.notifications(Connection(NOON, client, server, error=error))

    def get(self) -> str:
        """Wait for the next call, and return its text."""
        return self.calls.get(timeout=TIMEOUT)[1]

    def close(self) -> list[str]:
        """Close the notifications, and return what is logged."""
        with capturedLogs() as logged:
            closed = self.notifications.close()
            if not closed.called:
                self.reactor.wait(closed)
        return texts(logged)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send each message at once: no batches, no pauses before retries."""
    for name in ("MESSAGE_INTERVAL", "MIN_RETRY_INTERVAL", "MAX_RETRY_INTERVAL"):
        monkeypatch.setattr(module, name, 0.0)


def started() -> int:
    """Return the number of threads that send."""
    return sum(thread.name == "notifications" for thread in threads())


def test_first_and_sum() -> None:
    """The first client is reported at once; later ones share one message that counts all."""
    receiver = Receiver()
    receiver.connect(IPv4Address("TCP", "192.0.2.99", 1))
    first = receiver.calls.get(timeout=TIMEOUT)
    assert first == (
        "hello-listen on vm: 1 new client",
        "1 new client, 1 connection since 2026-01-01 12:00: 192.0.2.99 (1, port 7878)",
    )
    receiver.connect(IPv4Address("TCP", "203.0.113.7", 1), 800)
    receiver.connect(IPv6Address("TCP", "2001:db8:1:2::5", 1), 11)
    receiver.connect(IPv4Address("TCP", "198.51.100.4", 1), server=server(7879))
    assert receiver.close() == []
    assert re.fullmatch(
        r"3 new clients, 812 connections since \d\d:\d\d: 203\.0\.113\.7 \(800, port 7878\), "
        r"2001:db8:1:2::/64 \(11, port 7878\), 198\.51\.100\.4 \(1, port 7879\)",
        receiver.get(),
    )
    assert receiver.calls.empty()
    assert receiver.notifications.delivered == 2
    assert receiver.notifications.waiting == 0


@pytest.mark.usefixtures("quick")
def test_not_new() -> None:
    """A reported client is new again only after a day; its connections are counted."""
    receiver = Receiver()
    receiver.connect(v4(1))
    receiver.get()
    receiver.connect(v4(1), 3)
    receiver.close()
    assert len(receiver.delivered) == 1


def test_new_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that was not seen for L{NEWS_PERIOD} is new again."""
    monkeypatch.setattr(module, "NEWS_PERIOD", 0.0)
    receiver = Receiver()
    receiver.connect(v4(1))
    receiver.get()
    receiver.connect(v4(1))
    receiver.close()
    assert receiver.get().startswith("1 new client, 1 connection ")


def test_not_new_in_a_sum() -> None:
    """A message names new clients first, then those that were reported before."""
    receiver = Receiver()
    receiver.connect(v4(1))
    receiver.get()
    receiver.connect(v4(1), 700)
    receiver.connect(v4(2))
    receiver.close()
    text = receiver.get()
    assert text.startswith("1 new client, 701 connections since ")
    assert text.endswith(": 10.0.0.2 (1, port 7878), 10.0.0.1 (700, port 7878, not new)")


def test_scan() -> None:
    """A new client that goes on to further ports is reported once more."""
    receiver = Receiver()
    receiver.connect(v4(1), server=server(23))
    receiver.get()
    for port in range(1, 1001):
        receiver.connect(v4(1), server=server(port))
    assert receiver.close() == []
    title, text = receiver.calls.get(timeout=TIMEOUT)
    assert title == "hello-listen on vm: 1 client on further ports"
    assert re.fullmatch(
        r"1 client on further ports, 1000 connections since \d\d:\d\d: "
        r"10\.0\.0\.1 \(1000, further ports 1 2 3 and others\)",
        text,
    )
    assert receiver.notifications.waiting == 0


def test_scan_among_others() -> None:
    """Who goes on is named after the new clients, and before those that were reported before."""
    receiver = Receiver()
    receiver.connect(v4(1))
    receiver.get()
    receiver.connect(v4(1))
    receiver.connect(v4(1), server=server(22))
    receiver.connect(v4(2))
    receiver.connect(v4(3))
    receiver.connect(v4(3))
    receiver.close()
    assert receiver.get().endswith(
        ": 10.0.0.3 (2, port 7878), 10.0.0.2 (1, port 7878), 10.0.0.1 (2, further port 22)"
    )


@pytest.mark.usefixtures("quick")
def test_scan_that_goes_on() -> None:
    """A scan is reported twice, however long it takes."""
    pauses = [Event(), Event()]
    receiver = Receiver(*pauses)
    receiver.connect(v4(1), server=server(1))
    for port, pause in enumerate(pauses, 2):
        receiver.get()
        receiver.connect(v4(1), server=server(port))
        pause.set()
    receiver.close()
    assert [text.partition(",")[0] for text in receiver.delivered] == [
        "1 new client",
        "1 client on further ports",
    ]


@pytest.mark.usefixtures("quick")
def test_many_ports_at_once() -> None:
    """A client whose ports were too many to name is not reported again."""
    pauses = [Event(), Event()]
    receiver = Receiver(*pauses)
    receiver.connect(v4(1))
    receiver.get()
    for port in range(9):
        receiver.connect(v4(2), server=server(port))
    pauses[0].set()
    receiver.get()
    receiver.connect(v4(2), server=server(9))
    pauses[1].set()
    receiver.close()
    assert len(receiver.delivered) == 2


@pytest.mark.usefixtures("quick")
def test_quiet_minute() -> None:
    """After a batch period without a new client, the next one is reported at once."""
    receiver = Receiver()
    for number in range(3):
        receiver.connect(v4(number))
        assert receiver.get().startswith("1 new client, 1 connection ")
    receiver.close()


def test_many() -> None:
    """A message names ten clients and counts all, also those beyond the limit of clients."""
    receiver = Receiver()
    receiver.connect(v4(0))
    receiver.get()
    for number in range(1, 100_001):
        receiver.connect(v4(number))
    receiver.connect(v4(100_000))
    receiver.close()
    text = receiver.get()
    assert text.startswith("100000 new clients, 100001 connections since ")
    assert text.endswith(" and 99990 more")
    assert text.count("(") == 10
    assert receiver.calls.empty()


def test_networks() -> None:
    """Clients of listed networks are reported only if their connection has an error."""
    receiver = Receiver(networks=("10.0.0.0/8",))
    receiver.connect(v4(1))
    assert receiver.close() == []
    assert receiver.calls.empty()
    receiver = Receiver(networks=("10.0.0.0/8",))
    receiver.connect(v4(1), error="proxy_header_invalid")
    assert receiver.get().endswith("(1, port 7878, error proxy_header_invalid)")
    receiver.close()


def test_details() -> None:
    """A client's ports and errors are named, up to three of each, and without repetition."""
    receiver = Receiver()
    receiver.connect(v4(0))
    receiver.get()
    for port in (22, 22, 23):
        receiver.connect(v4(1), server=server(port))
    for port in range(1, 10):
        receiver.connect(v4(2), server=server(port), error=f"e{port}")
    receiver.connect(v4(3), server=UNIXAddress("/run/hello"))
    receiver.close()
    text = receiver.get()
    assert "10.0.0.1 (3, ports 22 23)" in text
    assert "10.0.0.2 (9, ports 1 2 3 and others, error e1 e2 e3)" in text
    assert "10.0.0.3 (1)" in text


@pytest.mark.parametrize(
    ("client", "name"),
    [
        (v4(1), "10.0.0.1"),
        (IPv6Address("TCP", "fe80::1%eth0", 1), "fe80::1%eth0"),
        (IPv6Address("TCP", "fe80::1%eth0.100", 1), "fe80::1%eth0.100"),
        (IPv6Address("TCP", "fe80::1%evil.example", 1), "fe80::1%evil?example"),
        (IPv4Address("TCP", "facade.cafe", 1), "facade?cafe"),
        (IPv4Address("TCP", "bad:1:bed", 1), "bad?1?bed"),
        (UNIXAddress("/run/a b"), "unix:/run/a?b"),
        (UNIXAddress("/run/_a_b*"), "unix:/run/?a?b?"),
        (UNIXAddress("/run/v1.2.de"), "unix:/run/v1.2?de"),
        (
            UNIXAddress("\n<b>@everyone`*http://evil.example"),
            "unix:?n?b??everyone??http?//evil?example",
        ),
        (UNIXAddress("\u05d0" * 40), "unix:" + "?" * 40),
        (UNIXAddress(None), "unix:"),
        (PipeAddress(), "pipe:"),
        (IPv4Address("TCP", "<@U123>", 1), "??U123?"),
        (IPv4Address("TCP", "evil.example\n", 1), "evil?example?n"),
    ],
)
def test_names(client: IAddress, name: str) -> None:
    """No client's name becomes markup, a mention, a link or another line."""
    receiver = Receiver()
    receiver.connect(client)
    text = receiver.get()
    receiver.close()
    assert f": {name} (1, port 7878)" in text
    assert text.isascii()
    assert text.isprintable()


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=60), st.text(max_size=30))
def test_any_name(name: str, error: str) -> None:
    """Whatever a name or an error contains, the text has no character that markup uses."""
    receiver = Receiver()
    receiver.connect(IPv4Address("TCP", name, 1), error=error)
    text = receiver.get()
    receiver.close()
    assert re.fullmatch(r"[A-Za-z0-9 ?/_:,.()%-]*", text)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (SendError("HTTP status 503"), "HTTP status 503"),
        (SendError("a\nb"), "a\\nb"),
        (OSError("https://hooks.example/secret"), "OSError"),
        (SystemExit("secret"), "SystemExit"),
        (False, "refused"),
        (Deferred(), "send returned an awaitable; it must block"),
    ],
)
def test_failure(failure: object, reason: str) -> None:
    """The first failure and the recovery are logged in a line each, which quotes no exception."""
    receiver = Receiver(failure, failure, failure)
    with capturedLogs() as logged:
        receiver.connect(v4(1))
        receiver.close()
    assert texts(logged) == [
        f"Notification not delivered, will be retried (pager): {reason}",
        "Notifications are delivered again (pager)",
    ]
    assert (receiver.notifications.failed, receiver.notifications.delivered) == (3, 1)
    assert receiver.notifications.failing is None


def test_merging(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a receiver does not take is merged into the next attempt, up to a limit of clients."""
    monkeypatch.setattr(module, "MAX_CLIENTS", 4)
    hold = Event()
    receiver = Receiver(SendError("busy"))
    send = receiver.send

    def held(title: str, text: str) -> object:
        hold.wait(TIMEOUT)
        return send(title, text)

    receiver.notifications._send = held
    monkeypatch.setattr(module, "MIN_RETRY_INTERVAL", 0.0)
    receiver.connect(v4(1))
    while receiver.notifications._sending is None:
        pass
    receiver.connect(v4(1), 2, error="failed")
    for number in range(2, 7):
        receiver.connect(v4(number))
    assert receiver.notifications.waiting == 6
    hold.set()
    assert receiver.get().startswith("1 new client, 1 connection ")
    receiver.close()
    text = receiver.get()
    assert text.startswith("6 new clients, 8 connections since 2026-01-01 12:00: 10.0.0.1 (3, ")
    assert text.endswith(" and 2 more")


def test_merge_of_news(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merging keeps all counts: of clients beyond the limit, and of a client that is new twice."""
    monkeypatch.setattr(module, "MAX_CLIENTS", 2)
    news, later = module._News(NOON), module._News(NOON)
    connection = Connection(NOON, v4(0), PORT)
    news.add("10.0.0.1", connection, True)
    news.add("10.0.0.2", connection, False)
    for key, isNew in (("10.0.0.1", True), ("10.0.0.3", True), ("10.0.0.4", True)):
        later.add(key, connection, isNew)
    news.merge(later)
    assert news.text() == (
        "3 new clients, 5 connections since 2026-01-01 12:00: 10.0.0.1 (2, port 7878), "
        "10.0.0.2 (1, port 7878, not new) and 2 more"
    )


def test_retry_after(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses grow up to a limit; a receiver can ask for a longer one, up to another limit."""
    waits: list[float] = []

    def waitFor(event: Event, seconds: float) -> bool:
        waits.append(seconds)
        return event.is_set()

    monkeypatch.setattr(module, "waitFor", waitFor)
    failures = [SendError("busy")] * 10
    receiver = Receiver(*failures, SendError("busy", 700), SendError("busy", 1e9))
    receiver.connect(v4(1))
    for _ in range(13):
        receiver.get()
    receiver.close()
    assert waits[:13] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 700, 3600, 60]


@pytest.mark.usefixtures("quick")
def test_stop_without_a_receiver() -> None:
    """A stop takes at most five seconds, then the log says how many clients are left."""
    hold = Event()
    receiver = Receiver(hold)
    receiver.connect(v4(1))
    receiver.get()
    receiver.connect(v4(2))
    with capturedLogs() as logged:
        closed = receiver.notifications.close()
        assert receiver.notifications.close() is closed
        receiver.reactor.advance(4.9)
        assert not closed.called
        receiver.reactor.advance(0.2)
        assert closed.called
    assert texts(logged) == ["New clients that nobody was notified of (pager): 2"]
    hold.set()
    receiver.reactor.callOne()  # The thread ends, and finds the Deferred fired.


@pytest.mark.usefixtures("quick")
def test_stop_while_it_fails() -> None:
    """A stop makes last attempts; at its timeout, the thread ends."""
    receiver = Receiver(*[SendError("busy")] * 100_000)
    receiver.connect(v4(1))
    receiver.get()
    receiver.notifications.close()
    for _ in range(3):
        receiver.get()
    with capturedLogs() as logged:
        receiver.reactor.advance(5.1)
    assert texts(logged)[-1:] == ["New clients that nobody was notified of (pager): 1"]
    receiver.reactor.callOne()
    assert receiver.notifications.failing == "busy"


def test_given_up_before_a_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the stop's timeout, the message that waits for a retry is not sent again."""
    waits, over = Event(), Event()

    def wait(event: Event, seconds: float) -> None:
        waits.set()
        over.wait(TIMEOUT)

    monkeypatch.setattr(module, "waitFor", wait)
    receiver = Receiver(OSError())
    receiver.connect(v4(1))
    assert waits.wait(TIMEOUT)
    with capturedLogs() as logged:
        closed = receiver.notifications.close()
        receiver.reactor.advance(module.CLOSE_TIMEOUT)
        assert closed.called
    assert texts(logged) == ["New clients that nobody was notified of (pager): 1"]
    over.set()
    receiver.reactor.callOne()
    assert receiver.delivered == []
    assert receiver.calls.qsize() == 1


def test_idle() -> None:
    """Without a new client there is no thread; closed notifications can be opened again."""
    before = started()
    receiver = Receiver()
    receiver.notifications.open()
    assert receiver.close() == []
    assert started() == before
    receiver.connect(v4(1))  # After the end, nobody is told.
    assert started() == before
    receiver.notifications.open()
    receiver.connect(v4(1))
    receiver.get()
    receiver.close()


@pytest.mark.usefixtures("quick")
def test_opened_while_a_call_waits() -> None:
    """A call that outlasts a stop delays later messages, and changes none of their counts."""
    hold = Event()
    receiver = Receiver(hold)
    receiver.connect(v4(1))
    receiver.get()
    receiver.notifications.close()
    receiver.reactor.advance(5.1)
    receiver.notifications.open()
    receiver.connect(v4(2))
    assert receiver.notifications.waiting == 1
    assert receiver.calls.empty()
    hold.set()
    assert receiver.get().startswith("1 new client, 1 connection ")
    assert receiver.close() == []
    assert len(receiver.delivered) == 2
    assert receiver.notifications.delivered == 1


@pytest.mark.parametrize("host", ["web01.example.org", "a_b", "a\nb"])
def test_host(host: str) -> None:
    """The title has the host's whole name, without what could be markup."""
    titles: Queue[str] = Queue()
    notifications = Notifications(lambda title, text: titles.put(title), host=host)
    notifications(Connection(NOON, v4(1), PORT))
    name = re.sub("[_\n]", "?", host)
    assert titles.get(timeout=TIMEOUT) == f"hello-listen on {name}: 1 new client"


def test_defaults() -> None:
    """Any callable will do; by default it has no name, and the host is this machine."""
    got: Queue[str] = Queue()
    notifications = Notifications(lambda title, text: got.put(title))
    notifications(Connection(NOON, v4(1), PORT))
    assert re.fullmatch(r"hello-listen on [\w.?-]+: 1 new client", got.get(timeout=TIMEOUT))
    assert notifications._by() == ""
    with pytest.raises(TypeError, match="not callable: 3"):
        Notifications(3)  # type: ignore[arg-type]

    async def send(title: str, text: str) -> None:
        """Never run."""

    with pytest.raises(TypeError, match="a coroutine function"):
        Notifications(send)
    with pytest.raises(ValueError, match="not a network"):
        Notifications(print, ["x"])


EVENTS = st.lists(
    st.one_of(st.integers(0, 30), st.sampled_from(["wait", "fail", "fail", "raise", "refuse"])),
    max_size=60,
)
FAILURES: dict[str, Callable[[], object]] = {
    "fail": lambda: SendError("busy", 0),
    "raise": lambda: RuntimeError("x"),
    "refuse": lambda: False,
}


@settings(max_examples=60, deadline=None)
@given(EVENTS, st.booleans())
def test_nobody_is_forgotten(events: list[int | str], endsBadly: bool) -> None:
    """In any order of connections and failures, each new client is reported or counted."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MESSAGE_INTERVAL", "MIN_RETRY_INTERVAL", "MAX_RETRY_INTERVAL"):
            patch.setattr(module, name, 0.0)
        receiver, clients = Receiver(), set()
        for event in events:
            if isinstance(event, int):
                clients.add(event)
                receiver.connect(v4(event))
            elif event == "wait":
                until(lambda: not receiver.notifications.waiting)
            else:
                receiver.results.append(FAILURES[event]())
        if endsBadly:
            receiver.results += [SendError("away")] * 10**6
        with capturedLogs() as logged:
            closed = receiver.notifications.close()
            if not closed.called:
                if endsBadly:
                    receiver.reactor.advance(5.1)
                receiver.reactor.callOne()
            assert closed.called
    told = sum(int(text.split()[0]) for text in receiver.delivered)
    untold = [int(text.rpartition(" ")[2]) for text in texts(logged) if "nobody" in text]
    assert told + sum(untold) == len(clients)
    if not endsBadly:
        assert untold == []
