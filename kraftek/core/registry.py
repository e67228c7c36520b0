"""The registered services, and the router that finds the service of an event by the event's name.

The registry is filled from the configuration, and may be changed at run time. The router is called for every event, so
a known name is one dict look-up.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable

from zope.interface import implementer
from zope.interface.verify import verifyObject

from kraftek.contract.errors import Code, PeerError
from kraftek.contract.interfaces import IEventRouter, IServiceRegistry
from kraftek.contract.names import NAME_LENGTH, service_of
from kraftek.contract.settings import Registration

__all__ = ["EventRouter", "ServiceRegistry"]

_NAME = re.compile(r"[^\s:\x00-\x1f\x7f-\x9f]{1,128}")


@implementer(IServiceRegistry)
class ServiceRegistry:
    """The services by name."""

    def __init__(self, services: Iterable[Registration] = ()) -> None:
        self._services: dict[str, Registration] = {}
        self._listeners: list[Callable[[], None]] = []
        for service in services:
            self.register(service)

    def register(self, service: Registration) -> None:
        if not _NAME.fullmatch(service.name):
            raise ValueError(
                f"service name {service.name!r}: expected 1 to 128 characters, no white space, control character, colon"
            )
        if not service.channel:
            raise ValueError(f"service {service.name!r}: expected a Redis channel, found an empty string")
        known = self._services.get(service.name)
        if known is not None and not known.explicit:
            raise ValueError(f"service {service.name!r} is registered already")
        self._services[service.name] = service
        self._changed()

    def unregister(self, name: str) -> None:
        del self._services[name]
        self._changed()

    def find(self, name: str) -> Registration | None:
        return self._services.get(name)

    def services(self) -> Collection[Registration]:
        return tuple(self._services.values())

    def on_change(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)

    def _changed(self) -> None:
        for listener in self._listeners:
            listener()


# Clients choose the names, so the cache of known names is bounded.
_KNOWN_NAMES = 10_000


@implementer(IEventRouter)
class EventRouter:
    """Parses event names and finds their service in a registry."""

    def __init__(self, registry: IServiceRegistry) -> None:
        verifyObject(IServiceRegistry, registry)
        self._registry = registry
        self._known: dict[str, Registration] = {}
        registry.on_change(self._known.clear)

    def route(self, name: str) -> Registration:
        service = self._known.get(name)
        return service if service is not None else self._find(name)

    def _find(self, name: str) -> Registration:
        service_name = service_of(name)
        service: Registration | None = None if service_name is None else self._registry.find(service_name)
        if service is None:
            raise PeerError(
                Code.INVALID_EVENT,
                "Event type is not valid or service is not registered",
                event_type=name[:NAME_LENGTH],
            )
        if len(self._known) >= _KNOWN_NAMES:
            self._known.clear()
        self._known[name] = service
        return service
