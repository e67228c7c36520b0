"""Which services there are. Filled from the configuration, changed at run time by whoever holds it."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable

from zope.interface import implementer

from kraftek.contract.interfaces import IServiceRegistry
from kraftek.contract.settings import Service

__all__ = ["ServiceRegistry"]

_NAME = re.compile(r"[^\s:\x00-\x1f\x7f-\x9f]{1,128}")


@implementer(IServiceRegistry)
class ServiceRegistry:
    """The services by name."""

    def __init__(self, services: Iterable[Service] = ()) -> None:
        self._services: dict[str, Service] = {}
        self._listeners: list[Callable[[], None]] = []
        for service in services:
            self.register(service)

    def register(self, service: Service) -> None:
        if not _NAME.fullmatch(service.name):
            raise ValueError(
                f"service name {service.name!r}: expected 1 to 128 characters, no white space, control character, colon"
            )
        if not service.channel:
            raise ValueError(f"service {service.name!r}: expected a Redis channel, found an empty string")
        if service.name in self._services:
            raise ValueError(f"service {service.name!r} is registered already")
        self._services[service.name] = service
        self._changed()

    def unregister(self, name: str) -> None:
        del self._services[name]
        self._changed()

    def find(self, name: str) -> Service | None:
        return self._services.get(name)

    def services(self) -> Collection[Service]:
        return tuple(self._services.values())

    def on_change(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)

    def _changed(self) -> None:
        for listener in self._listeners:
            listener()
