"""Clients that keep connecting while a test stops, replaces or overloads the server."""

from __future__ import annotations

import errno
import select
import socket
import threading
from collections import Counter
from collections.abc import Sequence

from processes import PATIENCE, familyOf, until

Name = tuple[str, int]


class Crowd(threading.Thread):
    """
    Many concurrent clients, counted by how their connections ended.

    @ivar ended: the number of clients that have ended.
    @ivar answered: how often each of them was answered, which is a hang-up without an error.
    @ivar failed: the number of clients for each error; C{waits} for clients without any event.
    """

    def __init__(
        self,
        address: Name | str,
        sources: Sequence[str] = ("127.0.0.1",),
        width: int = 32,
        proxied: bool = False,
    ) -> None:
        """
        Connect to an address.

        @param address: where to connect, over TCP or a UNIX socket.
        @param sources: from which addresses, over TCP.
        @param width: how many at a time.
        @param proxied: send a PROXY header with a name of its own for each client.
        """
        super().__init__(daemon=True)
        self._address, self._sources, self._width = address, sources, width
        self._proxied = proxied
        self.ended = 0
        self.answered: Counter[Name] = Counter()
        self.failed: Counter[str] = Counter()
        self._enough = threading.Event()

    def run(self) -> None:
        """Keep C{width} clients connecting until L{finish}, and wait for the last."""
        clients: dict[int, tuple[socket.socket, Name]] = {}
        poll, started = select.epoll(), 0
        while clients or not self._enough.is_set():
            while len(clients) < self._width and not self._enough.is_set():
                started += 1
                client = socket.socket(familyOf(self._address))
                try:
                    name = self._connect(client, started)
                except OSError as error:
                    self._fail(client, error)
                    continue
                clients[client.fileno()] = client, name
                poll.register(client, select.EPOLLIN | select.EPOLLRDHUP)
            ready = poll.poll(PATIENCE)
            if clients and not ready:
                self.failed["waits"] += len(clients)
                break
            for descriptor, _ in ready:
                # A program that is just being started holds a copy, which would be heard of.
                poll.unregister(descriptor)
                client, name = clients.pop(descriptor)
                try:
                    assert client.recv(1) == b""
                except OSError as error:
                    self._fail(client, error)
                    continue
                client.close()
                self.answered[name] += 1
                self.ended += 1
        poll.close()

    def untilEnded(self, count: int) -> None:
        """Wait until so many clients have ended; fail when none ends any more."""
        while self.ended < count and self.is_alive():
            until(lambda seen=self.ended: self.ended > seen or not self.is_alive())

    def finish(self) -> None:
        """Start no more clients, and wait for the last."""
        self._enough.set()
        self.join()

    def _connect(self, client: socket.socket, number: int) -> Name:
        """Connect a client, and return its name."""
        if isinstance(self._address, str):
            client.connect(self._address)
            name = ("unix", 0)
        else:
            client.bind((self._sources[number % len(self._sources)], 0))
            name = client.getsockname()
            if self._proxied:
                client.connect(self._address)
            else:
                client.setblocking(False)
                assert client.connect_ex(self._address) in (0, errno.EINPROGRESS)
        if self._proxied:
            name = f"198.18.{number >> 16}.1", number & 0xFFFF
            client.sendall(b"PROXY TCP4 %s 198.19.0.1 %d 443\r\n" % (name[0].encode(), name[1]))
        client.setblocking(False)
        return name

    def _fail(self, client: socket.socket, error: OSError) -> None:
        """Count a client that ended with an error."""
        client.close()
        self.failed[errno.errorcode[error.errno or 0]] += 1
        self.ended += 1
