"""The facts as metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, make_wsgi_app
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from twisted.web.iweb import IRequest

from hello_listen.status.tally import Tally


class Metrics(Collector):
    """
    Answers with metrics in Prometheus's text format or as OpenMetrics, whichever is asked for.

    No client's address is a label. C{prometheus_client.twisted.MetricsResource} would import the
    global reactor, and collect in a thread of its pool: L{Tally} would need a lock.
    """

    def __init__(
        self,
        tally: Tally,
        servers: Callable[[], Iterable[tuple[str, str]]],
        waiting: Callable[[], int],
        log: Any,
    ) -> None:
        """
        Hold what is to be collected.

        @param tally: what counts the connections.
        @param servers: returns the transport and address of what listens, to be 0 at first.
        @param waiting: returns how many PROXY headers are waited for.
        @param log: a L{ConnectionLog}, or L{None}.
        """
        self._tally = tally
        self._servers = servers
        self._waiting = waiting
        self._log = log
        registry = CollectorRegistry()
        registry.register(self)
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self._application = make_wsgi_app(registry)

    def collect(self) -> Iterable[Metric]:
        """Return each metric."""
        connections = CounterMetricFamily(
            "hello_listen_connections",
            "Connections established.",
            labels=["transport", "server", "error"],
        )
        # increase() needs a sample from before the first connection.
        totals = {(*server, ""): 0 for server in self._servers()} | self._tally.facts().totals
        for labels, count in totals.items():
            connections.add_metric(labels, count)
        yield connections
        yield GaugeMetricFamily(
            "hello_listen_headers_waiting",
            "Connections whose PROXY header is not whole yet.",
            value=self._waiting(),
        )
        log = self._log
        if log is None:
            return
        for name, text, count in (
            ("recorded", "Connections with a record of their own.", log.recorded),
            ("summarized", "Connections counted in summaries.", log.summarized),
            ("lost", "Connections that the log does not hold.", log.lost),
        ):
            yield CounterMetricFamily(f"hello_listen_{name}", text, value=count)
        for name, text, value in (
            ("failing", "1 while the log cannot be written.", int(log.failing is not None)),
            ("waiting_bytes", "Bytes kept in memory until they are written.", log.waiting),
        ):
            yield GaugeMetricFamily(f"hello_listen_log_{name}", text, value=value)

    def __call__(self, request: IRequest) -> bytes:
        """
        Return the metrics, and set their type.

        @param request: what asks for them.
        """

        def start(status: str, headers: list[tuple[str, str]]) -> None:
            for name, value in headers:
                request.setHeader(name.encode(), value.encode())

        environment = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": "/metrics",
            "HTTP_ACCEPT": (request.getHeader(b"accept") or b"").decode("latin-1"),
            "HTTP_ACCEPT_ENCODING": (request.getHeader(b"accept-encoding") or b"").decode(
                "latin-1"
            ),
        }
        try:
            return b"".join(self._application(environment, start))
        except TypeError:  # prometheus-client 0.26, if the version asked for is not a number.
            environment["HTTP_ACCEPT"] = ""
            return b"".join(self._application(environment, start))
