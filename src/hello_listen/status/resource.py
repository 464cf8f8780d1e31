"""The resource that serves the page, the JSON and the metrics."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from importlib.resources import files
from ipaddress import ip_address
from json import dumps
from time import monotonic
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import idna
from twisted.web.iweb import IRequest
from twisted.web.resource import IResource, Resource

from hello_listen.status.metrics import (
    OPEN_METRICS_FORMAT,
    TEXT_FORMAT,
    asOpenMetrics,
    asText,
)
from hello_listen.status.page import renderPage
from hello_listen.status.snapshot import Snapshot, Snapshots
from hello_listen.status.tally import Tally

if TYPE_CHECKING:
    from hello_listen.connection_log import ConnectionLog
    from hello_listen.geo import GeoDatabases
    from hello_listen.notifications import Notifications
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

ANY_HOST = {b"healthz", b"metrics"}
"""Served under any host name, such as a service's in Compose: they show no client's address."""

TEXT_TYPE = "text/plain; charset=utf-8"
HTML_TYPE = "text/html; charset=utf-8"
JSON_TYPE = "application/json; charset=utf-8"


class StatusResource(Resource):
    """
    Serves C{/}, C{/status.json}, C{/metrics} and C{/healthz} below its own path in a site.

    It shows all addresses to anybody who can reach it. The Host header of a request must be an IP
    address, C{localhost}, or one of C{hosts}: by DNS rebinding, another site could otherwise make a
    visitor's browser read it. C{/metrics} and C{/healthz}, which show no client's address, are
    served under any name.

    >>> from twisted.web.resource import Resource
    >>> from hello_listen.status import StatusResource, Tally
    >>> root = Resource()
    >>> root.putChild(b"connections", StatusResource(Tally()))
    """

    def __init__(
        self,
        tally: Tally,
        service: HelloService | None = None,
        log: ConnectionLog | None = None,
        hosts: Iterable[str] = (),
        clock: Callable[[], float] = monotonic,
        reactor: Any = None,
        notifications: Sequence[Notifications] = (),
        places: GeoDatabases | None = None,
    ) -> None:
        """
        Create the resource.

        @param tally: the tally that observes the connections.
        @param service: the service whose endpoints to show, if any.
        @param log: the log whose counts to show, if any.
        @param hosts: further host names by which clients may reach this.
        @param clock: returns seconds of a monotonic clock.
        @param reactor: when this reactor starts, each of the service's servers gets a count of its
            own, 0 at first; without it, at the first request.
        @param notifications: the notifications whose deliveries to show.
        @param places: finds the countries and networks to show, if given.

        @raise ValueError: not a host name.
        """
        super().__init__()
        self.snapshots = Snapshots(tally, service, log, clock, notifications, places)
        if reactor is not None:
            reactor.callWhenRunning(self.snapshots.expectServers)
        self._hosts = {"localhost", *map(hostName, hosts)}
        self.putChild(b"", _View(self.snapshots, HTML_TYPE, renderPage))
        self.putChild(b"status.json", _View(self.snapshots, JSON_TYPE, _asJSON))
        self.putChild(b"metrics", _Metrics(self.snapshots))
        self.putChild(b"healthz", _Health(self.snapshots))
        for name, kind in FILES.items():
            content = files("hello_listen.status").joinpath(name).read_bytes()
            self.putChild(name.encode(), _Constant(content, f"{kind}; charset=utf-8"))

    def getChildWithDefault(self, path: bytes, request: Any) -> IResource:
        """
        Return the resource that answers a request, or one that refuses it.

        @param path: the next segment of its path.
        @param request: the request.
        """
        refusal = self._refusal(request, path in ANY_HOST)
        return refusal or super().getChildWithDefault(path, request)

    def getChild(self, path: bytes, request: IRequest) -> IResource:
        """
        404.

        @param path: a segment of a path.
        @param request: the request.
        """
        return _NOT_FOUND

    def render(self, request: Any) -> Any:
        """
        Redirect to the trailing slash, since the page's links are relative.

        @param request: a request for this resource itself.
        """
        refusal = self._refusal(request)
        if refusal is None:
            request.setHeader(b"location", f"{quote(request.prepath[-1])}/".encode())
        return (refusal or _REDIRECTION).render(request)

    def _refusal(self, request: Any, anyHost: bool = False) -> Resource | None:
        """Return the resource that refuses a request, or L{None} if it may be served."""
        hosts = request.requestHeaders.getRawHeaders(b"host", [])
        if len(hosts) > 1 or (not hosts and request.clientproto == b"HTTP/1.1"):
            return _BAD_HOST  # RFC 9112, 3.2
        if not (anyHost or all(map(self._isOurs, hosts))):
            return _UNKNOWN_HOST
        if request.method not in (b"GET", b"HEAD"):
            return _BAD_METHOD
        if _isForeign(request):
            return _FOREIGN
        return None

    def _isOurs(self, header: bytes) -> bool:
        """Return whether a Host header, which every browser sends, names this host."""
        host = re.sub(r":\d*$", "", header.decode("latin-1")).lower().removesuffix(".")
        with suppress(ValueError):
            return bool(ip_address(host.strip("[]")))
        return host in self._hosts


class _Leaf(Resource):
    """A resource without children."""

    def getChild(self, path: bytes, request: IRequest) -> IResource:
        return _NOT_FOUND


class _Constant(_Leaf):
    """A constant answer."""

    def __init__(
        self, content: bytes, kind: str = TEXT_TYPE, code: int = 200, allow: bytes | None = None
    ) -> None:
        super().__init__()
        self._content = content
        self._kind = kind
        self._code = code
        self._allow = allow

    def render(self, request: Any) -> bytes:
        if self._allow is not None:
            request.setHeader(b"allow", self._allow)
        return _respond(request, self._content, self._kind, self._code)


class _View(_Leaf):
    """A view of the snapshot, rendered once for each snapshot."""

    def __init__(self, snapshots: Snapshots, kind: str, show: Callable[[Snapshot], bytes]) -> None:
        super().__init__()
        self._snapshots = snapshots
        self._kind = kind
        self._show = show
        self._shown: Snapshot | None = None
        self._content = b""

    def render(self, request: Any) -> bytes:
        snapshot = self._snapshots.take()
        if self._shown is not snapshot:
            self._content = self._show(snapshot)
            self._shown = snapshot
        return _respond(request, self._content, self._kind)


class _Metrics(_Leaf):
    """The metrics, in the format that the Accept header asks for."""

    def __init__(self, snapshots: Snapshots) -> None:
        super().__init__()
        self._text = _View(snapshots, TEXT_FORMAT, asText)
        self._open = _View(snapshots, OPEN_METRICS_FORMAT, asOpenMetrics)

    def render(self, request: Any) -> bytes:
        accepted = request.getHeader(b"accept") or b""
        return (self._open if b"application/openmetrics-text" in accepted else self._text).render(
            request
        )


class _Health(_Leaf):
    """OK, or 503 with the problems."""

    def __init__(self, snapshots: Snapshots) -> None:
        super().__init__()
        self._snapshots = snapshots

    def render(self, request: Any) -> bytes:
        problems = self._snapshots.take().problems
        content = "".join(f"{line}\n" for line in problems or ["OK"])
        return _respond(request, content.encode(), TEXT_TYPE, 503 if problems else 200)


_REDIRECTION = _Constant(b"The page is at this address with a trailing slash.\n", code=302)
_BAD_HOST = _Constant(b"Bad Request: one Host header is needed.\n", code=400)
_UNKNOWN_HOST = _Constant(
    b"Unknown Host: use an IP address, or allow the name with --status-host.\n", code=403
)
_FOREIGN = _Constant(b"Forbidden: another site asked for this.\n", code=403)
_NOT_FOUND = _Constant(b"Not Found\n", code=404)
_BAD_METHOD = _Constant(b"Method Not Allowed: use GET or HEAD.\n", code=405, allow=b"GET, HEAD")


def hostName(text: str) -> str:
    """
    Normalize a host name as browsers do: lower case, punycode, no trailing dot.

    @param text: the name.

    @raise ValueError: it is not a host name, but has a port, for example.
    """
    name = text.lower()
    with suppress(idna.IDNAError):
        name = name if name.isascii() else idna.encode(name, uts46=True).decode()
    name = name.removesuffix(".")
    if re.fullmatch(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*", name) is None:
        raise ValueError(f"not a host name (without port or path): {text!r}")
    return name


def _isForeign(request: Any) -> bool:
    """
    Return whether another site's page sends a request, other than by a link that a user follows.

    That page could not read the answer, but rendering takes time. A page of the same host on
    another port, C{same-site} to browsers, is foreign as well.
    """
    site, mode, dest = (
        request.getHeader(b"sec-fetch-" + name) for name in (b"site", b"mode", b"dest")
    )
    isLink = mode == b"navigate" and dest == b"document"
    return site in (b"cross-site", b"same-site") and not isLink


def _respond(request: Any, content: bytes, kind: str, code: int = 200) -> bytes:
    """Set the status and the headers of an answer, and return its content."""
    request.setResponseCode(code)
    for name, value in HEADERS.items():
        request.setHeader(name.encode(), value.encode())
    request.responseHeaders.removeHeader(b"server")
    request.setHeader(b"content-type", kind.encode())
    if request.method == b"HEAD":
        request.setHeader(b"content-length", b"%d" % len(content))
        return b""
    return content


def _asJSON(snapshot: Snapshot) -> bytes:
    """Return the snapshot as JSON."""
    return dumps(snapshot.fields(), indent=1).encode()
