"""The targets are sharp: each finds a fault of its code, with what it begins with and the inputs that are kept."""

from __future__ import annotations

from typing import Any

import pytest
import txaio.tx
from twisted.web.http import HTTPChannel

from kraftek.bus import connections
from kraftek.contract.json_text import JsonBounds
from kraftek.core import service_events
from kraftek.core.deliveries import Deliveries
from kraftek.daemon import config
from kraftek.edge.dialects import socketio_packets
from kraftek.edge.engineio import packets
from kraftek.edge.http_server import HttpChannel
from kraftek.edge.websocket import autobahn_internals, frames
from tests.fuzz.corpora import corpus_of, failure_of
from tests.fuzz.targets import TARGETS, target


def _one_too_few(*args: Any, whole: Any = frames.plain_messages) -> Any:
    messages, taken = whole(*args)
    return messages[:1], taken


FAULTS: dict[str, tuple[Any, str, Any]] = {
    "unframing": (autobahn_internals, "plain_messages", _one_too_few),
    "engineio": (packets, "SEPARATOR", b"\x1e\x1e"),
    "native": (JsonBounds, "complaint", lambda *_: None),
    "socketio": (socketio_packets, "RESERVED_EVENTS", frozenset()),
    "http_requests": (
        HttpChannel,
        "_respondToBadRequestAndDisconnect",
        HTTPChannel._respondToBadRequestAndDisconnect,
    ),
    "broadcasts": (Deliveries, "_but_for", lambda _, __, sessions: sessions),
    "service_events": (service_events, "is_long", lambda _: False),
    "redis_replies": (connections, "INCOMPLETE", False),
    "configuration": (config, "masked", lambda url: url),
}


@pytest.mark.parametrize("name", TARGETS)
def test_a_fault_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(txaio.tx.config, "loop", None)
    it = target(name)
    inputs = [*corpus_of(name).values(), *it.seeds]
    monkeypatch.setattr(*FAULTS[name])
    assert any(failure_of(it, data) is not None for data in inputs)
