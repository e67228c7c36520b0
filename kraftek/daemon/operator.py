"""The operator's own port: what the gateway counts, for Prometheus, and whether it can work.

Made by :mod:`kraftek.daemon.lifecycle` when ``operator.listen`` names an endpoint. It asks nobody for a password: the
endpoint is to be one that only the operator reaches.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from msgspec import json
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from kraftek.contract.interfaces import IBus
from kraftek.contract.metrics import Counters, Gauges, described

__all__ = ["operator_site"]


class _Collected(Collector):
    """Everything, as it is when Prometheus asks."""

    _log = Logger()

    def __init__(self, counters: Counters, gauges: Gauges) -> None:
        self._counters = counters
        self._gauges = gauges

    def collect(self) -> Iterator[Metric]:
        for name, description in described():
            yield CounterMetricFamily(f"kraftek_{name}", description, getattr(self._counters, name))
        # What the benchmark divides: the processor time of the process by the messages that went through meanwhile.
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
            except Exception:  # noqa: BLE001  # one that cannot be read must not hide all others
                self._log.failure("Reading the gauge {name} failed", name=gauge.name)
                continue
            labels = [gauge.label] if gauge.label else []
            metric = GaugeMetricFamily(f"kraftek_{gauge.name}", gauge.description, labels=labels)
            if isinstance(found, Mapping):
                for value, number in found.items():
                    metric.add_metric([value], number)
            else:
                metric.add_metric([], found)
            yield metric


class _Metrics(Resource):
    isLeaf = True

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__()
        self._registry = registry

    def render_GET(self, request: Request) -> bytes:
        encode, content_type = choose_encoder(request.getHeader("Accept") or "")
        request.setHeader("Content-Type", content_type)
        return encode(self._registry)


class _Health(Resource):
    isLeaf = True

    def __init__(self, gateway_id: str, bus: IBus) -> None:
        super().__init__()
        self._gateway_id = gateway_id
        self._bus = bus

    def render_GET(self, request: Request) -> bytes:
        available = self._bus.available
        request.setResponseCode(200 if available else 503)
        request.setHeader("Content-Type", "application/json")
        return json.encode({"gatewayId": self._gateway_id, "redis": available}) + b"\n"


class _OperatorSite(Site):
    noisy = False

    def log(self, request: object) -> None:
        """No access log: the same two requests every few seconds."""


def operator_site(reactor: IReactorTime, gateway_id: str, counters: Counters, gauges: Gauges, bus: IBus) -> Site:
    """The site of the operator's port: ``/metrics`` in the formats of Prometheus, and ``/health``: 200, or 503 without
    Redis.
    """
    registry = CollectorRegistry()
    registry.register(_Collected(counters, gauges))
    ProcessCollector(registry=registry)  # memory, open files, and when it was started
    root = Resource()
    root.putChild(b"metrics", _Metrics(registry))
    root.putChild(b"health", _Health(gateway_id, bus))
    return _OperatorSite(root, reactor=reactor)
