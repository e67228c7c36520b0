"""From an event's name to its service. Called by the gateway for every event, so a known name is one dict look-up."""

from __future__ import annotations

import re

from zope.interface import implementer
from zope.interface.verify import verifyObject

from kraftek.config import Service
from kraftek.errors import Code, PeerError
from kraftek.interfaces import IEventRouter, IServiceRegistry

__all__ = ["NAME_LENGTH", "EventRouter"]

NAME_LENGTH = 128
"""Characters of an event name at most: docs/client-protocol.rst, "Event names"."""

_PART = r"[^\s:\x00-\x1f\x7f-\x9f]+"
_NAME = re.compile(rf"({_PART}):{_PART}:{_PART}")

# Clients choose the names, so what is remembered of them is bounded.
_REMEMBERED = 10_000


@implementer(IEventRouter)
class EventRouter:
    """Parses event names and finds their service in a registry."""

    def __init__(self, registry: IServiceRegistry) -> None:
        verifyObject(IServiceRegistry, registry)
        self._registry = registry
        self._known: dict[str, Service] = {}
        registry.on_change(self._known.clear)

    def route(self, name: str) -> Service:
        service = self._known.get(name)
        return service if service is not None else self._find(name)

    def _find(self, name: str) -> Service:
        parsed = _NAME.fullmatch(name) if len(name) <= NAME_LENGTH else None
        service: Service | None = self._registry.find(parsed[1]) if parsed else None
        if service is None:
            raise PeerError(
                Code.INVALID_EVENT,
                "Event type is not valid or service is not registered",
                event_type=name[:NAME_LENGTH],
            )
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[name] = service
        return service
