"""Renders a snapshot as an HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.resources import files

from twisted.web.iweb import IRequest
from twisted.web.template import (
    Element,
    Flattenable,
    Tag,
    XMLString,
    flattenString,
    renderer,
    tags,
)

from hello_listen._addresses import addressText
from hello_listen.status.snapshot import Snapshot

MAX_ADDRESS = 48
"""Upper bound of an address on the page, in characters: enough for IPv6 and a port."""

CLIENTS_SHOWN = 12
"""Upper bound of clients on the page; status.json has more."""

PORTS_SHOWN = 12
"""Upper bound of server ports on the page; status.json has more."""

LATEST_SHOWN = 15
"""Upper bound of latest connections on the page; status.json has more."""

TEMPLATE = XMLString(files("hello_listen.status").joinpath("page.xml").read_bytes())

# Height of a chart in SVG units; the page scales it.
_HEIGHT = 100


def renderPage(snapshot: Snapshot) -> bytes:
    """Return the page as HTML."""
    html: list[bytes] = []
    # No slot is a Deferred, so the callback runs at once.
    flattenString(None, _Page(snapshot)).addCallback(html.append)
    return b"<!DOCTYPE html>\n" + html[0]


class _Page(Element):
    """The page. The template escapes names that clients chose."""

    loader = TEMPLATE

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__()
        self._snapshot = snapshot
        self._facts = snapshot.facts

    @renderer
    def page(self, request: IRequest | None, tag: Tag) -> Tag:
        """Fill the text slots."""
        return tag.fillSlots(connections=f"{self._facts.connections:,}")

    @renderer
    def problems(self, request: IRequest | None, tag: Tag) -> list[Tag]:
        """Render each problem."""
        return _each(tag, [{"problem": problem} for problem in self._snapshot.problems])

    @renderer
    def figures(self, request: IRequest | None, tag: Tag) -> list[Tag]:
        """Render each figure."""
        facts, log = self._facts, self._snapshot.log
        since = tags.transparent("connections since ", _time(facts.since, facts.now))
        figures: list[tuple[str, Flattenable, Flattenable]] = [
            ("main", since, f"{facts.connections:,}"),
            ("", _period("minute", facts.minuteBefore), f"{facts.lastMinute:,}"),
            ("", _period("hour", facts.hourBefore), f"{facts.lastHour:,}"),
            ("", _period("day", facts.dayBefore), f"{facts.lastDay:,}"),
            ("", "clients", f"{'≥ ' if facts.others else ''}{facts.distinctClients:,}"),
        ]
        if log is not None:
            figures += [
                ("", "recorded", f"{log.recorded:,}"),
                ("", "summarized", f"{log.summarized:,}"),
                ("bad" if log.lost else "", "lost", f"{log.lost:,}"),
                ("", "to be summarized", f"{log.toSummarize:,}"),
                ("", "to be written", f"{log.toWrite:,}"),
            ]
        if dropped := sum(facts.drops.values()):
            figures.append(("bad", "packets dropped, at most", f"{dropped:,}"))
        deliveries = self._snapshot.notifications
        if deliveries is not None:
            last = deliveries.last
            value = "none yet" if last is None else _time(last, facts.now)
            figures.append(("bad" if deliveries.failing else "", "last notification", value))
        rows = [{"class": kind, "label": label, "value": value} for kind, label, value in figures]
        return _each(tag, rows)

    @renderer
    def endpoints(self, request: IRequest | None, tag: Tag) -> list[Tag]:
        """Render each endpoint."""
        rows = []
        for description, where in self._snapshot.endpoints:
            told = "does not listen" if where is None else f"on {where}"
            rows.append(
                {
                    "class": "down" if where is None else "up",
                    "endpoint": description,
                    "where": "" if where == description else told,
                }
            )
        return _each(tag, rows)

    @renderer
    def minutes(self, request: IRequest | None, tag: Tag) -> Tag:
        """Render the last hour."""
        return _chart(self._facts.minutes, 60, "a minute")

    @renderer
    def hours(self, request: IRequest | None, tag: Tag) -> Tag:
        """Render the last day."""
        return _chart(self._facts.hours, 24, "an hour")

    @renderer
    def clients(self, request: IRequest | None, tag: Tag) -> list[Tag]:
        """Render a row for each client with the most connections, and one for all others."""
        facts, shown = self._facts, self._facts.clients[:CLIENTS_SHOWN]
        rows: list[dict[str, Flattenable]] = [
            {
                "client": _truncated(client.name),
                "place": self._place(client.name),
                "share": _share(client.connections / facts.connections),
                "count": f"{'≥ ' if client.missed else ''}{client.connections:,}",
                "first": _time(client.first, facts.now),
                "last": _time(client.last, facts.now),
            }
            for client in shown
        ]
        rest = facts.connections - sum(client.connections for client in shown)
        if rest:
            rows.append(
                {
                    "client": "everybody else",
                    "place": "",
                    "share": _share(rest / facts.connections),
                    "count": f"{rest:,}",
                    "first": "",
                    "last": "",
                }
            )
        return _each(tag, rows) or [_nobody(4)]

    @renderer
    def latest(self, request: IRequest | None, tag: Tag) -> list[Tag]:
        """Render a row for each of the latest connections."""
        rows: list[dict[str, Flattenable]] = []
        for connection in self._facts.latest[:LATEST_SHOWN]:
            proxy, error = connection.proxy, connection.error
            via = connection.proxyAddress or (addressText(proxy) if proxy else "")
            rows.append(
                {
                    "time": _time(connection.time, self._facts.now),
                    "client": _truncated(addressText(connection.client)),
                    "place": self._place(connection.identity),
                    "error": tags.span(error, class_="more error") if error else "",
                    "server": _truncated(addressText(connection.server)),
                    "proxy": tags.span(f"via {_truncated(via)}", class_="more") if via else "",
                }
            )
        return _each(tag, rows) or [_nobody(3)]

    @renderer
    def ports(self, request: IRequest | None, tag: Tag) -> list[Tag]:
        """Render a row for each server port with the most connections, and one for all others."""
        facts = self._facts
        shown = facts.ports[:PORTS_SHOWN]
        rows = [(_truncated(port), count) for port, count in shown]
        if facts.distinctPorts > len(shown):
            rest = facts.connections - sum(count for _, count in shown)
            rows.append((f"{facts.distinctPorts - len(shown):,} others", rest))
        total = facts.connections or 1
        return _each(
            tag,
            [
                {"port": port, "share": _share(count / total), "count": f"{count:,}"}
                for port, count in rows
            ],
        ) or [_nobody(2)]

    def _place(self, client: str) -> Flattenable:
        """Return the country and the network of a client, if either is known."""
        place = self._snapshot.place(client)
        known = " ".join(filter(None, (place.country, place.network)))
        text = known or ("private" if place.isPrivate else "")
        return tags.span(_truncated(text), class_="more") if text else ""


def _each(tag: Tag, rows: Sequence[Mapping[str, Flattenable]]) -> list[Tag]:
    """Return a clone of a tag for each row, with its slots filled."""
    return [tag.clone().fillSlots(**row) for row in rows]


def _period(unit: str, before: int | None) -> str:
    """Return the label of the connections in the last minute, hour or day."""
    return f"in the last {unit}" + ("" if before is None else f", {before:,} in the one before")


def _truncated(text: str) -> str:
    """Truncate a text to L{MAX_ADDRESS} characters."""
    return text if len(text) <= MAX_ADDRESS else f"{text[: MAX_ADDRESS - 1]}…"


def _nobody(columns: int) -> Tag:
    """Return the placeholder row of an empty table."""
    return tags.tr(tags.td("Nobody has connected yet.", colspan=str(columns), class_="empty"))


def _time(seconds: float, now: float) -> Tag:
    """Return a time, with its date unless that is today."""
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    today = moment.date() == datetime.fromtimestamp(now, timezone.utc).date()
    text = moment.strftime("%H:%M:%S" if today else "%d %b %H:%M")
    return tags.time(text, datetime=moment.strftime("%Y-%m-%dT%H:%M:%SZ"))


def _share(share: float) -> Tag:
    """Return a bar for a share of the whole, from 0 to 1."""
    return _svg(100, 1, **{"class": "share", "aria-hidden": "true"})(
        Tag("path")(d=f"M0 0h{100 * share:.1f}v1H0")
    )


def _chart(counts: Sequence[tuple[int, int]], places: int, unit: str) -> Tag:
    """Return a chart of the connections of each minute or hour, with room for all bars."""
    most = max(count for _, count in counts)
    bars = []
    for number, (start, count) in enumerate(counts):
        if count:
            height = max(2, round(_HEIGHT * count / most))
            bar = Tag("path")(d=f"M{number}.1 {_HEIGHT}v-{height}h.8v{height}")
            if number == len(counts) - 1:
                bar(class_="now")
            bars.append(bar(Tag("title")(f"{_clock(start)}: {count:,}")))
    peak = f"at most {most:,} in {unit}" if most else "none"
    total = sum(count for _, count in counts)
    words = {"role": "img", "aria-label": f"Connections: {total:,}, {peak}"}
    caption = tags.figcaption(tags.span(f"{_clock(counts[0][0])} to now"), tags.span(peak))
    return tags.transparent(_svg(places, _HEIGHT, **words)(*bars), caption)


def _svg(width: int, height: int, **attributes: str) -> Tag:
    """Return a scalable SVG."""
    return Tag("svg")(**attributes, viewBox=f"0 0 {width} {height}", preserveAspectRatio="none")


def _clock(seconds: float) -> str:
    """Return hours and minutes."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%H:%M")
