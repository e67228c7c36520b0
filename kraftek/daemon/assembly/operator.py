"""The operator's port."""

from __future__ import annotations

from typing import Any

from kraftek.contract.metrics import Gauges
from kraftek.contract.readiness import Readiness
from kraftek.daemon.assembly.surroundings import Surroundings
from kraftek.daemon.operator import OperatorSite
from kraftek.daemon.publish_requests import PublishRequests
from kraftek.daemon.token_file import token_of
from kraftek.edge.hosts import Hosts

__all__ = ["operator_of"]


def operator_of(given: Surroundings, gauges: Gauges, readiness: Readiness, reactor: Any) -> OperatorSite:
    """What answers there."""
    config, counters = given.config, given.counters
    publish = PublishRequests(given.bus, config.redis.broadcast, counters, reactor, token_of(config.operator))
    hosts = Hosts(config.hosts, lenient=True)
    return OperatorSite(reactor, hosts, given.gateway_id, counters, gauges, readiness, publish)
