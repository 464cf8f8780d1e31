"""Notifies a person of new clients: at once, then at most one message a minute."""

from __future__ import annotations

import re
import socket
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime, timezone
from heapq import nlargest
from inspect import isawaitable, iscoroutinefunction
from ipaddress import ip_interface
from math import inf
from threading import Event, Lock, Thread
from time import monotonic, time
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as TimedOut
from twisted.logger import Logger
from twisted.python.failure import Failure

from hello_listen._addresses import addressIdentity, asciiText
from hello_listen._clock import monotonicClock, waitFor
from hello_listen.connection import Connection
from hello_listen.summaries import ListedNetworks

NEWS_PERIOD = 24 * 3600.0
"""Seconds without a connection after which a client is new again."""

MESSAGE_INTERVAL = 60.0
"""Seconds after a message in which no other is sent."""

MIN_RETRY_INTERVAL = 1.0
"""Seconds before the first retry; each further interval is twice as long."""

MAX_RETRY_INTERVAL = 300.0
"""Upper bound of the interval between retries, in seconds, unless the receiver asks for more."""

MAX_RETRY_AFTER = 3600.0
"""Upper bound of the seconds for which a receiver can ask."""

CLOSE_TIMEOUT = 5.0
"""Upper bound of L{Notifications.close}, in seconds."""

MAX_CLIENTS = 10_000
"""Clients that are remembered, and clients that a message counts apart."""

CLIENTS_NAMED = 10
"""Clients that a message names."""

MAX_DETAILS = 3
"""Server ports, and kinds of errors, that are kept for each client of a message."""

MAX_NAME = 48
"""Upper bound of a socket's name in a message, in characters."""

_log = Logger(namespace="hello_listen")

Send = Callable[[str, str], object]
"""Sends a title and a text; returns a false value other than L{None}, or raises, on failure."""


class SendError(Exception):
    """
    A message was not delivered. Its text is logged and shown, so it must hold no secret.

    >>> from hello_listen import SendError
    >>> error = SendError("too many messages", retryAfter=60)
    >>> print(error, error.retryAfter)
    too many messages 60

    @ivar retryAfter: the seconds for which the receiver asks to wait, or L{None}.
    """

    def __init__(self, reason: str, retryAfter: float | None = None) -> None:
        """
        Give the reason.

        @param reason: why, without any secret.
        @param retryAfter: the seconds for which the receiver asks to wait, if it does.
        """
        super().__init__(reason)
        self.retryAfter = retryAfter


class _Client:
    """A client that a message counts apart."""

    __slots__ = ("connections", "errors", "goesOn", "isNew", "ports")

    def __init__(self, isNew: bool) -> None:
        self.isNew = isNew
        # Whether it was new in the message before, and has called further ports since.
        self.goesOn = False
        self.connections = 0
        self.ports: tuple[int, ...] = ()
        self.errors: tuple[str, ...] = ()

    def __lt__(self, other: _Client) -> bool:
        return self._rank() < other._rank()

    def _rank(self) -> tuple[bool, bool, int]:
        return self.isNew, self.goesOn, self.connections


class _News:
    """The connections that the next message counts."""

    def __init__(self, since: float) -> None:
        self.since = since
        self.newClients = 0
        self.connections = 0
        self.clients: dict[str, _Client] = {}
        # Those that are not counted apart.
        self.otherClients = 0
        self.goingOn = 0

    def add(self, key: str, connection: Connection, isNew: bool) -> None:
        """Count a connection."""
        self.connections += 1
        client = self.clients.get(key)
        if client is None:
            self.newClients += isNew
            if len(self.clients) >= MAX_CLIENTS:
                self.otherClients += isNew
                return
            client = self.clients[key] = _Client(isNew)
        client.connections += 1
        port = getattr(connection.server, "port", None)
        if port is not None and port not in client.ports and len(client.ports) <= MAX_DETAILS:
            client.ports += (port,)
        error = connection.error
        if error and error not in client.errors and len(client.errors) <= MAX_DETAILS:
            client.errors += (error,)

    def merge(self, later: _News) -> None:
        """Add connections that came later."""
        self.connections += later.connections
        self.newClients += later.newClients
        self.otherClients += later.otherClients
        for key, client in later.clients.items():
            known = self.clients.get(key)
            if known is None and len(self.clients) >= MAX_CLIENTS:
                self.otherClients += client.isNew
            elif known is None:
                self.clients[key] = client
            else:
                # A client whose first connection could not be told of may be new twice.
                self.newClients -= known.isNew and client.isNew
                known.isNew = known.isNew or client.isNew
                known.connections += client.connections
                known.ports = tuple(dict.fromkeys(known.ports + client.ports))[: MAX_DETAILS + 1]
                known.errors = tuple(dict.fromkeys(known.errors + client.errors))[: MAX_DETAILS + 1]

    def compare(self, before: _News) -> None:
        """Find the clients that go on, unless the message before said that they call many ports."""
        for key, client in self.clients.items():
            known = before.clients.get(key)
            if known is None or not known.isNew or len(known.ports) > MAX_DETAILS:
                continue
            if further := tuple(port for port in client.ports if port not in known.ports):
                client.goesOn, client.ports = True, further
                self.goingOn += 1

    def text(self) -> str:
        """Return the text of the message."""
        named = nlargest(CLIENTS_NAMED, self.clients.items(), key=lambda item: item[1])
        more = len(self.clients) + self.otherClients - len(named)
        text = ", ".join(_describe(key, client) for key, client in named)
        return (
            f"{self.title()}, {_count(self.connections, 'connection')} since {_clock(self.since)}: "
            f"{text}{f' and {more} more' if more else ''}"
        )

    def title(self) -> str:
        """Return the number of new clients, or of those that call further ports."""
        if self.newClients:
            return _count(self.newClients, "new client")
        return f"{_count(self.goingOn, 'client')} on further ports"


class Notifications:
    """
    An observer that has a person notified of new clients.

    A client is new if it has not connected for 24 hours. The first one is notified of at once.
    After a message, none is sent for a minute; then one message counts all connections since the
    one before, if a new client is among them, or if a client that was new then has called further
    ports, as a scan does. What cannot be delivered is retried, and is merged with what comes
    meanwhile. A client is identified by L{Connection.identity}.

    Memory is bounded: the 10,000 clients that connected last are remembered, so in a flood of more,
    a client can be new more than once. A message counts 10,000 clients apart, and all others
    together.

    The thread that sends starts with the first new client. L{HelloService} closes this observer.
    Give it each L{Connection}: it stands beside L{Summaries}, not behind.

    >>> from queue import Queue
    >>> from twisted.internet.address import IPv4Address
    >>> from hello_listen import Connection, Notifications
    >>> client = IPv4Address("TCP", "203.0.113.7", 51974)
    >>> connection = Connection(1795348800.0, client, IPv4Address("TCP", "192.0.2.1", 7878))
    >>> titles = Queue()
    >>> notifications = Notifications(lambda title, text: titles.put(title), host="canary")
    >>> notifications(connection)
    >>> titles.get(timeout=20)
    'hello-listen on canary: 1 new client'
    >>> closed = notifications.close()

    @ivar name: what this is called in the log.
    @ivar delivered: the number of messages that were delivered.
    @ivar failed: the number of attempts that failed.
    @ivar lastDelivered: when the last message was delivered, in seconds since the epoch, or
        L{None}.
    @ivar failing: why the last attempt failed; L{None} if it did not.
    """

    def __init__(
        self,
        send: Send,
        networks: Iterable[str] = (),
        reactor: Any = None,
        name: str = "",
        host: str | None = None,
    ) -> None:
        """
        Notify by a function.

        @param send: sends a message. It is called with a title and a text, both printable ASCII, in
            a thread of its own, one call at a time. It fails by raising an exception, preferably a
            L{SendError}, whose reason is shown (of others, only the class is), or by returning a
            false value other than L{None}. It should have a timeout.
        @param networks: networks whose clients are never new, as for L{Summaries}.
        @param reactor: the reactor that stops it; by default the global reactor.
        @param name: what to call this in the log, such as the service that sends.
        @param host: the machine's name in the title; by default its host name.

        @raise ValueError: a text is not a network.
        @raise TypeError: C{send} is not callable, or is a coroutine function.
        """
        if not callable(send):
            raise TypeError(f"not callable: {send!r}")
        if iscoroutinefunction(send):
            raise TypeError(f"a coroutine function, which a thread cannot call: {send!r}")
        if reactor is None:
            from twisted.internet import reactor
        self.name = name
        self._send = send
        self._networks = ListedNetworks(networks) or None
        self._reactor = reactor
        self._host = _harmless(socket.gethostname() if host is None else host, ".")
        self._thread: Thread | None = None
        self._begin()

    def _begin(self) -> None:
        """Start without clients."""
        self.delivered = self.failed = 0
        self.lastDelivered: float | None = None
        self.failing: str | None = None
        self._previous, self._thread = self._thread, None
        self._wake = Event()
        self._closing = Event()
        self._givenUp = Event()
        self._closed: Deferred[None] = Deferred()
        # When each client connected last, by the monotonic clock, the latest last.
        self._seen: OrderedDict[str, float] = OrderedDict()
        # The lock guards all attributes from here on, which the thread shares.
        self._lock = Lock()
        # None while the next new client is to be notified of at once, and none is waiting.
        self._news: Any = None
        self._sending: Any = None
        # The last message that was delivered, until a minute without news has passed.
        self._delivered: Any = None

    @property
    def waiting(self) -> int:
        """The number of new clients that no delivered message counts yet."""
        with self._lock:
            return self._untold()

    def __call__(self, connection: Connection) -> None:
        """
        Note a connection. This does not block.

        @param connection: the connection.
        """
        if self._networks is not None and connection in self._networks:
            return
        key = addressIdentity(connection.client)
        now = monotonic()
        seen = self._seen
        isNew = now - seen.get(key, -inf) >= NEWS_PERIOD
        seen[key] = now
        seen.move_to_end(key)
        if len(seen) > MAX_CLIENTS:
            seen.popitem(last=False)
        # Without the lock: only this method replaces None.
        if not isNew and self._news is None:
            return
        with self._lock:
            isFirst = self._news is None
            if isFirst:
                self._news = _News(connection.time)
            self._news.add(key, connection, isNew)
        if isNew and self._thread is None and not self._closing.is_set():
            self._start()
        if isFirst:
            self._wake.set()

    def open(self) -> None:
        """Begin again after L{close}, with all counts at 0."""
        if self._closing.is_set():
            self._begin()

    def close(self) -> Deferred[None]:
        """
        Send what is left, and log how many new clients no message counts.

        @return: a L{twisted.internet.defer.Deferred} that fires when that is done, within 5
            seconds.
        """
        if not self._closing.is_set():
            self._closing.set()
            self._wake.set()
            if self._thread is None:
                self._closed.callback(None)
            clock = monotonicClock(self._reactor)
            self._closed.addTimeout(CLOSE_TIMEOUT, clock).addBoth(self._finish)
        return self._closed

    def _start(self) -> None:
        """Start the thread, which does not delay the end of the process."""
        own = self._closed, self._givenUp, self._previous
        thread = Thread(target=self._run, args=own, name="notifications", daemon=True)
        thread.start()
        self._thread = thread

    def _run(self, closed: Deferred[None], givenUp: Event, previous: Thread | None) -> None:
        """Send messages until this is closed and nothing is left, or it is given up."""
        if previous is not None:
            previous.join()  # It may have been given up during a call that still waits.
        while not givenUp.is_set():
            news = self._take()
            if news is None:
                if self._closing.is_set():
                    break
                self._wake.wait()
                self._wake.clear()
                continue
            self._deliver(news, givenUp)
            if not givenUp.is_set():
                waitFor(self._closing, MESSAGE_INTERVAL)
        self._reactor.callFromThread(_end, closed)

    def _take(self) -> _News | None:
        """Return what the next message counts, and count anew; None if there is no news."""
        with self._lock:
            news: _News | None = self._news
            if news is not None and self._delivered is not None:
                news.compare(self._delivered)
            if news is None or not (news.newClients or news.goingOn):
                # After a minute without news, the next new client is notified of at once.
                self._news = self._delivered = None
                return None
            self._sending, self._news = news, _News(time())
            return news

    def _deliver(self, news: _News, givenUp: Event) -> None:
        """Send a message, with what comes meanwhile, until it is delivered or given up."""
        pause = MIN_RETRY_INTERVAL
        while not givenUp.is_set():
            title = f"hello-listen on {self._host}: {news.title()}"
            retryAfter = self._try(title, news.text(), givenUp)
            if retryAfter is None:
                return
            wait = max(pause, min(retryAfter, MAX_RETRY_AFTER))
            if self._closing.is_set():
                waitFor(givenUp, MIN_RETRY_INTERVAL)
            else:
                waitFor(self._closing, wait)
            pause = min(2 * pause, MAX_RETRY_INTERVAL)
            with self._lock:
                news.merge(self._news)
                self._news = _News(time())

    def _try(self, title: str, text: str, givenUp: Event) -> float | None:
        """Send a message once. Return seconds to wait before a retry, or None without one."""
        retryAfter = 0.0
        try:
            result = self._send(title, text)
            reason = "refused" if result is not None and not result else None
            if isawaitable(result):
                reason = "send returned an awaitable; it must block"
        except SendError as error:
            reason, retryAfter = asciiText(str(error)), error.retryAfter or 0.0
        except BaseException as error:  # The thread must survive it; its text may hold a secret.
            reason = type(error).__name__
        if givenUp.is_set():
            return None  # The log has counted its clients, and L{open} may have begun anew.
        if reason is None:
            self._recover()
            return None
        self.failed += 1
        if self.failing is None:
            _log.warn(
                "Notification not delivered, will be retried{by}: {reason}",
                by=self._by(),
                reason=reason,
            )
        self.failing = reason
        return retryAfter

    def _recover(self) -> None:
        """Count a delivered message, and log the first after a failure."""
        with self._lock:
            self._delivered, self._sending = self._sending, None
            self.delivered += 1
            self.lastDelivered = time()
        if self.failing is not None:
            self.failing = None
            _log.info("Notifications are delivered again{by}", by=self._by())

    def _by(self) -> str:
        """Return the name as a part of a sentence."""
        return f" ({self.name})" if self.name else ""

    def _untold(self) -> int:
        """Return the number of new clients that no delivered message counts."""
        return sum(news.newClients for news in (self._sending, self._news) if news is not None)

    def _finish(self, result: object) -> None:
        """Log how many new clients no delivered message counts."""
        self._givenUp.set()
        if isinstance(result, Failure):
            result.trap(TimedOut)
        untold = self.waiting
        if untold:
            _log.error(
                "New clients that nobody was notified of{by}: {count}", by=self._by(), count=untold
            )


def _end(closed: Deferred[None]) -> None:
    """Fire the Deferred that L{Notifications.close} returned, unless it has timed out."""
    if not closed.called:
        closed.callback(None)


def _describe(key: str, client: _Client) -> str:
    """Return a client's name and counts."""
    details = [str(client.connections)]
    if client.ports:
        ports = client.ports[:MAX_DETAILS]
        more = " and others" if len(client.ports) > MAX_DETAILS else ""
        what = f"{'further ' * client.goesOn}port{'s' * (len(ports) > 1)}"
        details.append(f"{what} {' '.join(map(str, ports))}{more}")
    if client.errors:
        details.append(f"error {' '.join(_harmless(e, '_') for e in client.errors[:MAX_DETAILS])}")
    if not (client.isNew or client.goesOn):
        details.append("not new")
    return f"{_name(key)} ({', '.join(details)})"


def _name(key: str) -> str:
    """Return a client's identity without anything that a service could take for markup."""
    host, percent, zone = key.partition("%")
    with suppress(ValueError):
        ip_interface(host)
        return f"{host}{percent}{_harmless(zone)}"
    transport, colon, name = key.partition(":")
    if colon and transport in ("unix", "pipe"):
        return f"{transport}:{_harmless(name)}"
    return _harmless(key)


def _harmless(text: str, allowed: str = "/") -> str:
    """Replace all but letters, digits, hyphens, dots before digits, and C{allowed}; truncate."""
    # A dot could make a name a link, an at sign a mention, a colon an emoji, an underscore italics.
    return re.sub(rf"(?!\.\d)[^A-Za-z0-9{allowed}-]", "?", text, flags=re.ASCII)[:MAX_NAME]


def _count(count: int, what: str) -> str:
    """Return a count with its noun."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def _clock(seconds: float) -> str:
    """Return hours and minutes in UTC, with the date unless that is today."""
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    isToday = moment.date() == datetime.now(timezone.utc).date()
    return moment.strftime("%H:%M" if isToday else "%Y-%m-%d %H:%M")
