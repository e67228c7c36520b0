"""Requests that their clients cancel: answered here, and told to their services.

Made by :mod:`kraftek.core.requests`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress

import msgspec

from kraftek.contract.errors import Code, NotPublished
from kraftek.contract.interfaces import IBus
from kraftek.contract.messages import Cancel, Cancelled, RequestId
from kraftek.contract.metrics import Counters
from kraftek.contract.names import cancel_channel
from kraftek.contract.settings import Registration
from kraftek.core.request_queue import Request
from kraftek.core.session import Session

__all__ = ["RequestCancels"]

_encode = msgspec.json.Encoder().encode


class RequestCancels:
    """Ends requests. ``waiting``: that of :class:`kraftek.core.requests.Requests`; ``end`` answers one with an error,
    and ``store`` keeps that at once.

    All instances of the service are told, because nobody knows which of them has the request. It may have it of another
    socket of the user, whose gateway may be another one, or gone: so the word names the user, except where the id is
    that of a socket. It is not kept: a service that does not hear it goes on, and what it answers comes too late.
    """

    def __init__(
        self,
        waiting: Mapping[str, Mapping[RequestId, Request]],
        bus: IBus,
        counters: Counters,
        end: Callable[[Request, Code, str], None],
        store: Callable[[], None],
    ) -> None:
        self._waiting = waiting
        self._bus = bus
        self._counters = counters
        self._end = end
        self._store = store

    def find(self, session: Session, message: Cancel) -> list[Request]:
        """Those of this connection that it means."""
        waiting = self._waiting.get(session.socket_id, {})
        if message.id is None:
            return [request for request in waiting.values() if request.name == message.event_type]
        request = waiting.get(message.id)
        return [] if request is None else [request]

    def cancel(self, session: Session, message: Cancel, at: int) -> bool:
        """Cancel them, at this time in Unix milliseconds. ``False`` if there are none."""
        found = self.find(session, message)
        if not found:
            return False
        self._counters.requests_cancelled += len(found)
        for request in found:
            self._end(request, Code.CANCELLED, "cancelled by the client")
        self._store()  # before a service, told of it, answers another gateway
        for request in found:
            self.tell(session, request.queue.service, request.name, request.id, at)
        return True

    def tell(self, session: Session, service: Registration, name: str, request_id: RequestId, at: int) -> None:
        """Tell the service alone."""
        assert session.user_id is not None
        socket_id = "" if session.dialect.lasting_ids else session.socket_id
        cancelled = Cancelled(name, session.user_id, request_id, at, socket_id)
        with suppress(NotPublished):
            self._bus.publish(cancel_channel(service.name), _encode(cancelled), _ignore)


def _ignore(_: int) -> None:
    """Nobody need have heard it."""
