"""The page, from facts to HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.resources import files
from typing import Any

from twisted.web.iweb import IRequest
from twisted.web.template import Element, Flattenable, Tag, XMLString, renderer, tags

from hello_listen.connection import addressText
from hello_listen.status.tally import Facts

LONGEST = 48
"""Characters of an address that are shown, as many as an IPv6 one has; status.json has all."""

TEMPLATE = XMLString(files("hello_listen.status").joinpath("page.xml").read_bytes())

# A chart's bars are drawn in a box of this height, which the page stretches.
_HEIGHT = 100


class StatusPage(Element):
    """All that is known, to look at. Whatever clients named themselves is escaped."""

    loader = TEMPLATE

    def __init__(
        self,
        facts: Facts,
        listening: Sequence[tuple[str, str | None]],
        log: Any,
        problems: Sequence[str],
    ) -> None:
        """
        Hold what is to be shown.

        @param facts: what a L{Tally} knows.
        @param listening: each endpoint's description, and where it listens, if it does.
        @param log: a L{ConnectionLog}, or L{None}.
        @param problems: what is wrong.
        """
        super().__init__()
        self._facts = facts
        self._listening = listening
        self._log = log
        self._problems = problems

    @renderer
    def page(self, request: IRequest | None, tag: Tag) -> Tag:
        """Fill in what is but a word."""
        return tag.fillSlots(
            connections=f"{self._facts.connections:,}", since=_time(self._facts.since, 0)
        )

    @renderer
    def problems(self, request: IRequest | None, tag: Tag) -> list[Tag]:
        """Render each problem."""
        return _each(tag, [{"problem": problem} for problem in self._problems])

    @renderer
    def figures(self, request: IRequest | None, tag: Tag) -> list[Tag]:
        """Render each figure."""
        facts, log = self._facts, self._log
        figures = [
            ("main", "connections", facts.connections),
            ("", "in the last minute", facts.lastMinute),
            ("", "in the last hour", facts.lastHour),
        ]
        if log is not None:
            figures += [
                ("", "recorded", log.recorded),
                ("", "summarized", log.summarized),
                ("bad" if log.lost else "", "lost", log.lost),
            ]
        return _each(
            tag,
            [
                {"class": kind, "label": label, "value": f"{value:,}"}
                for kind, label, value in figures
            ],
        )

    @renderer
    def endpoints(self, request: IRequest | None, tag: Tag) -> list[Tag]:
        """Render each endpoint."""
        rows = []
        for description, where in self._listening:
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
        return _chart(self._facts.minutes, "a minute")

    @renderer
    def hours(self, request: IRequest | None, tag: Tag) -> Tag:
        """Render the last day."""
        return _chart(self._facts.hours, "an hour")

    @renderer
    def clients(self, request: IRequest | None, tag: Tag) -> list[Tag]:
        """Render a row for each of the clients that came most, and one for the others."""
        facts = self._facts
        rows: list[dict[str, Flattenable]] = [
            {
                "client": shortened(client.name),
                "share": _share(client.connections / facts.connections),
                "count": f"{'≥ ' if client.missed else ''}{client.connections:,}",
                "first": _time(client.first, facts.now),
                "last": _time(client.last, facts.now),
            }
            for client in facts.clients
        ]
        rest = facts.connections - sum(client.connections for client in facts.clients)
        if rest:
            rows.append(
                {
                    "client": "everybody else",
                    "share": _share(rest / facts.connections),
                    "count": f"{rest:,}",
                    "first": "",
                    "last": "",
                }
            )
        return _each(tag, rows) or [_nobody(4)]

    @renderer
    def latest(self, request: IRequest | None, tag: Tag) -> list[Tag]:
        """Render a row for each of the last connections."""
        rows: list[dict[str, Flattenable]] = []
        for connection in self._facts.latest:
            proxy, error = connection.proxy, connection.error
            via = f"via {shortened(addressText(proxy))}" if proxy else ""
            rows.append(
                {
                    "time": _time(connection.time, self._facts.now),
                    "client": shortened(addressText(connection.client)),
                    "error": tags.span(error, class_="more error") if error else "",
                    "server": shortened(addressText(connection.server)),
                    "proxy": tags.span(via, class_="more") if via else "",
                }
            )
        return _each(tag, rows) or [_nobody(3)]


def _each(tag: Tag, rows: Sequence[Mapping[str, Flattenable]]) -> list[Tag]:
    """Return a tag for each of several rows, with its slots filled."""
    return [tag.clone().fillSlots(**row) for row in rows]


def shortened(text: str) -> str:
    """Return a text that has room on the page."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _nobody(columns: int) -> Tag:
    """Return the row of a table that has none."""
    return tags.tr(tags.td("Nobody has connected yet.", colspan=str(columns), class_="empty"))


def _time(seconds: float, now: float) -> Tag:
    """Return a time of today, or the date with it."""
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    today = moment.date() == datetime.fromtimestamp(now, timezone.utc).date()
    text = moment.strftime("%H:%M:%S" if today else "%d %b %H:%M")
    return tags.time(text, datetime=moment.strftime("%Y-%m-%dT%H:%M:%SZ"))


def _share(share: float) -> Tag:
    """Return a bar that shows a share of the whole."""
    return _svg(100, 1, **{"class": "share", "aria-hidden": "true"})(
        Tag("path")(d=f"M0 0h{100 * share:.1f}v1H0")
    )


def _chart(counts: Sequence[tuple[int, int]], unit: str) -> Tag:
    """Return bars for the connections of each minute or hour, and what they say in words."""
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
    caption = tags.figcaption(tags.span(_clock(counts[0][0])), tags.span(peak), tags.span("now"))
    return tags.transparent(_svg(len(counts), _HEIGHT, **words)(*bars), caption)


def _svg(width: int, height: int, **attributes: str) -> Tag:
    """Return a picture that its place stretches."""
    return Tag("svg")(**attributes, viewBox=f"0 0 {width} {height}", preserveAspectRatio="none")


def _clock(seconds: float) -> str:
    """Return hours and minutes."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%H:%M")
