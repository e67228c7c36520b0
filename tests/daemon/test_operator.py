"""The operator's port, in memory: what Prometheus reads there, and whether the gateway says it can work."""

from __future__ import annotations

import json
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text
from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from kraftek.contract.metrics import Counters, Gauges, described
from kraftek.contract.readiness import Readiness
from kraftek.daemon.operator import OperatorSite
from kraftek.daemon.publish_requests import PublishRequests
from kraftek.edge.hosts import Hosts
from tests.edge.websocket.edge import RecordingTransport
from tests.support.fakes import FakeBus
from tests.support.waiting import wait_until


class Operator:
    """The site, and one who asks."""

    def __init__(self) -> None:
        self.counters = Counters()
        self.gauges = Gauges()
        self.bus = FakeBus()
        self.readiness = Readiness(self.bus)
        publish = PublishRequests(self.bus, "events:broadcast", self.counters, Clock(), None)
        self.site = OperatorSite(Clock(), Hosts(), "gw", self.counters, self.gauges, self.readiness, publish)

    def ask(self, path: str, accept: str = "*/*", method: str = "GET") -> tuple[int, str, str]:
        """Status, type and body of the answer."""
        protocol: Any = self.site.buildProtocol(None)
        transport = RecordingTransport()
        protocol.makeConnection(transport)
        protocol.dataReceived(f"{method} {path} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n\r\n".encode())
        head, _, body = transport.value().decode().partition("\r\n\r\n")
        status, *lines = head.split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        return int(status.split(" ")[1]), headers.get("content-type", ""), body

    def metrics(self) -> dict[str, Metric]:
        """What Prometheus's own reader makes of it, by name."""
        status, kind, body = self.ask("/metrics")
        assert (status, kind.startswith("text/plain;")) == (200, True)
        return {metric.name: metric for metric in read_text(body)}

    def value(self, name: str, **labels: str) -> float:
        """One number."""
        [value] = [
            sample.value
            for metric in self.metrics().values()
            for sample in metric.samples
            if sample.name == name and sample.labels == labels
        ]
        return value


@pytest.fixture
def operator() -> Operator:
    return Operator()


def test_every_counter_is_there_with_its_description(operator: Operator) -> None:
    for number, (name, _, label) in enumerate(described()):
        setattr(operator.counters, name, {"one": number} if label else number)
    metrics = operator.metrics()
    for number, (name, description, label) in enumerate(described()):
        metric = metrics[f"kraftek_{name}"]
        assert (metric.type, metric.documentation) == ("counter", description)
        [sample] = metric.samples
        assert (sample.name, sample.value) == (f"kraftek_{name}_total", number)
        assert sample.labels == ({label: "one"} if label else {})


def test_what_a_message_costs_can_be_divided(operator: Operator) -> None:
    operator.counters.received = 3
    operator.counters.delivered = 5
    assert operator.value("kraftek_messages_total", direction="in") == 3
    assert operator.value("kraftek_messages_total", direction="out") == 5
    before = operator.value("kraftek_cpu_seconds_total")
    assert before > 0
    wait_until(
        lambda: operator.value("kraftek_cpu_seconds_total") > before,
        lambda: f"more than {before} s, but {operator.value('kraftek_cpu_seconds_total')}",
    )


def test_gauges_are_read_at_each_look(operator: Operator) -> None:
    lag = {"notes": 7}
    sockets: list[int] = []
    operator.gauges.add("sockets", "Clients connected", lambda: len(sockets))
    operator.gauges.add("stream_lag", "Events that wait", lambda: lag, "service")
    assert operator.value("kraftek_sockets") == 0
    sockets += [1, 2]
    lag["chat"] = 1
    assert operator.value("kraftek_sockets") == 2
    assert operator.value("kraftek_stream_lag", service="notes") == 7
    assert operator.value("kraftek_stream_lag", service="chat") == 1
    assert operator.metrics()["kraftek_sockets"].type == "gauge"


def test_a_gauge_that_cannot_be_read_hides_no_other(operator: Operator) -> None:
    def broken() -> float:
        raise RuntimeError("the cause")

    operator.gauges.add("broken", "Broken", broken)
    operator.gauges.add("whole", "Whole", lambda: 1)
    with capturedLogs() as logged:
        assert operator.value("kraftek_whole") == 1
    assert [str(event["log_failure"].value) for event in logged] == ["the cause"]
    assert "kraftek_broken" not in operator.metrics()


def test_the_process_is_there_too(operator: Operator) -> None:
    assert operator.value("process_resident_memory_bytes") > 0
    assert operator.value("process_open_fds") > 0


def test_openmetrics_for_who_asks_for_it(operator: Operator) -> None:
    status, kind, body = operator.ask("/metrics", "application/openmetrics-text; version=1.0.0")
    assert (status, kind.startswith("application/openmetrics-text")) == (200, True)
    assert "kraftek_received" in {metric.name for metric in read_openmetrics(body)}


def test_health_is_that_of_redis(operator: Operator) -> None:
    assert operator.bus.available
    status, kind, body = operator.ask("/health")
    assert (status, kind, json.loads(body)) == (200, "application/json", {"gatewayId": "gw", "redis": True})
    operator.bus.down()
    status, _, body = operator.ask("/health")
    assert (status, json.loads(body)) == (503, {"gatewayId": "gw", "redis": False, "reason": "away"})
    operator.bus.up()
    operator.bus.fault = "MISCONF no disk"
    status, _, body = operator.ask("/health")
    assert (status, json.loads(body)) == (200, {"gatewayId": "gw", "redis": False, "reason": "MISCONF no disk"})


def test_health_says_that_the_gateway_stops(operator: Operator) -> None:
    operator.readiness.stops = True
    status, _, body = operator.ask("/health")
    assert (status, json.loads(body)) == (503, {"gatewayId": "gw", "redis": True, "stopping": True})


def test_health_says_that_new_clients_are_turned_away(operator: Operator) -> None:
    operator.readiness.fault = "too much memory"
    status, _, body = operator.ask("/health")
    told = {"gatewayId": "gw", "redis": True, "memory": False, "reason": "too much memory"}
    assert (status, json.loads(body)) == (503, told)


def test_head_has_no_body(operator: Operator) -> None:
    assert operator.ask("/health", method="HEAD")[::2] == (200, "")


@pytest.mark.parametrize(
    ("path", "method", "status"), [("/", "GET", 404), ("/x", "GET", 404), ("/health", "POST", 405)]
)
def test_there_is_nothing_else(operator: Operator, path: str, method: str, status: int) -> None:
    assert operator.ask(path, method=method)[0] == status
