"""The part of :class:`kraftek.client.backend.Backend` that is about the states of rooms, and of the user."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from kraftek.client.frames import check_room
from kraftek.client.listeners import Listeners
from kraftek.client.messages import State
from kraftek.client.recovery import Recovery
from kraftek.client.refresh import LONGEST_TIMER
from kraftek.client.room_state import RoomState

__all__ = ["Snapshots"]

S = TypeVar("S")


class Snapshots(Listeners):
    """``_recovery``: that of the conversation."""

    _recovery: Recovery

    def __init__(self) -> None:
        super().__init__()
        self._snapshots: dict[str, Callable[[], Any]] = {}
        self._fetches: dict[str, Callable[[], None]] = {}

    def snapshot(self, room: str, fetch: Callable[[], Any]) -> Callable[[], None]:
        """Call ``fetch`` when the state of a room must be fetched: once it is entered, and again whenever messages may
        have been missed. Until the awaitable that it may return has fired, the room's messages wait. When it fails that
        is logged, listeners to ``error`` are called with ``NO_SNAPSHOT`` and the ``room_id``, and it is called again
        later. Enters no room. The result ends that. Raises ``ValueError``.
        """
        check_room(room)
        return self._snapshot(room, fetch)

    def user_snapshot(self, fetch: Callable[[], Any]) -> Callable[[], None]:
        """The same of what the user is told, in whatever room: once connected, and again whenever messages may have
        been missed. Listeners to ``error`` are called without a ``room_id``.
        """
        return self._snapshot(None, fetch)

    def room_state(
        self, room: str, snapshot: Callable[[], Any], changes: Mapping[str, Callable[..., S]]
    ) -> RoomState[S]:
        """Join a room, fetch its state, and let its messages change it: see :class:`RoomState`."""
        check_room(room)
        state = RoomState(self, room, snapshot, changes)
        self._call(lambda: self.join(room, timeout=LONGEST_TIMER), state.joined)
        return state

    def user_state(self, snapshot: Callable[[], Any], changes: Mapping[str, Callable[..., S]]) -> RoomState[S]:
        """The same of the user: what it is told outside of rooms changes it, such as its inbox."""
        return RoomState(self, None, snapshot, changes)

    def _snapshot(self, room: str | None, fetch: Callable[[], Any]) -> Callable[[], None]:
        key = self._recovery.snapshot(room)
        self._snapshots[key] = fetch
        self._act()

        def end() -> None:
            self._snapshots.pop(key, None)
            self._recovery.no_snapshot(key)
            self._stop_fetching(key)
            self._act()

        return end

    def _fetch(self, key: str) -> None:
        if key in self._snapshots:
            self._fetches[key] = self._call(self._snapshots[key], partial(self._fetched, key))

    def _fetched(self, key: str, result: object) -> None:
        del self._fetches[key]
        error = result if isinstance(result, BaseException) else None
        if error is not None and key in self._snapshots and self.state is not State.CLOSED:
            self._log_error("fetching the state of a room, or of the user, failed", error)
        self._recovery.fetched(key, error, self._now())
        self._act()

    def _stop_fetching(self, key: str) -> None:
        if (cancel := self._fetches.get(key)) is not None:
            cancel()

    @property
    @abstractmethod
    def state(self) -> State:
        """The state of the client."""

    @abstractmethod
    def join(self, room: str, *, timeout: float | None = None) -> Any:
        """Join a room; an awaitable."""

    @abstractmethod
    def _now(self) -> float:
        """Seconds of a monotonic clock."""

    @abstractmethod
    def _act(self) -> None:
        """Do what is to be done."""

    @abstractmethod
    def _call(self, call: Callable[[], Any], done: Callable[[object], None]) -> Callable[[], None]:
        """Call the user's function, later. ``done`` is called with what it returns, or what that awaitable fires with,
        or the exception. What is returned cancels it.
        """
