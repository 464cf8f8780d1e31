"""Sends notifications by Apprise, one service at a time."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any
from urllib.parse import quote

from apprise import Apprise, AppriseAsset, AppriseConfig, NotifyFormat, NotifyType
from twisted.python.usage import UsageError

from hello_listen.notifications import SendError

_STATUS = re.compile(r"\berror=(\d{3})\b")

_PLACE = re.compile(
    r'\bon line (\d+)\b|\bentry #(\d+)\b|(?s:\AYAML Exception:.*", line (\d+), column )'
)
"""
Where Apprise says that a configuration is wrong, at the end of a text that may hold a secret. Of
the lines that PyYAML names, the last is the place; those before are its context.
"""

_RETRY_AFTER = re.compile(r"retry[ _-]?after(_ms)?\W{0,5}(\d{1,9})\b", re.IGNORECASE)
"""How Apprise, or an answer that it logs, says when to try again."""

_logger = logging.getLogger("apprise")


class Service:
    """
    One of Apprise's services, as L{hello_listen.Notifications} sends by it.

    @ivar name: its kind, such as C{ntfy}.
    """

    def __init__(self, service: Any) -> None:
        """
        Wrap a service.

        @param service: the instance of one of Apprise's plugins.
        """
        self._service = service
        self.name = str(service.service_name)

    def __call__(self, title: str, text: str) -> None:
        """
        Send a message.

        @param title: the title.
        @param text: the text, without characters that any service takes for markup.

        @raise SendError: it was not delivered; the reason holds no secret.
        """
        # Apprise.notify has a thread pool of its own, which is joined at exit.
        with _logged() as records:
            delivered = self._service.notify(
                text, title=title, notify_type=NotifyType.WARNING, body_format=NotifyFormat.TEXT
            )
        if not delivered:
            said = "\n".join(record.getMessage() for record in records)
            raise SendError(_reason(said), _retryAfter(said))


def services(place: str) -> list[Service]:
    """
    Return the services of an Apprise configuration, or of a URL.

    @param place: the path of a file, or a URL.

    @raise OSError: the file cannot be read.
    @raise UsageError: Apprise does not understand it; the message names the file and the line.
    """
    # The requests are sent in the caller's thread, and nothing is kept in files.
    asset = AppriseAsset(async_mode=False)
    if re.match(r"[a-zA-Z0-9]{1,32}://", place):
        found = Apprise(asset=asset)
        with _logged():
            if not found.add(place):
                scheme = place.partition(":")[0]
                raise UsageError(f"--notify: Apprise does not understand this {scheme}:// URL")
        return [Service(each) for each in found]
    with open(place, encoding="utf-8") as file:  # Else Apprise only logs why it cannot be read.
        try:
            file.read()
        except UnicodeDecodeError:
            raise UsageError(f"--notify: not a text in UTF-8: {place!r}") from None
    config = AppriseConfig(asset=asset, recursion=1)
    with _logged() as records:
        config.add(f"file://{quote(os.path.abspath(place))}")
        loaded = [Service(each) for server in config for each in server]
    for record in records:
        match = _PLACE.search(record.getMessage())
        if match and not str(record.msg).startswith("Load"):
            line, entry, yaml = match.groups()
            where = f"entry {entry}" if entry else f"line {line or yaml}"
            raise UsageError(f"--notify: Apprise does not understand {where} of {place!r}")
    if not loaded:
        raise UsageError(f"--notify: no Apprise URL in {place!r}")
    if any(record.levelno >= logging.WARNING for record in records):
        raise UsageError(f"--notify: Apprise does not understand all of {place!r}")
    return loaded


@contextmanager
def _logged() -> Iterator[list[logging.LogRecord]]:
    """Collect what Apprise logs in this thread, which nobody else gets: it may hold secrets."""
    handler = _Collector()
    _logger.propagate = False
    _logger.setLevel(logging.DEBUG)
    _logger.addHandler(handler)
    try:
        yield handler.records
    finally:
        _logger.removeHandler(handler)


class _Collector(logging.Handler):
    """Collects the records of the thread that makes it."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self._thread = get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        if record.thread == self._thread:
            self.records.append(record)


def _reason(said: str) -> str:
    """Return why Apprise did not deliver a message, without what it quotes."""
    status = _STATUS.search(said)
    if status is not None:
        return f"HTTP status {status[1]}"
    return "connection failed" if "onnection error" in said else "Apprise could not send it"


def _retryAfter(said: str) -> float | None:
    """Return the seconds for which a service asks to wait, if Apprise shows that."""
    match = _RETRY_AFTER.search(said)
    return match and int(match[2]) / (1000 if match[1] else 1)
