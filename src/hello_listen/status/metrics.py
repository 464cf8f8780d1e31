"""Renders a snapshot as metrics."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from hello_listen.status.snapshot import Snapshot

TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8"
"""Content type of Prometheus's text format."""

OPEN_METRICS_FORMAT = openmetrics.CONTENT_TYPE_LATEST
"""Content type of OpenMetrics."""

_PROCESS = ProcessCollector(registry=None), PlatformCollector(registry=None)


def asText(snapshot: Snapshot) -> bytes:
    """Return the metrics in Prometheus's text format."""
    return generate_latest(_Metrics(snapshot))


def asOpenMetrics(snapshot: Snapshot) -> bytes:
    """Return the metrics as OpenMetrics."""
    text: bytes = openmetrics.generate_latest(_Metrics(snapshot))
    return text


class _Metrics(Collector):
    """Metrics of a snapshot and of the process. Client addresses are no labels: too many series."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics."""
        facts, log = self._snapshot.facts, self._snapshot.log
        connections = CounterMetricFamily(
            "hello_listen_connections",
            "Connections established.",
            labels=["transport", "server", "error"],
        )
        for labels, count in facts.totals.items():
            connections.add_metric(labels, count)
        yield connections
        drops = CounterMetricFamily(
            "hello_listen_dropped_packets",
            "Packets of clients that a full accept queue dropped, at most.",
            labels=["server"],
        )
        for server, packets in facts.drops.items():
            drops.add_metric([server], packets)
        yield drops
        if facts.lastTimes:
            last = GaugeMetricFamily(
                "hello_listen_last_connection_timestamp_seconds",
                "When the last connection was accepted.",
                labels=["transport", "server"],
            )
            for place, time in facts.lastTimes.items():
                last.add_metric(place, time)
            yield last
        yield GaugeMetricFamily(
            "hello_listen_headers_waiting",
            "Connections whose PROXY header is incomplete.",
            value=self._snapshot.headersWaiting,
        )
        if log is not None:
            for name, text, count in (
                ("recorded", "Connections with a record of their own.", log.recorded),
                ("summarized", "Connections counted in summaries.", log.summarized),
                ("lost", "Connections that the log does not hold.", log.lost),
            ):
                yield CounterMetricFamily(f"hello_listen_{name}", text, value=count)
            for name, text, value in (
                ("to_summarize", "Connections to be summarized.", log.toSummarize),
                ("to_write", "Connections to be written to the log.", log.toWrite),
                ("log_failing", "1 while the log cannot be written.", log.failing is not None),
                ("log_waiting_bytes", "Bytes of records kept in memory.", log.bytesToWrite),
            ):
                yield GaugeMetricFamily(f"hello_listen_{name}", text, value=value)
        notifications = self._snapshot.notifications
        if notifications is not None:
            yield CounterMetricFamily(
                "hello_listen_notifications_delivered",
                "Messages about new clients that were delivered.",
                value=notifications.delivered,
            )
            yield CounterMetricFamily(
                "hello_listen_notifications_failed",
                "Attempts to deliver a message that failed.",
                value=notifications.failed,
            )
            yield GaugeMetricFamily(
                "hello_listen_notifications_failing",
                "Receivers whose last attempt failed.",
                value=len(notifications.failing),
            )
        for collector in _PROCESS:
            yield from collector.collect()
