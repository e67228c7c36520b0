"""The state of a room, or of the user, kept current by its messages. Made by :mod:`kraftek.client.snapshots`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Generic, Protocol, TypeVar, cast

from kraftek.client.frames import error_of, refused
from kraftek.client.messages import Message
from kraftek.client.recovery import NO_SNAPSHOT

__all__ = ["RoomState"]

S = TypeVar("S")


class _Client(Protocol):
    def on(self, type: str, listener: Callable[[Any], object]) -> Callable[[], None]: ...

    def snapshot(self, room: str, fetch: Callable[[], Any]) -> Callable[[], None]: ...

    def user_snapshot(self, fetch: Callable[[], Any]) -> Callable[[], None]: ...


class RoomState(Generic[S]):
    """What ``snapshot`` returns, or the awaitable of it, and then what ``changes`` make of it, by the type of the
    room's messages: ``(state, payload) -> state``; of a piece of a text ``(state, piece, append) -> state``, with its
    :class:`~kraftek.client.Append`. Without a room it is that of the user, and of messages outside of rooms.

    Of a message that comes while the snapshot is fetched nobody knows whether it is in there already, so a change must
    be one that may be made twice: by key, not by count.

    ``value``: the state, as far as it is known; ``None`` before the first snapshot. ``error``: why the room is not
    entered, or its state not fetched, if that is so.
    """

    def __init__(
        self,
        client: _Client,
        room: str | None,
        snapshot: Callable[[], Any],
        changes: Mapping[str, Callable[..., S]],
    ) -> None:
        self.value: S | None = None
        self.error: BaseException | None = None
        self._room = room
        self._snapshot = snapshot
        self._known = self._current = False
        self._listeners: dict[object, Callable[[S], object]] = {}
        self._ends = [client.on(name, partial(self._changed, change)) for name, change in changes.items()]
        fetching = client.user_snapshot(self._fetch) if room is None else client.snapshot(room, self._fetch)
        self._ends += (client.on("error", self._failed), fetching)

    def subscribe(self, listener: Callable[[S], object]) -> Callable[[], None]:
        """Call ``listener`` with the state, now if there is one, and at each change; the result ends that."""
        subscription = object()
        self._listeners[subscription] = listener
        if self._known:
            listener(cast("S", self.value))

        def end() -> None:
            self._listeners.pop(subscription, None)

        return end

    def close(self) -> None:
        """Change no more. The room is not left by this."""
        ends, self._ends = self._ends, []
        for end in ends:
            end()
        self._listeners.clear()

    def joined(self, result: object) -> None:
        """The room is entered, or cannot be."""
        if isinstance(result, BaseException):
            self.error = result

    async def _fetch(self) -> None:
        # After a failure nobody knows what it is that would be changed.
        self._current = False
        value = self._snapshot()
        if inspect.isawaitable(value):
            value = await value
        self._known = self._current = True
        self.error = None
        self._show(value)

    def _changed(self, change: Callable[..., S], message: Message) -> None:
        if self._current and message.room_id == self._room:
            more = () if message.append is None else (message.append,)
            self._show(change(cast("S", self.value), message.payload, *more))

    def _failed(self, message: Message) -> None:
        error = error_of(message.payload)
        # Without a room it may be about anything.
        if message.room_id == self._room and (self._room is not None or error.code == NO_SNAPSHOT):
            self.error = refused(error)

    def _show(self, value: S) -> None:
        self.value = value
        for subscription, listener in tuple(self._listeners.items()):
            if subscription in self._listeners:
                listener(value)
