"""The targets by name. Each is a module, which is imported when it is wanted: to instrument all takes a minute."""

from __future__ import annotations

from importlib import import_module

from tests.fuzz.watch import Target

__all__ = ["INSTRUMENTED", "TARGETS", "target"]

TARGETS = (
    "unframing",
    "engineio",
    "native",
    "socketio",
    "http_requests",
    "broadcasts",
    "service_events",
    "redis_replies",
    "configuration",
)

INSTRUMENTED = {"unframing": ["autobahn.websocket.protocol"], "http_requests": ["twisted.web.http"]}
"""What else than the package guides a target."""


def target(name: str) -> Target:
    """The target of that name."""
    found: Target = import_module(f"tests.fuzz.{name}").TARGET
    return found
