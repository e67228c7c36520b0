"""Who listens to what. Part of :class:`kraftek.client.backend.Backend`."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

__all__ = ["Listener", "Listeners"]

Listener = Callable[[Any], object]


class Listeners(ABC):
    """Functions to call, by the type of what they are called with."""

    def __init__(self) -> None:
        self._listeners: dict[str, dict[object, Listener]] = {}

    def on(self, type: str, listener: Listener) -> Callable[[], None]:
        """Call ``listener`` with each :class:`Message` of this type that answers no request; the result ends that.

        ``error`` messages are those that concern no request; ``gap`` says what was missed while this program did not
        read. Listeners to ``state`` get each :class:`Change`, those to ``dropped`` each event that will not be sent
        because the client was closed, or was too large, and those to ``recovered`` each :class:`Recovered`.
        Raises ``TypeError`` for an ``async`` function, which would not be awaited.
        """
        if inspect.iscoroutinefunction(listener):
            raise TypeError(f"a listener is a plain function, and {listener!r} is async: let it start a task")
        listeners = self._listeners.setdefault(type, {})
        subscription = object()  # the same listener may be subscribed more than once
        listeners[subscription] = listener

        def end() -> None:
            listeners.pop(subscription, None)

        return end

    def _are_listening(self, type: str) -> bool:
        return bool(self._listeners.get(type))

    def _notify(self, type: str, what: object) -> bool:
        """Whether anybody has heard it, and nobody failed."""
        heard = failed = False
        listeners = self._listeners.get(type, {})
        for subscription, listener in tuple(listeners.items()):
            if subscription not in listeners:
                continue  # another listener has just removed it
            heard = True
            try:
                listener(what)
            except Exception as error:  # noqa: BLE001  # the guard of this edge: an error of the listener
                failed = True
                self._log_error(f"a listener to {type} failed", error)
        return heard and not failed

    @abstractmethod
    def _log_error(self, what: str, error: BaseException) -> None:
        """Log an error of the user's code."""
