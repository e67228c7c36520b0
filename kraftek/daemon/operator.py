"""The operator's port: the gateway's metrics for Prometheus, its health, and ``POST /publish``.

Made by :mod:`kraftek.daemon.lifecycle` when ``operator.listen`` names an endpoint. Only publishing needs a token: the
endpoint must be one that only the operator can reach.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import json
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from kraftek.contract.metrics import Counters, Gauges, described
from kraftek.contract.readiness import Readiness
from kraftek.daemon.publish_requests import PublishRequests
from kraftek.edge.hosts import Hosts
from kraftek.edge.http_responses import Response
from kraftek.edge.http_server import HttpServer, Request

__all__ = ["OperatorSite"]

_PATIENCE = 5.0
"""Seconds for a request to arrive."""


class _Collected(Collector):
    """All metrics, read when Prometheus asks for them."""

    _log = Logger()

    def __init__(self, counters: Counters, gauges: Gauges) -> None:
        self._counters = counters
        self._gauges = gauges

    def collect(self) -> Iterator[Metric]:
        for name, description, label in described():
            yield _filled(
                CounterMetricFamily(f"kraftek_{name}", description, labels=[label] if label else []),
                getattr(self._counters, name),
            )
        # For the benchmark, which divides the processor time of the process by these.
        messages = CounterMetricFamily(
            "kraftek_messages", "Messages from clients (in), and of services to clients (out)", labels=["direction"]
        )
        messages.add_metric(["in"], self._counters.received)
        messages.add_metric(["out"], self._counters.delivered)
        yield messages
        yield CounterMetricFamily("kraftek_cpu_seconds", "Processor time, user and system", time.process_time())
        for gauge in self._gauges:
            try:
                found = gauge.read()
            except Exception:  # noqa: BLE001  # a gauge that cannot be read must not hide the others
                self._log.failure("Reading the gauge {name} failed", name=gauge.name)
                continue
            labels = [gauge.label] if gauge.label else []
            yield _filled(GaugeMetricFamily(f"kraftek_{gauge.name}", gauge.description, labels=labels), found)


def _filled(metric: Any, found: float | Mapping[str, float]) -> Metric:
    """The metric with its number, or the number for each value of its label."""
    if isinstance(found, Mapping):
        for value, number in found.items():
            metric.add_metric([value], number)
    else:
        metric.add_metric([], found)
    filled: Metric = metric
    return filled


class OperatorSite(HttpServer):
    """The operator's port: ``/metrics`` in the formats of Prometheus, and ``/health``: 200, or 503 when the gateway
    is not ready. While Redis refuses to be written that is 200, with the reason. ``publish`` answers ``/publish``,
    once it has a token.

    ``hosts`` accepts addresses and an absent Host, because Prometheus and probes use them.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        hosts: Hosts,
        gateway_id: str,
        counters: Counters,
        gauges: Gauges,
        readiness: Readiness,
        publish: PublishRequests,
    ) -> None:
        super().__init__(reactor, hosts, head_timeout=_PATIENCE, request_timeout=_PATIENCE)
        self._gateway_id = gateway_id
        self._readiness = readiness
        self.publish = publish
        self._registry = CollectorRegistry()
        self._registry.register(_Collected(counters, gauges))
        ProcessCollector(registry=self._registry)  # memory, open files, and when it was started

    def refuse_body(self, request: Request) -> Response | None:
        return self.publish.refuse(request) if self._publishes(request) else None

    def refuse_size(self, request: Request, size: int) -> Response | None:
        if self._publishes(request):
            return self.publish.refuse_size(size)
        return super().refuse_size(request, size)

    def expect(self, request: Request) -> None:
        if self._publishes(request):
            self.publish.expect(request)

    def respond(self, request: Request) -> None:
        if self._publishes(request):
            self.publish.respond(request)
            return
        page = {b"/metrics": self._metrics, b"/health": self._health}.get(request.path)
        if page is None:
            request.answer(Response(404, b"expected /metrics or /health\n"))
        elif request.method not in (b"GET", b"HEAD"):
            request.answer(Response(405, b"expected GET\n", headers=((b"Allow", b"GET, HEAD"),)))
        else:
            request.answer(page(request))

    def _publishes(self, request: Request) -> bool:
        return request.path == b"/publish" and self.publish.token is not None

    def _metrics(self, request: Request) -> Response:
        encode, content_type = choose_encoder(request.header("accept") or "")
        return Response(200, encode(self._registry), content_type.encode())

    def _health(self, request: Request) -> Response:
        readiness = self._readiness
        fault = readiness.bus.fault
        health: dict[str, object] = {"gatewayId": self._gateway_id, "redis": fault is None}
        if readiness.stops:
            health["stopping"] = True
        if readiness.fault is not None:
            health |= {"memory": False, "reason": readiness.fault}
        if fault is not None:
            health["reason"] = fault
        return Response(200 if readiness.ready else 503, json.encode(health) + b"\n", b"application/json")
