"""The resource that serves the page, the facts and the metrics."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib.resources import files
from ipaddress import ip_address
from json import dumps
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from twisted.internet.interfaces import IAddress
from twisted.web.iweb import IRequest
from twisted.web.pages import errorPage, forbidden, notFound
from twisted.web.resource import IResource, Resource
from twisted.web.template import renderElement
from twisted.web.util import redirectTo

from hello_listen.connection import addressText, network, timestamp
from hello_listen.status.metrics import Metrics
from hello_listen.status.page import StatusPage
from hello_listen.status.tally import Tally

if TYPE_CHECKING:
    from hello_listen.connection_log import ConnectionLog
    from hello_listen.service import HelloService

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; connect-src 'self'; img-src 'self'; "
    "script-src 'self'; style-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

FILES = {"style.css": "text/css", "script.js": "text/javascript", "icon.svg": "image/svg+xml"}


class StatusResource(Resource):
    """
    Serves C{/}, C{/status.json}, C{/metrics} and C{/healthz}, wherever a site puts it.

    Whoever can reach it sees all addresses. A request has to name the host by an IP address, as
    C{localhost}, or as one of C{hosts}: through a name of their own that leads here (DNS
    rebinding), others could make a browser read it for them.
    """

    def __init__(
        self,
        tally: Tally,
        service: HelloService | None = None,
        log: ConnectionLog | None = None,
        hosts: Iterable[str] = (),
    ) -> None:
        """
        Serve what is known.

        @param tally: an observer of the connections.
        @param service: what listens, if that is to be told.
        @param log: where the connections are recorded, if that is to be told.
        @param hosts: names that this is reached by.
        """
        super().__init__()
        self._tally = tally
        self._service: Any = service
        self._log: Any = log
        self._hosts = {"localhost", *(host.lower() for host in hosts)}
        metrics = Metrics(tally, self._servers, self._waiting, log)
        self.putChild(b"", _Answer(self._page, "text/html"))
        self.putChild(b"status.json", _Answer(self._json, "application/json"))
        self.putChild(b"healthz", _Answer(self._health, "text/plain"))
        self.putChild(b"metrics", _Answer(metrics, "text/plain"))
        for name, kind in FILES.items():
            self.putChild(
                name.encode(),
                _Answer(_constant(files("hello_listen.status").joinpath(name).read_bytes()), kind),
            )

    def getChildWithDefault(self, path: bytes, request: Any) -> IResource:
        """
        Return what answers a request, or refuses it.

        @param path: the next segment of its path.
        @param request: the request.
        """
        return self._refusal(request) or super().getChildWithDefault(path, request)

    def getChild(self, path: bytes, request: IRequest) -> IResource:
        """
        Return that there is no such page.

        @param path: what was asked for.
        @param request: the request.
        """
        return notFound()

    def render(self, request: Any) -> Any:
        """
        Lead from where a site put this to the page, whose links are relative.

        @param request: a request for this resource itself.
        """
        refusal = self._refusal(request)
        if refusal is not None:
            return refusal.render(request)
        return redirectTo(f"{quote(request.prepath[-1])}/".encode(), request)

    def _refusal(self, request: Any) -> IResource | None:
        """Set the headers of every answer, and return what refuses a request that is refused."""
        for name, value in HEADERS.items():
            request.setHeader(name.encode(), value.encode())
        request.responseHeaders.removeHeader(b"server")
        if not all(map(self._known, request.requestHeaders.getRawHeaders("host", []))):
            return forbidden("Unknown Host", "Use an IP address, or allow a name: --status-host.")
        if request.method not in (b"GET", b"HEAD"):
            request.setHeader(b"Allow", b"GET, HEAD")
            return errorPage(405, "Method Not Allowed", "Use GET or HEAD.")
        return None

    def _known(self, header: str) -> bool:
        """Say if a Host header names this host. Browsers send one with every request."""
        host = re.sub(r":\d*$", "", header).strip("[]").lower()
        with suppress(ValueError):
            return bool(ip_address(host))
        return host in self._hosts

    def _problems(self) -> list[str]:
        """Return what is wrong at the moment."""
        problems = [
            f"Not listening: {description}"
            for description, address in self._listening()
            if address is None
        ]
        if self._log is not None and self._log.failing is not None:
            problems.append(
                f"The connection log cannot be written: {self._log.failing}. "
                f"{self._log.waiting:,} bytes are kept in memory."
            )
        return problems

    def _listening(self) -> list[tuple[str, IAddress | None]]:
        """Return each endpoint's description and address."""
        return [] if self._service is None else self._service.listening

    def _servers(self) -> list[tuple[str, str]]:
        """Return what listens, as the labels of metrics."""
        addresses = [address for _, address in self._listening() if address is not None]
        return [(network(address)[0], addressText(address)) for address in addresses]

    def _waiting(self) -> int:
        """Return how many PROXY headers are waited for."""
        return 0 if self._service is None else self._service.headersWaiting

    def _page(self, request: IRequest) -> Any:
        """Answer with the page."""
        listening = [
            (description, None if address is None else addressText(address))
            for description, address in self._listening()
        ]
        page = StatusPage(self._tally.facts(), listening, self._log, self._problems())
        return renderElement(request, page)

    def _json(self, request: IRequest) -> bytes:
        """Answer with the same facts for scripts."""
        facts, log = self._tally.facts(), self._log
        known: dict[str, Any] = {
            "timestamp": timestamp(facts.now),
            "since": timestamp(facts.since),
            "problems": self._problems(),
            "endpoints": [
                {"endpoint": description, "address": address and addressText(address)}
                for description, address in self._listening()
            ],
            "connections": facts.connections,
            "last_minute": facts.lastMinute,
            "last_hour": facts.lastHour,
        }
        if log is not None:
            known |= {"recorded": log.recorded, "summarized": log.summarized, "lost": log.lost}
        known |= {
            "servers": [
                {
                    "network.transport": transport,
                    "server": server,
                    "error.type": error,
                    "connections": count,
                }
                for (transport, server, error), count in facts.totals.items()
            ],
            "minutes": _times(facts.minutes),
            "hours": _times(facts.hours),
            "clients": [
                {
                    "client.address": client.name,
                    "connections": client.connections,
                    "missed": client.missed,
                    "first": timestamp(client.first),
                    "last": timestamp(client.last),
                }
                for client in facts.clients
            ],
            "others": facts.others,
            "latest": [connection.fields() for connection in facts.latest],
        }
        return dumps(known, indent=1).encode()

    def _health(self, request: IRequest) -> bytes:
        """Answer if all is well, and if not, what is wrong."""
        problems = self._problems()
        if problems:
            request.setResponseCode(503)
        return "".join(f"{line}\n" for line in problems or ["OK"]).encode()


class _Answer(Resource):
    """Answers each request with what a function returns."""

    def __init__(self, answer: Callable[[Any], Any], kind: str) -> None:
        super().__init__()
        self._answer = answer
        self._kind = f"{kind}; charset=utf-8".encode()

    def getChild(self, path: bytes, request: IRequest) -> IResource:
        return notFound()

    def render(self, request: Any) -> Any:
        request.setHeader(b"content-type", self._kind)
        body = self._answer(request)
        if request.method == b"HEAD" and isinstance(body, bytes):
            request.setHeader(b"content-length", b"%d" % len(body))
            return b""
        return body


def _constant(content: bytes) -> Callable[[IRequest], bytes]:
    """Return what answers with the same each time."""
    return lambda request: content


def _times(counts: list[tuple[int, int]]) -> list[dict[str, Any]]:
    """Return when each minute or hour began, and its connections."""
    return [{"timestamp": timestamp(start), "connections": count} for start, count in counts]
