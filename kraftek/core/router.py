"""From an event's name to its service. Called by the gateway for every event, so a known name is one dict look-up."""

from __future__ import annotations

from zope.interface import implementer
from zope.interface.verify import verifyObject

from kraftek.contract.errors import Code, PeerError
from kraftek.contract.interfaces import IEventRouter, IServiceRegistry
from kraftek.contract.names import NAME_LENGTH, service_of
from kraftek.contract.settings import Service

__all__ = ["EventRouter"]

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
        called = service_of(name)
        service: Service | None = None if called is None else self._registry.find(called)
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
